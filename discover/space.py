"""A search space: which programs may be tried, on which tasks, with what budget. One YAML file, read strictly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

import dsl
from discover.budget import Budget
from discover.contender_names import check_name
from discover.durations import parse_duration
from discover.errors import SpaceError, UserError
from discover.keys import (
    Duration,
    Fraction,
    Interval,
    Keys,
    Listed,
    Names,
    Operators,
    Positive,
    Range,
    Resources,
    Share,
    Slots,
    Steps,
    Weight,
    distinct,
    request_of,
    slot_of,
)
from discover.own_files import anchored
from discover.promotion_keys import Promote, base_of
from discover.space_errors import in_words, not_listed
from discover.yaml_reader import read_yaml
from dsl.parse import suggest
from dsl.program import Program

DIRECTORY = Path(__file__).parent.parent / "search_spaces"


def _shown(path: Path) -> Path:
    """The path from where the user stands, if that is above it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


class Mutation(Keys):
    """How often each kind of change is tried (relative weights), how far a constant moves, and the share of inserted
    divisions whose divisor is made safe (`guarded`)."""

    insert: Weight = 1.0
    delete: Weight = 1.0
    argument: Weight = 1.0
    operator: Weight = 0.5
    constant: Weight = 1.0
    constant_sigma: Positive = 1.0
    guarded: Share = 0.0

    @property
    def weights(self) -> dict[str, float]:
        return self.model_dump(exclude={"constant_sigma", "guarded"})

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("at least one kind of change needs a weight above 0")
        return self


class Evolution(Keys):
    """Aging evolution: the best of `tournament` random members is the parent, the oldest member leaves.

    Attributes:
        rejoin: whether candidates that were confirmed join the population anew, as its youngest members.
    """

    population: Annotated[int, Field(ge=1)] = 200
    tournament: Annotated[int, Field(ge=1)] = 2
    rejoin: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tournament > self.population:
            raise ValueError(f"tournament {self.tournament} is larger than the population of {self.population}")
        return self


class Optuna(Keys):
    """Which of Optuna's samplers proposes: tpe, nsga2, gp or random, and its arguments."""

    sampler: str = "tpe"
    options: dict[str, Any] = Field(default_factory=dict)


class TemplateChoice(Keys):
    """A template in place of programs that change: its name in `discover.templates` or FILE.py:NAME, and arguments."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class LearningRates(Keys):
    """The grid around a task's own learning rate: `points`, each `factor` times the one before."""

    points: Annotated[int, Field(ge=3)] = 6
    factor: Annotated[float, Field(gt=1.0)] = 2.0


class Rung(Keys):
    """One stage of training.

    Attributes:
        tasks: trained on; among the space's search tasks.
        steps: a whole number of steps, or a fraction (0.5, 1.0) of each task's horizon.
        seeds: instances of each task, each with a seed and scales of its own.
        keep: the best share of a generation's candidates on this rung, which goes on to the next.
        resources: what Ray sets aside for a worker that trains on this rung: CPU (1 unless it is said), GPU, memory
            in bytes, or any name that the cluster's nodes declare.
    """

    tasks: Annotated[Names, Field(min_length=1)]
    steps: Steps = 1.0
    seeds: Annotated[int, Field(ge=1)] = 1
    keep: Fraction = 0.25
    resources: Resources = Field(default_factory=dict)

    @property
    def request(self) -> tuple[tuple[str, float], ...]:
        """`resources` with CPU filled in and what is not asked for left out, in one order: a kind of worker."""
        return request_of(self.resources)

    def steps_of(self, horizon: int) -> int:
        """How many steps this rung trains on a task of that horizon."""
        return max(2, round(self.steps * horizon)) if isinstance(self.steps, float) else self.steps


class Confirm(Keys):
    """Each `every` generations the `top` candidates are trained again on fresh instances, until `most` times each."""

    every: Annotated[int, Field(ge=1)] = 2
    top: Annotated[int, Field(ge=1)] = 4
    most: Annotated[int, Field(ge=2)] = 8


