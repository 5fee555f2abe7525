"""How many programs a second the driver proposes, gates, hands out, takes in and stores, with a thousand workers.

The workers are virtual: a unit is done when the seconds that it would take (`discover.costs`) are over, with losses
drawn from its candidates' ids, and nobody trains. So the driver is the only thing that works, as it would be the only
thing on its core beside a cluster. Prints the rate, each phase as microseconds of a proposal, and with --profile where
the time goes by function.

    python -m benchmarks.driver [--workers 1000] [--generation 8192] [--seconds 30] [--space lion_like] [--profile 25]
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import pstats
import tempfile
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import numpy as np

import tasks
from discover import costs, runs, session, workers
from discover.budget import Budget
from discover.evaluate import Outcome, Unit, UnitResult
from discover.events import Finished
from discover.manifest import Configuration
from discover.records import OF_WORKERS, Incident
from discover.space import Space
from discover.workers import Done

BAR = 3000.0
"""Programs a second that the driver proposes, gates and stores."""


class Virtual:
    """So many workers, each with one unit at a time; what they would be doing is a heap of times."""

    def __init__(self, count: int) -> None:
        self.notes: deque[str] = deque()
        self.incidents: deque[Incident] = deque()
        self.free, self.began = count, time.monotonic()
        self.count = count
        self._submitted = 0
        self._waiting: list[tuple[int, int, Hashable, Unit]] = []
        self._busy: list[tuple[float, int, float, Hashable, Unit]] = []

    def submit(self, key: Hashable, unit: Unit, order: int = 0) -> None:
        self._submitted += 1
        heapq.heappush(self._waiting, (order, self._submitted, key, unit))
        self._start()

    def _start(self) -> None:
        while self.free and self._waiting:
            _, number, key, unit = heapq.heappop(self._waiting)
            lanes = len(unit.entries) * unit.grid.points
            seconds = lanes * costs.seconds(tasks.load(unit.instance.task), unit.instance.steps)
            heapq.heappush(self._busy, (time.monotonic() + seconds, number, seconds, key, unit))
            self.free -= 1

    def next(self, wait: bool = True) -> Done | None:
        if not self._busy:
            return None
        left = self._busy[0][0] - time.monotonic()
        if left > 0:
            if not wait:
                return None
            time.sleep(left)
        _, _, seconds, key, unit = heapq.heappop(self._busy)
        self.free += 1
        self._start()
        return Done(key, UnitResult(tuple(_outcome(unit, index) for index in range(len(unit.entries))), seconds))

    def present(self) -> float:
        began, self.began = self.began, time.monotonic()
        return self.count * (self.began - began)

    def close(self) -> None:
        pass


def _outcome(unit: Unit, index: int) -> Outcome:
    """Losses in a bowl around a middle that depends on candidate and instance."""
    candidate = unit.entries[index].candidate
    rng = np.random.default_rng([unit.instance.seed, 0 if candidate is None else candidate + 1])
    middle = float(np.exp(0.05 * rng.standard_normal()))
    rates = tuple(float(f"{0.01 * each:.6g}") for each in unit.grid.multipliers())
    losses = tuple(middle * (1.0 + 0.05 * (place - 2) ** 2) for place in range(len(rates)))
    return Outcome(candidate, rates, losses, len(rates) * unit.instance.steps)


def measure(configuration: Configuration, count: int) -> tuple[Finished, float]:
    """The end of a search, and the seconds of its CPU that the driver took."""
    start = workers.start
    workers.start = lambda crew: Virtual(count)
    try:
        with tempfile.TemporaryDirectory() as folder, runs.create(configuration, out=Path(folder) / "run") as run:
            began = time.process_time()
            *_, last = session.search(run)
            spent = time.process_time() - began
    finally:
        workers.start = start
    assert isinstance(last, Finished)
    return last, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="lion_like")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--generation", type=int, default=4096, help="proposals a generation")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--profile", type=int, default=0, metavar="LINES")
    asked = parser.parse_args()
    configuration = session.configure(asked.space, budget=Budget.of(seconds=asked.seconds), workers=0)
    plain = {**configuration.space.plain(), "proposals_per_generation": asked.generation}
    configuration = replace(configuration, space=Space.of(plain, asked.space))
    profile = cProfile.Profile(time.process_time) if asked.profile else None
    if profile:
        profile.enable()
    last, spent = measure(configuration, asked.workers)
    if profile:
        profile.disable()
    totals = last.totals
    print(f"{asked.workers} virtual workers, {asked.generation} proposals a generation, space {asked.space}")
    rates = [last.proposed / last.elapsed, last.trained / last.elapsed]
    print(f"{rates[0]:.0f} proposals a second (bar {BAR:.0f}), {rates[1]:.0f} of them trained;")
    print(f"{last.proposed / spent:.0f} proposals a second of the driver's CPU time, on a core of its own")
    per = {phase: 1e6 * s / totals.proposed for phase, s in totals.seconds.items() if phase not in OF_WORKERS}
    whole = sum(per.values())
    for phase, each in sorted(per.items(), key=lambda item: -item[1]):
        print(f"  {phase:<8} {each:7.1f} us a proposal  {each / whole:4.0%}")
    needed = 1e6 / BAR - sum(each for phase, each in per.items() if phase not in ("propose", "gate", "idle"))
    print(f"for the bar, proposing and gating may take {needed:.0f} us of one core; they take", end=" ")
    print(f"{per.get('propose', 0.0) + per.get('gate', 0.0):.0f}")
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(asked.profile)
        pstats.Stats(profile).sort_stats("cumtime").print_stats(asked.profile)


if __name__ == "__main__":
    main()
