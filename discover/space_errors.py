"""Pydantic's errors in words: where in the YAML, what was expected, what stands there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from discover.promotion_keys import without_options
from dsl.parse import suggest

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


def in_words(errors: ValidationError, model: type[BaseModel]) -> str:
    """The first error, the same for every order of keys in the file; and how many more there are."""
    each = errors.errors()
    first = min(each, key=lambda error: (error["type"] == "missing", error["type"] != "extra_forbidden"))
    location = list(first["loc"])
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "extra_forbidden":
        key = location.pop()
        words = f"unknown key '{key}'{suggest(str(key), _keys_at(model, location))}"
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


def not_listed(where: str, task: str, part: str, listed: Sequence[str]) -> str:
    """What is wrong where a task is named that its set does not list. If there is such a task, and none of the name
    that is nearest to it in the set, the mistake is the set's."""
    import tasks  # and with it torch, which a space without mistakes does not wait for

    near = difflib.get_close_matches(task, listed, n=1)
    known = [without_options(each) in tasks.names() for each in (task, *near)]
    if known == [True, False] and ".py:" not in near[0]:
        return f"tasks.{part}: unknown task '{near[0]}'; did you mean '{task}'?"
    return f"{where}: '{task}' is not among tasks.{part}{suggest(task, listed)}"


def _keys_at(model: type[BaseModel], location: Iterable[int | str]) -> Iterable[str]:
    """The keys of the section at a place; none where there is no section."""
    section: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str) and section is not None:
            section = _section(section.model_fields[part].annotation)
    return () if section is None else section.model_fields


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, such as `Rung` in `tuple[Rung, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
