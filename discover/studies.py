"""A study: one tuning of one contender on one task, as Optuna sees it, and what is kept of it."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from discover import plain, pruning
from discover.built import Built
from discover.contenders import Contender
from discover.errors import UserError
from discover.lanes import Trace
from discover.ledger import Ledger, Notes
from discover.pruners import Pruner, least_seeds
from discover.ranges import Dimension, dimensions, rounded
from discover.trainers import Ground, capped_log, model_steps

FORMAT = 4
"""Part of every study's key: raise it when tuning changes, so that old results are not taken for new ones."""

EXTENSION = 3.0
"""By how many factors of 2 a range of learning rates is extended; one of weight decays by as many powers of 10 / 3."""

NOTHING = 1e-3
"""Nats: a trial that gains no more than this over no training at all has learned nothing."""

NO_DECAY = 1 / 3
"""Share of the trials with weight decay 0."""

MOVED = 3
"""Own hyperparameters that a trial moves at once, as many as AdamW has: a dozen at once never meet a good setting."""

_SEEDS_APART = 1000
_FRESH = 500
"""Seeds of study s: tuning from 1000 s on, fresh ones from 1000 s + 500 on."""


@dataclass(frozen=True, slots=True)
class TuningBudget:
    """What tuning one contender on one task once may cost.

    Attributes:
        trials: settings.
        seeds: tuning seeds of each.
        fresh: seeds to score the best setting on.
        own: also tune hyperparameters other than lr and weight_decay, in the second half of the trials: three at once,
            the others as in the best trial so far.
        pruner: which trials are dropped before their end, see `discover.pruning`.
    """

    trials: int = 20
    seeds: int = 2
    fresh: int = 4
    own: bool = False
    pruner: Pruner = "none"

    def __post_init__(self) -> None:
        """Raises UserError where a number is out of range."""
        for name, value, least, most in (
            ("trials", self.trials, 1, 100_000),
            ("tuning seeds", self.seeds, 1, _FRESH),
            ("fresh seeds", self.fresh, 1, _SEEDS_APART - _FRESH),
        ):
            if not least <= value <= most:
                raise UserError(f"{name}: {value}, expected {least} to {most}")
        if self.seeds < (least := least_seeds(self.pruner)):
            raise UserError(
                f"tuning seeds: {self.seeds}, expected at least {least} for the pruner {self.pruner}, which compares"
                " settings seed by seed"
            )

    @property
    def batch(self) -> int:
        """Trials proposed at once: a sixth, so that TPE learns from three batches at least."""
        return max(1, math.ceil(self.trials / 6))

    @property
    def planned(self) -> int:
        """Runs of a study, fresh ones included."""
        return self.trials * self.seeds + self.fresh


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a study came to.

    Attributes:
        seed: of the study.
        hypers: the best setting, of all that may be tuned.
        value: its mean log loss over the tuning seeds.
        trials, pruned: how many settings were tried, and dropped before their end.
        at_edge: the best learning rate lies at the edge of the range that the last trials were offered.
        model_steps: trained for this study, fresh seeds included.
        horizon: steps of a training.
        steps: of `curves`.
        seeds: the fresh ones.
        losses: at the end on each fresh seed; inf for a lost run.
        curves: for each fresh seed, held-out losses after `steps`, as far as it came.
        untrained: for each fresh seed, the loss before the first step.
        built: in which ways its trials were trained, each once: workers may be of several kinds.
        fresh_built: how the fresh seeds were trained.
    """

    seed: int
    hypers: Mapping[str, float]
    value: float
    trials: int
    pruned: int
    at_edge: bool
    model_steps: int
    horizon: int
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    losses: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    untrained: tuple[float, ...]
    built: tuple[Built, ...]
    fresh_built: Built

    @property
    def all_built(self) -> tuple[Built, ...]:
        """In which ways any of it was trained, each once."""
        return tuple(dict.fromkeys((*self.built, self.fresh_built)))


class Study:
    """A study as Optuna sees it in memory, and its copy in the store.

    Args:
        contender, ground, budget: what is tuned, where, and at what cost.
        seed: of the study.
        store: where it is kept.
        device: on which it trains; None for the ground's.

    Attributes:
        trials: those that are stored, in order; whole batches, but for a last one that a kill cut short.
    """

    def __init__(
        self,
        contender: Contender,
        ground: Ground,
        budget: TuningBudget,
        seed: int,
        store: Ledger,
        *,
        device: str | None = None,
    ) -> None:
        self.contender, self.ground, self.budget, self.seed, self.store = contender, ground, budget, seed, store
        self.device = torch.device(device).type if device else ground.gradient.device.type
        self.tuning_seeds = tuning_seeds(seed, budget.seeds)
        self.fresh_seeds = fresh_seeds(seed, budget.fresh)
        self.name, facts = self._identity()
        self._stored, self.attributes = store.study(self.name, facts)
        self.trials: list[FrozenTrial] = []
        self.late: list[FrozenTrial] = []
        done = min(len(self._stored), budget.trials)
        whole = done if done == budget.trials else done - done % budget.batch
        self.trials, self.late = self._stored[:whole], self._stored[whole:done]

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        return dimensions(self.contender, self.ground, own=self.budget.own)

    @property
    def notes(self) -> Notes:
        """What a worker needs to go on with it."""
        return Notes([*self.trials, *self.late], dict(self.attributes))

    def take(self, notes: Notes) -> None:
        """Keeps what a worker has added."""
        for trial in notes.added:
            self.store.add(self.name, trial)
        if notes.added:
            self.trials, self.late = [*self.trials, *self.late, *notes.added], []
        if notes.fresh is not None:
            self._keep_fresh(notes.fresh)

    def _identity(self) -> tuple[str, dict[str, Any]]:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        budget = {"trials": self.budget.trials, "tuning_seeds": self.budget.seeds, "own": self.budget.own}
        facts = {
            "format": FORMAT,
            "task": self.ground.task.spelling,
            "ground": self.ground.fingerprint,
            "steps": self.ground.steps,
            "optimizer": self.contender.fingerprint,
            "budget": budget | {"pruner": self.budget.pruner},
            "seed": self.seed,
            "versions": versions | {"optuna": optuna.__version__},
        }
        if self.device != "cpu":  # sums have another order there
            facts["device"] = self.device
        else:  # what was asked for, and can be here; on which kind of CPU is kept with each trial
            facts["built"] = {"compiled": self.ground.built.compiled, "native": self.ground.built.native}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        name = f"{self.contender.name} on {self.ground.task.spelling}, {self.ground.steps} steps"
        label = f"{self.budget.trials} trials x {self.budget.seeds}"
        return f"{name}, {label}, tuning {self.seed} [{digest}]", facts | {"digest": digest}

    # Proposing ------------------------------------------------------------------------------------------------------

    def ask(self) -> list[optuna.Trial]:
        """The next batch; the same one whenever it is asked for after the same trials."""
        number = len(self.trials)
        count = min(self.budget.batch, self.budget.trials - number)
        pruner = pruning.made(self.budget.pruner, self.budget.batch, self.ground.steps)
        name = f"tuning {self.seed}"  # Hyperband draws by it
        study = optuna.create_study(study_name=name, sampler=self._sampler(number), pruner=pruner)
        study.add_trials(self.trials)
        dims = self._extended()
        common = [each for each in dims if each.name in ("lr", "weight_decay")]
        asked = []
        for place in range(number, number + count):
            if place < self._designed:
                study.enqueue_trial(self._design(place, common))
                chosen = common
            else:
                kept, moved = self._neighbourhood(place, [each for each in dims if each not in common])
                study.enqueue_trial(kept)
                chosen = [each for each in dims if each in common or each in moved or each.label in kept]
            trial = study.ask()
            for dimension in chosen:
                _suggest(trial, dimension)
            asked.append(trial)
        return asked

    def _neighbourhood(self, place: int, own: Sequence[Dimension]) -> tuple[dict[str, float], list[Dimension]]:
        """What a trial leaves as the best before it has it, where that is no default, and what it moves."""
        best = _best(self.trials).params
        drawn = np.random.default_rng([self.seed, place]).permutation(len(own))[:MOVED]
        moved = [own[index] for index in sorted(drawn)]
        return {each.label: best[each.label] for each in own if each.label in best and each not in moved}, moved

    @property
    def _designed(self) -> int:
        """How many trials fill the range evenly before TPE proposes: whole batches, about half."""
        batches = math.ceil(self.budget.trials / self.budget.batch)
        return self.budget.batch * math.ceil(batches / 2)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, constant_liar=True)

    def _design(self, place: int, common: Sequence[Dimension]) -> dict[str, Any]:
        """A point of a scrambled Sobol sequence in lr and weight decay."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a length that is no power of 2
            points = qmc.Sobol(2, rng=np.random.default_rng(self.seed)).random(place + 1)
        chosen: dict[str, Any] = {}
        for dimension, u in zip(common, points[-1], strict=False):
            if dimension.zero:
                chosen[dimension.switch] = bool(u >= NO_DECAY)
                u = max(0.0, (u - NO_DECAY) / (1 - NO_DECAY))
            if chosen.get(dimension.switch, True):
                value = dimension.low * (dimension.high / dimension.low) ** float(u)
                chosen[dimension.label] = min(max(value, dimension.low), dimension.high)
        return chosen

    def _extended(self) -> list[Dimension]:
        """The ranges as they are after the trials so far: wider where the best was at an edge when a batch was done."""
        dims = list(self.dimensions)
        for end in range(self.budget.batch, len(self.trials) + 1, self.budget.batch):
            best = _best(self.trials[:end])
            for index, dimension in enumerate(dims):
                if dimension.name not in ("lr", "weight_decay") or dimension.label not in best.params:
                    continue
                side = dimension.at_edge(best.params[dimension.label])
                factor = 2.0**EXTENSION if dimension.name == "lr" else 10.0 ** (EXTENSION / 3)
                lost = dimension.name == "lr" and not self._learned(best)  # no trial says where to look
                low = rounded(dimension.low / factor) if side < 0 or lost else dimension.low
                high = rounded(dimension.high * factor) if side > 0 or lost else dimension.high
                dims[index] = replace(dimension, low=low, high=high)
        return dims

    def _learned(self, best: FrozenTrial) -> bool:
        """Whether a trial is better than no training at all."""
        nothing = np.mean([capped_log(math.inf, self.ground.untrained(seed)) for seed in self.tuning_seeds])
        return best.value is not None and best.value < float(nothing) - NOTHING

    def hypers_of(self, trial: optuna.Trial | FrozenTrial) -> dict[str, float]:
        """All that the study may tune. A number that a lane has for itself and one that is written into the code give
        other last bits: if some runs named it and others not, it would show which are trained together."""
        hypers = {each.name: self.contender.defaults[each.name] for each in self.dimensions}
        for dimension in self.dimensions:
            if dimension.label in trial.params:
                value = trial.params[dimension.label]
                hypers[dimension.name] = 1 - value if dimension.complement else value
            elif trial.params.get(dimension.switch) is False:
                hypers[dimension.name] = 0.0
        return hypers

    # Storing --------------------------------------------------------------------------------------------------------

    def store_trial(self, trial: optuna.Trial, traces: Sequence[Trace]) -> None:
        """Keeps a trial that is done, by its trainings on the first tuning seeds, all of them unless it was dropped;
        one that a killed process had stored before is left as it is."""
        starts = [self.ground.untrained(seed) for seed in self.tuning_seeds[: len(traces)]]
        ends = [capped_log(t.loss, start) for t, start in zip(traces, starts, strict=True)]
        value = float(np.mean(ends))
        pruned = len(traces) < self.budget.seeds or any(trace.lost == "pruned" for trace in traces)
        reports: dict[int, float] = dict(enumerate(ends)) if self.budget.pruner == "wilcoxon" else {}
        for place, step in enumerate(pruning.looks(self.budget.pruner, self.ground.steps)):
            there = [trace.curve[place] if place < len(trace.curve) else math.inf for trace in traces]
            if any(place < len(trace.curve) for trace in traces):
                reports[step] = float(np.mean([capped_log(*each) for each in zip(there, starts, strict=True)]))
                value = reports[step] if pruned else value
        done = create_trial(
            state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
            value=value,
            params=trial.params,
            distributions=trial.distributions,
            intermediate_values=reports,
            system_attrs=dict(pruning.remembered(trial)) if self.budget.pruner == "hyperband" else None,
            user_attrs={
                "run": {
                    "hypers": self.hypers_of(trial),
                    "losses": [plain.finite(trace.loss) for trace in traces],
                    "lost": [trace.lost for trace in traces if trace.lost],
                    "model_steps": model_steps(traces),
                    "built": asdict(self.ground.built),
                }
            },
        )
        if self.late:
            self.trials.append(self.late.pop(0))
        else:
            self.store.add(self.name, done)
            self.trials.append(done)

    def fresh_of(self, curve: Sequence[int]) -> dict[str, Any] | None:
        """What the best setting came to on the fresh seeds, if that is stored, for at least as many seeds and at least
        these steps."""
        return next((found for found in self._fresh if _has(found, curve, len(self.fresh_seeds))), None)

    @property
    def _fresh(self) -> list[dict[str, Any]]:
        """All that is stored of fresh seeds, the latest first; none has all that another one has."""
        latest = dict(self.attributes.get("fresh", {}))
        others = latest.pop("others", [])
        return [latest, *others] if latest else []

    def store_fresh(self, traces: Sequence[Trace], curve: Sequence[int]) -> None:
        found = {
            "steps": sorted(set(curve)),
            "losses": [plain.finite(trace.loss) for trace in traces],
            "curves": [[plain.finite(each) for each in trace.curve] for trace in traces],
            "untrained": [self.ground.untrained(seed) for seed in self.fresh_seeds],
            "model_steps": model_steps(traces),
            "built": asdict(self.ground.built),
        }
        self._keep_fresh(found)

    def _keep_fresh(self, found: dict[str, Any]) -> None:
        others = [each for each in self._fresh if not _has(found, each["steps"], len(each["losses"]))]
        self.attributes["fresh"] = found | {"others": others}
        self.store.set(self.name, "fresh", self.attributes["fresh"])

    def is_done(self, curve: Sequence[int]) -> bool:
        """Whether nothing is left to train, where curves of fresh seeds have these steps."""
        return len(self.trials) == self.budget.trials and self.fresh_of(curve) is not None

    @property
    def best_hypers(self) -> dict[str, float]:
        return self.hypers_of(_best(self.trials))

    def result(self, curve: Sequence[int] = ()) -> Tuned:
        """What it came to, where nothing is left to train; with curves of these steps."""
        fresh, best, count = self.fresh_of(curve), _best(self.trials), len(self.fresh_seeds)
        assert fresh is not None
        assert best.value is not None
        steps = sorted(set(curve))
        places = [fresh["steps"].index(step) for step in steps]
        curves = [[own[place] for place in places if place < len(own)] for own in fresh["curves"][:count]]
        spent = sum(trial.user_attrs["run"]["model_steps"] for trial in self.trials) + fresh["model_steps"]
        offered = self.trials[-1].distributions["lr"]
        assert isinstance(offered, FloatDistribution)
        return Tuned(
            seed=self.seed,
            hypers=self.best_hypers,
            value=best.value,
            trials=len(self.trials),
            pruned=sum(trial.state == TrialState.PRUNED for trial in self.trials),
            at_edge=bool(Dimension("lr", offered.low, offered.high).at_edge(best.params["lr"])),
            model_steps=spent,
            horizon=self.ground.steps,
            steps=tuple(steps),
            seeds=tuple(self.fresh_seeds),
            losses=tuple(map(plain.loss, fresh["losses"][:count])),
            curves=tuple(tuple(map(plain.loss, own)) for own in curves),
            untrained=tuple(fresh["untrained"][:count]),
            built=tuple(dict.fromkeys(Built.of(trial.user_attrs["run"]["built"]) for trial in self.trials)),
            fresh_built=Built.of(fresh["built"]),
        )


def tuning_seeds(seed: int, count: int) -> range:
    """The seeds that the trials of a study train on."""
    return range(seed * _SEEDS_APART, seed * _SEEDS_APART + count)


def fresh_seeds(seed: int, count: int) -> range:
    """The first so many fresh seeds of a study."""
    first = seed * _SEEDS_APART + _FRESH
    return range(first, first + count)


def _best(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """The least value of those that came to their end; among equals the first."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return min(done or trials, key=lambda trial: math.inf if trial.value is None else trial.value)


def _has(found: Mapping[str, Any], steps: Sequence[int], seeds: int) -> bool:
    """Whether what is stored of fresh seeds has so many of them, and losses after all of these steps."""
    return len(found["losses"]) >= seeds and set(steps) <= set(found["steps"])


def _suggest(trial: optuna.Trial, dimension: Dimension) -> None:
    if dimension.zero and not trial.suggest_categorical(dimension.switch, [True, False]):
        return
    trial.suggest_float(dimension.label, dimension.low, dimension.high, log=True)
