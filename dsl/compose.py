"""Rules that take rules: a call to a base rule is replaced by the base's statements, renamed.

The result is an ordinary program. Hyperparameters and state keep their names where the wrapper has none of the same
name, and are prefixed with the base's name where it has (`momentum_beta`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dsl.ops import OPS
from dsl.program import (
    BUILTINS,
    RESERVED,
    Assign,
    Call,
    Expr,
    If,
    Name,
    Program,
    RuleError,
    Statement,
    assignments,
    expressions,
    map_names,
    map_statements,
    names_read,
    reads,
)


def apply(wrapper: Program, bases: Mapping[str, Program]) -> Program:
    """Gives a wrapper its base rules.

    Args:
        wrapper: a program with rule parameters.
        bases: rule parameter -> the program to put there.

    Raises:
        RuleError: a rule parameter without a base or the reverse; a base that is called more or less than once.
    """
    for rule in wrapper.rules:
        if rule not in bases:
            raise RuleError(f"rule '{wrapper.name}' takes a rule as '{rule}'; write {wrapper.name}(adamw), for example")
    if extra := set(bases) - set(wrapper.rules):
        raise RuleError(f"rule '{wrapper.name}' takes no rule as '{min(extra)}'")
    program = wrapper
    for rule in wrapper.rules:
        program = _inline(program, rule, bases[rule])
    name = "_".join([wrapper.name, *(bases[rule].name for rule in wrapper.rules)])
    return replace(program, name=name, rules=())


def _inline(wrapper: Program, rule: str, base: Program) -> Program:
    if base.rules:
        raise RuleError(f"'{base.name}' takes a rule itself; write {wrapper.name}({base.name}(adamw)), for example")
    calls = [s for s in assignments(wrapper.body) for e in expressions(s.value) if isinstance(e, Call) and e.op == rule]
    if len(calls) != 1 or not isinstance(calls[0].value, Call) or calls[0].value.op != rule:
        raise RuleError(
            f"rule '{wrapper.name}' must call {rule}(p, g) once, as a statement of its own: x = {rule}(p, g)",
            1,
            f"{wrapper.name}.rule",
        )
    taken = _names(wrapper)
    own = _names(base) - {"p", "g", *BUILTINS}
    renamed: dict[str, str] = {}
    for name in sorted(own):
        new = name
        while new in taken or (new != name and new in {*own, *renamed.values(), *OPS, *RESERVED}):
            new = f"{base.name}_{new}"
        renamed[name] = new
    if "lr" in wrapper.defaults and "lr" in base.defaults:
        renamed["lr"] = "lr"

    def inline(statement: Assign) -> tuple[Statement, ...]:
        if statement is not calls[0]:
            return (statement,)
        assert isinstance(statement.value, Call)
        return _body(
            base, statement.target, statement.value.args, renamed, taken | set(renamed.values()), statement.line
        )

    slots = tuple(replace(slot, name=renamed[slot.name]) for slot in base.slots)
    hypers = tuple(replace(h, name=renamed[h.name]) for h in base.hypers if renamed[h.name] not in wrapper.defaults)
    lr = tuple(h for h in hypers if h.name == "lr")
    result = wrapper.result or (base.result and renamed.get(base.result, base.result))
    return replace(
        wrapper,
        slots=wrapper.slots + slots,
        hypers=lr + wrapper.hypers + tuple(h for h in hypers if h.name != "lr"),
        body=map_statements(wrapper.body, inline),
        result=result if result != "p" else None,
        rules=tuple(name for name in wrapper.rules if name != rule),
    )


def _body(
    base: Program, target: str, args: tuple[Expr, ...], renamed: Mapping[str, str], taken: set[str], line: int
) -> tuple[Statement, ...]:
    """The base's statements with p and g standing for the call's arguments; the target ends as the base's new p."""
    names = dict(renamed)
    p = target if target not in names_read(args[1]) and target not in ("p", "g") else _fresh(f"{base.name}_p", taken)
    g = _fresh(f"{base.name}_g", taken | {p})
    names["p"] = p
    assigns_g = any(statement.target == "g" for statement in assignments(base.body))
    plain_g = isinstance(args[1], Name) and not assigns_g
    names["g"] = args[1].id if plain_g and isinstance(args[1], Name) else g

    def rename(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
        result: list[Statement] = []
        for statement in body:
            if isinstance(statement, If):
                result.append(If(statement.test, rename(statement.body), rename(statement.orelse), line))
            else:
                value = map_names(statement.value, lambda name: Name(names.get(name, name)))
                result.append(Assign(names.get(statement.target, statement.target), value, line))
        return tuple(result)

    head: list[Statement] = [Assign(p, args[0], line)]
    if not plain_g:
        head.append(Assign(g, args[1], line))
    tail: tuple[Statement, ...] = (Assign(target, Name(p), line),) if p != target else ()
    return (*head, *rename(base.body), *tail)


def _names(program: Program) -> set[str]:
    names = {"p", "g", *BUILTINS, *program.defaults, *(slot.name for slot in program.slots)}
    for statement in assignments(program.body):
        names |= reads(statement) | {statement.target}
    return names


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
