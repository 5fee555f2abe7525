"""Facts about a rule that hold whatever it is used for, measured on fixed inputs in one pass.

A rule is probed with p held where it is at every step while its slots evolve, lr = 1 and the hyperparameter
`weight_decay`, where it has one, at 0; its update is old p - new p. `dsl.analysis` proves some of the same facts from
the operators' table; the tests hold the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from dsl.behaviour import Surrogate, generic, kinds_to_run, shaped
from dsl.graph import CONSTANT, INPUT, Graph, lower_all
from dsl.ops import OPS
from dsl.program import Facts, Program
from dsl.reference import Array, Machine
from dsl.types import EXTENTS, Scope, size_of

STEPS = 10
ROWS, COLS = 5, 3
LARGE = 4096
TOLERANCE = 1e-9
DEGREE_TOLERANCE = 1e-3
"""Relative; wide enough for an eps that keeps a quotient finite."""


@dataclass(frozen=True, slots=True)
class Properties:
    """What a rule is like.

    Attributes:
        odd: a gradient of the other sign gives the update of the other sign.
        degree: k where gradients c times as large make the update c**k times as large, for c from 1e-2 to 1e2 (0 for
            Adam and Lion, 1 for SGD); None where there is no such k.
        finite_at_zero: a gradient that is always zero gives finite updates and state.
        elementwise: shuffling the elements of p and g shuffles the update: rows and columns mean nothing to it.
        descends: going along the update, in steps of one tenth of its size, lowers a quadratic of condition 10.
        finite: the update is finite on ordinary gradients.
        moves: it is finite and not zero.
        cosine: mean cosine of the update and the gradient, on gradients half of whose variance stays the same from
            step to step.
        scale: root mean square of the update at lr = 1 on gradients of mean square 1, over the first ten steps.
        state: extent -> how many slots of it the rule keeps per parameter, for a matrix.
        state_bytes: bytes of state per element of a float32 matrix of 4096 x 4096, to three decimals: 8 for Adam.
        operations: passes over the parameter a step, by `Op.cost`, for a matrix.
    """

    odd: bool
    degree: float | None
    finite_at_zero: bool
    elementwise: bool
    descends: bool
    finite: bool
    moves: bool
    cosine: float
    scale: float
    state: Mapping[str, int]
    state_bytes: float
    operations: float

    @property
    def slots(self) -> int:
        """How many state tensors of any extent the rule keeps per parameter."""
        return sum(self.state.values())

    def plain(self) -> dict[str, bool | float | int | None]:
        """The facts as numbers and truth values, ready to be stored."""
        names = [field.name for field in fields(self) if field.name != "state"]
        return {name: getattr(self, name) for name in names} | {"slots": self.slots}


def of(program: Program) -> Properties:
    """The properties of a well-formed program at its default hyperparameters.

    Raises:
        RuleError: the program is not well formed.
    """
    graphs = lower_all(program)
    kinds = kinds_to_run(graphs)
    probe = _probe()
    values = program.defaults | ({"weight_decay": 0.0} if "weight_decay" in program.defaults else {})
    held = [shaped(probe.p, facts) for facts in kinds]
    machine = Machine([graphs[facts] for facts in kinds], held, program.slots, values)
    surrogate = Surrogate(machine, [shaped(probe.losses, facts) for facts in kinds])
    points = [p[_DESCENT] for p in held]
    updates: list[list[Array]] = [[] for _ in kinds]
    with np.errstate(all="ignore"):
        for step in range(STEPS):
            gradients = []
            for facts, unit, p, point in zip(kinds, machine.units, held, points, strict=True):
                unit.p, g = p.copy(), shaped(probe.g[step], facts).copy()
                unit.p[_DESCENT], g[_DESCENT] = point, shaped(probe.curvature, facts) * point
                gradients.append(g)
            before = [unit.p for unit in machine.units]
            surrogate.step(gradients, step + 1, 1.0, 1.0)
            for number, (unit, old) in enumerate(zip(machine.units, before, strict=True)):
                update = old - unit.p
                updates[number].append(update)
                points[number] = points[number] - 0.1 * _normalised(update[_DESCENT])
        finite = all(bool(np.all(np.isfinite(slot[_ZERO]))) for unit in machine.units for slot in unit.slots.values())
        measured = [_measured(np.stack(u), probe, kind) for u, kind in zip(updates, kinds, strict=True)]
        descends = all(
            _quadratic(end, shaped(probe.curvature, kind)) < _quadratic(p[_DESCENT], shaped(probe.curvature, kind))
            for end, p, kind in zip(points, held, kinds, strict=True)
        )
    first = graphs[kinds[0]]
    degrees = {fact.degree for fact in measured}
    return Properties(
        odd=all(fact.odd for fact in measured),
        degree=degrees.pop() if len(degrees) == 1 else None,
        finite_at_zero=finite and all(fact.finite_at_zero for fact in measured),
        elementwise=all(fact.elementwise for fact in measured),
        descends=descends,
        finite=all(math.isfinite(fact.scale) for fact in measured),
        moves=all(fact.moves for fact in measured),
        cosine=min(fact.cosine for fact in measured),
        scale=measured[0].scale,
        state=state(program, first),
        state_bytes=state_bytes(program, first),
        operations=operations(first),
    )


def state(program: Program, graph: Graph) -> dict[str, int]:
    """How many slots of each extent the rule keeps for one kind of parameter; "codes" are those of eight bits."""
    names = {extent: name for name, extent in EXTENTS.items()}
    counts: dict[str, int] = {}
    for slot in program.slots:
        if slot.name in graph.inputs:
            name = "codes" if slot.code else names[slot.extent]
            counts[name] = counts.get(name, 0) + 1
    return counts


def state_bytes(program: Program, graph: Graph) -> float:
    """Bytes of state per element of a float32 matrix of LARGE x LARGE, to three decimals."""
    total = 0
    for slot in program.slots:
        if slot.name in graph.inputs:
            sizes = (size_of(symbol, LARGE, LARGE, program.defaults) for symbol in slot.extent)
            total += math.prod(sizes) * (1 if slot.code else 4)
    return round(total / LARGE**2, 3)


def operations(graph: Graph) -> float:
    """Passes over the parameter a step: the costs of the operators that work on more than one value per row."""
    return sum(
        OPS[node.op].cost
        for node in graph.nodes
        if node.op not in (INPUT, CONSTANT) and any(_large(graph, index) for index in node.args)
    )


def _large(graph: Graph, index: int) -> bool:
    type = graph.nodes[index].type
    return type.scope is Scope.TENSOR and "1" not in type.extent


# Probing ------------------------------------------------------------------------------------------------------------

_PLAIN, _NEGATED, _SMALL, _LARGE, _ZERO, _SHUFFLED, _DESCENT = range(7)
"""Situations that run side by side: the gradients as they are, negated, times 1e-2, times 1e2, all zero, shuffled with
p, and those of a quadratic at a point that moves along the update."""


@dataclass(frozen=True, slots=True)
class _Facts:
    odd: bool
    degree: float | None
    finite_at_zero: bool
    elementwise: bool
    moves: bool
    cosine: float
    scale: float


def _measured(updates: Array, probe: _Probe, kind: Facts) -> _Facts:
    """Facts about updates [step, situation, rows, cols]."""
    size = updates.shape[-2] * updates.shape[-1]
    if not kind.tall:
        updates = np.swapaxes(updates, -1, -2)
    flat = updates.reshape(STEPS, -1, size)
    plain = flat[:, _PLAIN]
    scale = _rms(plain)
    moves = math.isfinite(scale) and scale > 0
    g = probe.g[:, _PLAIN].reshape(STEPS, size)
    norms = np.sqrt(np.sum(plain**2, axis=1) * np.sum(g**2, axis=1))
    cosines = np.sum(plain * g, axis=1) / np.where(norms > 0, norms, 1.0)
    return _Facts(
        odd=moves and _close(flat[:, _NEGATED], -plain, TOLERANCE),
        degree=_degree(flat, scale) if moves else None,
        finite_at_zero=bool(np.all(np.isfinite(flat[:, _ZERO]))),
        elementwise=moves and _close(flat[:, _SHUFFLED], plain[:, probe.shuffle], TOLERANCE),
        moves=moves,
        cosine=float(np.mean(cosines)) if moves else 0.0,
        scale=scale,
    )


def _degree(flat: Array, scale: float) -> float | None:
    """k with update(c g) = c**k update(g) for c = 1e-2 and 1e2."""
    large = _rms(flat[:, _LARGE])
    if not (math.isfinite(large) and large > 0):
        return None
    degree = round(math.log(large / scale) / math.log(100), 3) + 0.0
    plain = flat[:, _PLAIN]
    small, big = (flat[:, situation] / c**degree for situation, c in ((_SMALL, 1e-2), (_LARGE, 1e2)))
    return degree if _close(small, plain, DEGREE_TOLERANCE) and _close(big, plain, DEGREE_TOLERANCE) else None


def _close(a: Array, b: Array, tolerance: float) -> bool:
    """Whether a is b up to a fraction of b's size, step by step."""
    error = np.abs(a - b).max(axis=1)
    return bool(np.all(error <= tolerance * np.sqrt(np.mean(b**2, axis=1)) + 1e-300))


