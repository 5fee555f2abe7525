"""What a report is made of: a run's archive read once, as numbers to show. Reads also while a search writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from discover.archive import Archive
from discover.errors import RunError
from discover.manifest import Manifest, read_manifest
from discover.records import (
    OF_WORKERS,
    REFERENCE_LOST,
    Candidate,
    Evaluation,
    Generation,
    Incident,
    Ranked,
    Totals,
)
from discover.runs import ARCHIVE, CERTIFICATE, PROMOTION, READABLE, state_of
from discover.standing import Confirmed

PLACES = 10
"""Of the leaderboard."""


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a search was at the end of a generation.

    Attributes:
        generation: its number.
        proposed, trained, model_steps: in all, up to here.
        seconds: of searching, up to here.
        seen: the best fitness that the search itself saw up to here, not confirmed; None for none.
        leader: the candidate at the head of the leaderboard; None while nobody is confirmed.
        fitness, error, count: its mean on fresh instances then, the standard error, and of how many.
    """

    generation: int
    proposed: int
    trained: int
    model_steps: int
    seconds: float
    seen: float | None
    leader: int | None = None
    fitness: float | None = None
    error: float | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """A run, as a reader of a report wants it.

    Attributes:
        moments: one for each generation.
        dots: proposal number and the search's own fitness of each trained candidate, by rung.
        statuses: how many proposals came to what; "reference lost" for those whose instances scored nobody.
        rungs: how many candidates were trained on each rung, at least.
        front: of the confirmed, then who would join it, as `discover.front` says.
        lineage: of the head of the leaderboard, the first ancestor first; by first parents.
        by_task: of the head of the leaderboard: task -> scores on fresh instances.
        extras: file name -> what it holds, of what promotion added.
    """

    folder: Path
    manifest: Manifest
    state: str
    totals: Totals
    moments: tuple[Moment, ...]
    dots: Mapping[int, tuple[tuple[int, float], ...]]
    statuses: Mapping[str, int]
    rungs: tuple[int, ...]
    confirmed: int
    leaderboard: tuple[Ranked, ...]
    front: tuple[Ranked, ...]
    lineage: tuple[Candidate, ...]
    by_task: Mapping[str, tuple[float, ...]]
    incidents: tuple[Incident, ...]
    extras: Mapping[str, Any]


def gather(folder: Path, places: int = PLACES) -> Report:
    """Reads a run.

    Raises:
        RunError: not a run, of another version, or damaged.
    """
    manifest = read_manifest(folder)
    with Archive.read(folder / ARCHIVE) as archive:
        trace = _Trace()
        timings = archive.timings()
        for generation in archive.generations():
            trace.add(generation, timings.get(generation.record.number, {}))
        leaderboard = archive.leaderboard(places)
        best = leaderboard[0].candidate if leaderboard else None
        return Report(
            folder=folder,
            manifest=manifest,
            state=state_of(folder, archive),
            totals=archive.totals(),
            moments=tuple(trace.moments),
            dots={rung: tuple(dots) for rung, dots in sorted(trace.dots.items())},
            statuses=dict(trace.statuses.most_common()),
            rungs=tuple(sum(n for at, n in trace.rungs.items() if at >= rung) for rung in sorted(trace.rungs)),
            confirmed=len(trace.confirmed.latest),
            leaderboard=leaderboard,
            front=archive.front(),
            lineage=tuple(archive.lineage(best.id if best else None)),
            by_task=_by_task(archive.evaluations_of(best.id) if best else ()),
            incidents=archive.incidents(),
            extras={
                name: _extra(folder / name) for name in (PROMOTION, CERTIFICATE, READABLE) if (folder / name).exists()
            },
        )


def curve_of(promotion: Any) -> list[Mapping[str, Any]]:
    """The meta-overfitting curve in what promotion wrote, wherever it is: rows with a generation and a score on select
    tasks; none if there is none."""
    if isinstance(promotion, list) and promotion and all(map(_is_point, promotion)):
        return promotion
    parts = promotion.values() if isinstance(promotion, dict) else promotion if isinstance(promotion, list) else ()
    return next((found for part in parts if (found := curve_of(part))), [])


def _is_point(row: Any) -> bool:
    return isinstance(row, dict) and {"generation", "score"} <= set(row)


class _Trace:
    """What accumulates over the generations."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.dots: dict[int, list[tuple[int, float]]] = {}
        self.statuses: Counter[str] = Counter()
        self.rungs: Counter[int] = Counter()
        self.confirmed = Confirmed()
        self._proposed = self._trained = self._steps = 0
        self._seconds = 0.0
        self._seen: float | None = None

    def add(self, generation: Generation, seconds: Mapping[str, float]) -> None:
        record = generation.record
        self._proposed += record.proposed
        self._trained += record.trained
        self._steps += record.model_steps
        self._seconds += sum(s for phase, s in seconds.items() if phase not in OF_WORKERS)
        self._seen = max((best for best in (self._seen, record.best_fitness) if best is not None), default=None)
        for one in generation.candidates:
            self.statuses["reference lost" if one.reason == REFERENCE_LOST else one.status] += 1
            if one.rung is not None and one.status != "duplicate":
                self.rungs[one.rung] += 1
                if one.fitness is not None:
                    self.dots.setdefault(one.rung, []).append((one.id, one.fitness))
        self.confirmed.add(generation)
        head = next(iter(self.confirmed.in_order()), None)
        now = Moment(
            generation=record.number,
            proposed=self._proposed,
            trained=self._trained,
            model_steps=self._steps,
            seconds=self._seconds,
            seen=self._seen,
        )
        if head is not None:
            now = replace(now, leader=head.candidate, fitness=head.fitness, error=head.error, count=head.count)
        self.moments.append(now)


def _by_task(evaluations: Sequence[Evaluation]) -> dict[str, tuple[float, ...]]:
    scores: dict[str, list[float]] = {}
    for each in evaluations:
        if each.kind == "confirm" and each.score is not None:
            scores.setdefault(each.task, []).append(each.score)
    return {task: tuple(own) for task, own in scores.items()}


def _extra(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else text
    except OSError as error:
        raise RunError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError:
        raise RunError(f"{path}: is damaged (not JSON)") from None
