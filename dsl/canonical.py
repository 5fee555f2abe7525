"""The structure of a program, without its accidents: names, the order of statements and of commutative arguments.

Each kind of parameter's graph is simplified algebraically; each value is then named by a digest of its operator and its
arguments. State slots are named by what they start from and how they change, found by refinement: all slots of one
extent and initial value begin alike and are told apart by their updates until nothing new is told apart (so two slots
that always hold the same value get one name). Digests are sha256: the same in every process and on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from dsl.graph import CONSTANT, INPUT, Graph, Node, lower_all
from dsl.ops import OPS
from dsl.pool import Pool, Pooled, pooled
from dsl.program import USUAL, Facts, Program, Slot
from dsl.simplify import simplify

GIVEN = ("lr", "weight_decay")
"""Hyperparameters that stay inputs: a training sets them. The others are their default values."""

HOLE = "#"


def structure_hash(program: Program) -> str:
    """A digest of what the program computes at its default hyperparameters, up to algebra. Equal for programs that
    differ in names and in the order of independent statements. The default of `lr` is not part of it: it is always
    given; that of `weight_decay` is."""
    if all(hyper.name in GIVEN for hyper in program.hypers) and (line := pooled(program)) is not None:
        digest = _line_digest(line.simplified(), program.slots, _labels(program))
        return combine({_MATRIX: digest, _VECTOR: digest})
    return structure_hash_of_graphs(program)


def structure_hash_of_graphs(program: Program) -> str:
    """The structure hash of any program, from graphs that are made for it alone."""
    fixed = {hyper.name: hyper.default for hyper in program.hypers if hyper.name not in GIVEN}
    return _digest(program, fixed, _labels(program), shape=False)


def _labels(program: Program) -> dict[str, str]:
    return {h.name: f"{h.name}={h.default:.12g}" for h in program.hypers if h.name in GIVEN and h.name != "lr"}


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


_MATRIX, _VECTOR = USUAL


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


def _line_digest(line: Pooled, slots: Sequence[Slot], labels: Mapping[str, str]) -> str:
    """As `_graph_digest`, of a simplified straight line in a pool."""
    pool = line.pool
    start = {slot.name: _start(slot) for slot in line.kept(slots)}

    def changes(names: Mapping[str, str]) -> dict[str, str]:
        digest = _Digests(pool, labels, names).of
        return {name: _change(line, name, digest) for name in names}

    digest = _Digests(pool, labels, _told_apart(start, changes)).of
    result = digest(line.outputs["result"]) if "result" in line.outputs else ""
    return _hash("program", digest(line.outputs["p"]), result)


def _change(line: Pooled, name: str, digest: Callable[[int], str]) -> str:
    node = line.pool.nodes[line.outputs[name]]
    return "constant" if node.op == INPUT and node.payload == name else digest(line.outputs[name])


class _Digests:
    """Of values in a pool, where hyperparameters and slots have these names; each is found once in a pool."""

    __slots__ = ("_bits", "_names", "_nodes", "_reads", "_stateful", "_stateless")

    def __init__(self, pool: Pool, labels: Mapping[str, str], slots: Mapping[str, str]) -> None:
        self._names, self._nodes, self._reads, self._bits = {**labels, **slots}, pool.nodes, pool.reads, 0
        for name in slots:
            self._bits |= pool.bits[name]
        self._stateless = pool.names.setdefault(tuple(labels.items()), {})
        self._stateful = pool.names.setdefault(tuple(self._names.items()), {}) if slots else self._stateless

    def of(self, index: int) -> str:
        known = self._stateful if self._reads[index] & self._bits else self._stateless
        found = known.get(index)
        if found is None:
            node = self._nodes[index]
            found = known[index] = _node_digest(node, [self.of(arg) for arg in node.args], self._names, "", shape=False)
        return found


def _told_apart(start: dict[str, str], changes: Callable[[Mapping[str, str]], Mapping[str, str]]) -> dict[str, str]:
    """Names for slots, told apart by what they start from and by how they change, which their names have a part in."""
    names, distinct = start, 0
    while len(set(names.values())) > distinct:
        distinct = len(set(names.values()))
        change = changes(names)
        names = {name: _hash(start[name], names[name], change[name]) for name in names}
    return names


def _start(slot: Slot) -> str:
    return f"{slot.extent} {slot.init}{' code' * slot.code}"


def _refined(
    graph: Graph, slots: tuple[Slot, ...], labels: Mapping[str, str], places: Mapping[float, str], shape: bool
) -> list[str]:
    """A digest for each value, slots told apart by how they change."""
    start = {slot.name: _start(slot) for slot in slots if slot.name in graph.inputs}
    outputs = graph.outputs

    def changes(names: Mapping[str, str]) -> dict[str, str]:
        digests = _node_digests(graph, {**labels, **names}, places, shape)
        return {name: digests[outputs[name]] if name in outputs else "constant" for name in names}

    return _node_digests(graph, {**labels, **_told_apart(start, changes)}, places, shape)


def _node_digests(graph: Graph, names: Mapping[str, str], places: Mapping[float, str], shape: bool) -> list[str]:
    digests: list[str] = []
    for node in graph.nodes:
        sharing = places[float(node.payload)] if node.op in OPS and OPS[node.op].combine else ""  # type: ignore[arg-type]
        digests.append(_node_digest(node, [digests[arg] for arg in node.args], names, sharing, shape=shape))
    return digests


def _node_digest(node: Node, args: list[str], names: Mapping[str, str], sharing: str, *, shape: bool) -> str:
    if node.op == CONSTANT:
        return HOLE if shape else f"{float(node.payload) + 0.0:.12g}"  # type: ignore[arg-type]
    if node.op == INPUT:
        return names.get(str(node.payload), str(node.payload))
    if shape and args and args.count(HOLE) == len(args):
        return HOLE
    if OPS[node.op].commutative:
        args.sort()
    return _hash(node.op, sharing, *args)


def _hash(*parts: str) -> str:
    return sha256("\0".join(parts).encode()).hexdigest()
