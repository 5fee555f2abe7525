"""The structure of a program, without its accidents: names, the order of statements and of commutative arguments.

Each kind of parameter's graph is simplified algebraically; each value is then named by a digest of its operator and its
arguments. State slots are named by what they start from and how they change, found by refinement: all slots of one
extent and initial value begin alike and are told apart by their updates until nothing new is told apart (so two slots
that always hold the same value get one name). Digests are sha256: the same in every process and on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from dsl.graph import CONSTANT, INPUT, Graph, lower_all
from dsl.ops import OPS
from dsl.program import Facts, Program, Slot
from dsl.simplify import simplify

GIVEN = ("lr", "weight_decay")
"""Hyperparameters that stay inputs: a training sets them. The others are their default values."""

HOLE = "#"


def structure_hash(program: Program) -> str:
    """A digest of what the program computes at its default hyperparameters, up to algebra. Equal for programs that
    differ in names and in the order of independent statements. The default of `lr` is not part of it: it is always
    given; that of `weight_decay` is."""
    fixed = {hyper.name: hyper.default for hyper in program.hypers if hyper.name not in GIVEN}
    labels = {h.name: f"{h.name}={h.default:.12g}" for h in program.hypers if h.name in GIVEN and h.name != "lr"}
    return _digest(program, fixed, labels, shape=False)


def shape_hash(program: Program) -> str:
    """As `structure_hash`, but blind to literals and to values of hyperparameters: what is computed from these alone is
    a hole. Programs that differ only in constants are equal; rarely, so are others (`identify` checks)."""
    return _digest(program, {}, _holes(program), shape=True)


def _holes(program: Program) -> dict[str, str]:
    return {hyper.name: HOLE for hyper in program.hypers if hyper.name != "lr"}


def _digest(program: Program, values: Mapping[str, float], labels: Mapping[str, str], *, shape: bool) -> str:
    graphs = simplified(program, values)
    places = _places(lower_all(program))
    digests: dict[int, str] = {}
    for graph in graphs.values():
        if id(graph) not in digests:
            digests[id(graph)] = _graph_digest(graph, _refined(graph, program.slots, labels, places, shape))
    return combine({facts: digests[id(graph)] for facts, graph in graphs.items()})


def simplified(program: Program, values: Mapping[str, float]) -> dict[Facts, Graph]:
    """The algebraically simplified graph of each kind of parameter, some hyperparameters replaced by values."""
    graphs = lower_all(program)
    simple: dict[int, Graph] = {}
    for graph in graphs.values():
        if id(graph) not in simple:
            simple[id(graph)] = simplify(graph, exact=False, values=values)
    return {facts: simple[id(graph)] for facts, graph in graphs.items()}


def shapes(program: Program) -> list[tuple[Graph, list[str]]]:
    """Each distinct simplified graph with a digest for every value that is blind to constants."""
    graphs = simplified(program, {})
    places = _places(lower_all(program))
    distinct = {id(graph): graph for graph in graphs.values()}.values()
    return [(graph, _refined(graph, program.slots, _holes(program), places, True)) for graph in distinct]


def combine(digests: Mapping[Facts, str]) -> str:
    """One digest of the kinds' digests; a role that is treated as others of its dimensions adds nothing."""
    usual = {facts.matrix: digest for facts, digest in digests.items() if facts in (_MATRIX, _VECTOR)}
    special = {_words(facts): digest for facts, digest in digests.items() if digest != usual[facts.matrix]}
    text = [usual[True], usual[False], *(f"{kind} {digest}" for kind, digest in sorted(special.items()))]
    return sha256("\n".join(text).encode()).hexdigest()


def _words(facts: Facts) -> str:
    return f"{facts.matrix} {facts.role}" + ("" if facts.tall else " wide")


_MATRIX, _VECTOR = Facts(True, "hidden"), Facts(False, "vector")


def _places(graphs: Mapping[Facts, Graph]) -> dict[float, str]:
    """For each global value which kinds of parameters share it; nothing where all do."""
    sharing: dict[float, list[str]] = {}
    for facts, graph in graphs.items():
        for node in graph.nodes:
            if node.op in OPS and OPS[node.op].combine:
                place = float(node.payload)  # type: ignore[arg-type]
                sharing.setdefault(place, []).append(_words(facts))
    return {place: "" if len(kinds) == len(graphs) else ",".join(sorted(kinds)) for place, kinds in sharing.items()}


def _graph_digest(graph: Graph, digests: list[str]) -> str:
    result = digests[graph.outputs["result"]] if "result" in graph.outputs else ""
    return _hash("program", digests[graph.outputs["p"]], result)


def _refined(
    graph: Graph, slots: tuple[Slot, ...], labels: Mapping[str, str], places: Mapping[float, str], shape: bool
) -> list[str]:
    """A digest for each value, slots told apart by how they change."""
    kept = [slot for slot in slots if slot.name in graph.inputs]
    start = {slot.name: f"{slot.extent} {slot.init}{' code' * slot.code}" for slot in kept}
    names = start
    digests = _node_digests(graph, {**labels, **names}, places, shape)
    distinct = 0
    while len(set(names.values())) > distinct:
        distinct = len(set(names.values()))
        change = {name: digests[graph.outputs[name]] if name in graph.outputs else "constant" for name in names}
        names = {name: _hash(start[name], names[name], change[name]) for name in names}
        digests = _node_digests(graph, {**labels, **names}, places, shape)
    return digests


def _node_digests(graph: Graph, names: Mapping[str, str], places: Mapping[float, str], shape: bool) -> list[str]:
    digests: list[str] = []
    for node in graph.nodes:
        if node.op == CONSTANT:
            digests.append(HOLE if shape else f"{float(node.payload) + 0.0:.12g}")  # type: ignore[arg-type]
        elif node.op == INPUT:
            name = str(node.payload)
            digests.append(names.get(name, name))
        else:
            args = [digests[arg] for arg in node.args]
            if shape and args and args.count(HOLE) == len(args):
                digests.append(HOLE)
                continue
            op = OPS[node.op]
            if op.commutative:
                args.sort()
            sharing = places[float(node.payload)] if op.combine else ""  # type: ignore[arg-type]
            digests.append(_hash(node.op, sharing, *args))
    return digests


def _hash(*parts: str) -> str:
    return sha256("\0".join(parts).encode()).hexdigest()
