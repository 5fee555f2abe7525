"""What a program does, as a digest: its updates on fixed inputs, rounded to seven significant digits.

The inputs are made from raw bits of PCG64 by additions alone, so they are the same bits everywhere. The program is
driven through seven steps in two situations at once (gradients of unit size; gradients of size 1e-3, with rows that are
zero always or at times), with t jumping up to 1000 and lr and lr_ratio changing, on a tall matrix and on the same
elements as a vector. Each step's change of p (and returned value) is projected on one fixed random direction, so what
is rounded are generic numbers, not special ones such as lr itself.

Two programs that are equal up to rounding differ in such a number by 1e-15 to 1e-13 of its size (cancellation and
steps let errors grow); it falls on the edge of a digit with probability 1e-8 to 1e-6, so for the 14 to 28 numbers of a
program 1e-7 to 3e-5 altogether. A false split costs one training. Programs that differ by less than 1e-7 of their
updates, such as eps 1e-16 and 2e-16, are equal.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np

from dsl.canonical import combine
from dsl.graph import Graph, lower_all
from dsl.ops import OPS
from dsl.program import Facts, Program, all_facts
from dsl.reference import Array, Machine
from dsl.types import EXTENTS

T = TypeVar("T")

STEPS = (1, 2, 3, 4, 10, 100, 1000)
RATIOS = (0.25, 1.0, 0.75, 0.5, 0.875, 0.375, 0.125)
LR = 0.5
ROWS, COLS = 5, 3
_FLOOR = 1e-12


Changes = Mapping[Facts, Array]
"""What a program does at each of `STEPS`, for each kind of parameter that was run: old p - new p and, where it returns
another value, old p less that; [steps or twice as many, situations, rows, cols]."""


def behaviour_hash(
    program: Program, found: Changes | None = None, *, weight_decay: float | None = None, scale: float = 1.0
) -> str:
    """A digest of what the program does at its default hyperparameters, the same on every machine.

    Args:
        found: what `changes` gives, where it is known.
        weight_decay, scale: as for `changes`.
    """
    return behaviour_hashes([program], [changes(program, weight_decay, scale) if found is None else found])[0]


def behaviour_hashes(programs: Sequence[Program], found: Sequence[Changes]) -> list[str]:
    """As `behaviour_hash`, of many programs in one pass.

    Args:
        found: what `changes` gives, of each program.

    Returns:
        For each program the digest that it has alone.
    """
    direction = inputs().direction
    digests = in_one_pass(found, lambda changes, facts: _digests(changes, shaped(direction, facts)))
    return [
        combine({facts: each.get(facts, next(iter(each.values()))) for facts in all_facts(program)})
        for program, each in zip(programs, digests, strict=True)
    ]


def changes(program: Program, weight_decay: float | None = None, scale: float = 1.0) -> Changes:
    """Runs a program on the fixed inputs, as numpy computes it.

    Args:
        weight_decay: in the place of the rule's own, where it has one.
        scale: learning rates are divided by it. By the rule's own `Properties.scale`, and with one weight decay for
            all, those are equal that a training cannot tell apart which does the same: a step and its multiples.
    """
    graphs = lower_all(program)
    kinds = kinds_to_run(graphs)
    probe = inputs()
    held = [shaped(probe.parameters, facts) for facts in kinds]
    values = program.defaults
    if weight_decay is not None and "weight_decay" in values:
        values |= {"weight_decay": weight_decay}
    machine = Machine([graphs[facts] for facts in kinds], held, program.slots, values)
    surrogate = Surrogate(machine, [shaped(probe.curvature, facts) for facts in kinds])
    found: list[list[Array]] = [[] for _ in kinds]
    for number, (t, ratio) in enumerate(zip(STEPS, RATIOS, strict=True)):
        before = [unit.p for unit in machine.units]
        surrogate.step([shaped(probe.gradients[number], facts) for facts in kinds], t, LR * ratio / scale, ratio)
        with np.errstate(all="ignore"):
            for unit, old, mine in zip(machine.units, before, found, strict=True):
                mine += [old - new for new in ([unit.p, unit.result] if program.result else [unit.p])]
    return {facts: np.ascontiguousarray(np.stack(mine)) for facts, mine in zip(kinds, found, strict=True)}


def growths(found: Sequence[Changes]) -> list[float]:
    """How many times as large as at t up to 10 a program's step is at t = 1000, on gradients of unit size and relative
    to the learning rate, for the kind of parameter where that is most. Around 1 for what is in use; a rule that
    multiplies its step by 1.03 a step has 10^12, and looks well in a short training whose learning rate decays;
    infinite where a step is not finite.

    Args:
        found: what `changes` gives, of each program.
    """
    return [max(each.values()) for each in in_one_pass(found, lambda changes, facts: _growths(changes))]


def _growths(changes: Array) -> list[float]:
    of_p = changes.shape[1] // len(STEPS)  # every second change is of the returned value where there is one
    steps = changes[:, ::of_p, 0].reshape(len(changes), len(STEPS), -1)
    with np.errstate(all="ignore"):
        sizes = (np.sqrt(np.add.reduce(steps * steps, axis=2)) / RATIOS).tolist()
    most = []
    for each in sizes:
        early, last = max(each[:-2]), each[-1]
        most.append(math.inf if not all(map(math.isfinite, each)) else last / early if early > 0 else 0.0)
    return most


def in_one_pass(
    found: Sequence[Mapping[Facts, Array]], compute: Callable[[Array, Facts], Sequence[T]]
) -> list[dict[Facts, T]]:
    """Computes something of each array. Those of a kind of parameter that have one shape come together, on a new first
    axis: to ask numpy for anything takes longer than to compute it for fifteen numbers, or for a thousand."""
    alike: defaultdict[tuple[Facts, tuple[int, ...]], list[int]] = defaultdict(list)
    for number, arrays in enumerate(found):
        for facts, array in arrays.items():
            alike[facts, array.shape].append(number)
    computed: dict[tuple[int, Facts], T] = {}
    for (facts, _), numbers in alike.items():
        values = compute(np.stack([found[number][facts] for number in numbers]), facts)
        computed.update(zip(((number, facts) for number in numbers), values, strict=True))
    return [{facts: computed[number, facts] for facts in arrays} for number, arrays in enumerate(found)]


def kinds_to_run(graphs: dict[Facts, Graph]) -> list[Facts]:
    """The kinds of parameters to run a program on: one, where all are treated alike and shapes do not matter."""
    kinds = list(graphs)
    first = graphs[kinds[0]]
    if all(graph is first for graph in graphs.values()) and _blind_to_shape(first):
        return kinds[:1]
    return kinds


def _blind_to_shape(graph: Graph) -> bool:
    """Whether a matrix and the same elements in a column are treated alike."""
    extents = (EXTENTS["full"], EXTENTS["scalar"])
    return all(
        node.type.extent in extents and (node.op not in OPS or not (OPS[node.op].combine or OPS[node.op].matrix))
        for node in graph.nodes
    )


def _digests(changes: Array, direction: Array) -> list[str]:
    """Of each program's changes [steps, situations, rows, cols] their lengths along the direction, to seven significant
    digits, as a digest."""
    with np.errstate(all="ignore"):
        along = np.add.reduce(changes * direction, axis=(-2, -1))
        if not np.isfinite(along).all():
            changes = np.nan_to_num(changes, nan=1.2345, posinf=2.3456e3, neginf=-3.4567e3)
            along = np.add.reduce(changes * direction, axis=(-2, -1))
    return [sha256(";".join(map(_rounded, each)).encode()).hexdigest() for each in along.tolist()]


def _rounded(lengths: list[float]) -> str:
    return ",".join([f"{x:.6e}" if abs(x) > _FLOOR else "0" for x in lengths])


class Surrogate:
    """Steps a machine on gradients that are given, and answers what its rule asks for beside them.

    The loss around p is taken to be g.(q - p) + (q - p).C(q - p) / 2, with a diagonal C: a model that has the gradient
    g where the parameters are, and is as simple as can be elsewhere. Labels that a model draws give the gradient C g.

    Args:
        machine: what is stepped.
        curvature: C for each parameter, of its shape or with leading axes for situations.
    """

    EXAMPLES = 8
    """How many examples the gradient is said to be a mean over."""

    def __init__(self, machine: Machine, curvature: list[Array]) -> None:
        self.machine, self.curvature = machine, curvature
        self.gradients: list[Array] = []
        machine.closure, machine.examples = self.answer, self.EXAMPLES

    def step(self, gradients: list[Array], t: float, lr: float, lr_ratio: float) -> None:
        """As `Machine.step`."""
        self.gradients = gradients
        self.machine.step(gradients, t, lr, lr_ratio)

    def answer(self, op: str, values: list[Array], *numbers: float) -> list[Array] | Array:
        """See `dsl.reference.Closure`."""
        both = list(zip(values, self.curvature, strict=True))
        if op == "hvp":
            return [c * z for z, c in both]
        moved = [q - unit.p for q, unit in zip(values, self.machine.units, strict=True)]
        if op == "loss_at":
            parts = [
                np.sum(g * d + 0.5 * c * d**2, axis=(-2, -1), keepdims=True)
                for g, d, c in zip(self.gradients, moved, self.curvature, strict=True)
            ]
            return np.asarray(sum(parts))
        found = [g + c * d for g, d, c in zip(self.gradients, moved, self.curvature, strict=True)]
        if op == "sampled_grad":
            return [c * g for g, c in zip(found, self.curvature, strict=True)]
        if op == "clipped_grad":
            norm = np.sqrt(sum(np.sum(g**2, axis=(-2, -1), keepdims=True) for g in found))
            return [g * np.minimum(1.0, numbers[0] / np.where(norm > 0, norm, 1.0)) for g in found]
        return found


class Inputs:
    """Fixed inputs for a tall matrix."""

    def __init__(self) -> None:
        numbers = generic(7, (2 + len(STEPS), ROWS, COLS))
        p, self.direction, units = numbers[0], numbers[1], numbers[2:]
        self.curvature = generic(8, (ROWS, COLS))
        small = units * 1e-3
        small[:, 0] = 0.0
        small[1::2, 1] = 0.0
        self.gradients = np.stack([units, small], axis=1)
        self.parameters = np.stack([p, p])


def shaped(array: Array, facts: Facts) -> Array:
    """What is given for a tall matrix, for a parameter of this kind: as it is, transposed, or as one column."""
    if not facts.matrix:
        return column(array)
    return array if facts.tall else np.swapaxes(array, -1, -2)


@cache
def inputs() -> Inputs:
    return Inputs()


def generic(seed: int, shape: tuple[int, ...]) -> Array:
    """Numbers of mean 0 and variance 1, nearly normal: sums of four uniform ones, from PCG64's raw bits, so the same
    bits under every version of numpy."""
    raw = np.random.PCG64(seed).random_raw(4 * int(np.prod(shape)))
    uniform = (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 0.5
    four: Any = uniform.reshape(4, *shape)
    return np.asarray((four[0] + four[1] + four[2] + four[3]) * 1.75)


def column(array: Array) -> Array:
    """The last two axes as one column."""
    return array.reshape(*array.shape[:-2], -1, 1)
