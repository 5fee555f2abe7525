"""What follows from the operators alone about a program: that its update is odd in the gradient, and its degree.

An oracle for `dsl.properties`, which finds the same facts by probing.

Both are one pass over the graph for each kind of parameter: a value's class follows from its operator and its
arguments' classes. A slot starts in the class of its initial value and is joined with its update until nothing
changes. Not proven is no claim; the tests demand that whatever is proven is measured too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dsl.graph import CONSTANT, INPUT, Graph, Node, lower_all
from dsl.ops import OPS
from dsl.program import Program
from dsl.simplify import simplify


def _each(named: dict[str, str]) -> dict[str, str]:
    return {name: word for word, names in named.items() for name in names.split()}


DEGREES = _each(
    {
        "linear": "add sub neg abs min max clip sum mean norm amax row_sum row_mean row_norm row_amax col_sum col_mean "
        "col_norm col_amax global_sum global_amax transpose diagonal take_columns take_rows flatten column block_amax",
        "product": "mul matmul global_inner",
        "quotient": "div",
        "power": "pow matrix_power",
        "where": "where",
        "lerp": "lerp",
        "0": "lt le gt ge eq ne number sign newton_schulz newton_schulz_cubic polar sinkhorn eigenvectors top_vectors "
        "orthonormal order rows cols",
        "2": "square",
        "0.5": "sqrt",
        "-0.5": "rsqrt",
        "-1": "reciprocal",
        "constant": "size eye draw_uniform draw_gaussian draw_rademacher draw_subset",
    }
)
"""Operator -> how its result scales when its arguments scale: "linear" (as they do, all alike), "product", "quotient",
"power" (by the second argument, where that is a literal), "where" and "lerp" (as the two values do), a number (that
power of the argument's scale; "0" for none), "constant" (the result depends on no value). Of others nothing follows,
unless their arguments do not scale at all."""

PARITIES = _each(
    {
        "linear": "add sub neg sum mean row_sum row_mean col_sum col_mean global_sum transpose diagonal take_columns "
        "take_rows flatten column",
        "product": "mul div matmul global_inner",
        "power": "pow",
        "where": "where",
        "lerp": "lerp",
        "clip": "clip",
        "even": "abs square cos norm row_norm col_norm rows cols",
        "odd": "sign reciprocal tanh newton_schulz newton_schulz_cubic polar sinkhorn",
        "constant": "size eye draw_uniform draw_gaussian draw_rademacher draw_subset",
    }
)
"""Operator -> what a change of sign of its odd arguments does: "linear" (as they do, all alike), "product" (signs
multiply), "power", "where", "lerp" and "clip" (as the values do, where the other arguments do not change), "odd",
"even", "constant". Of others nothing follows, unless no argument changes."""

EPS = 1e-6
"""A constant this small only keeps a quotient finite: it counts as zero where the degree is judged."""


def proves_odd(program: Program) -> bool:
    """Whether the update is proven odd in the gradient, with weight decay off."""
    found = [_settled(program, graph, _parity, _start_parity, _join_parity) for graph in _graphs(program)]
    return all(parity is not None and parity.still == "p" for parity in found)


def proven_degree(program: Program) -> float | None:
    """The proven k with update(c g) = c**k update(g), with weight decay off; None if none is proven."""
    found = [_settled(program, graph, _degree, _start_degree, _join_degree) for graph in _graphs(program)]
    degrees = {each.power if each is not None and each.holds_p else math.inf for each in found}
    degree = degrees.pop()
    return None if degrees or degree == math.inf else degree


def _graphs(program: Program) -> list[Graph]:
    off = {"weight_decay": 0.0} if "weight_decay" in program.defaults else {}
    values = {name: value for name, value in (program.defaults | off).items() if name != "lr"}
    distinct = {id(graph): graph for graph in lower_all(program).values()}.values()
    return [simplify(graph, exact=False, values=values) for graph in distinct]


Class = TypeVar("Class")


def _settled(
    program: Program,
    graph: Graph,
    rule: Callable[[Node, list[Class | None], Graph], Class | None],
    start: Callable[[str | float], Class | None],
    join: Callable[[Class | None, Class | None], Class | None],
) -> Class | None:
    """The class of the new p, once the slots' classes hold at every step."""
    inputs: dict[str, Class | None] = {slot.name: start(slot.init) for slot in program.slots}
    while True:
        classes: list[Class | None] = []
        for node in graph.nodes:
            if node.op == INPUT and node.payload in inputs:
                classes.append(inputs[str(node.payload)])
            else:
                classes.append(rule(node, [classes[arg] for arg in node.args], graph))
        after = {
            name: join(before, classes[graph.outputs[name]]) if name in graph.outputs else before
            for name, before in inputs.items()
        }
        if after == inputs:
            return classes[graph.outputs["p"]]
        inputs = after


# Parity -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parity:
    """A sum of a part that a change of the gradients' sign leaves alone ("0" none, "p" the parameter, "e" any other)
    and a part whose sign it changes."""

    still: str
    turns: bool


_ZERO, _EVEN, _ODD, _P = _Parity("0", False), _Parity("e", False), _Parity("0", True), _Parity("p", False)


def _start_parity(init: str | float) -> _Parity:
    return _P if init == "p" else _ZERO if init == 0 else _EVEN


def _join_parity(a: _Parity | None, b: _Parity | None) -> _Parity | None:
    if a is None or b is None:
        return None
    return _Parity(a.still if a.still == b.still else "e", a.turns or b.turns)


def _parity(node: Node, args: list[_Parity | None], graph: Graph) -> _Parity | None:
    if node.op == INPUT:
        return {"g": _ODD, "p": _P}.get(str(node.payload), _EVEN)
    if node.op == CONSTANT:
        return _EVEN if node.payload else _ZERO
    if OPS[node.op].combine == "closure":  # what a model says elsewhere follows no rule
        return None
    known = [arg for arg in args if arg is not None]
    if PARITIES.get(node.op) == "constant":
        return _EVEN
    if len(known) < len(args):
        return None
    even = not any(arg.turns for arg in known)
    odd = all(arg.still == "0" for arg in known)
    match PARITIES.get(node.op, "none"):
        case "linear" if len(known) == 2:
            return _sum(known[0], known[1], node.op == "sub")
        case "linear":
            return _Parity("0" if odd else "e", not even)
        case "product" if len(known) == 2 and (not known[0].turns or not known[1].turns):
            steady, other = known if not known[0].turns else known[::-1]
            return _Parity("0" if "0" in (steady.still, other.still) else "e", other.turns and steady.still != "0")
        case "product" | "even" if odd:
            return _EVEN
        case "odd" if known[0].still == "0" and not any(arg.turns for arg in known[1:]):
            return _ODD
        case "where" if not known[0].turns:
            return _join_parity(known[1], known[2])
        case "lerp" if not known[2].turns:
            return _join_parity(known[0], known[1])
        case "clip" if known[0].still == "0" and _opposite(graph, node):
            return _ODD
        case "power" if known[0].still == "0" and _whole(graph, node):
            return _EVEN if _whole(graph, node) % 2 == 0 else _ODD
    return _EVEN if even else None


def _sum(a: _Parity, b: _Parity, minus: bool) -> _Parity:
    if minus and a.still == b.still == "p":
        still = "0"
    elif "0" in (a.still, b.still):
        still = a.still if b.still == "0" else ("e" if minus and b.still == "p" else b.still)
    else:
        still = "e"
    return _Parity(still, a.turns or b.turns)


def _literal(graph: Graph, index: int) -> float | None:
    node = graph.nodes[index]
    return float(node.payload) if node.op == CONSTANT else None  # type: ignore[arg-type]


def _opposite(graph: Graph, node: Node) -> bool:
    low, high = (_literal(graph, arg) for arg in node.args[1:])
    return low is not None and high is not None and low == -high


def _whole(graph: Graph, node: Node) -> int:
    """The exponent where it is a whole number other than 0; else 0."""
    exponent = _literal(graph, node.args[1])
    return int(exponent) if exponent is not None and exponent.is_integer() else 0


# Degree -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Degree:
    """A value that is multiplied by c**power where gradients are multiplied by c, with the parameter added to it or
    not. Zero has the power inf: it is small beside everything."""

    power: float
    holds_p: bool = False


_NOTHING = _Degree(math.inf)


def _start_degree(init: str | float) -> _Degree:
    return _Degree(math.inf, True) if init == "p" else _NOTHING if init == 0 else _Degree(0.0)


def _join_degree(a: _Degree | None, b: _Degree | None) -> _Degree | None:
    if a is None or b is None or a.holds_p != b.holds_p:
        return None
    return _alike([a.power, b.power], a.holds_p)


def _alike(powers: list[float], holds_p: bool = False) -> _Degree | None:
    """The one power among these, zeros apart."""
    distinct = set(powers) - {math.inf}
    return None if len(distinct) > 1 else _Degree(next(iter(distinct), math.inf), holds_p)


def _degree(node: Node, args: list[_Degree | None], graph: Graph) -> _Degree | None:
    if node.op == INPUT:
        return {"g": _Degree(1.0), "p": _Degree(math.inf, True)}.get(str(node.payload), _Degree(0.0))
    if node.op == CONSTANT:
        return _NOTHING if abs(float(node.payload)) <= EPS else _Degree(0.0)  # type: ignore[arg-type]
    if OPS[node.op].combine == "closure":
        return None
    known = [arg for arg in args if arg is not None]
    if DEGREES.get(node.op) == "constant":
        return _Degree(0.0)
    if len(known) < len(args):
        return None
    if node.op in ("add", "sub") and any(arg.holds_p for arg in known):
        a, b = known
        if a.holds_p != b.holds_p and (a.holds_p or node.op == "add"):
            return _alike([a.power, b.power], True)
        if a.holds_p and b.holds_p and node.op == "sub":
            return _alike([a.power, b.power])
    if node.op == "lerp" and known[0].holds_p and known[1].holds_p and known[2].power in (0.0, math.inf):
        return _alike([known[0].power, known[1].power], True)
    powers = [0.0 if arg.holds_p and arg.power == math.inf else arg.power for arg in known]
    if any(arg.holds_p and arg.power != math.inf and arg.power != 0 for arg in known):
        return None
    match DEGREES.get(node.op, "bounded"):
        case "linear":
            return _alike(powers)
        case "product":
            return _Degree(sum(powers))
        case "quotient":
            return _Degree(powers[0] - powers[1]) if powers[1] != math.inf else None
        case "where" | "lerp" as kind:
            chooser, values = (powers[0], powers[1:]) if kind == "where" else (powers[2], powers[:2])
            return _alike(values) if chooser in (0.0, math.inf) else None
        case "power" if powers[0] not in (0.0, math.inf):
            exponent = _literal(graph, node.args[1])
            return None if exponent is None else _Degree(powers[0] * exponent)
        case "power" | "bounded":
            return _Degree(0.0) if _steady(powers) else None
        case "0":
            return _Degree(0.0) if _alike(powers[: 1 if OPS[node.op].kinds else 2]) else None
        case number:
            return _Degree(powers[0] * float(number)) if powers[0] != math.inf or float(number) > 0 else None


def _steady(powers: list[float]) -> bool:
    return all(power in (0.0, math.inf) for power in powers)
