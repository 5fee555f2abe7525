"""What a key of a search space may hold: numbers in ranges, durations, names, steps, slots, resources."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from discover.durations import parse_duration
from dsl.ops import OPS
from dsl.parse import suggest
from dsl.program import BUILTINS, RESERVED
from dsl.types import EXTENTS

_TAKEN = {
    **RESERVED,
    "p": "the parameter",
    "g": "the gradient",
    "lr": "a hyperparameter of every program",
    "weight_decay": "a hyperparameter of every program",
    **dict.fromkeys(BUILTINS, "built into the language"),
}
"""What no slot can be called: name -> what it is."""


class Keys(BaseModel):
    """A section of a space: known keys alone, of the very kind that is asked for; it does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


def _operator(name: str) -> str:
    if name not in OPS:
        raise ValueError(f"unknown operator '{name}'{suggest(name, OPS)}")
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


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"'{value}' is listed twice")
    return values


def _interval(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"expected [lowest, highest], not [{values[0]:g}, {values[1]:g}]")
    return values


def _slots(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        extent, name = slot_of(value)
        if not name.isidentifier():
            raise ValueError(f"'{value}' is not the name of a slot; write m, or rows(m) for one value per row")
        if extent not in EXTENTS:
            raise ValueError(f"'{value}': unknown extent '{extent}'; expected one of {', '.join(EXTENTS)}")
        if taken := _meaning(name):
            raise ValueError(f"'{name}' is {taken}; a slot needs a name of its own, such as m")
    distinct(tuple(slot_of(value)[1] for value in values))
    return values


def _meaning(name: str) -> str:
    """What a name means already; empty where it is free."""
    if name in OPS:
        return "an operator"
    if keyword.iskeyword(name):
        return "a word of Python"
    if re.fullmatch(r"x[0-9]+", name):
        return "what a value in between is called"
    return _TAKEN.get(name, "")


def slot_of(text: str) -> tuple[str, str]:
    """Extent and name of a slot as a space spells it: "m", or "rows(m)"."""
    extent, bracket, name = text.partition("(")
    return (extent.strip(), name.removesuffix(")").strip()) if bracket else ("full", text)


def _resources(values: dict[str, float]) -> dict[str, float]:
    for name, value in values.items():
        if not name.strip():
            raise ValueError("a resource needs a name, such as CPU or GPU")
        if value > 1 and value != int(value):
            raise ValueError(f"{name}: {value:g}: Ray takes parts of one, or whole numbers")
    return values


def request_of(resources: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """What a worker is asked to have, sorted by name; a core unless something else is said of cores."""
    asked = {name: float(quantity) for name, quantity in resources.items() if quantity or name == "CPU"}
    return tuple(sorted({"CPU": 1.0, **asked}.items()))


Interval = Annotated[tuple[Positive, Positive], AfterValidator(_interval)]
Duration = Annotated[str, AfterValidator(_duration)]
Names = Annotated[tuple[str, ...], AfterValidator(distinct)]
Range = Annotated[tuple[float, float], AfterValidator(_interval)]
Counts = Annotated[tuple[int, int], AfterValidator(_interval)]
Steps = Annotated[int | float, BeforeValidator(_steps)]
Listed = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Slots = Annotated[Names, AfterValidator(_slots)]
Operators = Annotated[tuple[Annotated[str, AfterValidator(_operator)], ...], AfterValidator(distinct)]
Resources = Annotated[dict[str, Weight], AfterValidator(_resources)]
