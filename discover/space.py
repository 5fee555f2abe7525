"""A search space: which programs may be tried, on which tasks, with what budget. One YAML file, read strictly."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

import dsl
from discover.durations import parse_duration
from discover.errors import SpaceError
from discover.yaml_reader import read_yaml
from dsl.ops import OPS
from dsl.program import Program

DIRECTORY = Path(__file__).parent.parent / "search_spaces"

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


def _operator(name: str) -> str:
    if name not in OPS:
        raise ValueError(f"unknown operator '{name}'{_suggest(name, OPS)}")
    return name


def _duration(text: str) -> str:
    parse_duration(text)
    return text


def _steps(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a whole number of steps or a fraction of the task's horizon, not {value!r}")
    if not (0.0 < value <= 1.0 if isinstance(value, float) else value > 1):
        raise ValueError(f"{value} is neither a number of steps (2 or more) nor a fraction of the horizon (up to 1.0)")
    return value


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"'{value}' is listed twice")
    return values


def _interval(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"expected [lowest, highest], not [{values[0]:g}, {values[1]:g}]")
    return values


Interval = Annotated[tuple[Positive, Positive], AfterValidator(_interval)]
Duration = Annotated[str, AfterValidator(_duration)]
Names = Annotated[tuple[str, ...], AfterValidator(_distinct)]


def _shown(path: Path) -> Path:
    """The path from where the user stands, if that is above it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Mutation(_Keys):
    """How often each kind of change is tried (relative weights), and how far a constant moves."""

    insert: Weight = 1.0
    delete: Weight = 1.0
    argument: Weight = 1.0
    operator: Weight = 0.5
    constant: Weight = 1.0
    constant_sigma: Positive = 1.0

    @property
    def weights(self) -> dict[str, float]:
        return {name: value for name, value in self.model_dump().items() if name != "constant_sigma"}

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("at least one kind of change needs a weight above 0")
        return self


class Evolution(_Keys):
    """Aging evolution: the best of `tournament` random members is the parent, the oldest member leaves."""

    population: Annotated[int, Field(ge=1)] = 200
    tournament: Annotated[int, Field(ge=1)] = 2

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tournament > self.population:
            raise ValueError(f"tournament {self.tournament} is larger than the population of {self.population}")
        return self


class LearningRates(_Keys):
    """The grid around a task's own learning rate: `points`, each `factor` times the one before."""

    points: Annotated[int, Field(ge=3)] = 6
    factor: Annotated[float, Field(gt=1.0)] = 2.0


class Rung(_Keys):
    """One stage of training.

    Attributes:
        tasks: trained on; among the space's search tasks.
        steps: a whole number of steps, or a fraction (0.5, 1.0) of each task's horizon.
        seeds: instances of each task, each with a seed and scales of its own.
        keep: the best share of a generation's candidates on this rung, which goes on to the next.
    """

    tasks: Annotated[Names, Field(min_length=1)]
    steps: Annotated[int | float, BeforeValidator(_steps)] = 1.0
    seeds: Annotated[int, Field(ge=1)] = 1
    keep: Fraction = 0.25

    def steps_of(self, horizon: int) -> int:
        """How many steps this rung trains on a task of that horizon."""
        return max(2, round(self.steps * horizon)) if isinstance(self.steps, float) else self.steps


class Confirm(_Keys):
    """Each `every` generations the `top` candidates are trained again on fresh instances, until `most` times each."""

    every: Annotated[int, Field(ge=1)] = 2
    top: Annotated[int, Field(ge=1)] = 4
    most: Annotated[int, Field(ge=2)] = 8


class Require(_Keys):
    """What a program must be before it is trained; found by analysis and checked by probing."""

    odd: bool = True
    homogeneous: bool = True
    finite_at_zero: bool = True
    max_slots: Annotated[int, Field(ge=0)] | None = 2


class Probes(_Keys):
    """A few steps on random gradients before any training: what a program must do there to be worth a training."""

    min_cosine: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.1
    min_update: Weight = 1e-8
    max_update: Positive = 1e8


