"""Variants of a task, written as a call: `digits_mlp(batch_size=512, horizon=100)`.

Every task takes the options in `COMMON`; a class adds the keyword arguments of its `__init__`. Values are plain words:
what they mean is read off the arguments' annotations. Quotes are needed only around a comma, a parenthesis or a quote.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

COMMON: Mapping[str, type] = {"batch_size": int, "horizon": int, "learning_rate": float}
"""What every task takes; `warmup` keeps its share of the horizon."""

Values = tuple[tuple[str, Any], ...]  # sorted by name, so that two spellings of one variant are equal

_CALL = re.compile(r"""(.*?)\s*\(((?:[^()'"]|'[^']*'|"[^"]*")*)\)\s*""", re.DOTALL)
_ITEM = re.compile(r"""(?:[^,'"]|'[^']*'|"[^"]*")+""")
_WORD = re.compile(r"""'[^']*'|"[^"]*"|[^'"]+""")
_PLAIN = re.compile(r"""[^\s,()'"](?:[^,()'"]*[^\s,()'"])?""")


def parse(name: str) -> tuple[str, dict[str, str]]:
    """What stands before the parentheses, and the options in them as text.

    >>> parse("digits_mlp(batch_size = 512)")
    ('digits_mlp', {'batch_size': '512'})

    Raises:
        ValueError: what stands in the parentheses is not `option=value, ...`, or says an option twice.
    """
    called = _CALL.fullmatch(name)
    if called is None:
        return name, {}
    given: dict[str, str] = {}
    for item in _ITEM.findall(called[2]):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier() or not _WORD.fullmatch(value):
            raise ValueError(f"{name}: expected option=value, not '{item.strip()}'")
        if key in given:
            raise ValueError(f"{name}: '{key}' is given twice")
        given[key] = value[1:-1] if value[0] in "'\"" else value
    return called[1], given


def convert(maker: object, given: Mapping[str, str], where: str) -> tuple[Values, Values]:
    """The options as values: a class's own (those equal to their defaults left out), and the common ones.

    Args:
        maker: a subclass of `Task`, or an instance, which has no options of its own.
        given: from `parse`.
        where: what an error starts with.

    Raises:
        ValueError: an unknown option, or a value that its annotation does not allow.
    """
    own = _own(maker) if isinstance(maker, type) else {}
    kinds = {**COMMON, **{key: kind for key, (kind, _) in own.items()}}
    values = {}
    for key, text in given.items():
        if key not in kinds:
            raise ValueError(f"{where}: unknown option '{key}'; {nearest(key, kinds) or f'there are {_listed(kinds)}'}")
        try:
            values[key] = _value(text, kinds[key])
        except ValueError as error:
            raise ValueError(f"{where}: {key}: {error}") from None
    mine = sorted((key, value) for key, value in values.items() if key in own and value != own[key][1])
    return tuple(mine), tuple(sorted((key, value) for key, value in values.items() if key not in own))


def spelled(base: str, values: Values) -> str:
    """The one spelling of a variant: options in the order of their names. The inverse of `parse` and `convert`."""
    if not values:
        return base
    return f"{base}({', '.join(f'{key}={_text(value)}' for key, value in sorted(values))})"


def with_options(name: str, **changes: object) -> str:
    """The name of a task with options added, or given other values.

    >>> with_options("digits_mlp(horizon=50, batch_size=64)", batch_size=32)
    'digits_mlp(batch_size=32, horizon=50)'
    """
    base, given = parse(name)
    return spelled(base, tuple({**given, **changes}.items()))


def nearest(word: str, words: Iterable[str]) -> str:
    """`did you mean ...?`, or nothing where no word is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean '{near[0]}'?" if near else ""


def _own(made: type) -> dict[str, tuple[Any, Any]]:
    """Keyword arguments of a class: name to annotation and default. One without annotation is what its default is."""
    initialise: Any = made.__init__  # type: ignore[misc]  # of the class that was asked for, and never called here
    hints = typing.get_type_hints(initialise)
    found = {}
    for key, parameter in list(inspect.signature(initialise).parameters.items())[1:]:
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            default = parameter.default
            found[key] = (hints.get(key, str if default in (None, parameter.empty) else type(default)), default)
    return found


def _value(text: str, kind: Any) -> Any:
    """Text as a value of an annotation. Raises ValueError that says what was expected."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _of_union(text, typing.get_args(kind))
    if origin is Literal:
        words = {str(choice): choice for choice in typing.get_args(kind)}
        if text not in words:
            raise ValueError(f"expected {_listed(words, 'or')}, not '{text}'")
        return words[text]
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"expected true or false, not '{text}'")
        return text == "true"
    if kind is int or kind is float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"expected a {'whole number' if kind is int else 'finite number'}, not '{text}'")
        return value
    if kind is Path:
        return _absolute(text)
    if kind is str:
        return text
    raise ValueError(f"an argument annotated {kind} cannot be given as an option")


def _of_union(text: str, kinds: tuple[Any, ...]) -> Any:
    if text == "none" and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            return _value(text, kind)
        except ValueError:
            continue
    return _value(text, others[-1])


def _absolute(text: str) -> Path:
    """A path that means the same from every folder; `FORMAT:PATH` keeps its format, a word of two letters or more."""
    form, path = form_and_path(text)
    return Path(f"{form}{Path(path).expanduser().absolute()}")


def form_and_path(text: str) -> tuple[str, str]:
    """What `FORMAT:PATH` says, the colon with the format; a path alone has none.

    >>> form_and_path("cifar10:photos")
    ('cifar10:', 'photos')
    """
    form, path = re.fullmatch(r"(\w{2,}:)?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]  # fits any text
    return form or "", path


def _text(value: object) -> str:
    """A value as `parse` and `convert` read it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return f'"{text}"' if "'" in text else f"'{text}'"


def _listed(words: Iterable[str], last: str = "and") -> str:
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end
