"""Where a search's time goes, and what is kept from taking it."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

COLLECT_SECONDS = 30.0
"""Between two searches for cycles in memory."""


class Clock:
    """Where the time went: phase -> seconds, since it was last taken. A phase inside another is not counted there.

    Phases of the driver add up to the time that went by: "propose", "gate", "absorb" (results taken in, units made),
    "store", "report" (the consumer's), and "idle", waiting for results, or "training" where this process trains. Those
    of `records.OF_WORKERS` are the workers' time. How long storing a generation took is known when it is stored, and so
    is counted with the next one.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = 0.0
        """Seconds of the phases that ended inside the one that is open."""
        self._open: list[tuple[str, float, float]] = []

    def __call__(self, phase: str) -> Self:
        """The phase that is entered next."""
        self._next = phase
        return self

    def __enter__(self) -> None:
        self._open.append((self._next, time.perf_counter(), self._inside))
        self._inside = 0.0

    def __exit__(self, *_: object) -> None:
        phase, began, before = self._open.pop()
        whole = time.perf_counter() - began
        self._seconds[phase] += whole - self._inside
        self._inside = before + whole

    def add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] += seconds

    def take(self) -> dict[str, float]:
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def added_to(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """These seconds and what is left here."""
        phases = {**seconds, **self._seconds}
        return {phase: seconds.get(phase, 0.0) + self._seconds.get(phase, 0.0) for phase in phases}


@contextmanager
def collecting_rarely() -> Iterator[Callable[[], None]]:
    """Holds off Python's search for cycles, and gives what does it where it is time to, among what is new since then.
    Programs and values are trees and make none; to look through all that a search remembers of them, again and again,
    takes as long as half of what proposing and gating take, and once after ten minutes five seconds."""
    running, last = gc.isenabled(), time.monotonic()

    def age() -> None:
        """Counts all that is there as old, so that it is not looked through."""
        gc.freeze()
        gc.unfreeze()

    def collect() -> None:
        nonlocal last
        if time.monotonic() - last >= COLLECT_SECONDS:
            gc.collect(0)
            age()
            last = time.monotonic()

    gc.disable()
    try:
        yield collect
    finally:
        age()
        if running:
            gc.enable()
