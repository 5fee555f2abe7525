"""Two spellings of a program: flat, one operator a statement, for mutation to change; tidy, for a person to read.

Both keep every bit of the program's meaning: `flatten` only names the parts of expressions, `tidy` only puts them back
where the order of assignments allows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from dsl.dead import strip_dead
from dsl.format import format_expr
from dsl.ops import OPS
from dsl.program import (
    BUILTINS,
    Assign,
    Call,
    Expr,
    If,
    Name,
    Number,
    Program,
    Statement,
    assignments,
    expressions,
    map_names,
    map_statements,
    names_read,
    reads,
)

MAX_LINE = 88
"""How long a right-hand side may get by inlining."""


def flatten(program: Program) -> Program:
    """Three-address form: each statement one operator on names and literals. Temporaries are x1, x2, ..."""
    fresh = fresh_names(program)

    def flat(statement: Assign) -> tuple[Statement, ...]:
        lines: list[Assign] = []

        def atom(expr: Expr) -> Expr:
            if not isinstance(expr, Call):
                return expr
            value = one(expr)
            lines.append(Assign(next(fresh), value, statement.line))
            return Name(lines[-1].target)

        def one(expr: Expr) -> Expr:
            return Call(expr.op, tuple(atom(arg) for arg in expr.args)) if isinstance(expr, Call) else expr

        value = one(statement.value)
        return (*lines, Assign(statement.target, value, statement.line))

    return replace(program, body=map_statements(program.body, flat))


def with_literals(program: Program, keep: Iterable[str] = ("lr", "weight_decay")) -> Program:
    """The program with its hyperparameters' default values written into it, all but those to keep, and literal
    arithmetic done (to 12 digits, so that 1 - 0.9 reads 0.1): where a search that mutates constants starts."""
    kept = tuple(hyper for hyper in program.hypers if hyper.name in set(keep))
    values = {hyper.name: Number(hyper.default) for hyper in program.hypers if hyper not in kept}

    def put(statement: Assign) -> tuple[Statement, ...]:
        value = map_names(statement.value, lambda name: values.get(name, Name(name)))
        return (replace(statement, value=_folded(value)),)

    return replace(program, hypers=kept, body=map_statements(program.body, put))


def tidy(program: Program) -> Program:
    """The program as a person would write it: dead statements gone, temporaries that are used once put where they are
    used, the others named `u` (what is subtracted from p) and x1, x2, ... in order."""
    program = strip_dead(program)
    if not any(isinstance(statement, If) for statement in program.body):
        program = _single_assignments(program)
    kept = {"p", "g", *(slot.name for slot in program.slots)} | ({program.result} if program.result else set())
    reads = Counter(name for s in assignments(program.body) for name in _reads(s.value))
    writes = Counter(s.target for s in assignments(program.body))
    inlinable = {name for name in writes if name not in kept and writes[name] == 1 and reads[name] == 1}
    program = replace(program, body=_inlined(program.body, inlinable))
    return _renamed(program, kept)


def _reads(expr: Expr) -> Iterator[str]:
    return (each.id for each in expressions(expr) if isinstance(each, Name))


def _inlined(body: tuple[Statement, ...], inlinable: set[str]) -> tuple[Statement, ...]:
    pending: dict[str, Expr] = {}
    result: list[Statement] = []
    for statement in body:
        if isinstance(statement, If):
            result += [Assign(name, value) for name, value in pending.items()]
            pending = {}
            then, orelse = _inlined(statement.body, inlinable), _inlined(statement.orelse, inlinable)
            result.append(replace(statement, body=then, orelse=orelse))
            continue
        value = statement.value
        for name in [name for name in dict.fromkeys(_reads(value)) if name in pending]:
            put = _put(value, name, pending[name])
            if isinstance(pending[name], Call) and len(format_expr(put)) > MAX_LINE:
                result.append(Assign(name, pending.pop(name), statement.line))
            else:
                value = put
                del pending[name]
        target = statement.target
        for name in [name for name, held in pending.items() if target in names_read(held)]:
            result.append(Assign(name, pending.pop(name), statement.line))
        if target in inlinable:
            pending[target] = value
        else:
            result.append(replace(statement, value=value))
    result += [Assign(name, value) for name, value in pending.items()]
    return tuple(result)


def _put(expr: Expr, name: str, value: Expr) -> Expr:
    return map_names(expr, lambda each: value if each == name else Name(each))


def _single_assignments(program: Program) -> Program:
    """Gives each value of a temporary a name of its own; slots, p and what is returned keep theirs. A straight line."""
    kept = {"p", "g", program.result, *program.defaults, *(slot.name for slot in program.slots)}
    writes = Counter(s.target for s in assignments(program.body))
    fresh = fresh_names(program)
    current: dict[str, str] = {}
    body: list[Statement] = []
    for statement in assignments(program.body):
        value = map_names(statement.value, lambda name: Name(current.get(name, name)))
        target = statement.target
        if target not in kept and writes[target] > 1:
            current[target] = target = next(fresh)
        body.append(Assign(target, value, statement.line))
    return replace(program, body=tuple(body))


def _renamed(program: Program, kept: set[str]) -> Program:
    """Temporaries named in order of appearance: `u` for the step, x1, x2, ... for the rest; meaningful names stay."""
    temporaries = [s.target for s in assignments(program.body) if s.target not in kept]
    taken = {*kept, *BUILTINS, *OPS, *program.defaults}
    generated = [name for name in dict.fromkeys(temporaries) if name[0] == "x" and name[1:].isdigit()]
    taken |= set(temporaries) - set(generated)
    names: dict[str, str] = {}
    step = _step(program)
    if step in generated and "u" not in taken:
        names[step] = "u"
    numbers = (f"x{n}" for n in range(1, len(generated) + len(taken) + 1))
    free = (name for name in numbers if name not in taken)
    for name in generated:
        if name not in names:
            names[name] = next(free)
    return rename(program, names)


def _step(program: Program) -> str:
    """The temporary that is multiplied into the last change of p, if there is one."""
    for statement in reversed(list(assignments(program.body))):
        if statement.target == "p" and isinstance(statement.value, Call) and statement.value.op in ("sub", "add"):
            changes = [name for name in _reads(statement.value.args[1]) if name not in {"p", *program.defaults}]
            if len(set(changes)) == 1:
                return changes[0]
    return ""


def rename(program: Program, names: Mapping[str, str]) -> Program:
    """The program with names replaced, declared ones included."""

    def change(statement: Assign) -> tuple[Statement, ...]:
        value = map_names(statement.value, lambda name: Name(names.get(name, name)))
        return (Assign(names.get(statement.target, statement.target), value, statement.line),)

    return replace(
        program,
        slots=tuple(replace(slot, name=names.get(slot.name, slot.name)) for slot in program.slots),
        hypers=tuple(replace(hyper, name=names.get(hyper.name, hyper.name)) for hyper in program.hypers),
        body=map_statements(program.body, change),
        result=program.result and names.get(program.result, program.result),
    )


def _folded(expr: Expr) -> Expr:
    if not isinstance(expr, Call):
        return expr
    args = tuple(_folded(arg) for arg in expr.args)
    op = OPS.get(expr.op)
    if op and op.number and op.ref and op.group != "comparison" and all(isinstance(arg, Number) for arg in args):
        value = float(op.ref(*(arg.value for arg in args if isinstance(arg, Number))))
        if abs(value) < 1e300:
            return Number(float(f"{value:.12g}"))
    return Call(expr.op, args)


def fresh_names(program: Program) -> Iterator[str]:
    taken = {"p", "g", *BUILTINS, *program.defaults, *(slot.name for slot in program.slots), program.result}
    for statement in assignments(program.body):
        taken |= reads(statement) | {statement.target}
    number = 0
    while True:
        number += 1
        if (name := f"x{number}") not in taken:
            yield name
