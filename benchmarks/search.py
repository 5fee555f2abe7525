"""How fast a search is: candidates trained and programs proposed a second, and where the time goes.

Searches a space for some time after start-up, once with its first rung alone and once as it is, and prints for each the
rates that the end of every search prints. The rates count from when the first generation is in the archive; the shares
are of the whole. On a machine that others use, compare the driver's CPU time a proposal and not the rates.

    python -m benchmarks.search [--space lion_like] [--seconds 60] [--workers 2] [--compile auto|always|never]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from discover import runs, session
from discover.budget import Budget
from discover.events import Finished, GenerationDone
from discover.manifest import Configuration
from discover.space import Space

BARS = {"trained": 150.0, "proposed": 1000.0}


def first_rung(space: Space) -> Space:
    """The space with its first rung alone."""
    plain = space.plain()
    return Space.of({**plain, "rungs": plain["rungs"][:1]}, space.name)


def measure(configuration: Configuration) -> list[str]:
    cpu_began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, runs.create(configuration, out=Path(folder) / "run") as run:
        began: GenerationDone | None = None
        for event in session.search(run):
            if isinstance(event, GenerationDone) and began is None:
                began = event
            if isinstance(event, Finished):
                last = event
    assert began is not None
    seconds = last.elapsed - began.elapsed
    trained = last.totals.trained - began.totals.trained
    proposed = last.totals.proposed - began.totals.proposed
    steps = last.totals.model_steps - began.totals.model_steps
    whole, workers = last.elapsed, last.totals.time["workers"]
    driver = last.totals.time["driver"]
    cpu = time.process_time() - cpu_began
    return [
        f"{began.elapsed:.1f}",
        f"{trained / seconds:.0f}",
        f"{proposed / seconds:.0f}",
        f"{steps / seconds:,.0f}",
        f"{workers.get('share', 0.0):.0%}",
        *(f"{driver.get(phase, 0.0) / whole:.0%}" for phase in ("propose", "gate", "store")),
        f"{1e3 * workers['train'] / max(last.totals.trained, 1):.1f}",
        f"{1e3 * cpu / max(last.totals.proposed, 1):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="lion_like")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compile", choices=["auto", "always", "never"], default="auto")
    asked = parser.parse_args()
    configuration = session.configure(
        asked.space, budget=Budget.of(seconds=asked.seconds), workers=asked.workers, compile=asked.compile
    )
    table = Table(
        *("space", "first result, s", "trained/s", "proposed/s", "model-steps/s"),
        *(
            "workers training",
            "driver proposing",
            "gating",
            "storing",
            "training, ms each",
            "driver, CPU ms a proposal",
        ),
    )
    table.add_row("first rung", *measure(replace(configuration, space=first_rung(configuration.space))))
    table.add_row("all rungs", *measure(configuration))
    console = Console(width=200)
    console.print(table)
    compiled = [task for task, start in configuration.compiled_from.items() if start is not None]
    console.print(f"compiled gradients: {', '.join(compiled) or 'none'}; native rules: {configuration.native}")
    console.print(f"bars, first rung on 2 cores: {BARS['trained']:.0f} trained/s, {BARS['proposed']:.0f} proposed/s")


if __name__ == "__main__":
    main()
