"""Which known rule a program is, or is nearest to.

A program is a known rule if it does the same on fixed inputs (`dsl.behaviour`), or if it has the rule's shape and the
constants found in it, put into the known rule, make it do the same: then those constants are reported. Otherwise it is
compared by direction: both run over fixed gradients with p held and weight decay off, and the similarity is the mean
cosine of their updates over steps and kinds of parameters. Gradients differ in size from element to element by up to a
factor of 100 and are half noise, so that rules that normalise, and those that average, are told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from dsl.behaviour import behaviour_hash, column, generic
from dsl.canonical import HOLE, shape_hash, shapes
from dsl.graph import CONSTANT, INPUT, Graph, lower
from dsl.library import load, names
from dsl.ops import OPS
from dsl.program import Facts, Program
from dsl.reference import Array, Machine

STEPS = 24
ROWS, COLS = 6, 4
SAME = 1e-12


@dataclass(frozen=True, slots=True)
class Match:
    """A known rule and how near it is.

    Attributes:
        name: the known rule; for a wrapper, with the base it was tried on.
        similarity: mean cosine of the updates, from -1 to 1.
        exact: the program is the known rule, with the hyperparameters in `hypers`.
        hypers: where exact, the known rule's hyperparameters that are not at their defaults.
        but_for_decay: not exact, but equal to the known rule once both have their weight decay at 0.
    """

    name: str
    similarity: float
    exact: bool
    hypers: Mapping[str, float] = field(default_factory=dict)
    but_for_decay: bool = False

    def __str__(self) -> str:
        if self.exact:
            values = ", ".join(f"{name}={value:g}" for name, value in self.hypers.items())
            return f"is {self.name}" + (f" with {values}" if values else "")
        if self.but_for_decay:
            return f"is {self.name} but for its weight decay"
        return f"new; nearest is {self.name} (similarity {self.similarity:.3f})"


def nearest(program: Program) -> Match:
    """The known rule that a program is, or is nearest to.

    Raises:
        RuleError: the program is not well formed.
    """
    behaviour, shape = behaviour_hash(program), shape_hash(program)
    decay_free = _without_decay(program)
    still, still_shape = behaviour_hash(decay_free), shape_hash(decay_free)
    zoo = _zoo()
    for known in zoo:
        if known.behaviour == behaviour:
            return Match(known.name, 1.0, True)
    for known in zoo:
        if known.shape == shape and (values := _constants(program, known.program, behaviour)) is not None:
            return Match(known.name, 1.0, True, values)
    for known in zoo:
        if known.still == still or (
            known.still_shape == still_shape
            and _constants(decay_free, _without_decay(known.program), still) is not None
        ):
            return Match(known.name, 1.0, False, but_for_decay=True)
    directions = _directions(program)
    best = max(zoo, key=lambda known: _similarity(directions, known.directions))
    return Match(best.name, _similarity(directions, best.directions), False)


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    program: Program
    behaviour: str
    shape: str
    still: str
    still_shape: str
    directions: Array


@cache
def _zoo() -> tuple[_Known, ...]:
    """Every built-in rule; wrappers on adamw."""
    zoo = []
    for name in names():
        program = load(name)
        if program.rules:
            name = f"{name}(adamw)"
            program = load(name)
        still = _without_decay(program)
        zoo.append(
            _Known(
                name,
                program,
                behaviour_hash(program),
                shape_hash(program),
                behaviour_hash(still),
                shape_hash(still),
                _directions(program),
            )
        )
    return tuple(zoo)


def _without_decay(program: Program) -> Program:
    return program.with_defaults({"weight_decay": 0.0}) if "weight_decay" in program.defaults else program


# Direction --------------------------------------------------------------------------------------------------------


def _directions(program: Program) -> Array:
    """Updates of unit length [step, 2 * elements], those of a matrix beside those of a vector; 0 where not finite."""
    kinds = (Facts(True, "hidden"), Facts(False, "vector"))
    p, gradients = _probe()
    held = [p, column(p)]
    machine = Machine([lower(program, facts) for facts in kinds], held, program.slots, _without_decay(program).defaults)
    steps = []
    for step in range(STEPS):
        for unit, start in zip(machine.units, held, strict=True):
            unit.p = start
        machine.step([gradients[step], column(gradients[step])], step + 1, 1.0, 1.0)
        steps.append([_unit(start - unit.p) for unit, start in zip(machine.units, held, strict=True)])
    return np.asarray(steps)


def _unit(update: Array) -> Array:
    with np.errstate(all="ignore"):
        length = np.sqrt(np.sum(update**2))
        unit: Array = np.nan_to_num(update / length, nan=0.0, posinf=0.0, neginf=0.0)
        return unit.ravel()


def _similarity(a: Array, b: Array) -> float:
    return float(np.mean(np.sum(a * b, axis=-1)))


@cache
def _probe() -> tuple[Array, Array]:
    numbers = generic(21, (3 + STEPS, ROWS, COLS))
    sizes = 10.0 ** np.clip(numbers[0], -1.0, 1.0)
    return numbers[1], sizes * np.sqrt(0.5) * (numbers[2] + numbers[3:])


# Constants --------------------------------------------------------------------------------------------------------


def _constants(program: Program, known: Program, behaviour: str) -> dict[str, float] | None:
    """The known rule's hyperparameters, where not at their defaults, with which it does what this program does."""
    defaults = known.defaults
    found: dict[str, float] = {}
    for (theirs, their_digests), (ours, our_digests) in zip(shapes(known), shapes(program), strict=False):
        for hole, value in _holes(theirs, their_digests, ours, our_digests, program.defaults):
            if (solved := _solve(theirs, hole, value)) is not None:
                found.setdefault(*solved)
    values = {name: float(f"{value:.10g}") for name, value in found.items()}
    values = {name: value for name, value in values.items() if abs(value - defaults[name]) > SAME * abs(value)}
    return values if behaviour_hash(known.with_defaults(values)) == behaviour else None


