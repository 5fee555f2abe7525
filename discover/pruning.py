"""Which trials are dropped before their end: Optuna's pruners, as trials that train side by side meet them.

- `median` looks at a quarter and a half of the steps, and drops what is above the median of earlier trials there;
- `hyperband` looks at a ninth and a third of the steps (of some trials at a third alone, of some never), and drops what
  is not in the best third of those that came so far under the same looks;
- `wilcoxon` looks after each whole training, from the fourth tuning seed on, and drops what a signed-rank test over
  tuning seeds calls worse than the best trial so far.

All are asked of one trial after the other, in the order of proposal, so that the same trials are dropped wherever and
with whatever else they train.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from discover.pruners import FEWEST_PAIRS, Pruner

THRESHOLD = 0.1
"""Optuna's p for Wilcoxon's test. It is not corrected for looking again after each seed: what is lost by dropping a
trial wrongly is that trial, not a verdict."""

_THIRD = 3
_MEDIAN_LOOKS = (0.25, 0.5)
_RUNG = "completed_rung_"


def looks(pruner: Pruner, steps: int) -> list[int]:
    """The steps of a training of that length after which it may be dropped."""
    if pruner == "median":
        return sorted({max(1, round(look * steps)) for look in _MEDIAN_LOOKS} - {steps})
    if pruner == "hyperband":
        return [look for look in (_first(steps), _THIRD * _first(steps)) if look < steps]
    return []


def seed_waves(pruner: Pruner, seeds: int) -> list[range]:
    """The tuning seeds of a trial in the order in which they are trained, by place; after each wave but the last the
    trial may be dropped."""
    if pruner != "wilcoxon":
        return [range(seeds)]
    return [range(FEWEST_PAIRS), *(range(place, place + 1) for place in range(FEWEST_PAIRS, seeds))]


def made(pruner: Pruner, batch: int, steps: int) -> optuna.pruners.BasePruner:
    """Optuna's pruner.

    Args:
        pruner: which.
        batch: trials that are trained together: before as many are done, the median is of nothing.
        steps: of a training.
    """
    if pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=batch)
    if pruner == "hyperband":
        first = _first(steps)
        return optuna.pruners.HyperbandPruner(first, first * _THIRD**2, reduction_factor=_THIRD)
    if pruner == "wilcoxon":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.pruners.WilcoxonPruner(p_threshold=THRESHOLD, n_startup_steps=FEWEST_PAIRS)
    return optuna.pruners.NopPruner()


def remembered(trial: optuna.Trial) -> Mapping[str, Any]:
    """What Hyperband must find again on a trial that is stored: what it came to at each rung."""
    there = trial.storage.get_trial_system_attrs(trial._trial_id)
    return {key: value for key, value in there.items() if key.startswith(_RUNG)}


def worse(trial: optuna.Trial, values: Sequence[float], places: range) -> bool:
    """Whether a trial shall be dropped, by what it came to on some more tuning seeds."""
    for place, value in zip(places, values, strict=True):
        trial.report(value, place)
    return bool(trial.should_prune())


def _first(steps: int) -> int:
    return max(1, round(steps / _THIRD**2))
