"""Prints the zoo as a table in Markdown: each case with the largest deviation that fifty steps show."""

from __future__ import annotations

from dataclasses import replace

import dsl
from dsl import properties
from tests.zoo import CASES
from tests.zoo.case import Case

HEAD = ("rule", "follows", "deviation at the defaults", "deviation elsewhere", "state bytes a parameter", "lines")


def row(case: Case) -> tuple[str, ...]:
    program = dsl.load(case.rule)
    measured = [f"{max(case.deviations(other)):.0e}" if case.other or not other else "" for other in (False, True)]
    text = dsl.format(replace(program, doc=""))
    lines = len(text.splitlines()) - 1  # without the signature
    return (f"`{case.rule}`", case.follows, *measured, f"{properties.of(program).state_bytes:g}", str(lines))


if __name__ == "__main__":
    print("| " + " | ".join(HEAD) + " |")
    print("|" + " --- |" * len(HEAD))
    for case in CASES:
        print("| " + " | ".join(row(case)) + " |", flush=True)
