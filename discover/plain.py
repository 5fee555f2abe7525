"""Plain data for JSON, which knows neither inf nor nan: they are null there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def ready(value: Any) -> Any:
    """Data that JSON can hold: mappings with text as keys, lists, and None for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): ready(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [ready(each) for each in value]
    return finite(value)


def finite(value: Any) -> Any:
    """The value itself; None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def loss(value: float | None) -> float:
    """A loss that was kept: None is one that was lost, inf."""
    return math.inf if value is None else value
