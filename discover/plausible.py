"""Whether tunings are such as their contest asks for: seeds, sizes, and settings that a study may come to.

It finds what could not be; whether a study came to what is written takes training it again (`discover.verify`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from discover.contenders import made
from discover.contest import Contest, ContestTerms, ask_of, curve_of
from discover.ranges import Dimension, dimensions
from discover.studies import EXTENSION, Tuned, fresh_seeds
from discover.workshop import Workshop

SLACK = 1.01
"""A stride is kept to three digits, and another machine may round the third in another way."""

ELSEWHERE = 10.0
"""By how much more a stride may differ on another kind of CPU. A rule that divides by what is 0 but for rounding, as a
one-sided SOAP in the basis of a gradient that has few rows, steps as far as its last bits say: one in docs/certificates
takes 5.3 times AdamW's step where it took a fifth of that."""


def problems_of(stage: Mapping[str, Any], contest: Contest, workshop: Workshop) -> Iterator[str]:
    """What is wrong with a contest's tunings, each in a line.

    Args:
        stage: the contest as certificates have it; `contest` is made from it.
        workshop: whose grounds say how far contenders step.
    """
    terms = contest.terms
    for task, row in contest.results.items():
        for name, tunings in row.items():
            where = f"{terms.name}: {name} on {task}"
            if not _agreed(terms, task, tunings):
                yield f"{where}: seeds, trials, steps or curves are not those that were agreed on"
                continue
            one = made(name, stage["rules"][name])
            ground = workshop.ground(ask_of(terms, one, task))
            ranges = dimensions(one, ground, own=terms.own)
            for tuned in tunings:
                here = all(each.on == ground.built.on for each in (*tuned.built, tuned.fresh_built))
                slack = SLACK if here else ELSEWHERE
                if (wrong := _outside(tuned.hypers, ranges, terms, one.defaults, slack)) is not None:
                    yield f"{where}, tuning {tuned.seed}: {wrong}"
                    break


def _agreed(terms: ContestTerms, task: str, tunings: Sequence[Tuned]) -> bool:
    """Whether tunings have the seeds, and as much of everything, as their contest asks for."""
    horizon, curve = terms.tasks[task], curve_of(terms.tasks[task])
    return terms.least <= len(tunings) <= terms.most and all(
        tuned.seed == seed
        and tuned.seeds == tuple(fresh_seeds(seed, terms.fresh))
        and len(tuned.losses) == len(tuned.untrained) == len(tuned.curves) == terms.fresh
        and all(len(own) <= len(curve) for own in tuned.curves)
        and (tuned.horizon, tuned.steps, tuned.trials) == (horizon, curve, terms.trials)
        and 0 <= tuned.pruned <= (0 if terms.pruner == "none" else terms.trials)
        and tuned.model_steps >= horizon * sum(map(math.isfinite, tuned.losses))
        for seed, tuned in zip(terms.studies(len(tunings)), tunings, strict=True)
    )


def _outside(
    hypers: Mapping[str, float],
    ranges: Sequence[Dimension],
    terms: ContestTerms,
    defaults: Mapping[str, float],
    slack: float,
) -> str | None:
    """What of a setting no study of these dimensions proposes, nor leaves as it is by default. What is measured in
    strides may be off by `slack`."""
    known = {each.name: each for each in ranges}
    if unknown := sorted(hypers.keys() - known.keys()):
        return f"{unknown[0]} is not tuned there"
    for name in ("lr", "weight_decay"):
        if name in known and name not in hypers:
            return f"{name} has no value"
    for name, value in hypers.items():
        low, high = _limits(known[name], terms)
        if name not in ("lr", "weight_decay") and value == defaults.get(name):
            continue
        zero = known[name].zero and value == 0
        seen = 1 - value if known[name].complement else value
        off = slack if name in ("lr", "weight_decay") else SLACK
        if not (zero or low / off <= seen <= high * off):
            return f"{name} is {value:.6g}, and no study proposes it: from {low:.3g} to {high:.3g}" + (
                " below 1" if known[name].complement else ""
            )
    return None


def _limits(dimension: Dimension, terms: ContestTerms) -> tuple[float, float]:
    """The range of a dimension when it was extended after every batch but the last."""
    times = math.ceil(terms.trials / terms.budget.batch) - 1
    if dimension.name == "lr":
        return dimension.low / 2 ** (EXTENSION * times), dimension.high * 2 ** (EXTENSION * times)
    if dimension.name == "weight_decay":
        return dimension.low, dimension.high * 10 ** (EXTENSION / 3 * times)
    return dimension.low, dimension.high
