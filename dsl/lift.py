"""The inverse of `dsl.flatten.with_literals`: constants that a search wrote into a rule become hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsl.dead import strip_dead
from dsl.flatten import tidy
from dsl.ops import OPS
from dsl.program import (
    BUILTINS,
    Assign,
    Call,
    Expr,
    Hyper,
    Name,
    Number,
    Program,
    Range,
    Statement,
    assignments,
    map_statements,
    names_read,
)

PLAIN = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
"""Numbers that are part of a formula's form, with either sign; they stay as they are."""

SMALL = 1e-4
"""A smaller constant keeps a denominator from 0: an eps, whose range is wide."""

FACTOR = 10.0
"""A constant is searched from so many times less to so many times more."""

LARGEST_RATE = 0.9


def lift(program: Program) -> Program:
    """The program with its literals as named hyperparameters with ranges, and the same meaning at their defaults.

    A weight between 0 and 1 of `lerp` is a rate (`rate1`, ...), searched up to 0.9; where state stands second, as in
    `lerp(g, m, 0.9)`, it is how much stays, and is written `1 - rate`. So is a number between 0.5 and 1: with the rate
    of a `lerp` that has the same value, if there is one, so that an average and its bias correction stay together. A
    number below 1e-4 is an `eps1`, anything else a `c1`, both searched on a logarithmic scale around their value; signs
    stay. 0, 0.5, 1, 2, 3 and 4 are form, and stay; so are numbers that must be known before training, such as the steps
    of a Newton-Schulz iteration.

    Args:
        program: straight lines or with static ifs; taken apart from what no output needs, and tidied.
    """
    program = tidy(strip_dead(program))
    lifter = _Lifter(program)
    for statement in assignments(program.body):  # rates first, so that what stays can refer to them
        lifter.find_rates(statement.value)

    def change(statement: Assign) -> tuple[Statement, ...]:
        return (replace(statement, value=lifter.lifted(statement.value)),)

    body = map_statements(program.body, change)
    return replace(program, body=body, hypers=(*program.hypers, *lifter.hypers))


class _Lifter:
    """Hands out names, and remembers which rate has which value."""

    def __init__(self, program: Program) -> None:
        self.hypers: list[Hyper] = []
        self._rates: list[str] = []  # of the lerps, in order
        self._next_rate = 0
        self._slots = {slot.name for slot in program.slots}
        self._by_value: dict[float, str] = {}
        self._taken = {"p", "g", *BUILTINS, *OPS, *program.defaults, *(slot.name for slot in program.slots)}
        self._taken |= {statement.target for statement in assignments(program.body)}

    def find_rates(self, expr: Expr) -> None:
        if not isinstance(expr, Call):
            return
        for arg, free in _free(expr):
            if free:
                self.find_rates(arg)
        if (weight := _weight(expr)) is not None:
            rate = _rounded(1.0 - weight) if self._keeps(expr) else weight
            self._rates.append(self._declare_rate(rate))
            self._by_value.setdefault(_rounded(rate), self._rates[-1])

    def lifted(self, expr: Expr) -> Expr:
        match expr:
            case Call(op, args):
                if _weight(expr) is None:
                    return Call(op, tuple(self.lifted(arg) if free else arg for arg, free in _free(expr)))
                first = tuple(self.lifted(arg) for arg in args[:2])
                rate = Name(self._rates[self._next_rate])
                self._next_rate += 1
                return Call(op, (*first, Call("sub", (Number(1.0), rate)) if self._keeps(expr) else rate))
            case Number(value) if abs(value) not in PLAIN:
                return self._constant(value)
            case _:
                return expr

    def _constant(self, value: float) -> Expr:
        size = abs(value)
        if 0.5 < value < 1.0:
            rate = _rounded(1.0 - value)
            name = self._by_value.get(rate)
            if name is None:
                name = self._by_value[rate] = self._declare_rate(rate)
            return Call("sub", (Number(1.0), Name(name)))
        kind, factor = ("eps", 1e3) if size < SMALL else ("c", FACTOR)
        name = self._declare(kind, size, Range(size / factor, size * factor, True))
        return Name(name) if value > 0 else Call("neg", (Name(name),))

    def _keeps(self, average: Call) -> bool:
        """Whether the weight of a `lerp` is that of its state, and not so small that 1 - weight would round to 1."""
        first, second = (bool(names_read(arg) & self._slots) for arg in average.args[:2])
        return second and not first and _rounded(1.0 - (_weight(average) or 0.0)) < 1.0

    def _declare_rate(self, value: float) -> str:
        return self._declare("rate", value, Range(value / FACTOR, max(value, min(LARGEST_RATE, value * FACTOR)), True))

    def _declare(self, kind: str, value: float, range_: Range) -> str:
        number = 1
        while (name := f"{kind}{number}") in self._taken:
            number += 1
        self._taken.add(name)
        low, high = (float(f"{limit:.6g}") for limit in (range_.low, range_.high))
        self.hypers.append(Hyper(name, value, Range(min(low, value), max(high, value), True)))
        return name


def _free(expr: Call) -> Iterator[tuple[Expr, bool]]:
    """Its arguments, and whether each may change while a rule trains."""
    params = OPS[expr.op].known_before if expr.op in OPS else ()
    return ((arg, index not in params) for index, arg in enumerate(expr.args))


def _weight(expr: Call) -> float | None:
    """The literal weight of a lerp, where it is one that makes an average."""
    if expr.op != "lerp" or not isinstance(expr.args[2], Number) or not 0.0 < expr.args[2].value < 1.0:
        return None
    return expr.args[2].value


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