def _rms(a: Array) -> float:
    flat = a.ravel()
    return math.sqrt(float(flat @ flat) / flat.size)


def _normalised(update: Array) -> Array:
    size = _rms(update)
    return update / size if size > 0 else update


def _quadratic(point: Array, curvature: Array) -> float:
    value = float(np.sum(curvature * point**2))
    return value if math.isfinite(value) else math.inf


class _Probe:
    """Fixed inputs for a tall matrix."""

    def __init__(self) -> None:
        size = ROWS * COLS
        numbers = generic(11, (2 + STEPS, ROWS, COLS))
        p, steady, noise = numbers[0], numbers[1], numbers[2:]
        g = math.sqrt(0.5) * (steady + noise)
        g = g / np.sqrt(np.mean(g**2))
        self.shuffle = np.argsort(generic(12, (size,)))
        shuffled = g.reshape(STEPS, size)[:, self.shuffle].reshape(g.shape)
        p_shuffled = p.reshape(size)[self.shuffle].reshape(p.shape)
        curvature = 10.0 ** (np.argsort(generic(13, (size,))) / (size - 1)).reshape(p.shape)
        ps = np.stack([p, p, p, p, p, p_shuffled, p])
        gs = np.stack([g, -g, 1e-2 * g, 1e2 * g, 0.0 * g, shuffled, g], axis=1)
        self.p, self.g, self.curvature = ps, gs, curvature
        c_shuffled = curvature.reshape(size)[self.shuffle].reshape(p.shape)
        factors = np.array([1.0, -1.0, 1e-2, 1e2, 0.0, 1.0, 1.0])  # what multiplies the loss multiplies its curvature
        self.losses = factors[:, None, None] * np.where(np.arange(7)[:, None, None] == _SHUFFLED, c_shuffled, curvature)


@cache
def _probe() -> _Probe:
    return _Probe()
