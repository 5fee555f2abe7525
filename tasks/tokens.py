"""Token shards on disk as one stream of windows: files of 16-bit tokens, read through a memory map.

Two formats, both little-endian uint16 tokens:
- raw, as nanoGPT's `prepare.py` writes `train.bin` and `val.bin`: tokens and nothing else;
- with a header, as llm.c and modded-nanogpt write `fineweb_train_000001.bin`: 256 int32, of which the first three are
  20240520, the version 1 and the number of tokens.

Nothing is read but what a batch asks for, so ten billion tokens take no more memory than ten thousand.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.data import Split

MAGIC, VERSION = 20240520, 1
GPT2_VOCABULARY = 50304  # 50257 symbols, filled up to a multiple of 128 as nanoGPT and its descendants do

_HEADER = 256 * 4  # bytes
_SAMPLES, _SAMPLE = 64, 4096  # how many pieces of a shard, of how many bytes, go into its hash

_LAYOUT = "train.bin and val.bin, or *_train*.bin and *_val*.bin"


class Tokens:
    """Shards, one after the other, as one sequence of tokens.

    Args:
        paths: files, in the order in which they follow each other.
        vocabulary: tokens must be below it.

    Raises:
        ValueError: a file that is no shard, or is cut short; says which, and what was expected.
    """

    def __init__(self, paths: Sequence[Path], vocabulary: int = GPT2_VOCABULARY) -> None:
        if not 1 <= vocabulary <= 65536:
            raise ValueError(f"vocabulary {vocabulary}: expected 1 to 65536, as tokens are 16-bit numbers")
        self.paths, self.vocabulary = tuple(paths), vocabulary
        self._shards = [_map(path) for path in paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """The `length` tokens from each of `starts`, int64 [...] -> int64 [..., length], on the CPU.

        A window may go on from one shard to the next.

        Raises:
            ValueError: a token there is outside the vocabulary; says in which file, and where.
        """
        places = starts.cpu().numpy()[..., None] + np.arange(length)
        which = np.searchsorted(self._ends, places, side="right")
        tokens = np.empty(places.shape, dtype=np.int64)
        for shard in np.unique(which):
            mine = which == shard
            inside = places[mine] - (self._ends[shard] - len(self._shards[shard]))
            tokens[mine] = read = self._shards[shard][inside]
            if (above := read >= self.vocabulary).any():
                first = int(above.argmax())
                raise ValueError(
                    f"{self.paths[shard]}: token {read[first]} at position {inside[first]} is outside the vocabulary "
                    f"of {self.vocabulary}; give the vocabulary these tokens were made with"
                )
        return torch.from_numpy(tokens)

    def sha256(self) -> str:
        """Of each shard: its size, its first 1024 bytes (the header, where there is one) and 64 pieces of 4096 bytes,
        evenly spread from its beginning to its end; so all of a shard of up to 256 kB.

        Not of every byte: hashing 20 GB would take longer than many trainings.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            size = path.stat().st_size
            digest.update(f"{size}:".encode())
            with path.open("rb") as file:
                digest.update(file.read(_HEADER))
                for start in np.linspace(0, max(0, size - _SAMPLE), _SAMPLES).astype(int):
                    file.seek(start)
                    digest.update(file.read(_SAMPLE))
        return digest.hexdigest()


def windows(path: Path | str, length: int, *, vocabulary: int, held_out: int) -> tuple[Tokens, Split]:
    """Windows of the shards at `path`: the stream to train on, and a split whose parts are not alike.

    Args:
        path: see `find`.
        length: tokens in a window; the last is only ever a target, and the first of the next window.
        vocabulary: tokens must be below it.
        held_out: how many windows of those held out to read, from their beginning; all, if there are fewer.

    Returns:
        The stream, for `Tokens.windows`; and as `train` where in it each window begins, int64 [windows], as `held_out`
        the windows themselves, int64 [windows, length].

    Raises:
        ValueError: as `find` and `Tokens` do, or fewer tokens than a window.
    """
    streams = [Tokens(paths, vocabulary) for paths in find(path)]
    starts = []
    for stream in streams:
        count = (len(stream) - 1) // (length - 1)
        if count < 1:
            raise ValueError(f"{stream.paths[0]}: {len(stream)} tokens, expected at least a window of {length}")
        starts.append(torch.arange(count) * (length - 1))
    train, validation = streams
    digest = hashlib.sha256(f"{train.sha256()}{validation.sha256()}".encode()).hexdigest()
    return train, Split((starts[0],), (validation.windows(starts[1][:held_out], length),), digest)


def find(path: Path | str) -> tuple[list[Path], list[Path]]:
    """The shards to train on and those held out, each sorted by name.

    Args:
        path: a folder with train.bin and val.bin, or with *_train*.bin and *_val*.bin (FineWeb10B, TinyStories); or a
            file or a glob of training shards, with those held out among them or in the same folder.

    Raises:
        ValueError: nothing is there, or only one of the two parts.
    """
    where = Path(path).expanduser()
    files = sorted(where.glob("*.bin")) if where.is_dir() else [Path(x) for x in sorted(glob.glob(str(where)))]
    if not files:
        raise ValueError(f"{path}: no token shards there; expected a folder with {_LAYOUT}, or a glob of such files")
    train = [x for x in files if _is_part(x, "train")]
    held_out = [x for x in files if _is_part(x, "val")] or [x for x in _beside(files[0]) if _is_part(x, "val")]
    for part, found in (("train on", train), ("hold out", held_out)):
        if not found:
            raise ValueError(f"{path}: no token shards to {part}, among {len(files)} .bin files; expected {_LAYOUT}")
    return train, held_out


def _is_part(path: Path, part: str) -> bool:
    return path.stem == part or f"_{part}" in path.stem


def _beside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.bin"))


def _map(path: Path) -> NDArray[np.uint16]:
    """The tokens of a shard, in whichever of the two formats: train.bin and val.bin may have no header."""
    try:
        size = path.stat().st_size
        start = np.fromfile(path, dtype="<i4", count=3)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    headed = len(start) == 3 and start[0] == MAGIC
    if not headed and path.stem not in ("train", "val"):
        found = f"magic {start[0]}" if len(start) else f"{size} bytes"
        raise ValueError(
            f"{path}: not a token shard: {found}, expected {MAGIC}, as llm.c and modded-nanogpt write GPT-2 tokens; "
            "shards without a header are named train.bin and val.bin"
        )
    if not headed:
        if size % 2 or not size:
            raise ValueError(f"{path}: {size} bytes are no sequence of 16-bit tokens; is it truncated?")
        return np.memmap(path, dtype="<u2", mode="r")
    version, count = int(start[1]), int(start[2])
    if version != VERSION:
        raise ValueError(f"{path}: token shard of version {version}, expected {VERSION}")
    if size != _HEADER + 2 * count:
        raise ValueError(
            f"{path}: {size} bytes, expected {_HEADER + 2 * count}, as its header says {count} tokens; is it truncated?"
        )
    if count == 0:
        raise ValueError(f"{path}: holds no tokens")
    return np.memmap(path, dtype="<u2", mode="r", offset=_HEADER)
