"""Facts about a rule that hold whatever it is used for, measured on fixed inputs in one pass.

A rule is probed with p held where it is at every step while its slots evolve, lr = 1 and the hyperparameter
`weight_decay`, where it has one, at 0; its update is old p - new p. `tests/analysis.py` proves some of the same facts
from the operators; the tests hold the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from dsl.behaviour import Surrogate, generic, in_one_pass, kinds_to_run, shaped
from dsl.graph import lower, lower_all, passes
from dsl.pool import pooled
from dsl.program import Facts, Program, Slot
from dsl.reference import Array, Machine
from dsl.types import EXTENTS, size_of

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
        tiny_cosine: the same of gradients 1e-10 as large: below an eps, which keeps a quotient finite there and, taken
            off in place of added, turns the step round. 1 at a step that such a gradient does not make, -1 where it is
            not finite.
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
    tiny_cosine: float
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


@dataclass(frozen=True, slots=True)
class Held:
    """What a rule does where p is held in place.

    Attributes:
        updates: for each kind of parameter that was run, old p - new p: [steps, situations, rows, cols].
        finite: whether its state stayed finite where the gradient is zero.
        ends: for each kind, where going along the update ended, of the parameter's shape.
        kinds: of parameter.
    """

    updates: Sequence[Array]
    finite: bool
    ends: Sequence[Array]
    kinds: Sequence[Facts] = (Facts(True, "hidden"),)


def of(program: Program, held: Held | None = None) -> Properties:
    """The properties of a well-formed program at its default hyperparameters.

    Args:
        held: what the program does, as `hold` gives it, where that is known.

    Raises:
        RuleError: the program is not well formed.
    """
    return of_each([program], [hold(program) if held is None else held])[0]


def of_each(programs: Sequence[Program], held: Sequence[Held]) -> list[Properties]:
    """As `of`, of many programs in one pass.

    Args:
        held: what each program does, as `hold` gives it.

    Returns:
        For each program the properties that are found of it alone, to the last bit.
    """
    measured = in_one_pass([dict(zip(each.kinds, each.updates, strict=True)) for each in held], _measured)
    return [_properties(*each) for each in zip(programs, held, measured, strict=True)]


def _properties(program: Program, held: Held, measured: Mapping[Facts, _Facts]) -> Properties:
    kinds = list(measured.values())
    facts = kinds[0] if len(kinds) == 1 else _of_all(kinds)
    curvature = inputs().curvature
    with np.errstate(all="ignore"):
        descends = all(
            _quadratic(end, shaped(curvature, kind)) < _height(kind)
            for end, kind in zip(held.ends, held.kinds, strict=True)
        )
    kept, operations = _for_a_matrix(program)
    return Properties(
        odd=facts.odd,
        degree=facts.degree,
        finite_at_zero=held.finite and facts.finite_at_zero,
        elementwise=facts.elementwise,
        descends=descends,
        finite=all(math.isfinite(each.scale) for each in kinds),
        moves=facts.moves,
        cosine=facts.cosine,
        tiny_cosine=facts.tiny_cosine,
        scale=facts.scale,
        state=_state(kept),
        state_bytes=_state_bytes(program, kept),
        operations=operations,
    )


def hold(program: Program) -> Held:
    """Runs a program with p held in place, as numpy computes it.

    Raises:
        RuleError: the program is not well formed.
    """
    graphs = lower_all(program)
    kinds = kinds_to_run(graphs)
    probe = inputs()
    values = program.defaults | ({"weight_decay": 0.0} if "weight_decay" in program.defaults else {})
    places = [shaped(probe.p, facts) for facts in kinds]
    machine = Machine([graphs[facts] for facts in kinds], places, program.slots, values)
    surrogate = Surrogate(machine, [shaped(probe.losses, facts) for facts in kinds])
    points = [p[DESCENT] for p in places]
    updates: list[list[Array]] = [[] for _ in kinds]
    with np.errstate(all="ignore"):
        for step in range(STEPS):
            gradients = []
            for facts, unit, p, point in zip(kinds, machine.units, places, points, strict=True):
                unit.p, g = p.copy(), shaped(probe.g[step], facts).copy()
                unit.p[DESCENT], g[DESCENT] = point, shaped(probe.curvature, facts) * point
                gradients.append(g)
            before = [unit.p for unit in machine.units]
            surrogate.step(gradients, step + 1, 1.0, 1.0)
            for number, (unit, old) in enumerate(zip(machine.units, before, strict=True)):
                update = old - unit.p
                updates[number].append(update)
                points[number] = points[number] - 0.1 * _normalised(update[DESCENT])
        finite = all(bool(np.all(np.isfinite(slot[ZERO]))) for unit in machine.units for slot in unit.slots.values())
    return Held([np.stack(each) for each in updates], finite, points, kinds)


def _for_a_matrix(program: Program) -> tuple[list[Slot], float]:
    """The slots that a matrix needs, and the passes over it a step."""
    line = pooled(program)
    if line is not None:
        return line.kept(program.slots), sum(map(line.pool.costs.__getitem__, line.live()))
    graph = lower(program, Facts(True, "hidden"))
    kept = [slot for slot in program.slots if slot.name in graph.inputs]
    return kept, sum(passes(node, graph.nodes) for node in graph.nodes)


_NAMES = {extent: name for name, extent in EXTENTS.items()}


def _state(kept: Sequence[Slot]) -> dict[str, int]:
    """How many slots of each extent; "codes" are those of eight bits."""
    counts: dict[str, int] = {}
    for slot in kept:
        name = "codes" if slot.code else _NAMES[slot.extent]
        counts[name] = counts.get(name, 0) + 1
    return counts


def _state_bytes(program: Program, kept: Sequence[Slot]) -> float:
    """Bytes of state per element of a float32 matrix of LARGE x LARGE, to three decimals."""
    total, defaults = 0, program.defaults
    for slot in kept:
        rows, cols = (size_of(symbol, LARGE, LARGE, defaults) for symbol in slot.extent)
        total += rows * cols * (1 if slot.code else 4)
    return round(total / LARGE**2, 3)


# Probing ------------------------------------------------------------------------------------------------------------

PLAIN, NEGATED, SMALL, BIG, ZERO, SHUFFLED, DESCENT, TINY = range(SITUATIONS := 8)
"""Situations that run side by side: the gradients as they are, negated, times 1e-2, times 1e2, all zero, shuffled with
p, those of a quadratic at a point that moves along the update, and the gradients times 1e-10."""


@dataclass(frozen=True, slots=True)
class _Facts:
    odd: bool
    degree: float | None
    finite_at_zero: bool
    elementwise: bool
    moves: bool
    cosine: float
    tiny_cosine: float
    scale: float


def _of_all(measured: Sequence[_Facts]) -> _Facts:
    """What holds for every kind of parameter; the scale is that of the first."""
    degrees = {facts.degree for facts in measured}
    return _Facts(
        odd=all(facts.odd for facts in measured),
        degree=degrees.pop() if len(degrees) == 1 else None,
        finite_at_zero=all(facts.finite_at_zero for facts in measured),
        elementwise=all(facts.elementwise for facts in measured),
        moves=all(facts.moves for facts in measured),
        cosine=min(facts.cosine for facts in measured),
        tiny_cosine=min(facts.tiny_cosine for facts in measured),
        scale=measured[0].scale,
    )


def _measured(updates: Array, kind: Facts) -> list[_Facts]:
    """Facts about the updates of each program, [programs, steps, situations, rows, cols]."""
    probe, size = inputs(), updates.shape[-2] * updates.shape[-1]
    if not kind.tall:
        updates = np.swapaxes(updates, -1, -2)
    flat = updates.reshape(len(updates), STEPS, SITUATIONS, size)
    plain, tiny = flat[:, :, PLAIN], flat[:, :, TINY]
    with np.errstate(all="ignore"):
        squares = np.add.reduce(plain**2, axis=2)
        scales = np.sqrt(np.add.reduce(squares, axis=1) / (STEPS * size)).tolist()
        large = np.sqrt(np.add.reduce(flat[:, :, BIG] ** 2, axis=(1, 2)) / (STEPS * size)).tolist()
        degrees = list(map(_degree, large, scales))
        norms = np.sqrt(squares * probe.squares)
        cosines = np.add.reduce(plain * probe.plain, axis=2) / np.where(norms > 0, norms, 1.0)
        norms = np.sqrt(np.add.reduce(tiny**2, axis=2) * probe.squares)
        tiny_cosines = np.where(norms != 0, np.add.reduce(tiny * probe.plain, axis=2) / norms, 1.0)
        tiny_cosines = np.where(np.isfinite(tiny_cosines), tiny_cosines, -1.0)
        wanted = plain.take(probe.order, axis=2) * _SIGNS
        sizes = np.sqrt(squares / size)
        factors = _FACTORS ** np.array([degree or 0.0 for degree in degrees])[:, None]
        found = flat.take(_COMPARED, axis=2) / factors[:, None, :, None]
        close = np.abs(found - wanted) <= (sizes[:, :, None] * _TOLERANCES + 1e-300)[..., None]
        same = np.logical_and.reduce(close, axis=(1, 3)).tolist()
        at_zero = np.logical_and.reduce(np.isfinite(flat[:, :, ZERO]), axis=(1, 2)).tolist()
        means = (np.add.reduce(each, axis=1) / STEPS for each in (cosines, tiny_cosines))
    facts = zip(scales, degrees, same, at_zero, *(each.tolist() for each in means), strict=True)
    return [_facts(*each) for each in facts]


def _facts(
    scale: float, degree: float | None, same: list[bool], at_zero: bool, cosine: float, tiny_cosine: float
) -> _Facts:
    """Facts about a program from what was measured; `same` as `_COMPARED` has them."""
    if not (math.isfinite(scale) and scale > 0):
        return _Facts(False, None, at_zero, False, False, 0.0, 0.0, scale)
    odd, elementwise, *alike = same
    return _Facts(odd, degree if all(alike) else None, at_zero, elementwise, True, cosine, tiny_cosine, scale)


_COMPARED = np.array([NEGATED, SHUFFLED, SMALL, BIG])
"""The situations whose updates the plain ones are held against, up to a fraction of their size, step by step."""

_FACTORS = np.array([1.0, 1.0, 1e-2, 1e2])
"""Of their gradients, as far as a degree of homogeneity accounts for them."""

_SIGNS = np.array([-1.0, 1.0, 1.0, 1.0])[:, None]
_TOLERANCES = np.array([TOLERANCE, TOLERANCE, DEGREE_TOLERANCE, DEGREE_TOLERANCE])


def _degree(large: float, scale: float) -> float | None:
    """k such that gradients 100 times as large give `large` for `scale`."""
    if not (math.isfinite(large) and large > 0 and math.isfinite(scale) and scale > 0):
        return None
    return round(math.log(large / scale) / math.log(100), 3) + 0.0


def _normalised(update: Array) -> Array:
    size = math.sqrt(float(np.sum(np.square(update))) / update.size)
    return update / size if size > 0 else update


def _quadratic(point: Array, curvature: Array) -> float:
    value = float(np.add.reduce(curvature * point**2, axis=None))
    return value if math.isfinite(value) else math.inf


@cache
def _height(kind: Facts) -> float:
    """Where the descent begins."""
    return _quadratic(shaped(inputs().p[DESCENT], kind), shaped(inputs().curvature, kind))


class Inputs:
    """Fixed inputs for a tall matrix.

    Attributes:
        p: in each situation; g: [steps, situations, rows, cols].
        plain: the gradients as they are, [steps, elements]; squares: added up, for each step.
        curvature: of the quadratic that is descended; losses: in each situation.
        order: of the elements in each of the situations that are compared.
    """

    def __init__(self) -> None:
        size = ROWS * COLS
        numbers = generic(11, (2 + STEPS, ROWS, COLS))
        p, steady, noise = numbers[0], numbers[1], numbers[2:]
        g = math.sqrt(0.5) * (steady + noise)
        g = g / np.sqrt(np.mean(g**2))
        same, shuffle = np.arange(size), np.argsort(generic(12, (size,)))
        self.order = np.stack([same, shuffle, same, same])
        shuffled = g.reshape(STEPS, size)[:, shuffle].reshape(g.shape)
        p_shuffled = p.reshape(size)[shuffle].reshape(p.shape)
        curvature = 10.0 ** (np.argsort(generic(13, (size,))) / (size - 1)).reshape(p.shape)
        ps = np.stack([p, p, p, p, p, p_shuffled, p, p])
        gs = np.stack([g, -g, 1e-2 * g, 1e2 * g, 0.0 * g, shuffled, g, 1e-10 * g], axis=1)
        self.p, self.g, self.curvature = ps, gs, curvature
        self.plain = gs[:, PLAIN].reshape(STEPS, size)
        self.squares = np.sum(self.plain**2, axis=1)
        c_shuffled = curvature.reshape(size)[shuffle].reshape(p.shape)
        factors = np.array([1.0, -1.0, 1e-2, 1e2, 0.0, 1.0, 1.0, 1e-10])  # of the loss, and so of its curvature
        places = np.arange(SITUATIONS)[:, None, None]
        self.losses = factors[:, None, None] * np.where(places == SHUFFLED, c_shuffled, curvature)


@cache
def inputs() -> Inputs:
    return Inputs()
