"""Finds rules: built in, registered by the user, or in a file; and reads compositions such as `ema_nesterov(adamw)`."""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path

import platformdirs

from dsl.check import check
from dsl.compose import apply
from dsl.parse import parse, suggest
from dsl.program import Program, RuleError

BUILT_IN = Path(__file__).parent / "rules"


def registered_directory() -> Path:
    """Where registered rules live: $DISCOVER_DATA_DIR/rules, or the user's data directory of the platform."""
    base = os.environ.get("DISCOVER_DATA_DIR") or platformdirs.user_data_dir("optimizer-discovery", appauthor=False)
    return Path(base) / "rules"


def names() -> list[str]:
    """The built-in rules' names, sorted; wrappers, which take a rule, included."""
    return sorted(path.stem for path in BUILT_IN.glob("*.rule"))


def registered_names() -> list[str]:
    return sorted(path.stem for path in registered_directory().glob("*.rule"))


def load(rule: str) -> Program:
    """Loads a rule and checks it.

    Args:
        rule: a built-in or registered name, a path to a `.rule` file, or a composition `wrapper(base)` of these names.

    Raises:
        RuleError: not found, or not well formed; the text says where and what to do.
    """
    program = _resolve(rule)
    return program if program.rules else check(program)


def _resolve(rule: str) -> Program:
    rule = rule.strip()
    if rule.endswith(".rule") or os.sep in rule:
        return read(Path(rule))
    if "(" not in rule:
        return _named(rule)
    try:
        expression = ast.parse(rule, mode="eval").body
    except (SyntaxError, ValueError):
        raise RuleError(f"'{rule}' is not a rule; write a name, a .rule file, or wrapper(base)") from None
    return _composed(expression, rule)


def _composed(node: ast.expr, rule: str) -> Program:
    match node:
        case ast.Name(id=name):
            return _named(name)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            wrapper = _named(name)
            if len(args) != len(wrapper.rules):
                raise RuleError(f"'{name}' takes {len(wrapper.rules)} rules, '{rule}' gives {len(args)}")
            return apply(wrapper, {param: _composed(arg, rule) for param, arg in zip(wrapper.rules, args, strict=True)})
    raise RuleError(f"'{rule}' is not a rule; write a name, a .rule file, or wrapper(base)")


def _named(name: str) -> Program:
    for directory in (BUILT_IN, registered_directory()):
        path = directory / f"{name}.rule"
        if name.isidentifier() and path.exists():
            return _read(path, path.stat().st_mtime_ns)
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