class Require(Keys):
    """What a program must be before it is trained; found by analysis and checked by probing."""

    odd: bool = True
    homogeneous: bool = True
    finite_at_zero: bool = True
    max_slots: Annotated[int, Field(ge=0)] | None = 2
    max_state_bytes: Weight | None = None


class Probes(Keys):
    """A few steps on random gradients before any training: what a program must do there to be worth a training."""

    min_cosine: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.1
    min_update: Weight = 1e-8
    max_update: Positive = 1e8
    max_growth: Positive = 100.0


class TaskSplit(Keys):
    """Disjoint sets: fitness comes from `search`, a checkpoint is chosen by `select`, the verdict is `final`'s."""

    search: Annotated[Names, Field(min_length=1)]
    select: Names = ()
    final: Names = ()

    @property
    def sets(self) -> dict[str, Names]:
        """What a set is called -> its tasks."""
        return {"search": self.search, "select": self.select, "final": self.final}

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        for one, other in (("search", "select"), ("search", "final"), ("select", "final")):
            theirs = {base_of(name): name for name in getattr(self, other)}
            for name in sorted(getattr(self, one)):
                if (both := theirs.get(base_of(name))) is None:
                    continue
                shared = "" if both == name else f" (as '{both}', a variant of the same task)"
                raise ValueError(f"'{name}' is in {one} and in {other}{shared}; the three sets must be disjoint")
        return self


class Unit(Keys):
    """What one worker gets at a time: candidates on one task instance.

    Attributes:
        seconds: how long a unit should take, by `discover.costs`; what fixes how many candidates it holds.
        candidates: how many it holds at most.
        time_limit: then its worker is killed.
        memory: gigabytes that its training may take, beyond what the worker had before.
    """

    seconds: Positive = 1.0
    candidates: Annotated[int, Field(ge=1)] = 128
    time_limit: Duration = "10m"
    memory: Positive = 8.0

    @property
    def limit_seconds(self) -> float:
        return parse_duration(self.time_limit)


