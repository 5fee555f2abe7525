"""How fast a search is: candidates trained and programs proposed a second, and where the time goes.

Searches a space for some time after start-up, once with its first rung alone and once as it is, and prints for each the
rates that the end of every search prints. The rates count from when the first generation is in the archive.

    python -m benchmarks.search [--space lion_like] [--seconds 60] [--workers 2] [--compile auto|always|never]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from discover import runs, session
from discover.events import Finished, GenerationDone
from discover.manifest import Configuration
from discover.space import Space

BARS = {"trained": 60.0, "proposed": 300.0}


def first_rung(space: Space) -> Space:
    """The space with its first rung alone."""
    plain = space.plain()
    return Space.of({**plain, "rungs": plain["rungs"][:1]}, space.name)


def measure(configuration: Configuration) -> list[str]:
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
    phases = last.totals.seconds
    capacity = last.elapsed * max(1, configuration.workers)
    return [
        f"{began.elapsed:.1f}",
        f"{trained / seconds:.0f}",
        f"{proposed / seconds:.0f}",
        f"{steps / seconds:,.0f}",
        f"{phases.get('train', 0.0) / capacity:.0%}",
        f"{phases.get('propose', 0.0) / last.elapsed:.0%}",
        f"{phases.get('store', 0.0) / last.elapsed:.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="lion_like")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compile", choices=["auto", "always", "never"], default="auto")
    asked = parser.parse_args()
    configuration = session.configure(asked.space, seconds=asked.seconds, workers=asked.workers, compile=asked.compile)
    table = Table(
        *("space", "first result, s", "trained/s", "proposed/s", "model-steps/s"),
        *("workers training", "driver proposing", "driver storing"),
    )
    table.add_row("first rung", *measure(replace(configuration, space=first_rung(configuration.space))))
    table.add_row("all rungs", *measure(configuration))
    console = Console(width=140)
    console.print(table)
    compiled = [task for task, start in configuration.compiled_from.items() if start is not None]
    console.print(f"compiled gradients: {', '.join(compiled) or 'none'}; native rules: {configuration.native}")
    console.print(f"bars, first rung on 2 cores: {BARS['trained']:.0f} trained/s, {BARS['proposed']:.0f} proposed/s")


if __name__ == "__main__":
    main()
