"""What contenders are called, as far as it can be known without importing torch or anybody's optimizers: so that a
mistake in a space shows before the search, and a list of spaces does not wait.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import dsl
from discover.errors import UserError
from discover.rule_names import rule_of
from dsl.parse import suggest
from dsl.program import Program
from dsl.spelling import Spelling, parts

_MADE_WHILE_IT_RUNS = re.compile(r"import\s+\*|__getattr__|__dict__|globals\(|setattr\(|exec\(|sys\.modules")
"""A module whose text says this may have names that do not stand in it."""


def check_name(text: str) -> None:
    """Refuses what `contenders.contender` would refuse, but for what only importing a class can show.

    Raises:
        UserError, RuleError: no such rule, file or module, or a name that the module's text does not have.
    """
    if (asked := class_asked(text)) is None:
        return require_rate(text, dsl.check(rule_of(text)))
    where, _, name = asked.what.rpartition(":")
    file = Path(where) if where.endswith(".py") else _file_of(where, text)
    if file is None:
        return None
    try:
        source = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        hint = "an optimizer of your own is written path/file.py:Class"
        raise UserError(f"cannot read '{file}': {error.strerror}; {hint}") from None
    words = set(re.findall(r"\w+", source))
    if name not in words and not _MADE_WHILE_IT_RUNS.search(source):
        raise UserError(f"{text}: {where} has no '{name}'{suggest(name, sorted(words))}")
    return None


def class_asked(text: str) -> Spelling | None:
    """What `module:Class` or `FILE.py:Class` asks for, settings apart; None for a rule.

    Raises:
        UserError, RuleError: what stands in the parentheses is not `name=number`.
    """
    asked = parts(text)
    if ":" not in asked.what:
        return None
    if asked.rules:
        raise UserError(f"{text}: a class takes settings, name=number, and no '{asked.rules[0]}'")
    return asked


def require_rate(name: str, program: Program) -> None:
    """Raises UserError for a rule without a learning rate."""
    if "lr" not in program.defaults:
        raise UserError(f"{name}: has no hyperparameter 'lr', and so nothing that can be tuned and scheduled")


def _file_of(module: str, text: str) -> Path | None:
    """The Python text of a module, found without executing any; None where it has none. Raises UserError: no module."""
    places: Sequence[str] | None = None
    found: ModuleSpec | None = None
    parts = module.split(".")
    for depth, part in enumerate(parts, start=1):
        name = ".".join(parts[:depth])
        found = _spec(name, places)
        if found is None:
            there = [each.name for each in pkgutil.iter_modules(places)]
            raise UserError(
                f"{text}: there is no module '{name}' here{suggest(part, there)}; 'pip install' brings packages"
            )
        places = found.submodule_search_locations or []
    origin = found.origin if found is not None else None
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def _spec(name: str, places: Sequence[str] | None) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name) if places is None else PathFinder.find_spec(name, places)
    except ValueError:  # no name at all
        return None
