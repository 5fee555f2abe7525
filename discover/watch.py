"""Runs a search in the foreground: shows it, lets Ctrl-C end it cleanly, and says at the end what came of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

from rich.console import Console

import dsl
from discover import session
from discover.console import ProgressView, front_lines, leaderboard, summary
from discover.errors import HaltedError
from discover.events import Event, Finished, GenerationDone
from discover.front import COSTS, costs
from discover.records import Ranked
from discover.runs import Run, program_of


def watch(run: Run, as_json: bool) -> None:
    """Runs a search to its end and shows it: on stderr while it runs where stdout is for JSON.

    Raises:
        HaltedError: a second Ctrl-C, or one while workers start or the first generation is trained: there is nothing
            yet that stopping with care would keep.
    """
    console = Console(stderr=as_json)
    finished: Finished | None = None
    learned = False
    try:
        with interruptible(console.print, lambda: learned) as stop:  # before a word is said: who reads it may answer
            console.print(f"run {run.name} in {run.folder}", highlight=False, markup=False, soft_wrap=True)
            for note in run.notes:
                console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
            with (
                ProgressView(console) as view,
                closing(cast(Generator[Event, None, None], session.search(run, stop))) as events,
            ):
                for event in events:
                    learned = learned or isinstance(event, GenerationDone)
                    view.show(event)
                    if isinstance(event, Finished):
                        finished = event
    except KeyboardInterrupt:
        what = "at once; what is stored is kept" if learned else "before a generation was done; nothing is lost"
        raise HaltedError(f"stopped {what}, 'discover resume {run.handle}' goes on") from None
    assert finished is not None
    if as_json:
        print(json.dumps(_summary(run, finished), indent=2))
    else:
        _print_summary(run, finished, console)


@contextmanager
def interruptible(
    say: Callable[[str], None], at_work: Callable[[], bool] = lambda: True
) -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the search to stop after the unit of work in hand; a second one stops at once, with exit code 130.

    Args:
        say: prints a line.
        at_work: whether there is anything to wait for; before that the first Ctrl-C stops at once. SIGTERM, which comes
            from a scheduler, never does: a search that it ends has not failed.

    Yields:
        Whether it was asked to stop.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        again, asked = asked, True  # kept in any case: Python drops what is raised in a finalizer or at a fork
        if again or (number == signal.SIGINT and not at_work()):
            raise KeyboardInterrupt
        say("stopping when the work in hand is done; Ctrl-C again to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_summary(run: Run, finished: Finished, console: Console) -> None:
    front = list(front_lines(finished))
    lines = [
        "",
        *leaderboard(finished.leaderboard, console.width),
        "",
        *front,
        *([""] if front else []),
        *summary(finished, run.configuration.budget),
        "",
    ]
    if finished.interrupted:
        lines += [f"interrupted; resume with: discover resume {run.handle}", ""]
    if finished.leaderboard:
        lines += [
            "next:",
            f"  discover show {run.handle}@1 --latex",
            f"  discover register {run.handle} --name my_rule",
            f"  discover export {run.handle}@1 -o my_rule.py",
            f"  discover report {run.handle}",
        ]
        tasks = run.configuration.space.tasks
        if tasks.select and tasks.final:
            lines += [f"  discover promote {run.handle}"]
    if not finished.interrupted:
        lines += [f"  discover resume {run.handle} --time 10m"]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _summary(run: Run, finished: Finished) -> dict[str, Any]:
    totals, best = finished.totals, next(iter(finished.leaderboard), None)
    return {
        "run": str(run.folder),
        "generations": totals.generations,
        "proposed": totals.proposed,
        "rejected": totals.rejected,
        "duplicates": totals.duplicates,
        "trained": totals.trained,
        "distinct": totals.distinct,
        "seconds": finished.elapsed,
        "model_steps": totals.model_steps,
        "proposed_per_second": finished.proposed / finished.elapsed if finished.elapsed else None,
        "trained_per_second": finished.trained / finished.elapsed if finished.elapsed else None,
        "time": totals.time,
        "incidents": finished.incidents,
        "interrupted": finished.interrupted,
        "ended": finished.ended,
        "best": best
        and {"rule": dsl.format(program_of(best, run.name)), "file": str(run.best_path), **_standing(best)},
        "leaderboard": [{"rank": each.rank, **_standing(each)} for each in finished.leaderboard],
        "front": [
            {"rank": each.rank, **_standing(each), **dict(zip(COSTS, costs(each), strict=True))}
            for each in finished.front
        ],
    }


def _standing(ranked: Ranked) -> dict[str, Any]:
    confirmation = ranked.confirmation
    return {
        "candidate": ranked.candidate.id,
        "score": ranked.fitness,
        "expected": ranked.expected,
        "confirmed": confirmation is not None,
        "error": confirmation and confirmation.error,
        "evaluations": confirmation.count if confirmation else 0,
    }