class Budget(_Keys):
    """When a search ends: after a time, after so many candidates trained, or whichever comes first."""

    time: Duration | None = None
    candidates: Annotated[int, Field(ge=1)] | None = None

    @property
    def seconds(self) -> float | None:
        return None if self.time is None else parse_duration(self.time)


class TaskSplit(_Keys):
    """Disjoint sets: fitness comes from `search`, a checkpoint is chosen by `select`, the verdict is `final`'s."""

    search: Annotated[Names, Field(min_length=1)]
    select: Names = ()
    final: Names = ()

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        for one, other in (("search", "select"), ("search", "final"), ("select", "final")):
            if both := sorted({*getattr(self, one)} & {*getattr(self, other)}):
                raise ValueError(f"'{both[0]}' is in {one} and in {other}; the three sets must be disjoint")
        return self


class Unit(_Keys):
    """What one worker gets at a time: so many candidates on one task instance, for so long at most."""

    candidates: Annotated[int, Field(ge=1)] = 16
    time_limit: Duration = "10m"

    @property
    def seconds(self) -> float:
        return parse_duration(self.time_limit)


class Space(_Keys):
    """A search space; `search_spaces/lion_like.yaml` says of each key why it is as it is."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    description: str = ""
    ancestor: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = ("adamw",)
    algorithm: Literal["evolution", "random"] = "evolution"
    operators: Annotated[
        tuple[Annotated[str, AfterValidator(_operator)], ...], AfterValidator(_distinct), Field(min_length=1)
    ]
    slots: Names = ("m", "v")
    max_statements: Annotated[int, Field(ge=1)] = 24
    mutation: Mutation = Mutation()
    evolution: Evolution = Evolution()
    proposals_per_generation: Annotated[int, Field(ge=1)] = 256
    lag: Annotated[int, Field(ge=1)] = 2
    require: Require = Require()
    probes: Probes = Probes()
    tasks: TaskSplit
    learning_rates: LearningRates = LearningRates()
    weight_decay: Weight = 0.0
    weights: Annotated[dict[str, Positive], Field(default_factory=dict)]
    score_limits: Annotated[tuple[float, float], AfterValidator(_interval)] = (-1.0, 1.0)
    loss_scales: Interval = (1e-2, 1e2)
    parameter_scales: Interval = (1e-2, 1e2)
    rungs: Annotated[tuple[Rung, ...], Field(min_length=1)]
    confirm: Confirm = Confirm()
    unit: Unit = Unit()
    compile: Literal["auto", "always", "never"] = "auto"
    budget: Budget = Budget()

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
                    hint = _suggest(task, self.tasks.search)
                    raise ValueError(f"rungs[{number}].tasks: '{task}' is not among tasks.search{hint}")
        return self

    @model_validator(mode="after")
    def _weights_are_of_search_tasks(self) -> Self:
        for task in self.weights:
            if task not in self.tasks.search:
                raise ValueError(f"weights: '{task}' is not among tasks.search{_suggest(task, self.tasks.search)}")
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
        data = _anchored(read_yaml(path), path.parent)
        if not isinstance(data, dict):
            raise SpaceError(f"{path}: expected 'key: value' lines, with operators, tasks and rungs at least")
        loaded = cls.of({"name": path.stem, **data}, str(path))
        try:
            loaded.ancestors()
        except dsl.RuleError as error:
            raise SpaceError(f"{path}: ancestor: {error}") from None
        return loaded

    @classmethod
    def of(cls, data: Mapping[str, Any], source: str) -> Space:
        """A space from plain data, as `plain` gives it; `source` is for messages."""
        try:
            return cls.model_validate_json(json.dumps(data, default=str))
        except ValidationError as error:
            raise SpaceError(f"{source}: {_in_words(error)}") from None

    def plain(self) -> dict[str, Any]:
        """The space as plain data, every key included: what a manifest keeps."""
        return self.model_dump(mode="json")

    def ancestors(self) -> tuple[Program, ...]:
        """The programs that a search starts from. Raises RuleError for one that is missing, or not well formed."""
        return tuple(dsl.load(rule) for rule in self.ancestor)

    def check_tasks(self, known: Iterable[str], source: str) -> None:
        """Raises SpaceError for a task that is neither known nor in a Python file."""
        known = list(known)
        for part in ("search", "select", "final"):
            for task in getattr(self.tasks, part):
                if task not in known and ".py:" not in task:
                    raise SpaceError(f"{source}: tasks.{part}: unknown task '{task}'{_suggest(task, known)}")

    def with_tasks(self, names: Iterable[str]) -> Space:
        """The same space, but searching on these tasks: each rung trains on all of them."""
        names = tuple(dict.fromkeys(names))
        split = {part: [n for n in getattr(self.tasks, part) if n not in names] for part in ("select", "final")}
        rungs = [{**rung.model_dump(), "tasks": names} for rung in self.rungs]
        weights = {name: weight for name, weight in self.weights.items() if name in names}
        changed = {"tasks": {"search": names, **split}, "rungs": rungs, "weights": weights}
        return self.of({**self.plain(), **changed}, self.name)


def names() -> list[str]:
    """The search spaces that come with the engine."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def _find(space: str) -> Path:
    if space.endswith((".yaml", ".yml")) or os.sep in space:
        return Path(space)
    if space not in names():
        hint = _suggest(space, names())
        raise SpaceError(
            f"unknown search space '{space}'{hint}; 'discover list spaces' shows them, or give a YAML file"
        )
    return _shown(DIRECTORY / f"{space}.yaml")


