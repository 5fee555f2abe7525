"""How much faster two workers are than one, and what keeps them from being twice as fast.

Searches with one worker and with two in turn, several times, so that whatever else the machine does meets both alike;
the figure is the median of the ratios of neighbours. Rates are model steps a second from the end of the third
generation on, when every worker has loaded what it needs. Beside it, for each: what part of their time workers trained,
seconds of training a model step (it grows where cores share caches, clocks or memory, or where the driver takes a
worker's core), and how much of a core the driver took.

    python -m benchmarks.scaling [--pairs 3] [--seconds 40] [--workers 2] [--space lion_like]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from discover import runs, session
from discover.events import GenerationDone
from discover.manifest import Configuration

BAR = 1.9
WARM = 2
"""The generation with whose end measuring begins."""


@dataclass(frozen=True, slots=True)
class Rate:
    steps: float
    """Model steps a second."""
    training: float
    """Part of the workers' time."""
    step_seconds: float
    """Of training a model step."""
    driver: float
    """Cores that the driver took."""
    proposed: float
    """A second."""


def measure(configuration: Configuration) -> Rate:
    with tempfile.TemporaryDirectory() as folder, runs.create(configuration, out=Path(folder) / "run") as run:
        marks = [
            (event, time.process_time())
            for event in session.search(run)
            if isinstance(event, GenerationDone) and event.record.number >= WARM
        ]
    (first, cpu), (last, cpu_then) = marks[0], marks[-1]
    if first is last:
        raise SystemExit(f"nothing to measure after {first.elapsed:.0f} s; give more --seconds")
    seconds = last.elapsed - first.elapsed
    steps = last.totals.model_steps - first.totals.model_steps

    def during(phase: str) -> float:
        return last.totals.seconds.get(phase, 0.0) - first.totals.seconds.get(phase, 0.0)

    return Rate(
        steps / seconds,
        during("train") / during("present"),
        during("train") / steps,
        (cpu_then - cpu) / seconds,
        (last.totals.proposed - first.totals.proposed) / seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="lion_like")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    configuration = session.configure(asked.space, seconds=asked.seconds, workers=1)
    ratios, rates = [], []
    for pair in range(asked.pairs):
        one, many = (measure(replace(configuration, workers=count)) for count in (1, asked.workers))
        rates.append((one, many))
        ratios.append(many.steps / one.steps)
        for count, rate in ((1, one), (asked.workers, many)):
            print(
                f"pair {pair}, {count} workers: {rate.steps:,.0f} model steps/s, {rate.proposed:.0f} proposed/s,"
                f" training {rate.training:.0%} of their time, {1e6 * rate.step_seconds:.1f} us a step,"
                f" driver {rate.driver:.2f} cores, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        print(f"pair {pair}: {ratios[-1]:.2f} times as fast", flush=True)
    busy = statistics.median(many.training / one.training for one, many in rates)
    slower = statistics.median(one.step_seconds / many.step_seconds for one, many in rates)
    print(f"median {statistics.median(ratios):.2f} (bar {BAR} with 2); it is {asked.workers} workers", end=" ")
    print(f"x {busy:.2f} by how much of their time they train x {slower:.2f} by how fast they are then")


if __name__ == "__main__":
    main()
