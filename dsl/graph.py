"""A program for one kind of parameter as a graph of typed values: what every analysis and every back end reads.

Lowering follows the assignments in order, decides static ifs by `Facts`, writes out operators that abbreviate others,
brings masks to numbers where a value is wanted, and keeps every distinct value once. What no output needs is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from dsl.format import format_expr
from dsl.ops import OPS, Op
from dsl.parse import definition, suggest
from dsl.program import (
    BUILTINS,
    Assign,
    Call,
    Expr,
    Facts,
    If,
    Name,
    Number,
    Program,
    RuleError,
    Statement,
    all_facts,
    assignments,
    expressions,
    misnamed,
)
from dsl.types import FULL, NUMBER, SCALAR, SIZED_BY, MismatchError, Scope, Type, fits

INPUT = "input"
"""The operator of a node that is read from outside: p, g, a slot's old value, a hyperparameter, t, lr_ratio."""
CONSTANT = "constant"


@dataclass(frozen=True, slots=True)
class Node:
    """One value.

    Attributes:
        op: an operator's name, or INPUT or CONSTANT.
        args: positions in the graph of its arguments, all smaller than its own.
        payload: an input's name; a constant's value; for a global operator the number of its place in the program, so
            that parameters treated differently still add up to the same global; else None.
        type: its extent and scope.
    """

    op: str
    args: tuple[int, ...]
    payload: str | float | None
    type: Type


