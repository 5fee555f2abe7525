"""Gives a found rule a name for `discover.optim.create(NAME, ...)`, in any script whose Python has this package."""

from __future__ import annotations

import keyword
from dataclasses import replace
from pathlib import Path

import dsl
from discover.errors import UserError
from discover.files import write_whole
from dsl.library import registered_directory
from dsl.program import Program


def register(program: Program, name: str, *, force: bool = False) -> Path:
    """Keeps a rule under a name, in the user's data directory (or `$DISCOVER_DATA_DIR`).

    Args:
        program: well formed; registered as it is, but for its name.
        name: a Python identifier in lower case, such as `my_lion`.
        force: whether a rule registered under this name before may be replaced.

    Returns:
        The file; `dsl.load(name)` reads it.

    Raises:
        UserError: the name is taken, or is no name; the file cannot be written.
        RuleError: the program is not well formed.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name != name.lower():
        raise UserError(f"'{name}' is not a name for a rule; use lower-case letters, digits and _, such as my_lion")
    if name in dsl.names():
        raise UserError(f"'{name}' is a built-in rule; choose another name")
    path = registered_directory() / f"{name}.rule"
    if path.exists() and not force:
        raise UserError(f"'{name}' is registered already ({path}); choose another name, or replace it with --force")
    dsl.check(program)
    write_whole(path, dsl.format(replace(program, name=name)))
    return path
