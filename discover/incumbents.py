"""Who led a run when, and how its leaders do on tasks that the search never saw: the meta-overfitting curve.

A search fits its own tasks more and more. Where its leaders stop getting better on the select tasks, what it learns is
those tasks, and candidates are better taken from before (Chen et al. 2023, arXiv:2302.06675, section 4: of 50 runs
about half over-fit early).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from discover.archive import Archive
from discover.contest import Contest, differences
from discover.records import Candidate, Generation
from discover.standing import Confirmed
from discover.statistics import Array

SURE = 2.0
"""Standard errors by which a curve must fall to be seen to fall."""


@dataclass(frozen=True, slots=True)
class Leader:
    """A candidate that led the run's leaderboard from the end of a generation on."""

    generation: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the curve.

    Attributes:
        generation: from whose end on it led.
        candidate: who.
        fitness: its fitness in the search then.
        score: on select tasks: log loss of the baseline less its own, tuned alike on a small budget; higher is better.
        error: standard error of the score, over tunings.
        apart: standard error of how far it is below the best leader, tuning against tuning on the same seeds: what the
            baseline's luck and that of the seeds have no part in.
    """

    generation: int
    candidate: int
    fitness: float | None
    score: float
    error: float
    apart: float


class Standing:
    """The leaderboard as it was at the end of each generation: what `Archive.leaderboard` says at the end of all."""

    def __init__(self) -> None:
        self.candidates: dict[int, Candidate] = {}
        self.confirmed = Confirmed()

    def add(self, generation: Generation) -> None:
        self.candidates |= {each.id: each for each in generation.candidates if each.status == "trained"}
        self.confirmed.add(generation)

    def places(self) -> list[int]:
        """All candidates with a place, the first first."""
        first, met = self.confirmed.in_order(), self.confirmed.latest
        others = [c for c in self.candidates.values() if c.fitness is not None and c.id not in met]
        second = sorted(others, key=lambda each: (-(each.fitness or 0.0), each.id))
        return [each.candidate for each in first] + [each.id for each in second]

    def fitness(self, candidate: int) -> float | None:
        confirmation = self.confirmed.latest.get(candidate)
        return self.candidates[candidate].fitness if confirmation is None else confirmation.fitness


def standings(archive: Archive, generations: int | None = None) -> Iterator[tuple[int, Standing]]:
    """The standing at the end of each generation, or of the first so many; one object, which changes."""
    standing = Standing()
    for generation in islice(archive.generations(), generations):
        standing.add(generation)
        yield generation.record.number, standing


def leaders(archive: Archive, generations: int | None = None) -> list[tuple[Leader, float | None]]:
    """Each candidate that took the lead in the first so many generations (None: all), with its fitness in the search
    then; of one that led twice the first."""
    found: list[tuple[Leader, float | None]] = []
    seen: set[int] = set()
    for number, standing in standings(archive, generations):
        head = next(iter(standing.places()), None)
        if head is not None and head not in seen:
            seen.add(head)
            found.append((Leader(number, head), standing.fitness(head)))
    return found


def thinned(found: Sequence[tuple[Leader, float | None]], most: int) -> list[tuple[Leader, float | None]]:
    """At most so many of them, evenly; the last one always."""
    if len(found) <= most:
        return list(found)
    places = np.unique(np.linspace(len(found) - 1, 0, most).round().astype(int))
    return [found[place] for place in places]


def curve(found: Sequence[tuple[Leader, float | None]], names: Sequence[str], contest: Contest) -> list[Point]:
    """The curve from a contest of the leaders, `names` in their order, against one baseline."""
    (baseline,) = contest.baselines
    scores = [-differences(contest.results, name, baseline) for name in names]
    best = max(scores, key=np.mean)
    return [
        Point(leader.generation, leader.candidate, fitness, float(own.mean()), _error(own), _error(best - own))
        for (leader, fitness), own in zip(found, scores, strict=True)
    ]


def _error(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def choose(points: Sequence[Point]) -> Point:
    """The latest leader that is not below the best one by more than `SURE` standard errors of that difference: earlier
    only where the curve has surely fallen, since noise alone would otherwise throw most of a search away."""
    best = max(point.score for point in points)
    return next(point for point in reversed(points) if best - point.score <= SURE * point.apart or point.score == best)


def checkpoint(archive: Archive, last: int | None) -> list[Candidate]:
    """All candidates with a place at the end of generation `last` (None: of the run), the first first."""
    standing = Standing()
    for generation in archive.generations():
        standing.add(generation)
        if generation.record.number == last:
            break
    return [standing.candidates[each] for each in standing.places()]
