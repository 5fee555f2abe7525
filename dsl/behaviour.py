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

from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np

from dsl.canonical import combine
from dsl.graph import Graph, lower_all
from dsl.ops import OPS
from dsl.program import Facts, Program
from dsl.reference import Array, Machine
from dsl.types import EXTENTS

STEPS = (1, 2, 3, 4, 10, 100, 1000)
RATIOS = (0.25, 1.0, 0.75, 0.5, 0.875, 0.375, 0.125)
LR = 0.5
ROWS, COLS = 5, 3
_FLOOR = 1e-12


def behaviour_hash(program: Program) -> str:
    """A digest of what the program does at its default hyperparameters, the same on every machine."""
    graphs = lower_all(program)
    kinds = kinds_to_run(graphs)
    probe = _probe()
    machine = Machine(
        [graphs[facts] for facts in kinds],
        [probe.parameters[facts.matrix] for facts in kinds],
        program.slots,
        program.defaults,
    )
    numbers: list[list[str]] = [[] for _ in kinds]
    for number, (t, ratio) in enumerate(zip(STEPS, RATIOS, strict=True)):
        before = [unit.p for unit in machine.units]
        machine.step([probe.gradients[facts.matrix][number] for facts in kinds], t, LR * ratio, ratio)
        for unit, old, facts, text in zip(machine.units, before, kinds, numbers, strict=True):
            text.append(_rounded(old, unit.p, probe.directions[facts.matrix]))
            if program.result:
                text.append(_rounded(old, unit.result, probe.directions[facts.matrix]))
    digests = {facts: sha256(";".join(text).encode()).hexdigest() for facts, text in zip(kinds, numbers, strict=True)}
    return combine({facts: digests.get(facts, digests[kinds[0]]) for facts in graphs})


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


def _rounded(old: Array, new: Array, direction: Array) -> str:
    """Each situation's change along the direction, to seven significant digits."""
    with np.errstate(all="ignore"):
        change = old - new
        along = np.sum(change * direction, axis=(-2, -1))
        if not np.isfinite(along).all():
            change = np.nan_to_num(change, nan=1.2345, posinf=2.3456e3, neginf=-3.4567e3)
            along = np.sum(change * direction, axis=(-2, -1))
    return ",".join(f"{value:.6e}" if abs(value) > _FLOOR else "0" for value in along)


class _Probe:
    """Fixed inputs, as matrices (True) and as the same elements in a column (False)."""

    def __init__(self) -> None:
        numbers = generic(7, (2 + len(STEPS), ROWS, COLS))
        p, direction, units = numbers[0], numbers[1], numbers[2:]
        small = units * 1e-3
        small[:, 0] = 0.0
        small[1::2, 1] = 0.0
        gradients = np.stack([units, small], axis=1)
        both = np.stack([p, p])
        self.parameters = {True: both, False: column(both)}
        self.directions = {True: direction, False: column(direction)}
        self.gradients = {True: gradients, False: column(gradients)}


@cache
def _probe() -> _Probe:
    return _Probe()


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
