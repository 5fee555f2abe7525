"""What a rule may be called: a name, a `.rule` file, a composition, or a place of a run's leaderboard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dsl
from dsl import Program


def rule_of(text: str) -> Program:
    """The rule that `text` calls; see `found`."""
    return found(text)[0]


def found(text: str) -> tuple[Program, dict[str, Any]]:
    """A rule, and where it comes from, as plain data.

    Args:
        text: a name, built in or registered; a file that ends in .rule; "wrapper(base)"; or RUN@K, as for
            `runs.place_of`.

    Raises:
        RuleError, RunError: there is none.
    """
    if "@" in text and not text.endswith(".rule"):
        from discover import runs

        folder, place = runs.place_of(text)
        origin = {"run": folder.name, "rank": place.rank, "candidate": place.candidate.id}
        return runs.program_of(place, folder.name), origin
    program = dsl.load(text)
    if text.endswith(".rule") or os.sep in text:
        return program, {"file": str(Path(text).absolute())}
    if "(" in text:
        return program, {"composition": text}
    return program, {"built in" if text in dsl.names() else "registered": text}
