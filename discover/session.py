"""From what was asked for to a search that runs: settles a configuration, keeps the run's files beside the events.

What needs torch is imported last, so that a mistake in a search space shows at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import dsl
from discover.errors import UserError
from discover.events import Event, Finished, GenerationDone, Notice, Started
from discover.manifest import Configuration
from discover.runs import Run
from discover.space import Space


def configure(
    space: str,
    *,
    algorithm: str | None = None,
    seed: int = 0,
    candidates: int | None = None,
    seconds: float | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    compile: str | None = None,
    own_tasks: Sequence[str] = (),
) -> Configuration:
    """Checks what was asked for, and settles what was not.

    Args:
        space: name or YAML file.
        own_tasks: tasks to search on in place of the space's, by name or as "FILE.py:NAME".
        candidates, seconds: if neither is given, the space's budget holds.
        workers: by default one for each CPU this process may use.

    Raises:
        UserError: no such space, rule or task, or one that breaks its contract.
    """
    loaded = Space.load(space)
    import tasks
    from discover import plan

    loaded.check_tasks(tasks.names(), space)
    if own_tasks:
        loaded = loaded.with_tasks([_absolute(task) for task in own_tasks])
    for task in dict.fromkeys(name for rung in loaded.rungs for name in rung.tasks):
        try:
            tasks.load(task)
        except ValueError as error:
            raise UserError(str(error)) from None
    if candidates is None and seconds is None:
        candidates, seconds = loaded.budget.candidates, loaded.budget.seconds
    choice = compile or loaded.compile
    return Configuration(
        space=loaded,
        ancestors=tuple(dsl.format(program) for program in loaded.ancestors()),
        algorithm=algorithm or loaded.algorithm,
        seed=seed,
        compiled_from=plan.compile_choice(loaded, choice, seconds),
        native=plan.native_choice(choice),
        candidates=candidates,
        seconds=seconds,
        workers=len(os.sched_getaffinity(0)) if workers is None else workers,
        ray_address=ray_address,
    )


def search(run: Run, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Searches, from wherever the run's archive ends, and keeps `best.rule` up to date.

    Yields:
        Started, perhaps a Notice, then what the engine yields.
    """
    from discover import engine, gradient, plan

    asked = run.configuration
    settled = plan.Plan(
        space=asked.space,
        seed=asked.seed,
        algorithm=asked.algorithm,
        compiled_from=asked.compiled_from,
        native=asked.native,
        starts=asked.ancestors,
    )
    best: int | None = None
    with run.archive() as archive:
        yield Started(
            asked.space.name,
            asked.algorithm,
            asked.seed,
            asked.workers,
            archive.totals().generations,
            asked.compiled_from,
            asked.seconds,
            asked.candidates,
        )
        slow = [f"gradients of {task}" for task, start in asked.compiled_from.items() if start is None]
        slow += [] if asked.native else ["rules"]
        if slow and not gradient.have_compiler():
            yield Notice(f"no C++ compiler found: plain PyTorch, several times slower, for {', '.join(slow)}")
        events = engine.search(
            settled,
            archive,
            workers=asked.workers,
            ray_address=asked.ray_address,
            seconds=asked.seconds,
            candidates=asked.candidates,
            stop=stop,
        )
        with closing(cast(Generator[Event, None, None], events)):  # so that workers end before the archive is closed
            for event in events:
                head = event.best if isinstance(event, GenerationDone) else None
                if isinstance(event, Finished):
                    head = next(iter(event.leaderboard), None)
                if head is not None and (head.candidate.id != best or isinstance(event, Finished)):
                    best = head.candidate.id
                    run.write_best(head)
                yield event


def _absolute(task: str) -> str:
    path, colon, name = task.rpartition(":")
    return f"{Path(path).absolute()}:{name}" if colon and path.endswith(".py") else task
