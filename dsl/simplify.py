"""Rewrite rules, one line each, in two tables that say how true they are.

`EXACT` rules change no bit of the reference's result for any input, nan, inf and -0 included (all nans count as the
same). `ALGEBRAIC` rules hold up to rounding on finite input away from poles: they serve to compare programs, never to
run them. A rule is a pair of texts in the rule language; small letters stand for any value, `K` and `L` for literals
(not 0, nor so large or small that their products overflow). Arguments of commutative operators match in either order.
`HITS` counts how often each rule fired in this process.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product

import numpy as np

from dsl.graph import CONSTANT, INPUT, Builder, Graph, Node
from dsl.ops import OPS
from dsl.parse import definition
from dsl.program import Call, Expr, Name, Number
from dsl.types import MismatchError

Rule = tuple[str, str]

# fmt: off
EXACT: list[Rule] = [
    ("neg(neg(x))", "x"),
    ("x + neg(y)", "x - y"),
    ("x - neg(y)", "x + y"),
    ("neg(x) * y", "neg(x * y)"),
    ("neg(x) / y", "neg(x / y)"),
    ("x / neg(y)", "neg(x / y)"),
    ("x - 0", "x"),
    ("x * 1", "x"),
    ("x / 1", "x"),
    ("x * neg(1)", "neg(x)"),
    ("x / neg(1)", "neg(x)"),
    ("x ** 1", "x"),
    ("x ** 0", "1"),
    ("x * x", "square(x)"),
    ("square(neg(x))", "square(x)"),
    ("square(abs(x))", "square(x)"),
    ("abs(neg(x))", "abs(x)"),
    ("abs(abs(x))", "abs(x)"),
    ("abs(square(x))", "square(x)"),
    ("abs(exp(x))", "exp(x)"),
    ("sign(sign(x))", "sign(x)"),
    ("min(x, x)", "x"),
    ("max(x, x)", "x"),
    ("where(c, x, x)", "x"),
    ("where(c, 1, 0)", "number(c)"),
    ("x > y", "y < x"),
    ("x >= y", "y <= x"),
    ("transpose(transpose(x))", "x"),
]

ALGEBRAIC: list[Rule] = [
    *EXACT,
    # one spelling of what has several
    ("lerp(x, y, w)", "(1 - w) * x + w * y"),
    ("reciprocal(x)", "1 / x"),
    ("rsqrt(x)", "1 / sqrt(x)"),
    ("norm(x)", "sqrt(sum(square(x)))"),
    ("row_norm(x)", "sqrt(row_sum(square(x)))"),
    ("col_norm(x)", "sqrt(col_sum(square(x)))"),
    ("x ** 2", "square(x)"),
    ("x ** 0.5", "sqrt(x)"),
    ("x / K", "x * (1 / K)"),
    ("x - K", "x + neg(K)"),
    ("neg(K * x)", "neg(K) * x"),
    ("K * x + K * y", "K * (x + y)"),
    # zeros and ones
    ("x + 0", "x"),
    ("0 - x", "neg(x)"),
    ("x * 0", "0"),
    ("0 / x", "0"),
    ("x - x", "0"),
    ("x / x", "1"),
    ("x + x", "2 * x"),
    ("(x * y) * y", "x * square(y)"),
    # signs
    ("neg(x - y)", "y - x"),
    ("neg(x) - y", "neg(x + y)"),
    ("sign(neg(x))", "neg(sign(x))"),
    ("tanh(neg(x))", "neg(tanh(x))"),
    ("sign(abs(x) * y)", "sign(y)"),
    ("sign(K * x)", "sign(K) * sign(x)"),
    ("sign(x) * abs(x)", "x"),
    ("abs(sqrt(x))", "sqrt(x)"),
    ("abs(sigmoid(x))", "sigmoid(x)"),
    # what undoes itself
    ("sqrt(square(x))", "abs(x)"),
    ("log(exp(x))", "x"),
    ("(x + y) - y", "x"),
    ("(x - y) + y", "x"),
    ("x - (x - y)", "y"),
    ("(x * y) / y", "x"),
    ("(x / y) * y", "x"),
    ("(x / y) / z", "x / (y * z)"),
    ("x / (y / z)", "x * z / y"),
    ("square(K * x)", "square(K) * square(x)"),
    ("K * (L * x)", "(K * L) * x"),
    ("K + (L + x)", "(K + L) + x"),
    ("where(c, x, 0)", "number(c) * x"),
    ("sum(K * x)", "K * sum(x)"),
    ("mean(K * x)", "K * mean(x)"),
]
# fmt: on

HITS: Counter[Rule] = Counter()

Pattern = tuple[str, tuple["Pattern", ...], float | str | None]
"""An operator, its arguments' patterns; for a leaf CONSTANT with a value, or "any" / "literal" with a name."""


