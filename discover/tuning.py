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

from discover import pruning
from discover.contenders import Contender
from discover.keeper import Keeper
from discover.lanes import Trace
from discover.ledger import Ledger
from discover.studies import Study, Tuned, TuningBudget
from discover.trainers import Ground, Run, capped_log, train

Tell = Callable[[int], None]
"""Is told of runs that are done."""


def tune(
    contender: Contender,
    ground: Ground,
    budget: TuningBudget,
    seeds: Sequence[int],
    store: Ledger,
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
    while advance(studies, keeper=keeper, curve=curve, tell=tell):
        pass
    tell(sum(len(study.fresh_seeds) for study in studies))
    return [study.result(curve) for study in studies]


def advance(
    studies: Sequence[Study],
    *,
    keeper: Keeper | None = None,
    curve: Sequence[int] = (),
    tell: Tell = lambda done: None,
) -> bool:
    """Trains what comes next in studies of one contender on one ground, side by side: the next batch of those that are
    furthest behind, or, where all trials are done, the best settings on fresh seeds. Says whether anything was left."""
    budget = studies[0].budget
    if open_ := [study for study in studies if len(study.trials) < budget.trials]:
        first = min(len(study.trials) // budget.batch for study in open_)
        _train_batch([study for study in open_ if len(study.trials) // budget.batch == first], keeper, tell)
        return True
    new = [study for study in studies if study.fresh_of(curve) is None]
    if new:
        _score(new, keeper, curve)
    return bool(new)


def _train_batch(studies: Sequence[Study], keeper: Keeper | None, tell: Tell) -> None:
    """The next batch of trials of some studies, trained together."""
    contender, ground, budget = studies[0].contender, studies[0].ground, studies[0].budget
    asked = [(study, trial) for study in studies for trial in study.ask()]
    traces: list[list[Trace]] = [[] for _ in asked]
    looks = pruning.looks(budget.pruner, ground.steps)
    left = list(range(len(asked)))
    for places in pruning.seed_waves(budget.pruner, budget.seeds):
        runs = [
            Run(asked[index][0].hypers_of(asked[index][1]), asked[index][0].tuning_seeds[place])
            for index in left
            for place in places
        ]
        prune = _Pruning(ground, asked, runs, budget.seeds) if looks else None
        whole = len(places) if prune else 1
        found = train(contender, ground, runs, curve=looks, prune=prune, together=whole, keeper=keeper)
        for number, index in enumerate(left):
            traces[index] += found[number * len(places) : (number + 1) * len(places)]
        if places.stop < budget.seeds:
            left = [index for index in left if not _is_worse(asked[index], traces[index], places)]
        if not left:
            break
    for (study, trial), own in zip(asked, traces, strict=True):
        study.store_trial(trial, own)
    tell(len(asked) * budget.seeds)


def _is_worse(asked: tuple[Study, optuna.Trial], traces: Sequence[Trace], places: range) -> bool:
    """Whether a trial goes after it was trained on the seeds of some places."""
    study, trial = asked
    ends = [capped_log(traces[place].loss, study.ground.untrained(study.tuning_seeds[place])) for place in places]
    return pruning.worse(trial, ends, places)


def _score(studies: Sequence[Study], keeper: Keeper | None, curve: Sequence[int]) -> None:
    """Trains the best setting of each study on its fresh seeds."""
    runs = [Run(study.best_hypers, seed) for study in studies for seed in study.fresh_seeds]
    traces = train(studies[0].contender, studies[0].ground, runs, curve=curve, keeper=keeper)
    for index, study in enumerate(studies):
        count = len(study.fresh_seeds)
        study.store_fresh(traces[index * count : (index + 1) * count], curve)


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