class Space(Keys):
    """A search space; `search_spaces/lion_like.yaml` explains every key."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    description: str = ""
    ancestor: Annotated[Listed, Field(min_length=1)] = ("adamw",)
    warm_starts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    algorithm: str = "evolution"
    operators: Operators = ()
    template: TemplateChoice | None = None
    slots: Slots = ("m", "v")
    max_statements: Annotated[int, Field(ge=1)] = 24
    mutation: Mutation = Mutation()
    evolution: Evolution = Evolution()
    optuna: Optuna = Optuna()
    proposer: dict[str, Any] = Field(default_factory=dict)
    objectives: Annotated[
        tuple[Literal["fitness", "state_bytes", "operations"], ...], AfterValidator(distinct), Field(min_length=1)
    ] = ("fitness",)
    cache: bool = True
    proposals_per_generation: Annotated[int, Field(ge=1)] = 256
    lag: Annotated[int, Field(ge=1)] = 2
    require: Require = Require()
    probes: Probes = Probes()
    tasks: TaskSplit
    learning_rates: LearningRates = LearningRates()
    weight_decay: Weight = 0.0
    weights: Annotated[dict[str, Positive], Field(default_factory=dict)]
    score_limits: Range = (-1.0, 1.0)
    loss_scales: Interval = (1e-2, 1e2)
    parameter_scales: Interval = (1e-2, 1e2)
    step_scales: Interval = (1.0, 1.0)
    tensor_scales: Interval = (1.0, 1.0)
    batch_scales: Interval = (1.0, 1.0)
    rungs: Annotated[tuple[Rung, ...], Field(min_length=1)]
    confirm: Confirm = Confirm()
    unit: Unit = Unit()
    compile: Literal["auto", "always", "never"] = "auto"
    budget: Budget = Budget()
    promote: Promote = Promote()

    @model_validator(mode="after")
    def _promotion_trains_on_its_own_sets(self) -> Self:
        for where, task, part in self.promote.tasks_of():
            known = [base_of(name) for name in getattr(self.tasks, part)]
            if base_of(task) not in known:
                raise ValueError(not_listed(where, task, part, getattr(self.tasks, part)))
        return self

    @model_validator(mode="after")
    def _something_to_search(self) -> Self:
        if not self.operators and self.template is None:
            raise ValueError("operators: expected at least 1 entries, not []; only a template needs none")
        if self.objectives[0] != "fitness":
            raise ValueError(f"objectives: expected fitness first, not {self.objectives[0]}")
        return self

    @model_validator(mode="after")
    def _warm_starts_are_of_a_space(self) -> Self:
        for rule, changes in self.warm_starts.items():
            try:
                self.model_validate_json(json.dumps(_merged({**self.plain(), "warm_starts": {}}, changes)))
            except ValidationError as error:
                raise ValueError(f"warm_starts.{rule}: {in_words(error, Space)}") from None
        return self

    @model_validator(mode="after")
    def _confirmations_are_absorbed_before_the_next(self) -> Self:
        if self.confirm.every < self.lag:
            raise ValueError(f"confirm.every is {self.confirm.every}, less than lag, which is {self.lag}")
        return self

    @model_validator(mode="after")
    def _rungs_train_on_search_tasks(self) -> Self:
        for number, rung in enumerate(self.rungs):
            for task in rung.tasks:
                if task not in self.tasks.search:
                    raise ValueError(not_listed(f"rungs[{number}].tasks", task, "search", self.tasks.search))
        return self

    @model_validator(mode="after")
    def _weights_are_of_search_tasks(self) -> Self:
        for task in self.weights:
            if task not in self.tasks.search:
                raise ValueError(not_listed("weights", task, "search", self.tasks.search))
        return self

    @classmethod
    def load(cls, space: str) -> Space:
        """Reads a search space.

        Args:
            space: the name of one in search_spaces/, or a path to a YAML file. Paths of rules and tasks in the file are
                relative to it.

        Raises:
            SpaceError: "FILE: key: what was wrong; what was expected", one line.
        """
        path = _find(space)
        data = anchored(read_yaml(path), path.parent)
        if not isinstance(data, dict):
            raise SpaceError(f"{path}: expected 'key: value' lines, with operators, tasks and rungs at least")
        loaded = cls.of({"name": path.stem, **data}, str(path))
        try:
            hypers = {name: program.name for program in loaded.ancestors() for name in program.defaults}
        except dsl.RuleError as error:
            raise SpaceError(f"{path}: ancestor: {error}") from None
        for where, baseline in loaded.promote.baselines_of():
            try:
                check_name(baseline)
            except (dsl.RuleError, UserError) as error:
                raise SpaceError(f"{path}: {where}: {error}") from None
        for _, slot in map(slot_of, loaded.slots):
            if slot in hypers:
                raise SpaceError(f"{path}: slots: '{slot}' is a hyperparameter of the ancestor {hypers[slot]}")
        return loaded

    @classmethod
    def of(cls, data: Mapping[str, Any], source: str) -> Space:
        """A space from plain data, as `plain` gives it; `source` is for messages."""
        try:
            return cls.model_validate_json(json.dumps(data, default=str))
        except ValidationError as error:
            raise SpaceError(f"{source}: {in_words(error, cls)}") from None

    def plain(self) -> dict[str, Any]:
        """The space as plain data, every key included: what a manifest keeps."""
        return self.model_dump(mode="json")

    def absolute(self) -> Space:
        """The same space with absolute paths, which mean the same from every folder."""
        return self.of(anchored(self.plain(), Path.cwd()), self.name)

    def ancestors(self) -> tuple[Program, ...]:
        """The programs that a search starts from. Raises RuleError for one that is missing, or not well formed."""
        return tuple(dsl.load(rule) for rule in self.ancestor)

    def starting_from(self, rules: Iterable[str]) -> Space:
        """The same space with other rules to start from, and what `warm_starts` changes for these, the later ones over
        the earlier."""
        space, rules = self, list(rules)
        for changes in (self.warm_starts[rule] for rule in rules if rule in self.warm_starts):
            space = space.changed(changes)
        return self.of({**space.plain(), "warm_starts": {}, "ancestor": rules}, self.name)

    def changed(self, changes: Mapping[str, Any]) -> Space:
        """The same space with other values of some keys; within a section, of the keys that are named."""
        return self.of(_merged(self.plain(), changes), self.name)

    def check_tasks(self, check: Callable[[str], object], source: str) -> None:
        """Raises SpaceError for a task that `check` raises ValueError for, as `tasks.check_name` does."""
        for where, task in self._tasks_of():
            try:
                check(task)
            except ValueError as error:
                raise SpaceError(f"{source}: {where}: {error}") from None

    def _tasks_of(self) -> Iterator[tuple[str, str]]:
        """(where in the YAML, task) for every task that is named; the others are among these."""
        for part in ("search", "select", "final"):
            for task in getattr(self.tasks, part):
                yield f"tasks.{part}", task
        for where, task, _ in self.promote.tasks_of():
            yield where, task

    def with_tasks(self, names: Iterable[str]) -> Space:
        """The same space, but searching on these tasks: each rung trains on all of them."""
        names = tuple(dict.fromkeys(names))
        taken = {base_of(name) for name in names}
        split = {
            part: [n for n in getattr(self.tasks, part) if base_of(n) not in taken] for part in ("select", "final")
        }
        rungs = [{**rung.model_dump(), "tasks": names} for rung in self.rungs]
        weights = {name: weight for name, weight in self.weights.items() if name in names}
        changed = {"tasks": {"search": names, **split}, "rungs": rungs, "weights": weights}
        changed["promote"] = _without(self.promote.model_dump(mode="json"), taken)
        return self.of({**self.plain(), **changed}, self.name)

    def renamed(self, names: Mapping[str, str]) -> Space:
        """The same space with other names for its search tasks: for a variant, the spelling it is stored under."""
        if all(name == new for name, new in names.items()):
            return self

        def new(tasks: Iterable[str]) -> list[str]:
            return list(dict.fromkeys(names.get(task, task) for task in tasks))

        changed = {
            "tasks": {**self.tasks.model_dump(), "search": new(self.tasks.search)},
            "rungs": [{**rung.model_dump(), "tasks": new(rung.tasks)} for rung in self.rungs],
            "weights": {names.get(task, task): weight for task, weight in self.weights.items()},
        }
        return self.of({**self.plain(), **changed}, self.name)


def _merged(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    sections = {
        key: {**plain[key], **value}
        for key, value in changes.items()
        if isinstance(value, Mapping) and isinstance(plain.get(key), Mapping)
    }
    return {**plain, **changes, **sections}


def _without(data: Any, bases: set[str]) -> Any:
    """Plain data of a section with tasks of these bases taken off its lists."""
    if isinstance(data, list):
        return [_without(each, bases) for each in data]
    if not isinstance(data, dict):
        return data
    kept = {key: _without(value, bases) for key, value in data.items()}
    if kept.get("tasks"):
        kept["tasks"] = [task for task in kept["tasks"] if base_of(task) not in bases]
    return kept


def names() -> list[str]:
    """The search spaces that come with the engine."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def _find(space: str) -> Path:
    if space.endswith((".yaml", ".yml")) or os.sep in space:
        return Path(space)
    if space not in names():
        hint = suggest(space, names())
        raise SpaceError(
            f"unknown search space '{space}'{hint}; 'discover list spaces' shows them, or give a YAML file"
        )
    return _shown(DIRECTORY / f"{space}.yaml")
