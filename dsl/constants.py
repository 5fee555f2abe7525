"""The constants of a known rule in a program of its shape: which values of its hyperparameters make it that program.

Both graphs are walked side by side. Where the known one has an expression of constants alone, the other's value is
an equation: it is solved for the one hyperparameter in it that is not known yet, again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dsl.behaviour import behaviour_hash
from dsl.canonical import HOLE, shapes, structure_hash
from dsl.graph import CONSTANT, INPUT, Graph
from dsl.ops import OPS
from dsl.program import Program

SAME = 1e-12


def constants(program: Program, known: Program, behaviour: str) -> dict[str, float] | None:
    """The known rule's hyperparameters, where not at their defaults, with which it does what this program does."""
    defaults = known.defaults
    unsolved: list[tuple[Graph, int, float]] = []
    for (theirs, their_digests), (ours, our_digests) in zip(shapes(known), shapes(program), strict=False):
        for hole, value in _holes(theirs, their_digests, ours, our_digests, program.defaults):
            unsolved.append((theirs, hole, value))
    found: dict[str, float] = {}
    while True:
        solved = [each for each in unsolved if _solve(*each, found)]
        if not solved:
            break
        unsolved = [each for each in unsolved if each not in solved]
    for digits in (10, 17):  # short ones first: what 1 - 0.9 comes to is 0.1
        values = {name: float(f"{value:.{digits}g}") for name, value in found.items()}
        values = {name: value for name, value in values.items() if abs(value - defaults[name]) > SAME * abs(value)}
        same = known.with_defaults(values)
        if behaviour_hash(same) == behaviour or structure_hash(same) == structure_hash(program):
            return values
    return None


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


def _solve(graph: Graph, index: int, value: float, found: dict[str, float]) -> bool:
    """Finds the one hyperparameter in an expression that is not known yet, from the expression's value.

    Returns: whether the expression has been dealt with: nothing in it is unknown any more.
    """
    unknown = _unknown(graph, index, found)
    if len(unknown) > 1:
        return False
    while unknown:
        node = graph.nodes[index]
        if node.op == INPUT:
            found[str(node.payload)] = value
            return True
        place = next(place for place, arg in enumerate(node.args) if _unknown(graph, arg, found))
        if sum(bool(_unknown(graph, arg, found)) for arg in node.args) > 1:
            return False
        others = [_value(graph, arg, found) for arg in node.args[:place] + node.args[place + 1 :]]
        with np.errstate(all="ignore"):
            inverted = _inverted(node.op, place, value, others)
        if inverted is None or not np.isfinite(inverted):
            return False
        index, value = node.args[place], float(inverted)
    return True


def _unknown(graph: Graph, index: int, found: Mapping[str, float]) -> set[str]:
    node = graph.nodes[index]
    if node.op == INPUT:
        return {str(node.payload)} - found.keys()
    return set().union(*(_unknown(graph, arg, found) for arg in node.args))


def _inverted(op: str, place: int, value: float, others: list[float]) -> float | None:
    """What the argument in this place must be for the operator to give a value; None where that is not clear."""
    other = others[0] if others else 0.0
    match op, place:
        case "neg", _:
            return -value
        case "add", _:
            return value - other
        case "sub", 0:
            return value + other
        case "sub", 1:
            return other - value
        case "mul", _ if other:
            return value / other
        case "div", 0:
            return value * other
        case "div" | "reciprocal", _ if value:
            return (other if op == "div" else 1.0) / value
        case "pow", 0 if other:
            return float(np.power(value, 1 / other))
        case "pow", 1 if other > 0 and other != 1 and value > 0:
            return float(np.log(value) / np.log(other))
        case "square", _:
            return float(np.sqrt(value))
        case "sqrt", _:
            return value * value
        case "rsqrt", _ if value:
            return 1 / (value * value)
        case "exp", _:
            return float(np.log(value))
        case "log", _:
            return float(np.exp(value))
        case (("max" | "min"), _) if value != other:
            return value
    return None
