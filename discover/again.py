"""What of a certificate is trained again, and compared with what it says: runs on fresh seeds, and whole tunings.

All of it is trained as it was: with compiled gradients or without, with native rules or without. Where that is not to
be had here, or was on another kind of CPU, losses are held to a tolerance, and it is counted and said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from discover.built import Built
from discover.contenders import made
from discover.contest import Contest, ContestTerms, ask_of, curve_of
from discover.own_files import absolute
from discover.pieces import CORE, ONE_GPU, Site, TrainRuns
from discover.sessions import Machine, this_machine
from discover.studies import Tuned
from discover.trainers import Run
from discover.verdict import log_losses
from discover.workers import Request
from discover.workshop import Workshop

TOLERANCE = 0.05
"""Nats of log loss, about 5 %, that a run may differ by where it cannot be the same to the bit."""

TUNINGS_APART = 0.25
"""Nats that a tuning done again may differ by where it cannot be the same: from the first rounding on it may try other
settings."""

BOUND = ("python", "torch", "numpy")
"""Versions that the bits of a training depend on."""

TUNED = (*BOUND, "optuna", "scipy")
"""Those that what a tuning proposes depends on."""

ON_A_GPU = "it was trained on a GPU, whose sums have no fixed order"

IN_MANY_WAYS = "its trials and fresh seeds were trained in more ways than one"


@dataclass(frozen=True, slots=True)
class Place:
    """A run on a fresh seed: where it stands in the certificate."""

    contest: int
    task: str
    contender: str
    tuning: int
    run: int


Group = tuple[int, str, str, tuple[Built, ...]]
"""Contest, task, contender, and how it was trained."""


def _another_way(terms: ContestTerms, stored: Built, here: Built) -> str:
    """Why what was trained in a way cannot be expected to come to the same bits as it was trained here; empty where it
    can."""
    if terms.device != "cpu":
        return ON_A_GPU
    if stored.on != here.on:
        return f"it was trained on {stored.on}, and this is {here.on}"
    if stored.code != here.code:
        return f"it was trained by code {stored.code or 'that it does not say'}, and this is {here.code}"
    return "" if stored == here else f"it was trained with {stored}, and here that came to {here}"


def _another_version(machine: Machine, packages: Sequence[str]) -> str:
    """Why a worker cannot be expected to come to the same as this process; empty where it can."""
    here = this_machine()["versions"]
    for name in packages:
        if machine["versions"].get(name) != here.get(name):
            return f"{name} is {here.get(name)} here, and {machine['versions'].get(name)} on a worker"
    return ""


@dataclass(slots=True)
class Again:
    """What training again came to.

    Attributes:
        problems: what is wrong.
        largest: the largest difference of log loss.
        loose: how many could not be trained as they were; `reasons` say why, each once.
    """

    problems: list[str] = field(default_factory=list)
    largest: float = 0.0
    loose: int = 0
    reasons: list[str] = field(default_factory=list)

    def held_loosely(self, count: int, reason: str) -> None:
        self.loose += count
        if reason not in self.reasons:
            self.reasons.append(reason)


# Training again -------------------------------------------------------------------------------------------------------


def retrain(
    data: Mapping[str, Any],
    contests: Sequence[Contest],
    places: Sequence[Place],
    why_not: str,
    workshop: Workshop,
) -> Again:
    """Runs on fresh seeds."""
    again, groups = Again(), _grouped(places, contests, lambda tuned: (tuned.fresh_built,))
    works = [
        _work(contests[index], task, name, data["contests"][index]["rules"][name], ways, some, workshop)
        for (index, task, name, ways), some in groups.items()
    ]
    for ((index, task, name, ways), some), found in zip(groups.items(), workshop.done(works), strict=True):
        contest, tunings = contests[index], contests[index].results[task][name]
        loose = why_not or _another_version(found.by, BOUND) or _another_way(contest.terms, ways[0], found.built)
        if loose:
            again.held_loosely(len(some), loose)
        workshop.say(f"{contest.terms.name}: {name} on {task}, {len(some)} runs{_allowed(loose, why_not, TOLERANCE)}")
        for place, trace, untrained in zip(some, found.traces, found.untrained, strict=True):
            tuned = tunings[place.tuning]
            stored, gap = tuned.losses[place.run], _gap(trace.loss, tuned.losses[place.run])
            again.largest = max(again.largest, gap)
            same = trace.loss == stored and tuple(trace.curve) == tuned.curves[place.run]
            same = same and untrained == tuned.untrained[place.run]
            if gap > TOLERANCE if loose else not same:
                again.problems.append(
                    f"{contest.terms.name}: {name} on {task}, seed {tuned.seeds[place.run]}: trained again it ends at"
                    f" {trace.loss:.6g}, not {stored:.6g}" + _elsewhere(trace.loss, stored, tuned, gap)
                )
    return again


def _work(
    contest: Contest,
    task: str,
    name: str,
    spelling: Mapping[str, str],
    ways: Sequence[Built],
    some: Sequence[Place],
    workshop: Workshop,
) -> TrainRuns:
    terms, tunings = contest.terms, contest.results[task][name]
    request, device = _place_of(terms, workshop)
    spelling = {**spelling, "class": absolute(spelling["class"])} if "class" in spelling else spelling
    return TrainRuns(
        name=name,
        spelled=spelling,
        site=Site(absolute(task), terms.tasks[task], ways[0].compiled, device, ways[0].native),
        runs=tuple(Run(tunings[p.tuning].hypers, tunings[p.tuning].seeds[p.run]) for p in some),
        curve=curve_of(terms.tasks[task]),
        request=request,
    )


def _allowed(loose: str, said: str, nats: float) -> str:
    """What is said where less than equality is asked, unless that is said of all."""
    return "" if loose == said else f" (within {nats:g} nats: {loose})"


def _elsewhere(found: float, stored: float, tuned: Tuned, gap: float) -> str:
    """What six digits do not show."""
    if found == stored:
        return " (the end is the same; its curve or start is not)"
    return f": {_apart_in_words(gap)} (hypers {dict(tuned.hypers)})"


def _apart_in_words(gap: float) -> str:
    return f"{gap:.2g} nats apart" if math.isfinite(gap) else "one of the two is lost"


def _gap(one: float, other: float) -> float:
    """Difference of log loss; none between two lost runs."""
    if one == other:
        return 0.0
    if not (0 < one < math.inf and 0 < other < math.inf):
        return math.inf
    return abs(math.log(one / other))


def _grouped(
    places: Sequence[Place], contests: Sequence[Contest], ways_of: Callable[[Tuned], tuple[Built, ...]]
) -> dict[Group, list[Place]]:
    """What is trained side by side."""
    groups: dict[Group, list[Place]] = {}
    for place in places:
        tuned = contests[place.contest].results[place.task][place.contender][place.tuning]
        groups.setdefault((place.contest, place.task, place.contender, ways_of(tuned)), []).append(place)
    return groups


def _place_of(terms: ContestTerms, workshop: Workshop) -> tuple[Request, str]:
    """What a contest's trainings need here, and the device."""
    if terms.device == "cpu":
        return CORE, "cpu"
    there = workshop.place(terms.request if dict(terms.request).get("GPU") else ONE_GPU)
    return there.request, there.device


