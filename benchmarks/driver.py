"""How many programs a second the driver proposes, gates, hands out, takes in and stores, with a thousand workers.

The workers are virtual: `discover.cluster` is the real one, and Ray is `benchmarks.virtual_ray`, whose actors sleep for
as long as a unit would take (`discover.costs`), with losses drawn from its candidates' ids. So the driver is the only
thing that works, as it would be the only thing on its core beside a cluster; what is missing of it is Ray's own part of
sending and receiving. Prints the rates, each phase as microseconds of a proposal, and with --profile where the time
goes by function.

At the speed of `lion_like`'s tasks that keeps a few workers busy, with units of a hundred programs. With --slower 100
a training takes a hundred times as long, units hold a program or two, and there is work for all.

    python -m benchmarks.driver [--workers 1000] [--generation 4096] [--seconds 30] [--space lion_like]
        [--slower 1] [--profile 25]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import dsl
import tasks
from benchmarks.virtual_ray import Sleeping
from discover import cluster, costs, runs, session
from discover.archive import Archive
from discover.budget import Budget
from discover.cluster import RayWorkers, connect
from discover.evaluate import Entry, Grid, Instance, Outcome, Unit, UnitResult
from discover.events import Finished
from discover.manifest import Configuration
from discover.records import OF_WORKERS
from discover.space import Space
from discover.workers import Crew

BAR = 3000.0
"""Programs a second that the driver proposes, gates and stores."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A search with virtual workers.

    Attributes:
        last: its end.
        spent: seconds of CPU that the driver took.
        units: how many were handed out and done; busy: seconds that workers slept over them.
        candidates, evaluations: rows that were stored.
    """

    last: Finished
    spent: float
    units: int
    busy: float
    candidates: int
    evaluations: int


def answer(unit: Unit) -> UnitResult:
    """What a worker would say, and how long it would take."""
    lanes = len(unit.entries) * unit.grid.points
    seconds = lanes * costs.seconds(tasks.load(unit.instance.task), unit.instance.steps)
    return UnitResult(tuple(_outcome(unit, index) for index in range(len(unit.entries))), seconds)


def _outcome(unit: Unit, index: int) -> Outcome:
    """Losses in a bowl around a middle that depends on candidate and instance."""
    candidate = unit.entries[index].candidate
    rng = np.random.default_rng([unit.instance.seed, 0 if candidate is None else candidate + 1])
    middle = float(np.exp(0.05 * rng.standard_normal()))
    rates = tuple(float(f"{0.01 * each:.6g}") for each in unit.grid.multipliers())
    losses = tuple(middle * (1.0 + 0.05 * (place - 2) ** 2) for place in range(len(rates)))
    return Outcome(candidate, rates, losses, len(rates) * unit.instance.steps)


def measure(configuration: Configuration, count: int, slower: float = 1.0) -> Measured:
    """A search by so many actors that sleep."""
    ray, estimate = Sleeping(count, answer), costs.seconds
    try:
        cluster.connect = lambda crew: ray
        costs.seconds = lambda *task: slower * estimate(*task)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            with runs.create(configuration, out=out) as run:
                began = time.process_time()
                *_, last = session.search(run)
                spent = time.process_time() - began - ray.elsewhere
            with Archive.read(out / runs.ARCHIVE) as archive:
                stored = [(len(each.candidates), len(each.evaluations)) for each in archive.generations()]
    finally:
        cluster.connect, costs.seconds = connect, estimate
    assert isinstance(last, Finished)
    candidates, evaluations = map(sum, zip(*stored, strict=True))
    return Measured(last, spent, ray.units, ray.busy, candidates, evaluations)


def handing(count: int, live: int, seconds: float) -> tuple[float, float]:
    """Hands out units of one program and about a second each, and takes them in, so many at a time and nothing else.

    Returns:
        Units a second, and seconds of the driver's CPU for each, sending them pickled included.
    """
    ray = Sleeping(count, lambda unit: UnitResult((), 0.8 + 0.4 * unit.instance.seed / live))
    text = dsl.format(dsl.load("adamw"))
    try:
        cluster.connect = lambda crew: ray
        workers = RayWorkers(Crew(count))
    finally:
        cluster.connect = connect
    entry, grid = Entry(1, text, 1.0, 0.0), Grid(5, 2.5)
    waiting, number, done = 0, 0, 0
    cpu, until = time.thread_time(), time.monotonic() + seconds
    while time.monotonic() < until:
        while waiting < live:
            number, waiting = number + 1, waiting + 1
            instance = Instance("quadratic", number % live, 40)
            workers.submit(number, Unit(instance, (entry,), grid, 1.0, 0.0, compiled=False, native=False))
        if workers.next() is not None:
            waiting, done = waiting - 1, done + 1
    cpu = time.thread_time() - cpu
    workers.close()
    return done / seconds, cpu / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="lion_like")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--generation", type=int, default=4096, help="proposals a generation")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--slower", type=float, default=1.0, help="times as long as lion_like's tasks take")
    parser.add_argument("--profile", type=int, default=0, metavar="LINES")
    asked = parser.parse_args()
    configuration = session.configure(asked.space, budget=Budget.of(seconds=asked.seconds), workers=asked.workers)
    plain = {**configuration.space.plain(), "proposals_per_generation": asked.generation}
    configuration = replace(configuration, space=Space.of(plain, asked.space))
    profile = cProfile.Profile(time.process_time) if asked.profile else None
    if profile:
        profile.enable()
    found = measure(configuration, asked.workers, asked.slower)
    if profile:
        profile.disable()
    last, totals = found.last, found.last.totals
    print(f"{asked.workers} virtual workers, {asked.generation} proposals a generation, space {asked.space}")
    print(f"{'a second':<28} {'of the clock':>12} {'of its CPU':>12}")
    for name, count in (
        (f"proposed (bar {BAR:.0f})", last.proposed),
        ("admitted by the gate, new", last.trained),
        ("stored, with duplicates", found.candidates),
        ("evaluations stored", found.evaluations),
        ("units handed out", found.units),
    ):
        print(f"{name:<28} {count / last.elapsed:12.0f} {count / found.spent:12.0f}")
    share, busy = found.spent / last.elapsed, found.busy / last.elapsed
    print(f"the driver had {share:.0%} of a core; {busy:.0f} of the workers were busy")
    per = {phase: 1e6 * s / totals.proposed for phase, s in totals.seconds.items() if phase not in OF_WORKERS}
    whole = sum(per.values())
    for phase, each in sorted(per.items(), key=lambda item: -item[1]):
        print(f"  {phase:<8} {each:7.1f} us a proposal  {each / whole:4.0%}")
    needed = 1e6 / BAR - sum(each for phase, each in per.items() if phase not in ("propose", "gate", "idle"))
    print(f"for the bar, proposing and gating may take {needed:.0f} us of one core; they take", end=" ")
    print(f"{per.get('propose', 0.0) + per.get('gate', 0.0):.0f}")
    for live in (2 * asked.workers, max(asked.workers // 3, 1)):
        rate, spent = handing(asked.workers, live, 6.0)
        print(f"handing out alone, {live} units of a second at a time: {rate:.0f} a second, {1e6 * spent:.0f} us each")
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(asked.profile)
        pstats.Stats(profile).sort_stats("cumtime").print_stats(asked.profile)


if __name__ == "__main__":
    main()
