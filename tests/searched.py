"""Runs as a search leaves them, of given generations: for what comes after a search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import dsl
from discover import runs
from discover.budget import Budget
from discover.manifest import Configuration
from discover.records import Candidate, Confirmation, Generation, GenerationRecord
from discover.space import Space


def generation(
    number: int, candidates: Sequence[Candidate] = (), confirmations: Sequence[Confirmation] = ()
) -> Generation:
    """A generation that trained all that it proposed."""
    count = len(candidates)
    record = GenerationRecord(number, count, {}, 0, count, (), 0, None, (), ())
    return Generation(record, tuple(candidates), (), tuple(confirmations))


def run_of(
    space: Space,
    generations: Iterable[Generation],
    out: Path,
    *,
    seed: int = 3,
    command: Sequence[str] = ("discover", "search"),
) -> Path:
    """The folder of a run of evolution in this space that has these generations.

    Raises:
        RunError: the folder is in use, or cannot be written.
    """
    configuration = Configuration(
        space=space,
        ancestors=tuple(dsl.format(dsl.load(name)) for name in space.ancestor),
        algorithm="evolution",
        seed=seed,
        compiled_from=dict.fromkeys(space.tasks.search),
        native=True,
        budget=Budget(candidates=10),
        workers=0,
    )
    with runs.create(configuration, out=out, command=command) as run, run.archive() as archive:
        for each in generations:
            archive.commit_generation(each)
    return out
