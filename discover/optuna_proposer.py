"""Optuna as a proposer: one of its samplers answers a template's questions, or moves the ancestors' constants.

Every candidate that was told is a finished trial of a study in memory, in the order of proposal. A proposal asks a
trial with a sampler of its own seed and gives it up again, so that nothing of it is left but the answers, which the
candidate's `origin` keeps; telling makes the trial anew from them. Optuna cannot change a finished trial, so it sees
a candidate's fitness as it was when told, confirmations later left out. Its samplers look at all trials for each
proposal, so that a long search would propose ever slower: now and then most of the older ones are forgotten.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from numpy.random import Generator, default_rng
from optuna.samplers import BaseGASampler, BaseSampler, NSGAIISampler
from optuna.trial import FrozenTrial, Trial, TrialState

from discover.chance import pick
from discover.errors import UserError
from discover.front import undominated
from discover.proposers import Context, Proposal, Told
from discover.templates import Answer, Answers, of_space, read, written
from dsl import properties

SAMPLERS = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "gp": "GPSampler", "random": "RandomSampler"}
"""Short name -> class, which may be named too. No others: their answers depend on more than the seed and the trials
that were told, so that a resumed search would be another one. QMCSampler counts its questions, BruteForceSampler leaves
out what it answered before, and NSGAIIISampler draws parents once a generation, with the seed of whoever asks first."""

STARTS = 0.5
"""Share of the proposals that are rules to start from, until something has been told."""

RECENT, BEST = 400, 100
"""What is kept when trials are forgotten: the last, and the best of the others, first those that no other beats in all
objectives. TPE compares the best it knows to the rest, and loses a part of the rest; NSGA-II loses none of the elite
that it breeds from. Of both it keeps a whole population of NSGA-II at least."""

_GENERATION = ":generation"
"""How the names of the attributes end in which samplers that have generations keep a trial's."""


class OptunaProposer:
    """Searches a template's answers by `optuna.sampler` of the space, for one objective or several."""

    def __init__(self, context: Context) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.context, self.settings = context, context.space.optuna
        self.template, self.starts = of_space(context)
        self.objectives = context.space.objectives
        self._costs: dict[int, list[float]] = {}
        self._told = 0
        self.study = self._study()

    def propose(self, rng: Generator) -> Proposal:
        if not self._told and rng.random() < STARTS:
            answers = pick(rng, self.starts)
            trial = _Answered(answers)
        else:
            trial = _Answered(self._asked(int(rng.integers(2**31))))
        program = self.template.build(trial)
        return Proposal(program, (), written(trial.used))

    def _asked(self, seed: int) -> dict[str, Answer]:
        """What a sampler answers; the trial that it took is given up, and no sampler looks at it again."""
        self.study.sampler = self._sampler(seed)
        trial = self.study.ask()
        asked = _Asked(trial)
        self.template.build(asked)
        self.study.tell(trial, state=TrialState.FAIL)
        return dict(trial.params)

    def tell(self, told: Told) -> None:
        answers = read(told.origin)
        if answers is None:
            return
        if told.properties:
            self._costs[told.id] = [float(told.properties[name]) for name in self.objectives[1:]]
        costs = self._costs.get(told.original)
        if costs is None:
            facts = properties.of(told.program).plain()
            costs = [float(facts[name] or 0.0) for name in self.objectives[1:]]
        fitness = self.context.fitness.get(told.original, self.context.space.score_limits[0])
        self.study.sampler = self._sampler(self._told)
        self.study.enqueue_trial(answers)
        trial = self.study.ask()
        if isinstance(self.study.sampler, BaseGASampler):  # which is not asked where all answers are known
            self.study.sampler.get_trial_generation(self.study, self.study.get_trials(deepcopy=False)[trial.number])
        self.template.build(_Asked(trial))
        self.study.tell(trial, [fitness, *costs])
        self._told += 1
        if self._told % (RECENT + BEST) == 0:
            self._forget()

    def _study(self) -> optuna.Study:
        down, up = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
        directions = [up, *[down] * (len(self.objectives) - 1)]
        return optuna.create_study(directions=directions, sampler=self._sampler(0))

    def _forget(self) -> None:
        """Goes on with what is kept in a study of its own, in the order of telling. When it is done follows from how
        many were told, so that a resumed search does it at the same times."""
        told = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        population = int(self.settings.options.get("population_size", 0))
        recent, older = told[-max(RECENT, population) :], told[: -max(RECENT, population)]
        front = set(undominated({trial.number: tuple(trial.values) for trial in older}))
        order = sorted(older, key=lambda trial: (trial.number not in front, -trial.values[0], trial.number))
        best = sorted(order[: max(BEST, population)], key=lambda trial: trial.number)
        first = min((generation(trial) for trial in recent), default=0)
        self.study = self._study()
        self.study.add_trials([_in_generation(trial, 0) for trial in best])
        self.study.add_trials([_in_generation(trial, 1 + generation(trial) - first) for trial in recent])

    def _sampler(self, seed: int) -> BaseSampler:
        settings = self.settings
        name = SAMPLERS.get(settings.sampler, settings.sampler)
        if name not in SAMPLERS.values():
            raise UserError(
                f"{self.context.space.name}: optuna.sampler: '{settings.sampler}' is none of {', '.join(SAMPLERS)};"
                " with another a search could not be resumed to the same results"
            )
        kind: type[BaseSampler] = _Steady if name == "NSGAIISampler" else getattr(optuna.samplers, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return kind(**{"seed": int(default_rng(seed).integers(2**31)), **settings.options})
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"{self.context.space.name}: optuna: {name}: {error}") from None


class _Steady(NSGAIISampler):
    """Gives the parents of a generation in the same order when they are chosen as when they are looked up again."""

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


def generation(trial: FrozenTrial) -> int:
    """Of a sampler that has generations; 0 of others."""
    return next((value for name, value in trial.system_attrs.items() if name.endswith(_GENERATION)), 0)


def _in_generation(trial: FrozenTrial, number: int) -> FrozenTrial:
    """The trial in another one: what a sampler knows of generations it looks up back to the first, by recursion."""
    attributes = {name: number if name.endswith(_GENERATION) else value for name, value in trial.system_attrs.items()}
    return optuna.trial.create_trial(
        params=trial.params, distributions=trial.distributions, values=trial.values, system_attrs=attributes
    )


class _Asked:
    """A trial answers."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def option(self, name: str, options: Sequence[str]) -> str:
        return str(self.trial.suggest_categorical(name, list(options)))

    def number(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self.trial.suggest_float(name, low, high, log=log)

    def whole(self, name: str, low: int, high: int) -> int:
        return self.trial.suggest_int(name, low, high)


class _Answered:
    """Known answers, those that were used remembered in order."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.used: dict[str, Answer] = {}

    def option(self, name: str, options: Sequence[str]) -> str:
        return str(self._use(name))

    def number(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self._use(name))

    def whole(self, name: str, low: int, high: int) -> int:
        return int(self._use(name))

    def _use(self, name: str) -> Any:
        return self.used.setdefault(name, self.answers[name])
