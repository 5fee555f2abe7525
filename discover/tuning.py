"""Tunes contenders on one budget: Optuna studies whose trials train in batches and are kept on disk.

A *study* is one tuning of one contender on one task: `trials` settings, each trained on the study's own tuning seeds.
The best is scored on fresh seeds, which had no say in choosing it. A comparison uses several studies, each with seeds
of its own, because tuning is luck too: what a second tuning would have found is part of what is not known.

Every contender has the same number of trials, seeds and steps, and its learning rates lie in the same range in units
that it cannot choose (`Ground.stride`); so does its weight decay, as the part of a parameter that a step takes away.
The first half of the trials fills these ranges evenly (Sobol), the rest are proposed by TPE. A range is extended where
the best lies at its edge, and to both sides where no setting has learned anything.

What a batch proposes depends on the study's seed and on whole batches before it. So a study that was killed goes on
from what is stored, to the same end, and a trial is stored when it is done: none is counted twice, none is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import optuna

from discover.contenders import Contender
from discover.keeper import Keeper
from discover.storage import Store
from discover.studies import Budget, Study, Tuned
from discover.trainers import Ground, Run, capped_log, train

LOOKS = (0.25, 0.5)
"""When runs may be pruned, as fractions of the steps."""

Tell = Callable[[int], None]
"""Is told of runs that are done."""


def tune(
    contender: Contender,
    ground: Ground,
    budget: Budget,
    seeds: Sequence[int],
    store: Store,
    *,
    keeper: Keeper | None = None,
    curve: Sequence[int] = (),
    tell: Tell = lambda done: None,
) -> list[Tuned]:
    """Tunes a contender once for each seed, all studies side by side, and scores each study's best on fresh seeds.

    Args:
        contender: what is tuned.
        ground: where.
        budget: of each study.
        seeds: of the studies.
        store: where they are kept; what is there already is not trained again.
        keeper: stops it when asked to, see `trainers.train`.
        curve: steps after which the fresh runs' held-out losses are taken, besides the end.
        tell: hears of progress.

    Raises:
        StoppedError: asked to stop; the same call goes on.
        UserError: the storage fails; the contender cannot be made; losses that are not above 0.
    """
    studies = [Study(contender, ground, budget, seed, store) for seed in seeds]
    for study in studies:
        tell(len(study.trials) * budget.seeds)
    while open_ := [study for study in studies if len(study.trials) < budget.trials]:
        first = min(len(study.trials) // budget.batch for study in open_)
        some = [study for study in open_ if len(study.trials) // budget.batch == first]
        _train_batch(contender, ground, budget, some, keeper, tell)
    _score(contender, ground, studies, keeper, curve, tell)
    return [study.result() for study in studies]


def _train_batch(
    contender: Contender,
    ground: Ground,
    budget: Budget,
    studies: Sequence[Study],
    keeper: Keeper | None,
    tell: Tell,
) -> None:
    """The next batch of trials of some studies, trained together."""
    asked = [(study, trial) for study in studies for trial in study.ask()]
    runs = [Run(study.hypers_of(trial), seed) for study, trial in asked for seed in study.tuning_seeds]
    looks: list[int] = []
    prune = None
    if budget.pruner != "none":
        looks = sorted({max(1, round(look * ground.steps)) for look in LOOKS} - {ground.steps})
        prune = _Pruning(ground, asked, runs, budget.seeds)
    traces = train(contender, ground, runs, curve=looks, prune=prune, keeper=keeper)
    for index, (study, trial) in enumerate(asked):
        mine = slice(index * budget.seeds, (index + 1) * budget.seeds)
        study.store_trial(trial, traces[mine], [run.seed for run in runs[mine]], looks)
    tell(len(runs))


def _score(
    contender: Contender,
    ground: Ground,
    studies: Sequence[Study],
    keeper: Keeper | None,
    curve: Sequence[int],
    tell: Tell,
) -> None:
    """Trains the best setting of each study on its fresh seeds, unless that was done before."""
    new = [study for study in studies if study.fresh_of(curve) is None]
    runs = [Run(study.best_hypers, seed) for study in new for seed in study.fresh_seeds]
    if runs:
        traces = train(contender, ground, runs, curve=curve, keeper=keeper)
        for index, study in enumerate(new):
            count = len(study.fresh_seeds)
            study.store_fresh(traces[index * count : (index + 1) * count], curve)
    tell(sum(len(study.fresh_seeds) for study in studies))


class _Pruning:
    """Asks Optuna's pruner of a batch's trials at each look; a trial that goes loses all of its runs."""

    def __init__(
        self, ground: Ground, asked: Sequence[tuple[Study, optuna.Trial]], runs: Sequence[Run], seeds: int
    ) -> None:
        self.ground, self.asked, self.runs, self.seeds = ground, asked, runs, seeds

    def __call__(self, step: int, losses: Mapping[int, float]) -> list[int]:
        dropped: list[int] = []
        for index, (_, trial) in enumerate(self.asked):
            mine = range(index * self.seeds, (index + 1) * self.seeds)
            if not any(run in losses for run in mine):
                continue
            logs = [capped_log(losses.get(run, math.inf), self.ground.untrained(self.runs[run].seed)) for run in mine]
            trial.report(float(np.mean(logs)), step)
            if trial.should_prune():
                dropped += mine
        return dropped