def _holes(
    theirs: Graph, their_digests: Sequence[str], ours: Graph, our_digests: Sequence[str], values: Mapping[str, float]
) -> Iterator[tuple[int, float]]:
    """Walks two graphs of one shape side by side: each hole of the known one with the value it has in the other."""
    stack = [(theirs.outputs["p"], ours.outputs["p"])]
    seen: set[tuple[int, int]] = set()
    while stack:
        pair = stack.pop()
        if pair in seen:
            continue
        seen.add(pair)
        left, right = theirs.nodes[pair[0]], ours.nodes[pair[1]]
        if their_digests[pair[0]] == HOLE and our_digests[pair[1]] == HOLE:
            yield pair[0], _value(ours, pair[1], values)
        elif left.op == right.op == INPUT:
            names = str(left.payload), str(right.payload)
            if names[0] in theirs.outputs and names[1] in ours.outputs and "p" not in names:
                stack.append((theirs.outputs[names[0]], ours.outputs[names[1]]))
        elif left.op == right.op:
            args = list(left.args), list(right.args)
            if OPS[left.op].commutative:
                args[0].sort(key=lambda arg: their_digests[arg])
                args[1].sort(key=lambda arg: our_digests[arg])
            stack += zip(*args, strict=True)


def _value(graph: Graph, index: int, values: Mapping[str, float]) -> float:
    """What a value made of literals and hyperparameters comes to."""
    node = graph.nodes[index]
    if node.op == CONSTANT:
        return float(node.payload)  # type: ignore[arg-type]
    if node.op == INPUT:
        return values[str(node.payload)]
    function = OPS[node.op].ref
    assert function is not None
    with np.errstate(all="ignore"):
        return float(function(*(np.float64(_value(graph, arg, values)) for arg in node.args)))


def _solve(graph: Graph, index: int, value: float) -> tuple[str, float] | None:
    """Which hyperparameter must be what for this expression to have the value; None where it is not a simple one."""
    node = graph.nodes[index]
    if node.op == INPUT:
        return str(node.payload), value
    literals = [graph.nodes[arg].payload if graph.nodes[arg].op == CONSTANT else None for arg in node.args]
    match node.op, literals:
        case "neg", [None]:
            return _solve(graph, node.args[0], -value)
        case "sub", [float(known), None]:
            return _solve(graph, node.args[1], known - value)
        case "add", [float(known), None] | [None, float(known)]:
            return _solve(graph, node.args[literals.index(None)], value - known)
        case "mul", [float(known), None] | [None, float(known)] if known:
            return _solve(graph, node.args[literals.index(None)], value / known)
    return None
