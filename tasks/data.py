"""The data that tasks train on: read once a process, split once and for all, standardised by the training part.

A `Split` holds its tensors as a task wants them; nothing here is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics
from types import ModuleType

import torch
from sklearn import datasets
from torch import Tensor

from tasks.task import Batch, sha256

SYMBOLS = 97  # newline, the 95 printable ASCII bytes, and one for all others
BLOCK = 4096  # bytes; every tenth block of the text is held out
HELD_OUT_EVERY = 10

_SPLIT_SEED = 20240229


@dataclass(frozen=True, slots=True)
class Split:
    """Training and held-out examples, and the SHA-256 of the raw data they were made from."""

    train: Batch
    held_out: Batch
    data_sha256: str


@cache
def digits() -> Split:
    """Handwritten digits, 8x8 grey levels: x [examples, 64] float32, y [examples] int64; 1200 + 597 examples.

    Standardised with one mean and one deviation over all pixels, so that constant pixels stay harmless.

    Source: Alpaydin and Kaynak 1998, UCI "Optical recognition of handwritten digits", as in scikit-learn.
    """
    raw = datasets.load_digits()
    x, y = torch.tensor(raw.data, dtype=torch.float32), torch.tensor(raw.target, dtype=torch.int64)
    train, held_out = shuffled_parts(len(x), held_out=597)
    mean, deviation = x[train].mean(), x[train].std()
    z = (x - mean) / deviation
    return Split((z[train], y[train]), (z[held_out], y[held_out]), sha256(x, y))


@cache
def breast_cancer() -> Split:
    """Tumours as 30 measured features: x [examples, 30] float32, y [examples] int64 (1 benign); 455 + 114 examples.

    Each feature is standardised.

    Source: Street, Wolberg and Mangasarian 1993, UCI "Breast Cancer Wisconsin (Diagnostic)", as in scikit-learn.
    """
    raw = datasets.load_breast_cancer()
    x, y = torch.tensor(raw.data, dtype=torch.float64), torch.tensor(raw.target, dtype=torch.int64)
    train, held_out = shuffled_parts(len(x), held_out=114)
    mean, deviation = x[train].mean(0), x[train].std(0)
    z = ((x - mean) / deviation).float()
    return Split((z[train], y[train]), (z[held_out], y[held_out]), sha256(x, y))


@cache
def diabetes() -> Split:
    """Patients as 10 measurements: x [examples, 10] float32, y [examples] float32, how far the illness went in a year.

    342 + 100 examples; each measurement and y are standardised.

    Source: Efron, Hastie, Johnstone and Tibshirani 2004, as in scikit-learn.
    """
    raw = datasets.load_diabetes(scaled=False)
    x, y = torch.tensor(raw.data, dtype=torch.float64), torch.tensor(raw.target, dtype=torch.float64)
    train, held_out = shuffled_parts(len(x), held_out=100)
    z, target = (((v - v[train].mean(0)) / v[train].std(0)).float() for v in (x, y))
    return Split((z[train], target[train]), (z[held_out], target[held_out]), sha256(x, y))


@cache
def wine() -> Split:
    """Wines as 13 chemical measurements: x [examples, 13] float32, y [examples] int64, one of three growers; 118 + 60.

    Each measurement is standardised.

    Source: Aeberhard and Forina 1991, UCI "Wine", as in scikit-learn.
    """
    raw = datasets.load_wine()
    x, y = torch.tensor(raw.data, dtype=torch.float64), torch.tensor(raw.target, dtype=torch.int64)
    train, held_out = shuffled_parts(len(x), held_out=60)
    z = ((x - x[train].mean(0)) / x[train].std(0)).float()
    return Split((z[train], y[train]), (z[held_out], y[held_out]), sha256(x, y))


@cache
def photograph(name: str, block: int) -> Split:
    """A colour photograph of scikit-learn's, "china" or "flower", each square of `block` pixels a side averaged to one
    point.

    Returns: coordinates [points, 2] float32 (down, right), the longer side from -1 to 1, and colours [points, 3]
    float32, standardised a channel; three quarters of the points to train on, the others held out.

    Source: flickr.com/photos/danielbuechele/6061409035 and flickr.com/photos/vultilion/6056698931, CC BY 2.0.
    """
    pixels = torch.from_numpy(datasets.load_sample_image(f"{name}.jpg").copy())
    rows, columns = (size // block for size in pixels.shape[:2])
    whole = pixels[: rows * block, : columns * block].double()
    colours = whole.view(rows, block, columns, block, 3).mean((1, 3)).flatten(0, 1)
    down, right = (
        (torch.arange(n, dtype=torch.float64) + 0.5 - n / 2) * 2 / max(rows, columns) for n in (rows, columns)
    )
    places = torch.cartesian_prod(down, right).float()
    train, held_out = shuffled_parts(len(places), held_out=len(places) // 4)
    z = ((colours - colours[train].mean(0)) / colours[train].std(0)).float()
    return Split((places[train], z[train]), (places[held_out], z[held_out]), sha256(pixels))


def package(name: str, extra: str) -> ModuleType:
    """An optional package. Raises ValueError that says what to install where it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ValueError(
            f"needs the package '{missing.partition('.')[0]}'; from a checkout:"
            f" pip install -c constraints.txt -e '.[{extra}]'"
        ) from None


def shuffled_parts(examples: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Indices of a training and a held-out part, drawn with a seed that never changes."""
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return order[held_out:], order[:held_out]


def manual_text() -> str:
    """The Python manual's topics that come with the interpreter, sorted by name; about 470 kB of English and code.

    Another version of Python has another text; `Split.data_sha256` tells them apart.

    Source: `pydoc_data.topics` of the standard library.
    """
    return "\n".join(text for _, text in sorted(topics.items()))


def as_symbols(raw: bytes) -> Tensor:
    """Bytes as symbols [len(raw)] int64: 0 any other byte, 1 newline, 2 to 96 printable ASCII.

    The alphabet does not depend on the text, so that a model has as many parameters under every version of Python.
    """
    symbol = torch.zeros(256, dtype=torch.int64)
    symbol[ord("\n")] = 1
    symbol[ord(" ") : ord("~") + 1] = torch.arange(2, SYMBOLS)
    return symbol[torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()]


def manual_blocks() -> tuple[Tensor, Tensor]:
    """The manual in blocks of 4096 symbols, [blocks, 4096] int64 each: to train on, and every tenth, held out."""
    text = as_symbols(manual_text().encode())
    blocks = text[: len(text) // BLOCK * BLOCK].view(-1, BLOCK)
    out = torch.arange(len(blocks)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return blocks[~out], blocks[out]


@cache
def manual(length: int, *, stride: int, held_out: int) -> Split:
    """Windows of the manual, none across the edge of a block: one tensor [examples, length] int64 of symbols.

    Args:
        length: symbols in a window; the last is only ever a target.
        stride: symbols from one training window to the next.
        held_out: how many windows to hold out, evenly spread over the held-out blocks.
    """
    train, others = (blocks.unfold(1, length, 1) for blocks in manual_blocks())
    pool = others.reshape(-1, length)
    spread = torch.linspace(0, len(pool) - 1, held_out, dtype=torch.float64).long()
    digest = hashlib.sha256(manual_text().encode()).hexdigest()
    return Split((train[:, ::stride].reshape(-1, length),), (pool[spread],), digest)
