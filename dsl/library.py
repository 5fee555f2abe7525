"""Finds rules: built in, registered by the user, or in a file; and reads compositions and settings, as in
`ema_nesterov(muon(adam_lr_ratio=1))`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import platformdirs

from dsl.check import check
from dsl.compose import apply
from dsl.parse import parse, suggest
from dsl.program import Program, RuleError
from dsl.spelling import Spelling, parts, with_settings

BUILT_IN = Path(__file__).parent / "rules"

_SETS_LR = re.compile(r"[(,]\s*lr\s*=")


def registered_directory() -> Path:
    """Where registered rules live: $DISCOVER_DATA_DIR/rules, or the user's data directory of the platform."""
    base = os.environ.get("DISCOVER_DATA_DIR") or platformdirs.user_data_dir("optimizer-discovery", appauthor=False)
    return Path(base) / "rules"


def names() -> list[str]:
    """The built-in rules' names, sorted; wrappers, which take a rule, included."""
    return sorted(path.stem for path in BUILT_IN.glob("*.rule"))


def registered_names() -> list[str]:
    return sorted(path.stem for path in registered_directory().glob("*.rule"))


def load(rule: str, find: Callable[[str], Program] | None = None) -> Program:
    """Loads a rule and checks it.

    Args:
        rule: a built-in or registered name, a path to a `.rule` file, a composition `wrapper(base)`, or any of these
            with settings, `rule(name=number)`, beside the base in a composition.
        find: what to find a name or a file by, in place of `named_or_file`.

    Raises:
        RuleError: not found, or not well formed; the text says where and what to do.
    """
    program = _resolve(rule, find or named_or_file)
    return program if program.rules else check(program)


def named_or_file(text: str) -> Program:
    """A rule by its name, or in a file: with a folder, or ending in .rule. Raises RuleError: there is none."""
    return read(Path(text)) if text.endswith(".rule") or os.sep in text else _named(text)


def _resolve(rule: str, find: Callable[[str], Program]) -> Program:
    asked = parts(rule)
    if asked.what == rule.strip():
        return find(asked.what)
    program = _resolve(asked.what, find)
    if len(asked.rules) != len(program.rules) and (asked.rules or not asked.settings):
        raise RuleError(f"'{asked.what}' takes {len(program.rules)} rules, '{rule}' gives {len(asked.rules)}")
    bases = [_resolve(each, find) for each in asked.rules]
    _say_whose(asked, program, bases)
    program = with_settings(program, asked.settings, rule)
    return apply(program, dict(zip(program.rules, bases, strict=True))) if bases else program


def _say_whose(asked: Spelling, program: Program, bases: Sequence[Program]) -> None:
    """Raises RuleError for what would have to be set at another place of a composition."""
    for text, base in zip(asked.rules, bases, strict=True):
        for name in asked.settings:
            if name not in program.defaults and name in base.defaults:
                raise RuleError(
                    f"'{asked.what}' has no hyperparameter '{name}', '{base.name}' has it: {text}({name}=...)"
                )
        if "lr" in program.defaults and _SETS_LR.search(text):  # they share one, the wrapper's
            raise RuleError(
                f"{text}: '{asked.what}' has an lr of its own, which holds for both: {asked.what}(..., lr=...)"
            )


def _named(name: str) -> Program:
    for directory in (BUILT_IN, registered_directory()):
        path = directory / f"{name}.rule"
        if name.isidentifier() and path.exists():
            return _read(path, path.stat().st_mtime_ns)
    if "(" in name or ")" in name:
        raise RuleError(f"'{name}' is not a rule; write a name, a .rule file, wrapper(base), or rule(name=number)")
    known = [*names(), *registered_names()]
    raise RuleError(f"unknown rule '{name}'{suggest(name, known)}; 'discover list rules' shows them all")


def read(path: Path) -> Program:
    """Reads and checks one rule file. Raises RuleError that names the file."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise RuleError(f"cannot read rule file '{path}': {error.strerror}") from None


@cache
def _read(path: Path, _modified: int) -> Program:
    try:
        program = parse(path.read_text(encoding="utf-8"), path.name)
        return program if program.rules else check(program)
    except UnicodeDecodeError:
        raise RuleError("is not UTF-8 text", source=str(path)) from None
    except RuleError as error:
        raise error.at(path.name) from None