# Tuning again ---------------------------------------------------------------------------------------------------------


def retune(
    data: Mapping[str, Any],
    contests: Sequence[Contest],
    places: Sequence[Place],
    why_not: str,
    workshop: Workshop,
) -> Again:
    """Tunings, all trials of each."""
    again, groups, asks = Again(), _grouped(places, contests, lambda tuned: tuned.all_built), []
    met: list[Machine] = []
    workshop.met = met.append
    for (index, task, name, ways), some in groups.items():
        terms = contests[index].terms
        request, device = _place_of(terms, workshop)
        ask = ask_of(terms, made(name, data["contests"][index]["rules"][name]), task)
        seeds = tuple(terms.first + place.tuning for place in some)
        how = ways[-1]
        ask = replace(ask, seeds=seeds, compile=how.compiled, native=how.native)
        asks.append(replace(ask, request=request, device=device))
    for ((index, task, name, ways), some), answer in zip(groups.items(), workshop.tuned(asks), strict=True):
        contest, said = contests[index], set[str]()
        strange = next(filter(None, (_another_version(machine, TUNED) for machine in met)), "")
        for place, found in zip(some, answer.tunings, strict=True):
            stored = contest.results[task][name][place.tuning]
            loose = why_not or strange or _other_ways(contest.terms, ways, found.all_built)
            if loose:
                again.held_loosely(1, loose)
                said.add(loose)
            if _apart(found, stored) > TUNINGS_APART if loose else _unlike(found, stored):
                again.problems.append(
                    f"{contest.terms.name}: {name} on {task}, tuning {stored.seed}: tuned again its best is"
                    f" {_setting(found)}, not {_setting(stored)}:"
                    f" {_apart_in_words(_apart(found, stored))} on fresh seeds"
                )
        allowed = _allowed("; ".join(sorted(said)), "", TUNINGS_APART)
        workshop.say(f"{contest.terms.name}: {name} on {task}, {len(some)} tunings{allowed}")
    return again


def _other_ways(terms: ContestTerms, stored: Sequence[Built], here: Sequence[Built]) -> str:
    """As `_another_way`, of a tuning."""
    if len(stored) > 1 or len(here) > 1:
        return IN_MANY_WAYS
    return _another_way(terms, stored[0], here[0])


def _unlike(found: Tuned, stored: Tuned) -> bool:
    """Whether two tunings differ in more than this: a store had more fresh seeds already, which cost more."""
    cost = max(found.model_steps, stored.model_steps)
    return replace(found, model_steps=cost, hypers=dict(found.hypers)) != replace(stored, hypers=dict(stored.hypers))


def _apart(found: Tuned, stored: Tuned) -> float:
    """Nats between two tunings on their fresh seeds."""
    return abs(float(log_losses([found]).mean() - log_losses([stored]).mean()))


def _setting(tuned: Tuned) -> str:
    return f"{ {name: float(f'{value:.6g}') for name, value in tuned.hypers.items()} } with {tuned.value:.6g}"
