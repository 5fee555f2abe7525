"""What proposers draw from: a generator for each proposal, and choices made with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.random.bit_generator import ISpawnableSeedSequence
from numpy.typing import NDArray

T = TypeVar("T")

_BLOCK = 256
"""Generators whose seeds are made at once."""


def generator(numbers: tuple[int, ...], place: int) -> Generator:
    """One of a stream of independent generators, which the numbers name, whatever the others are used for."""
    block, place = divmod(place, _BLOCK)
    seed: Any = _Words(_words((*numbers, block))[place])  # as numpy's documentation has it, if not its types
    return Generator(PCG64(seed))


@lru_cache(maxsize=16)
def _words(numbers: tuple[int, ...]) -> NDArray[np.uint64]:
    """What the generators of a block start from, [_BLOCK, 4]."""
    words = np.asarray(SeedSequence(numbers).generate_state(4 * _BLOCK, np.uint64), np.uint64).reshape(_BLOCK, 4)
    words.flags.writeable = False
    return words


class _Words(ISpawnableSeedSequence):
    """A seed that PCG64 starts from as it is: to make a `SeedSequence` for each takes ten times as long. What else is
    asked of it, such as children, it asks of one that is made then."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._words = words
        self._sequence: SeedSequence | None = None

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return self._words if (n_words, dtype) == (4, np.uint64) else self._made().generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> Any:
        return self._made().spawn(n_children)

    def _made(self) -> SeedSequence:
        if self._sequence is None:
            self._sequence = SeedSequence(self._words.tolist())
        return self._sequence


def pick(rng: Generator, among: Sequence[T]) -> T:
    """One of them, each as likely but for len / 2**53; in a quarter of the time that `Generator.integers` takes."""
    return among[int(rng.random() * len(among))]
