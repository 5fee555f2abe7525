"""Removes what no output needs: dead statements, and slots that feed only themselves."""

from __future__ import annotations

from dataclasses import replace

from dsl.program import If, Not, Program, Statement, assignments, reads


def strip_dead(program: Program, *, hypers: bool = False) -> Program:
    """The program without statements and slots that the new p (and the returned value) do not depend on.

    Args:
        hypers: drop unused hyperparameters as well; `lr` always stays.
    """
    if hypers:
        return _stripped(program, hypers)
    try:
        known: Program | None = program._stripped
        return program if known is None else known
    except AttributeError:
        result = _stripped(program, hypers)
        object.__setattr__(result, "_stripped", None)  # itself: a reference to it would be a cycle
        if result is not program:
            object.__setattr__(program, "_stripped", result)
        return result


def _stripped(program: Program, hypers: bool) -> Program:
    outputs = {"p", program.result} if program.result else {"p"}
    names = {slot.name for slot in program.slots}
    needed: set[str] = set()
    while True:
        dropped: set[str] = set()
        body, live = _live(program.body, outputs | needed, dropped)
        grown = needed | (live & names)
        settled = grown == needed or grown.isdisjoint(dropped)  # else a slot may need what was dropped
        needed = grown
        if settled:
            break
    kept = program.hypers
    if hypers:
        used = {name for statement in assignments(body) for name in reads(statement)} | {"lr"}
        kept = tuple(hyper for hyper in program.hypers if hyper.name in used)
    slots = tuple(slot for slot in program.slots if slot.name in needed)
    if (body, slots, kept) == (program.body, program.slots, program.hypers):
        return program
    stripped = program.with_body(body, slots)
    return replace(stripped, hypers=kept) if hypers else stripped


def _live(body: tuple[Statement, ...], after: set[str], dropped: set[str]) -> tuple[tuple[Statement, ...], set[str]]:
    """The statements that matter to the names in `after`, and the names whose values before them matter. The names that
    others assign are added to `dropped`."""
    kept: list[Statement] = []
    live = set(after)
    for statement in reversed(body):
        if isinstance(statement, If):
            then, live_then = _live(statement.body, live, dropped)
            orelse, live_else = _live(statement.orelse, live, dropped)
            live = live_then | live_else
            if then:
                kept.append(replace(statement, body=then, orelse=orelse))
            elif orelse:
                kept.append(replace(statement, test=Not(statement.test), body=orelse, orelse=()))
        elif statement.target in live:
            kept.append(statement)
            live.discard(statement.target)
            live |= reads(statement)
        else:
            dropped.add(statement.target)
    kept.reverse()
    return tuple(kept), live
