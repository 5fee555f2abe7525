"""How much more two workers train than one: units trained a second, with everything proposed and gated beforehand.

Units of the space's first generations are made first; then the same units are trained by one worker and by several in
turn, several times, through the same Ray workers that a search has, so that whatever else the machine does meets both
alike. The driver does nothing but hand them out, so this is about workers and not about who has which core. The clock
runs from when every worker has trained a unit of each task to when the last unit is back. Beside the rates: what part
of their time workers trained, and seconds of training a model step, which grow where cores share caches, clocks or
memory, and where other programs take a worker's core. The figure is the median of the ratios of neighbours.

    python -m benchmarks.scaling [--pairs 5] [--generations 24] [--workers 2] [--space lion_like]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from discover import session
from discover.budget import Budget
from discover.costs import blocks
from discover.evaluate import Unit, UnitResult
from discover.plan import Plan
from discover.progress import Progress
from discover.workers import Crew, Workers, start

BAR = 1.9
LOOK_SECONDS = 0.5
PROGRAMS = 32
"""Of a unit here, at most: many are short beside the whole, so that its end, when one worker waits, is too."""


@dataclass(frozen=True, slots=True)
class Rate:
    units: float
    """A second."""
    training: float
    """Part of the workers' time."""
    step_seconds: float
    """Of training a model step."""


def units_of(space: str, generations: int) -> list[Unit]:
    """What the first rung of so many generations asks for, cut small, in an order that mixes tasks."""
    configuration = session.configure(space, budget=Budget(time="1m"), workers=1, compile="always")
    plan = Plan(
        configuration.space,
        configuration.seed,
        configuration.algorithm,
        dict.fromkeys(configuration.compiled_from, 0),
        configuration.native,
        configuration.ancestors,
    )
    progress = Progress(plan)
    units = [unit for number in range(generations) for _, unit in progress.propose(number).start()]
    order = np.random.default_rng(0).permutation(len(units))
    return [replace(units[index], entries=block) for index in order for block in blocks(units[index].entries, PROGRAMS)]


def measure(units: list[Unit], count: int) -> Rate:
    with closing(start(Crew(count=count))) as crew:
        tasks = {unit.instance.task: unit for unit in units}
        while crew.present() < 0.9 * LOOK_SECONDS * count:  # until all of them are there
            time.sleep(LOOK_SECONDS)
            crew.next(wait=False)
        for copy in range(2 * count):  # what is loaded once a process is loaded before the clock runs
            for task, unit in tasks.items():
                crew.submit((task, copy), replace(unit, entries=unit.entries[:1]))
        _ = [_wait(crew) for _ in range(2 * count * len(tasks))]
        crew.present()
        began = time.perf_counter()
        for index, unit in enumerate(units):
            crew.submit(index, unit)
        results = [_wait(crew) for _ in units]
        seconds, present = time.perf_counter() - began, crew.present()
    trained = sum(result.seconds for result in results)
    steps = sum(outcome.model_steps for result in results for outcome in result.outcomes)
    return Rate(len(units) / seconds, trained / present, trained / steps)


def _wait(crew: Workers) -> UnitResult:
    while (done := crew.next()) is None:
        pass
    assert isinstance(done.result, UnitResult)
    return done.result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="lion_like")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--generations", type=int, default=24, help="so many that the end, when one waits, is short")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    units = units_of(asked.space, asked.generations)
    print(f"{len(units)} units of {sum(len(unit.entries) for unit in units)} programs", flush=True)
    ratios, rates = [], []
    for pair in range(asked.pairs):
        one, many = (measure(units, count) for count in (1, asked.workers))
        rates.append((one, many))
        ratios.append(many.units / one.units)
        for count, rate in ((1, one), (asked.workers, many)):
            print(
                f"pair {pair}, {count} workers: {rate.units:.2f} units/s, training {rate.training:.0%} of their time,"
                f" {1e6 * rate.step_seconds:.1f} us a step, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        print(f"pair {pair}: {ratios[-1]:.2f} times as fast", flush=True)
    busy = statistics.median(many.training / one.training for one, many in rates)
    slower = statistics.median(one.step_seconds / many.step_seconds for one, many in rates)
    print(f"median {statistics.median(ratios):.2f} (bar {BAR} with 2); it is {asked.workers} workers", end=" ")
    print(f"x {busy:.2f} by how much of their time they train x {slower:.2f} by how fast they are then")


if __name__ == "__main__":
    main()
