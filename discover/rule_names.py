"""What a rule may be called: a name, a `.rule` file, a place of a run's leaderboard, a composition of these; and each
with settings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dsl
from dsl import Program
from dsl.library import named_or_file
from dsl.spelling import parts


def rule_of(text: str) -> Program:
    """The rule that `text` calls; see `found`."""
    return found(text)[0]


def found(text: str) -> tuple[Program, dict[str, Any]]:
    """A rule, and where it comes from, as plain data.

    Args:
        text: a name, built in or registered; a file that ends in .rule; RUN@K, as for `runs.place_of`; "wrapper(base)";
            or one of these with settings, "rule(name=number)".

    Raises:
        RuleError, RunError: there is none.
    """
    origins: dict[str, dict[str, Any]] = {}

    def find(name: str) -> Program:
        program, origins[name] = _simple(name)
        return program

    program = dsl.load(text, find)
    settings: dict[str, float] = {}
    asked = parts(text)
    while asked.what not in origins and not asked.rules:
        settings = {**asked.settings, **settings}
        asked = parts(asked.what)
    if asked.rules:
        named = {name: origin for name, origin in origins.items() if "file" in origin or "run" in origin}
        return program, {"composition": text} | ({"of": named} if named else {})
    settings = {**asked.settings, **settings}
    return program, origins[asked.what] | ({"settings": settings} if settings else {})


def _simple(name: str) -> tuple[Program, dict[str, Any]]:
    """A rule without settings that is no composition, and where it comes from."""
    if "@" in name and not name.endswith(".rule"):
        from discover import runs

        folder, place = runs.place_of(name)
        origin = {"run": folder.name, "rank": place.rank, "candidate": place.candidate.id}
        return runs.program_of(place, folder.name), origin
    program = named_or_file(name)
    if name.endswith(".rule") or os.sep in name:
        return program, {"file": str(Path(name).absolute())}
    return program, {"built in" if name in dsl.names() else "registered": name}
