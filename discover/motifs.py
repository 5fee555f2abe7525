"""Inserted statements that only make sense together: a preconditioner of one side, as in Shampoo; a safe quotient.

No single insertion reaches a product of matrices, since a transposed value fits nowhere that the parameter's shape is
wanted; so the operator `matmul` is inserted with what it needs. And hardly any reaches a quotient: what a program can
divide by are g, p and averages of them, which pass through 0, so that the gate rejects it; a divisor that does not is
no use to anyone before it divides, and so is dead code. So `div` may be inserted with a divisor that is never 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from numpy.random import Generator

from discover.chance import pick
from dsl.program import Assign, Call, Expr, Name, Number

POWERS = (-1.0, -0.5, -0.25, 0.5)
"""What is tried first as the exponent of a matrix power."""

_PLAIN = 0.25
"""How often the product is taken as it is, without a power."""

_STORED = 0.5
"""How often it is averaged in a slot, where the grammar has one of its extent."""


EVEN, GUARDS = ("abs", "square"), ("add", "max")
"""What makes a divisor of one sign, and what keeps it from 0."""

_LEAST = 1e-3
"""The smallest constant that is felt where it keeps a divisor from 0; the largest is 1."""

_FELT, _NOT_FELT = 0.5, 1e-8
"""How often a constant is felt, which makes a rule depend on the gradients' size; and AdamW's eps, which is not."""


def quotient(
    current: Expr, tensors: Sequence[str], operators: Collection[str], fresh: Iterator[str], rng: Generator
) -> list[Assign]:
    """Statements of which the last has `current` over a function of a tensor that is never 0: |a| or a^2, plus a
    constant, or the larger of the two. Nothing is remembered or taken the root of; that is for later insertions.

    Args:
        current: of the parameter's shape.
        tensors: names that may be read.
        operators: of the grammar; at least one of `EVEN` and one of `GUARDS`.
        fresh: names for temporaries.
    """
    even, guard = ([name for name in names if name in operators] for names in (EVEN, GUARDS))
    a = Name(pick(rng, tensors))
    size = Assign(next(fresh), Call(pick(rng, even), (a,)))
    felt = rng.random() < _FELT
    least = Number(float(f"{_LEAST ** rng.uniform():.3g}") if felt else _NOT_FELT)
    safe = Assign(next(fresh), Call(pick(rng, guard), (Name(size.target), least)))
    return [size, safe, Assign(next(fresh), Call("div", (current, Name(safe.target))))]


def preconditioner(
    current: Expr, tensors: Sequence[str], extents: Mapping[str, str], fresh: Iterator[str], rng: Generator
) -> list[Assign]:
    """Statements of which the last has `current`, multiplied from one side by a function of the outer products of a
    tensor: (a a^T)^power x from the left, or x (a^T a)^power from the right.

    Args:
        current: of the parameter's shape.
        tensors: names that may be read.
        extents: slots of the grammar -> their extents; those of "left" and "right" can hold the products' average.
        fresh: names for temporaries.
    """
    left = rng.random() < 0.5
    a = Name(pick(rng, tensors))
    turned = Assign(next(fresh), Call("transpose", (a,)))
    pair = (a, Name(turned.target)) if left else (Name(turned.target), a)
    lines = [turned, Assign(next(fresh), Call("matmul", pair))]
    slots = [name for name, extent in extents.items() if extent == ("left" if left else "right")]
    if slots and rng.random() < _STORED:
        slot = pick(rng, slots)
        rate = Number(float(f"{rng.uniform(0.01, 0.5):.3g}"))
        lines.append(Assign(slot, Call("lerp", (Name(slot), Name(lines[-1].target), rate))))
    if rng.random() >= _PLAIN:
        power = Number(pick(rng, POWERS))
        lines.append(Assign(next(fresh), Call("matrix_power", (Name(lines[-1].target), power))))
    side = Name(lines[-1].target)
    lines.append(Assign(next(fresh), Call("matmul", (side, current) if left else (current, side))))
    return lines