def _anchored(data: Any, base: Path) -> Any:
    """The data with paths of rule files and of tasks in Python files made relative to the file that names them."""
    if isinstance(data, dict):
        return {_anchored(key, base): _anchored(value, base) for key, value in data.items()}
    if isinstance(data, list):
        return [_anchored(value, base) for value in data]
    if isinstance(data, str) and "\n" not in data and (data.endswith(".rule") or ".py:" in data):
        return str(base / data)
    return data


# Pydantic's errors in words -----------------------------------------------------------------------------------------

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "string_pattern_mismatch": "a letter, then letters, digits, _ or -",
}
_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _in_words(errors: ValidationError) -> str:
    """The first error, the same for every order of keys in the file; and how many more there are."""
    each = errors.errors()
    first = min(each, key=lambda error: (error["type"] == "missing", error["type"] != "extra_forbidden"))
    location = list(first["loc"])
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "extra_forbidden":
        key = location.pop()
        words = f"unknown key '{key}'{_suggest(str(key), _keys_at(location))}"
    elif kind == "missing":
        words = "is missing"
    elif kind == "literal_error":
        allowed = str(context["expected"]).replace("'", "")
        words = f"expected {allowed}, not {value!r}"
    elif kind in _EXPECTED:
        words = f"expected {_EXPECTED[kind]}, not {_short(value)}"
    elif kind in _LIMITS:
        name, bound = _LIMITS[kind]
        words = f"expected {bound} {context[name]:g}, not {_short(value)}"
    elif kind in ("too_short", "too_long"):
        length = context["min_length" if kind == "too_short" else "max_length"]
        words = f"expected {'at least' if kind == 'too_short' else 'at most'} {length} entries, not {_short(value)}"
    elif kind == "value_error":
        words = str(context["error"])
    else:
        words = first["msg"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if kind == "value_error" and isinstance(location[-1] if location else None, int):
        where = where.rsplit("[", 1)[0]
    more = f" (and {len(each) - 1} more)" if len(each) > 1 else ""
    return f"{where}: {words}{more}" if where else f"{words}{more}"


def _keys_at(location: list[int | str]) -> Iterable[str]:
    model: Any = Space
    for part in location:
        if isinstance(part, str):
            model = Rung if part == "rungs" else model.model_fields[part].annotation
    return model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else ()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