@dataclass(frozen=True, slots=True)
class Graph:
    """Values in an order in which they can be computed, and the outputs among them.

    Attributes:
        nodes: each after its arguments.
        outputs: output name -> position: "p", each slot that changes, and "result" where a rule returns another value.
        hints: position -> the name that the program gives the value, for generated code; no part of its identity.
    """

    nodes: tuple[Node, ...]
    outputs: Mapping[str, int]
    hints: Mapping[int, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def inputs(self) -> dict[str, int]:
        return {str(node.payload): index for index, node in enumerate(self.nodes) if node.op == INPUT}

    def users(self) -> list[list[int]]:
        """For each value the positions of the values that take it as an argument."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for arg in set(node.args):
                users[arg].append(index)
        return users


Key = tuple[str, tuple[int, ...], str | float | None, Type | None]
"""What a value is found by: operator, arguments, payload; of an input its type too."""


class Builder:
    """Makes a graph value by value; the same operator on the same arguments is the same value."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._index: dict[Key, int] = {}

    def input(self, name: str, type: Type) -> int:
        return self._add(INPUT, (), name, type)

    def constant(self, value: float) -> int:
        return self._add(CONSTANT, (), float(value), NUMBER)

    def admit(self, op: Op, args: tuple[int, ...]) -> tuple[int, ...]:
        """The arguments as the operator takes them, masks brought to numbers. Raises MismatchError for a wrong kind."""
        if not op.kinds and not any(self.nodes[arg].type.mask or self.nodes[arg].type.code for arg in args):
            return args
        admitted = []
        for position, (param, arg) in enumerate(zip(op.params, args, strict=True)):
            kind, type = op.kinds.get(param, "value"), self.nodes[arg].type
            if kind == "mask" and not type.mask:
                raise MismatchError(
                    position, f"must be a mask, but {{}} is {type}; compare it first, for example a > 0"
                )
            if type.code != (kind == "code"):
                what = "a code, as quantize or order gives" if kind == "code" else "a value"
                raise MismatchError(position, f"must be {what}, but {{}} is {type}")
            if kind in ("number", "key") and not type.is_number:
                raise MismatchError(position, f"must be a number known before training, but {{}} is {type}")
            if kind == "tensor" and type.is_number:
                raise MismatchError(position, f"must be a tensor, but {{}} is {type}")
            if kind == "scalar" and type.extent != SCALAR.extent:
                raise MismatchError(
                    position, f"must be a scalar, but {{}} is {type}; reduce it first, for example mean(...)"
                )
            if kind != "mask" and type.mask:
                arg = self._add("number", (arg,), None, Type(type.extent, type.scope))
            admitted.append(arg)
        return tuple(admitted)

    def apply(self, op: Op, args: tuple[int, ...], place: float | None = None) -> int:
        """Applies an operator to admitted arguments. Raises MismatchError where the law of types is broken."""
        return self._add(op.name, args, place if op.combine else None, op.law(*(self.nodes[arg].type for arg in args)))

    def _add(self, op: str, args: tuple[int, ...], payload: str | float | None, type: Type) -> int:
        key = (op, args, repr(payload) if op == CONSTANT else payload, type if op == INPUT else None)
        found = self._index.get(key)
        return self._new(key, Node(op, args, payload, type)) if found is None else found

    def _new(self, key: Key, node: Node) -> int:
        index = self._index[key] = len(self.nodes)
        self.nodes.append(node)
        return index

    def graph(
        self,
        outputs: Mapping[str, int],
        hints: Mapping[int, str] | None = None,
        shared: frozenset[object] = frozenset(),
    ) -> Graph:
        """The graph of what the outputs need; a slot whose value does not change is no output."""
        return prune(self.nodes, outputs, hints, shared)


def prune(
    nodes: Iterable[Node],
    outputs: Mapping[str, int],
    hints: Mapping[int, str] | None = None,
    shared: frozenset[object] = frozenset(),
) -> Graph:
    """The outputs, the shares of global values at the places given, and what these need, and nothing else: slots that
    feed only themselves go too."""
    nodes = list(nodes)
    live: set[int] = set()
    wanted = [outputs[name] for name in ("p", "result") if name in outputs]
    if shared:
        wanted += [index for index, node in enumerate(nodes) if node.payload in shared and is_total(node)]
    kept = {name for name in ("p", "result") if name in outputs}
    while wanted:
        index = wanted.pop()
        if index in live:
            continue
        live.add(index)
        node = nodes[index]
        wanted.extend(node.args)
        if node.op == INPUT and node.payload in outputs and node.payload not in kept:
            kept.add(str(node.payload))
            wanted.append(outputs[str(node.payload)])
    moved = {old: new for new, old in enumerate(sorted(live))}
    kept_nodes = tuple(
        Node(node.op, tuple(moved[arg] for arg in node.args), node.payload, node.type)
        for index, node in enumerate(nodes)
        if index in live
    )
    unchanged = {
        name for name in kept if nodes[outputs[name]].op == INPUT and nodes[outputs[name]].payload == name != "p"
    }
    return Graph(
        kept_nodes,
        {name: moved[outputs[name]] for name in outputs if name in kept - unchanged},
        {moved[index]: name for index, name in (hints or {}).items() if index in moved},
    )


def passes(node: Node, nodes: Sequence[Node]) -> float:
    """Passes over a matrix that a value takes: the cost of an operator that works on more than one value per row."""
    for arg in node.args:
        type = nodes[arg].type
        if type.scope is Scope.TENSOR and "1" not in type.extent:
            return OPS[node.op].cost
    return 0.0


def is_total(node: Node) -> bool:
    """Whether it is a sum or the like over all parameters."""
    return node.op in OPS and OPS[node.op].combine in ("sum", "amax")


@lru_cache(maxsize=4096)
def lower(program: Program, facts: Facts) -> Graph:
    """Lowers a program for one kind of parameter.

    A global value that any kind of parameter needs is over all parameters for which its statement stands, also over
    those that have no use for it themselves.

    Raises:
        RuleError: the first violation of the law of types, with the line it stands on.
    """
    return Lowering(program, facts).run(_shared(program))


TOTALS = frozenset(op.name for op in OPS.values() if op.combine in ("sum", "amax") or "global_" in op.expand)
"""Operators that are a sum or the like over all parameters, or have one in their definition."""


@lru_cache(maxsize=4096)
def _shared(program: Program) -> frozenset[object]:
    """The places of global values that some kind of parameter needs; none where all kinds are alike."""
    apart = any(isinstance(statement, If) for statement in program.body)
    calls = (e for statement in assignments(program.body) for e in expressions(statement.value) if isinstance(e, Call))
    if not apart or not any(call.op in TOTALS for call in calls):
        return frozenset()
    graphs = [Lowering(program, facts).run(frozenset()) for facts in all_facts(program)]
    return frozenset(node.payload for graph in graphs for node in graph.nodes if is_total(node))


class Lowering:
    """Follows a program's statements for one kind of parameter, and puts their values into a builder."""

    def __init__(self, program: Program, facts: Facts, builder: Builder | None = None):
        self.program = program
        self.facts = facts
        self.builder = Builder() if builder is None else builder
        self.defaults = program.defaults
        self.slots = {slot.name: Type(slot.extent, code=slot.code) for slot in program.slots}
        self.env: dict[str, int] = {}
        self.hints: dict[int, str] = {}
        self.line = 0
        self.place = 0.0
        """Which assignment of the whole program this is, and behind the point which global operator in it."""

    def run(self, shared: frozenset[object]) -> Graph:
        return self.builder.graph(self.outputs(), self.hints, shared)

    def outputs(self) -> dict[str, int]:
        """Where the new p, each slot, and what is returned beside p are in the builder."""
        self.begin()
        self.block(self.program.body, 1)
        outputs = {name: self.env[name] for name in ("p", *self.slots)}
        self.line = 0
        if self.program.result:
            outputs["result"] = self.value(self.read(self.program.result), "the returned value", FULL)
        return outputs

    def begin(self) -> None:
        """The names that there are before the first statement."""
        if self.program.rules:
            raise self.fail(f"rule '{self.program.name}' takes a rule; write {self.program.name}(adamw), for example")
        if wrong := misnamed(self.program.slots, self.program.hypers):
            self.line = 1
            raise self.fail(wrong[1])
        for slot in self.program.slots:
            for size in slot.extent:
                if SIZED_BY.get(size, "lr") not in (*self.defaults, "lr"):
                    needed = f"the rule needs a hyperparameter '{SIZED_BY[size]}'"
                    raise self.fail(f"state '{slot.name}' is {Type(slot.extent)}: {needed}")
        for name in ("p", "g"):
            self.env[name] = self.builder.input(name, FULL)
        for name, type in self.slots.items():
            self.env[name] = self.builder.input(name, type)
        for name in (*self.defaults, *BUILTINS):
            self.env[name] = self.builder.input(name, NUMBER)

    def block(self, body: tuple[Statement, ...], place: int) -> None:
        for statement in body:
            if isinstance(statement, If):
                branches = (statement.body, statement.orelse)
                sizes = [sum(1 for _ in assignments(branch)) for branch in branches]
                taken = 0 if self.facts.decide(statement.test) else 1
                self.block(branches[taken], place + taken * sizes[0])
                place += sum(sizes)
            else:
                self.place = float(place)
                self.assign(statement)
                place += 1

    def assign(self, statement: Assign) -> int:
        """Lowers a statement; gives the position of its right-hand side."""
        self.line = statement.line
        if statement.target in self.defaults:
            raise self.fail(f"'{statement.target}' is a hyperparameter and cannot be assigned")
        index = self.lower(statement.value)
        self.store(statement.target, index)
        return index

    def store(self, target: str, index: int) -> None:
        if target == "p" or target in self.slots:
            index = self.value(index, f"'{target}'", FULL if target == "p" else self.slots[target])
        elif self.builder.nodes[index].op not in (INPUT, CONSTANT):
            self.hints.setdefault(index, target)
        self.env[target] = index

    def value(self, index: int, what: str, place: Type) -> int:
        if self.builder.nodes[index].type.mask:
            index = self.builder.apply(OPS["number"], (index,))
        if not fits(type := self.builder.nodes[index].type, place):
            raise self.fail(f"{what} is {place}, but the value is {type}")
        return index

    def read(self, name: str) -> int:
        if name not in self.env:
            raise self.fail(f"unknown name '{name}'{suggest(name, self.env)}; assign it before it is read")
        return self.env[name]

    def lower(self, expr: Expr) -> int:
        match expr:
            case Number(value):
                return self.builder.constant(value)
            case Name(id):
                return self.read(id)
            case Call(name, args) if name in OPS:
                return self.call(expr, OPS[name], args)
        raise self.fail(f"unknown operator '{expr.op}'{suggest(expr.op, OPS)}")

    def call(self, expr: Call, op: Op, args: tuple[Expr, ...]) -> int:
        lowered = tuple(self.lower(arg) for arg in args)
        sizes = {size for index in lowered for size in self.builder.nodes[index].type.extent}
        if op.matrix and not self.facts.matrix and sizes & {"r", "c"}:
            raise self.fail(f"{op.name} needs a matrix, but p may be a vector here; put it under 'if matrix(p):'")
        try:
            lowered = self.builder.admit(op, lowered)
            if op.expand:
                return self.lower(_definition(op.name)(dict(zip(op.params, args, strict=True))))
            self.place += 0.001 if op.combine else 0.0
            return self.builder.apply(op, lowered, self.place)
        except MismatchError as mismatch:
            reason = str(mismatch).format(format_expr(args[mismatch.argument]))
            raise self.fail(f"{format_expr(expr)}: argument {mismatch.argument + 1} {reason}") from None

    def fail(self, message: str) -> RuleError:
        return RuleError(message, self.line, f"{self.program.name}.rule")


@cache
def _definition(name: str):  # type: ignore[no-untyped-def]
    return definition(OPS[name].expand)


def lower_all(program: Program) -> dict[Facts, Graph]:
    """The graph of each kind of parameter that the program may treat differently, the matrix first.

    A program without static ifs and matrix operators has one graph, which stands for every kind.

    Raises:
        RuleError: as `lower`.
    """
    kinds = all_facts(program)
    first = lower(program, kinds[0])
    if any(isinstance(statement, If) for statement in program.body) or _names_matrices(program.body):
        return {facts: lower(program, facts) for facts in kinds}
    return dict.fromkeys(kinds, first)


CLOSURE = tuple(op.name for op in OPS.values() if op.combine == "closure")
"""Operators that ask a closure, in the table's order."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a rule must be given.

    Attributes:
        gradient: whether it reads the gradient, or asks for a Hessian's product, which is made from it.
        closure: the closure operators that it asks for, in the table's order.
        examples: whether it reads how many examples the gradient is a mean over.
    """

    gradient: bool
    closure: tuple[str, ...]
    examples: bool

    def __str__(self) -> str:
        return ", ".join([*self.closure, *(["examples"] if self.examples else [])])


@lru_cache(maxsize=4096)
def needs(program: Program) -> Needs:
    """What a rule needs beside its parameters.

    Raises:
        RuleError: as `lower`.
    """
    graphs = lower_all(program).values()
    inputs = {name for graph in graphs for name in graph.inputs}
    operators = {node.op for graph in graphs for node in graph.nodes}
    closure = tuple(name for name in CLOSURE if name in operators)
    return Needs("g" in inputs or "hvp" in closure, closure, "examples" in inputs)


def _names_matrices(body: tuple[Statement, ...]) -> bool:
    return any(_names_matrix(statement.value) for statement in assignments(body))


def _names_matrix(expr: Expr) -> bool:
    return isinstance(expr, Call) and (OPS[expr.op].matrix or any(_names_matrix(arg) for arg in expr.args))