def simplify(graph: Graph, *, exact: bool = True, values: Mapping[str, float] | None = None) -> Graph:
    """Applies the rules until none fits, folds literal arithmetic and drops what is not needed any more.

    Args:
        graph: from `dsl.graph.lower`.
        exact: only rules that change no bit; otherwise the algebraic ones too.
        values: inputs to be replaced by literals first, such as hyperparameters by their defaults.

    Returns:
        A graph of the same outputs. A value may come out smaller than it was (a number for a full tensor of equal
        elements) where everything that reads it broadcasts.
    """
    return Simplifier(table(exact), values or {}).run(graph)


ELEMENTWISE = frozenset(op.name for op in OPS.values() if op.group in ("arithmetic", "comparison", "elementwise"))


class Simplifier:
    """Makes values in a builder, each as simple as the rules can make it."""

    def __init__(self, rules: Table, values: Mapping[str, float], builder: Builder | None = None):
        self.table = rules
        self.values = values
        self.builder = Builder() if builder is None else builder
        self.done: dict[tuple[str, tuple[int, ...], str | float | None], int] = {}

    def run(self, graph: Graph) -> Graph:
        nodes = self.builder.nodes
        new: list[int] = []
        sized: list[int] = []
        for node in graph.nodes:
            if node.op == CONSTANT:
                index = typed = self.builder.constant(float(node.payload))  # type: ignore[arg-type]
            elif node.op == INPUT:
                name = str(node.payload)
                given = self.values.get(name)
                index = typed = (
                    self.builder.constant(given) if given is not None else self.builder.input(name, node.type)
                )
            else:
                source = new if node.op in ELEMENTWISE else sized
                index = self.make(node.op, tuple([source[arg] for arg in node.args]), node.payload)
                typed = index
                if nodes[index].type != node.type:
                    typed = self.plain(node, tuple([sized[arg] for arg in node.args]))
            new.append(index)
            sized.append(typed)
        return self.builder.graph({name: new[index] for name, index in graph.outputs.items()})

    def plain(self, node: Node, args: tuple[int, ...]) -> int:
        return self.builder.apply(OPS[node.op], args, node.payload)  # type: ignore[arg-type]

    def make(self, op: str, args: tuple[int, ...], place: str | float | None = None) -> int:
        """The simplest known value of the operator on these values."""
        key = (op, args, place)
        found = self.done.get(key)
        if found is None:
            found = self.done[key] = self.rewrite(op, args, place)
        return found

    def rewrite(self, op: str, args: tuple[int, ...], place: str | float | None) -> int:
        nodes = self.builder.nodes
        heads = tuple([nodes[arg].op for arg in args])
        if heads.count(CONSTANT) == len(heads):
            folded = _fold(op, tuple([float(nodes[arg].payload) for arg in args]))  # type: ignore[arg-type]
            if folded is not None:
                return self.builder.constant(folded)
        if op in ("number", "where") and (holds := self.decided(args[0])) is not None:
            return self.builder.constant(float(holds)) if op == "number" else args[1 if holds else 2]
        for rule, pattern, replacement in self.table.of(op, heads):
            bound: dict[str, int] = {}
            if self.matches(pattern[1], args, bound):
                try:
                    result = self.build(replacement, bound)
                except MismatchError:
                    continue
                HITS[rule] += 1
                return result
        return self.builder.apply(OPS[op], args, place)  # type: ignore[arg-type]

    def decided(self, mask: int) -> bool | None:
        """What a comparison of literals comes to; None for any other mask."""
        node = self.builder.nodes[mask]
        operands = [self.builder.nodes[arg] for arg in node.args]
        if node.op not in OPS or any(each.op != CONSTANT for each in operands):
            return None
        function = OPS[node.op].ref
        assert function is not None
        return bool(function(*(each.payload for each in operands)))

    def matches(self, patterns: tuple[Pattern, ...], args: tuple[int, ...], bound: dict[str, int]) -> bool:
        """Whether arguments fit patterns; `bound` takes what each name stands for."""
        for (op, inner, payload), arg in zip(patterns, args, strict=True):
            node = self.builder.nodes[arg]
            if op in ("any", "literal"):
                fits = (op == "any" or _is_literal(node)) and bound.setdefault(str(payload), arg) == arg
            elif op == CONSTANT:
                fits = node.op == CONSTANT and node.payload == payload
            else:
                fits = node.op == op and self.matches(inner, node.args, bound)
            if not fits:
                return False
        return True

    def build(self, pattern: Pattern, bound: Mapping[str, int]) -> int:
        op, inner, payload = pattern
        if op in ("any", "literal"):
            return bound[str(payload)]
        if op == CONSTANT:
            return self.builder.constant(payload)  # type: ignore[arg-type]
        return self.make(op, tuple([self.build(each, bound) for each in inner]))


