"""The law of a well-formed rule, as one function.

A rule is well formed if, for every kind of parameter that its static ifs tell apart: every name is assigned before it
is read, every operator's arguments have types it takes, what is stored in p and in a slot fits there, matrix operators
stand where the parameter is a matrix, and the new p depends on the gradient, or on what a closure says. The result it
returns, if any, exists.
"""

from __future__ import annotations

from dsl.graph import CLOSURE, lower_all, needs
from dsl.pool import pooled
from dsl.program import IdleGradientError, Program, RuleError, assignments


def check(program: Program) -> Program:
    """Returns the program if it is well formed.

    Raises:
        RuleError: the first thing that is wrong, with the line it stands on.
    """
    if not any(statement.target == "p" for statement in assignments(program.body)):
        raise RuleError(
            "p is never assigned; a rule ends with something like p = p - lr * u", 1, f"{program.name}.rule"
        )
    if not _depends_on_gradient(program) and not _asks(program):
        message = "the gradient g is not used: the new p does not depend on it"
        raise IdleGradientError(message, 1, f"{program.name}.rule")
    return program


def _depends_on_gradient(program: Program) -> bool:
    line = pooled(program)
    if line is not None:
        return line.depends_on("g")
    return any("g" in graph.inputs for graph in lower_all(program).values())


def _asks(program: Program) -> bool:
    """Whether it asks a closure."""
    line = pooled(program)
    if line is not None:
        return any(line.pool.nodes[index].op in CLOSURE for index in line.live())
    return bool(needs(program).closure)


def well_typed(program: Program) -> bool:
    """Whether it keeps the law of types; it may do nothing with the gradient."""
    try:
        return pooled(program) is not None or bool(lower_all(program))
    except RuleError:
        return False