def _is_literal(node: Node) -> bool:
    """Whether `K` and `L` stand for it."""
    return node.op == CONSTANT and 1e-150 < abs(float(node.payload)) < 1e150  # type: ignore[arg-type]


def _fold(op: str, args: tuple[float, ...]) -> float | None:
    """The operator on literals, where that is finite and a value (no mask)."""
    record = OPS[op]
    if record.ref is None or record.number is None or record.law is OPS["lt"].law or not args:
        return None
    with np.errstate(all="ignore"):
        value = float(record.ref(*args))
    return value if math.isfinite(value) else None


# Reading the tables -----------------------------------------------------------------------------------------------


class Table:
    """The rules, found by the operator of a value and those of its arguments."""

    def __init__(self, rules: Sequence[Rule]):
        self.rules: list[tuple[Rule, Pattern, Pattern]] = []
        for rule in rules:
            left, right = (pattern(text) for text in rule)
            self.rules += [(rule, variant, right) for variant in dict.fromkeys(_variants(left))]
        self.found: dict[tuple[str, tuple[str, ...]], list[tuple[Rule, Pattern, Pattern]]] = {}

    def of(self, op: str, args: tuple[str, ...]) -> list[tuple[Rule, Pattern, Pattern]]:
        """The rules that an operator on arguments of these operators may match."""
        key = (op, args)
        if key not in self.found:
            self.found[key] = [each for each in self.rules if each[1][0] == op and _may_match(each[1][1], args)]
        return self.found[key]


def _may_match(patterns: tuple[Pattern, ...], args: tuple[str, ...]) -> bool:
    return all(
        head in ("any", arg) or (head == "literal" and arg == CONSTANT)
        for (head, _, _), arg in zip(patterns, args, strict=True)
    )


@cache
def table(exact: bool) -> Table:
    """The rules that change no bit, or all of them."""
    return Table(EXACT if exact else ALGEBRAIC)


def pattern(text: str) -> Pattern:
    """A rule's text as a pattern."""
    return _pattern(read(text))


def read(text: str) -> Expr:
    """A rule's text as an expression."""
    ast.parse(text, mode="eval")
    return definition(text)({})


def _pattern(expr: Expr) -> Pattern:
    match expr:
        case Call("neg", (Number(value),)):
            return (CONSTANT, (), -value)
        case Number(value):
            return (CONSTANT, (), float(value))
        case Name(id):
            return ("literal" if id.isupper() else "any", (), id)
        case Call(op, args):
            return (op, tuple(_pattern(arg) for arg in args), None)


def _variants(pattern: Pattern) -> Iterator[Pattern]:
    """The pattern with the arguments of its commutative operators in every order."""
    op, inner, payload = pattern
    for args in product(*(list(_variants(each)) for each in inner)):
        yield (op, args, payload)
        if op in OPS and OPS[op].commutative:
            yield (op, args[::-1], payload)
