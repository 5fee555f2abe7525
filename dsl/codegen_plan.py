"""From a graph to ordered statements: what is computed where, in which order, and what is written in place.

A value that is used once is part of the statement that uses it; others get a local name, or live in the storage of a
slot or of p: the last reader of a slot's old value overwrites it. A number condition becomes a Python `if`, and a value
that only one branch needs is computed in that branch. Sums and products are gathered with their number coefficients,
so that `p - lr * (m / c) / d` is one pass: `p.addcdiv_(m, d, value=-lr / c)`.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from dsl.codegen_numbers import Numbers
from dsl.graph import CONSTANT, INPUT, Graph
from dsl.ops import OPS
from dsl.types import EXTENTS, Extent

Guard = tuple[tuple[int, bool], ...]
"""Conditions (number expressions) under which something is needed, outermost first."""

_FULL, _SCALAR = EXTENTS["full"], EXTENTS["scalar"]
_UNARY = {
    name: match[1]
    for name, op in OPS.items()
    if op.group in ("elementwise", "arithmetic")
    and isinstance(op.torch, str)
    and (match := re.fullmatch(r"\{0\}\.(\w+)\(\)", op.torch))
} | {"neg": "neg"}
_EXACT_POWERS = (0.5, 2.0, 3.0, -0.5, -1.0, -2.0)
"""Exponents whose power torch computes alike in vector registers and in the rest of a row."""


# Expressions of tensors -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Atom:
    """A value that has a name."""

    value: int
    extent: Extent


@dataclass(slots=True)
class Num:
    """A number, plain or per lane."""

    number: int


@dataclass(slots=True)
class Fill:
    """A number as a tensor of its own."""

    number: int
    extent: Extent


@dataclass(slots=True)
class Call:
    """A torch method that has an in-place form."""

    method: str
    receiver: Expr
    args: list[Expr]
    keywords: dict[str, int]
    extent: Extent
    value: int | None = None
    """The graph's node that it computes, for a name, where there is one."""


@dataclass(slots=True)
class Fn:
    """Another operator, by its template."""

    op: str
    args: list[Expr]
    extent: Extent
    value: int | None = None


Expr = Atom | Num | Fill | Call | Fn


def parts(expr: Expr) -> Iterator[Expr]:
    """The expression and everything inside it."""
    yield expr
    if isinstance(expr, Call):
        yield from parts(expr.receiver)
    if isinstance(expr, Call | Fn):
        for arg in expr.args:
            yield from parts(arg)


def size(expr: Expr) -> int:
    return sum(isinstance(each, Call | Fn | Fill) for each in parts(expr))


@dataclass(slots=True)
class Statement:
    """One value computed, or one storage written.

    Attributes:
        value: what it defines, if anything.
        store: the storage (p or a slot) that it writes, if any.
        expr: what is computed; None where another value is already in place.
        copy: whether the storage is overwritten from outside rather than in place.
        overwrites: the values that were in the storage before.
        guard: when it runs.
    """

    value: int | None
    store: str | None
    expr: Expr
    guard: Guard
    order: float
    copy: bool = False
    overwrites: frozenset[int] = frozenset()
    reads: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Term:
    """coefficient * x, coefficient * x * y, coefficient * x / y, or the coefficient alone."""

    coefficient: int
    kind: str = ""
    x: int | None = None
    y: int | None = None


class Plan:
    """Statements for some outputs of a graph, in order.

    Args:
        graph: what to compute.
        outputs: storage -> value to leave there.
        external: values that are given under a name (global values combined before).
        lanes: whether values have a leading axis of lanes.
        per_lane: hyperparameters that are tensors of one value a lane.
        results: values to return; a plan with results writes nothing in place.
    """

    def __init__(
        self,
        graph: Graph,
        outputs: Mapping[str, int],
        *,
        external: Mapping[int, str] | None = None,
        lanes: bool = False,
        per_lane: frozenset[str] = frozenset(),
        results: Sequence[int] = (),
    ) -> None:
        self.nodes = graph.nodes
        self.outputs = dict(outputs)
        self.external = dict(external or {})
        self.lanes, self.per_lane = lanes, per_lane
        self.results = list(results)
        self.numbers = Numbers()
        self.hints: dict[int, str] = dict(graph.hints)
        self.default_names: dict[int, str] = {}
        self._number: dict[int, int] = {}
        self._find_numbers()
        self._count_uses()
        self._find_guards()
        self.fixed: set[str] = set()
        self.buffered: set[str] = set()
        while True:
            self._find_homes()
            self.statements: list[Statement] = []
            self.synthetic = len(self.nodes)
            self.aliases: dict[int, list[int]] = {}
            self._build()
            if self._order():
                break

    # What is a number ---------------------------------------------------------------------------------------------

    def _find_numbers(self) -> None:
        self.is_number: list[bool] = []
        for index, node in enumerate(self.nodes):
            number = node.type.is_number or node.op == "size"
            if not number and node.args and index not in self.external:
                op = OPS[node.op]
                number = (
                    bool(op.number or op.name in ("lerp",))
                    and "tensor" not in op.kinds.values()
                    and all(self.is_number[arg] for arg in node.args)
                )
            self.is_number.append(number or self.is_global_size(index))

    def is_global_size(self, index: int) -> bool:
        """Whether it counts the elements of all parameters: a plain number, joined as other totals are."""
        node = self.nodes[index]
        return node.op == "global_sum" and self.nodes[node.args[0]].op == "size"

    def number(self, index: int) -> int:
        """The number expression of a value that is known before a tensor is touched."""
        if index not in self._number:
            self._number[index] = self._make_number(index)
        return self._number[index]

    def _make_number(self, index: int) -> int:
        node, numbers = self.nodes[index], self.numbers
        if index in self.external:
            return numbers.name(self.external[index])
        if node.op == CONSTANT:
            assert isinstance(node.payload, float)
            return numbers.constant(node.payload)
        if node.op == INPUT:
            return numbers.name(str(node.payload), str(node.payload) in self.per_lane)
        if node.op in ("rows", "cols"):
            symbol = self.nodes[node.args[0]].type.extent[0 if node.op == "rows" else 1]
            return self._length(symbol)
        if node.op == "size":
            rows, cols = (self._length(symbol) for symbol in self.nodes[node.args[0]].type.extent)
            if self.nodes[node.args[0]].type.extent == _FULL:
                return numbers.name("p[0].numel()" if self.lanes else "p.numel()")
            return numbers.mul(rows, cols)
        if self.is_global_size(index):
            return self.number(node.args[0])
        return numbers.apply(node.op, *(self.number(arg) for arg in node.args))

    def _length(self, symbol: str) -> int:
        if symbol == "1":
            return self.numbers.one
        return self.numbers.name("p.shape[-2]" if symbol == "r" else "p.shape[-1]")

    # Uses, guards, homes ------------------------------------------------------------------------------------------

    def _leaf(self, index: int) -> bool:
        return self.nodes[index].op == INPUT or index in self.external

    def lazy(self, index: int) -> bool:
        """Whether it is a choice by a plain number: a Python `if`."""
        node = self.nodes[index]
        return (
            node.op == "where"
            and not self.is_number[index]
            and self.is_number[node.args[0]]
            and not self.numbers.is_lane(self.number(node.args[0]))
        )

    def branches(self, index: int) -> list[tuple[int, bool]]:
        """The two values of a lazy choice, choices by the same condition inside them already made."""
        mask, *values = self.nodes[index].args
        result = []
        for value, holds in zip(values, (True, False), strict=True):
            while (
                not self.is_number[value]
                and self.lazy(value)
                and self.number(self.nodes[value].args[0]) == self.number(mask)
            ):
                value = self.nodes[value].args[1 if holds else 2]
            result.append((value, holds))
        return result

    def _users(self, index: int) -> list[tuple[int, Guard]]:
        """The tensors that a value is computed from, with the condition under which each is needed."""
        node = self.nodes[index]
        if self._leaf(index) or self.is_number[index]:
            return []
        if self.lazy(index):
            condition = self.number(node.args[0])
            return [(value, ((condition, holds),)) for value, holds in self.branches(index)]
        return [(arg, ()) for arg in node.args]

    def _count_uses(self) -> None:
        self.uses: Counter[int] = Counter([*self.outputs.values(), *self.results])
        self.live: set[int] = set()
        stack = [*self.outputs.values(), *self.results]
        while stack:
            index = stack.pop()
            if index in self.live:
                continue
            self.live.add(index)
            for arg, _ in self._users(index):
                if not self.is_number[arg]:
                    self.uses[arg] += 1
                    stack.append(arg)

    def _find_guards(self) -> None:
        self.guards: dict[int, Guard] = dict.fromkeys([*self.outputs.values(), *self.results], ())
        for index in sorted(self.live, reverse=True):
            mine = self.guards[index]
            for arg, condition in self._users(index):
                if self.is_number[arg]:
                    continue
                guard = mine + tuple(each for each in condition if each not in mine)
                if arg in self.guards:
                    pairs = zip(self.guards[arg], guard, strict=False)
                    guard = tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                self.guards[arg] = guard

    def inline(self, index: int) -> bool:
        """Whether it is part of the one statement that uses it."""
        if self.nodes[index].op == "transpose":
            return True
        return self.uses[index] == 1 and not self._leaf(index) and not self.lazy(index) and not self.is_number[index]

    def _receivers(self, index: int) -> list[int]:
        """Values over which it could be computed in place."""
        node = self.nodes[index]
        if self._leaf(index) or self.is_number[index]:
            return []
        if self.lazy(index):
            found = [value for value, _ in self.branches(index)]
            return sorted(found, key=lambda value: not self._leaf(value))
        if node.op in ("add", "sub", "neg"):
            found = [term.x for term in self._terms(index) if term.kind == "" and term.x is not None]
        elif node.op in ("mul", "div"):
            found = [self._strip(index)[1]]
            if found == [index]:
                found = [self._strip(arg)[1] for arg in node.args[: 2 if node.op == "mul" else 1]]
        elif node.op in ("min", "max"):
            found = list(node.args)
        elif node.op in _UNARY or node.op in ("lerp", "clip", "pow", "mod"):
            found = [node.args[0]]
        else:
            return []
        return [each for each in found if not self.is_number[each] and self.nodes[each].type == node.type]

    def _find_homes(self) -> None:
        """Decides which values live in the storage of p or of a slot, and over which value each is computed there."""
        self.home: dict[int, str] = {}
        self.base: dict[int, int] = {}
        for store, index in self.outputs.items():
            if store in self.fixed or self.results:
                continue
            found: dict[int, int] = {}
            if self._path(index, store, found, set()):
                for value, under in found.items():
                    self.base[value] = under
                    self.home[value] = store
        for index, node in enumerate(self.nodes):
            if node.op == INPUT and str(node.payload) in self.outputs:
                self.home[index] = str(node.payload)

    def _path(self, index: int, store: str, found: dict[int, int], seen: set[int]) -> bool:
        node = self.nodes[index]
        if node.op == INPUT:
            return node.payload == store
        if index in seen or index in self.home:
            return index in found
        seen.add(index)
        for under in self._receivers(index):
            if not self._path(under, store, found, seen):
                continue
            found[index] = under
            if not self.lazy(index):
                return True
            condition = self.number(node.args[0])
            for other, holds in self.branches(index):  # the other branch may be computed there too, if only it needs it
                if other != under and (condition, holds) in self.guards.get(other, ()):
                    self._path(other, store, found, seen)
            return True
        return False

    # Terms and factors --------------------------------------------------------------------------------------------

    def _strip(self, index: int, top: bool = True) -> tuple[int, int]:
        """A value as (number coefficient, rest)."""
        coefficient = self.numbers.one
        while top or self.inline(index):
            node = self.nodes[index]
            if self._leaf(index) or self.is_number[index]:
                break
            if node.op == "neg":
                coefficient, index = self.numbers.neg(coefficient), node.args[0]
            elif node.op == "mul" and self.is_number[node.args[0]]:
                coefficient, index = self.numbers.mul(coefficient, self.number(node.args[0])), node.args[1]
            elif node.op == "mul" and self.is_number[node.args[1]]:
                coefficient, index = self.numbers.mul(coefficient, self.number(node.args[1])), node.args[0]
            elif node.op == "div" and self.is_number[node.args[1]]:
                coefficient, index = self.numbers.div(coefficient, self.number(node.args[1])), node.args[0]
            else:
                break
            top = False
        return coefficient, index

    def _terms(self, index: int) -> list[_Term]:
        """A sum, flattened, like terms collected."""
        terms: dict[tuple[str, int | None, int | None], int] = {}
        for term in self._gather(index, self.numbers.one, True):
            key = (term.kind, term.x, term.y)
            terms[key] = self.numbers.add(terms[key], term.coefficient) if key in terms else term.coefficient
        return [_Term(coefficient, *key) for key, coefficient in terms.items()]

    def _gather(self, index: int, coefficient: int, top: bool = False) -> Iterator[_Term]:
        numbers, node = self.numbers, self.nodes[index]
        if self.is_number[index]:
            yield _Term(numbers.mul(coefficient, self.number(index)))
            return
        if not (top or self.inline(index)) or self._leaf(index):
            yield _Term(coefficient, "", index)
            return
        if node.op in ("add", "sub"):
            yield from self._gather(node.args[0], coefficient)
            yield from self._gather(node.args[1], coefficient if node.op == "add" else numbers.neg(coefficient))
            return
        factor, rest = self._strip(index)
        if rest != index:
            yield from self._gather(rest, numbers.mul(coefficient, factor))
            return
        product = self._product(index)
        yield _Term(numbers.mul(coefficient, product[0]), *product[1:]) if product else _Term(coefficient, "", index)

    def _product(self, index: int) -> tuple[int, str, int, int] | None:
        """A product or quotient of two tensors as (coefficient, "*" or "/", x, y); None if it is none."""
        node, numbers = self.nodes[index], self.numbers
        if node.op == "square":
            coefficient, x = self._strip(node.args[0], top=False)
            if self.inline(x):  # computed here, once: squared in place
                return None
            return numbers.mul(coefficient, coefficient), "*", x, x
        if node.op not in ("mul", "div") or any(self.is_number[arg] or self._is_mask(arg) for arg in node.args):
            return None
        (first, x), (second, y) = (self._strip(arg, top=False) for arg in node.args)
        if node.op == "mul":
            return numbers.mul(first, second), "*", x, y
        return numbers.div(first, second), "/", x, y

    def _is_mask(self, index: int) -> bool:
        """Whether it is a mask brought to numbers for this use alone; a product takes the mask itself."""
        return self.nodes[index].op == "number" and self.inline(index)

    # Expressions --------------------------------------------------------------------------------------------------

    def expr(self, index: int, top: bool = False) -> Expr:
        """The expression of a value: its name, or, where it is inline (or `top`), how it is computed."""
        node = self.nodes[index]
        extent = node.type.extent
        if self.is_number[index]:
            return Num(self.number(index))
        if self._leaf(index) or not (top or self.inline(index)):
            return Atom(index, extent)
        made = self._expr(index)
        if isinstance(made, Call | Fn) and made.value is None:
            made.value = index
        return made

    def _expr(self, index: int) -> Expr:
        node, op, extent = self.nodes[index], OPS[self.nodes[index].op], self.nodes[index].type.extent
        if node.op in ("add", "sub", "neg"):
            return self._sum(index)
        if node.op in ("mul", "div", "square"):
            return self._factors(index)
        if node.op == "lerp":
            return self._lerp(index)
        kinds = "".join("n" if self._plain(arg) else "t" for arg in node.args)
        for param, kind in zip(op.params, kinds, strict=True):
            if op.kinds.get(param) == "number" and kind == "t":
                raise ValueError(f"{op.name}: {param} must be one number, the same for all lanes")
        args = [self.expr(arg) for arg in node.args]
        if node.op == "sigmoid" and self.lanes:  # torch's own differs between vector registers and the rest of a row
            half = self.numbers.constant(0.5)
            inner = Call("tanh", Call("mul", args[0], [Num(half)], {}, extent), [], {}, extent)
            return Call("mul", Call("add", inner, [Num(self.numbers.one)], {}, extent), [Num(half)], {}, extent)
        if node.op in _UNARY:
            return Call(_UNARY[node.op], args[0], [], {}, extent)
        if node.op in ("min", "max") and "n" in kinds:
            tensor, number = (args[0], node.args[1]) if kinds == "tn" else (args[1], node.args[0])
            return Call("clamp", tensor, [], {"max" if node.op == "min" else "min": self.number(number)}, extent)
        if node.op == "clip" and kinds == "tnn":
            return Call("clamp", args[0], args[1:], {}, extent)
        if node.op == "pow":
            power = self.numbers.value(self.number(node.args[1])) if kinds == "tn" else None
            if self.lanes and power not in _EXACT_POWERS:
                return Fn("power", args, extent)
            return Call("pow", args[0], args[1:], {}, extent) if kinds == "tn" else Fn("pow", args, extent)
        if node.op == "mod" and kinds == "tn":
            return Call("remainder", args[0], args[1:], {}, extent)
        forms = op.torch if not isinstance(op.torch, str) else None
        for position, kind in enumerate(kinds):
            tensor = op.kinds.get(op.params[position]) == "tensor"
            free = (
                (op.infix and not tensor) or op.kinds.get(op.params[position]) == "number" or (forms and kinds in forms)
            )
            if kind == "n" and not free:
                reduced = "tensor" in op.kinds.values()
                args[position] = Fill(self.number(node.args[position]), _SCALAR if reduced else extent)
        return Fn(node.op, args, extent)

    def _plain(self, index: int) -> bool:
        return self.is_number[index] and not self.numbers.is_lane(self.number(index))

    def _scaled(self, expr: Expr, coefficient: int) -> Expr:
        numbers = self.numbers
        if coefficient == numbers.one:
            return expr
        extent = expr.extent if not isinstance(expr, Num) else _FULL
        if coefficient == numbers.minus_one:
            return Call("neg", expr, [], {}, extent)
        node = numbers.table[coefficient]
        if node.op == "div" and node.args[0] == numbers.one:
            return Call("div", expr, [Num(node.args[1])], {}, extent)
        return Call("mul", expr, [Num(coefficient)], {}, extent)

    def _factors(self, index: int) -> Expr:
        coefficient, rest = self._strip(index)
        node = self.nodes[index]
        if rest != index:
            inner = self.expr(rest)
            if isinstance(inner, Num):
                return Num(self.numbers.mul(coefficient, inner.number))
            return self._scaled(inner, coefficient)
        if node.op == "div" and self.is_number[node.args[0]]:
            return Fn("div", [self.expr(arg) for arg in node.args], node.type.extent)
        product = self._product(index)
        if product:
            coefficient, kind, x, y = product
            return self._scaled(self._times(kind, x, y, node.type.extent, self.base.get(index)), coefficient)
        args = [self.expr(self.nodes[arg].args[0]) if self._is_mask(arg) else self.expr(arg) for arg in node.args]
        if node.op == "mul" and self._is_mask(node.args[0]) and not self._is_mask(node.args[1]):
            args.reverse()
        elif self._is_mask(node.args[0]):
            args[0] = self.expr(node.args[0])
        if args[0].extent == node.type.extent:  # type: ignore[union-attr]
            return Call(node.op, args[0], args[1:], {}, node.type.extent)
        return Fn(node.op, args, node.type.extent)

    def _times(self, kind: str, x: int, y: int, extent: Extent, base: int | None = None) -> Expr:
        if x == y and kind == "*":
            return Call("square", self.expr(x), [], {}, extent)
        wide = self.nodes[y].type.extent == extent
        fresh = self.inline(y) and not self.inline(x) and x != base
        if kind == "*" and wide and (y == base or self.nodes[x].type.extent != extent or fresh):
            x, y = y, x
        first, second = self.expr(x), self.expr(y)
        if self.nodes[x].type.extent != extent:
            return Fn("mul" if kind == "*" else "div", [first, second], extent)
        return Call("mul" if kind == "*" else "div", first, [second], {}, extent)

    def _sum(self, index: int) -> Expr:
        extent = self.nodes[index].type.extent
        terms = self._terms(index)
        chosen = self._first(index, terms)
        if chosen is not None and len(terms) == 2 and index not in self.base:
            other = terms[1] if terms[0] is chosen else terms[0]
            if other.x is None and self.numbers.negated(chosen.coefficient) and chosen.kind == "":
                assert chosen.x is not None
                taken = self._scaled(self.expr(chosen.x), self.numbers.neg(chosen.coefficient))
                return Fn("sub", [Num(other.coefficient), taken], extent)
        if chosen is None:  # no term has all of the sum's extent: two of them broadcast
            return Fn(self.nodes[index].op, [self.expr(arg) for arg in self.nodes[index].args], extent)
        if chosen.kind == "":
            assert chosen.x is not None
            start = self.expr(chosen.x)
        else:
            assert chosen.x is not None
            assert chosen.y is not None
            start = self._times(chosen.kind, chosen.x, chosen.y, extent)
        result = self._scaled(start, chosen.coefficient)
        others = [term for term in terms if term is not chosen]
        others.sort(key=lambda term: chosen.x not in (term.x, term.y))  # what reads the first before it is changed
        for term in others:
            result = self._plus(result, term, extent)
        return result

    def _first(self, index: int, terms: list[_Term]) -> _Term | None:
        """The term that the others are added to: in place if it can be, then what is computed here, then any."""

        def rank(term: _Term) -> tuple[bool, ...]:
            plain = term.kind == ""
            return (
                not (plain and term.x == self.base.get(index)),
                not (plain and term.x is not None and self.inline(term.x)),
                term.coefficient != self.numbers.one,
                not plain,
                self.numbers.negated(term.coefficient),
            )

        extent = self.nodes[index].type.extent
        wide = [term for term in terms if term.x is not None and self._extent(term) == extent]
        return min(wide, key=rank, default=None)

    def _extent(self, term: _Term) -> Extent:
        assert term.x is not None
        a = self.nodes[term.x].type.extent
        b = self.nodes[term.y].type.extent if term.y is not None else a
        return (a[0] if a[0] != "1" else b[0], a[1] if a[1] != "1" else b[1])

    def _plus(self, expr: Expr, term: _Term, extent: Extent) -> Expr:
        numbers, coefficient = self.numbers, term.coefficient
        if term.x is None:
            if numbers.negated(coefficient):
                return Call("sub", expr, [Num(numbers.neg(coefficient))], {}, extent)
            return Call("add", expr, [Num(coefficient)], {}, extent)
        plain, lane = numbers.split(coefficient)
        if lane is not None:
            added = self.expr(term.x)
            if term.kind:
                assert term.y is not None
                added = self._times(term.kind, term.x, term.y, self._extent(term))
            return Call("addcmul", expr, [added, Num(lane)], self._value("value", plain), extent)
        if term.kind:
            assert term.y is not None
            x, y = self.expr(term.x), self.expr(term.y)
            method = "addcmul" if term.kind == "*" else "addcdiv"
            return Call(method, expr, [x, y], self._value("value", coefficient), extent)
        if coefficient == numbers.minus_one:
            return Call("sub", expr, [self.expr(term.x)], {}, extent)
        return Call("add", expr, [self.expr(term.x)], self._value("alpha", coefficient), extent)

    def _value(self, keyword: str, number: int) -> dict[str, int]:
        return {} if number == self.numbers.one else {keyword: number}

    def _lerp(self, index: int) -> Expr:
        node, numbers = self.nodes[index], self.numbers
        extent = node.type.extent
        a, b, w = node.args
        if self.is_number[w]:
            weight = self.number(w)
            rest = numbers.add(numbers.one, numbers.neg(weight))
            terms = list(self._gather(b, weight))
            single = len(terms) == 1 and (terms[0].kind or terms[0].x is None or terms[0].coefficient != weight)
            if not self.is_number[a] and single and self.nodes[a].type.extent == extent:
                return self._plus(self._scaled(self.expr(a), rest), terms[0], extent)
            if self.is_number[a] and not self.is_number[b]:
                start = self._scaled(self.expr(b), weight)
                return self._plus(start, _Term(numbers.mul(rest, self.number(a))), extent)
        args = [self.expr(arg) for arg in node.args]
        for position in (0, 1):
            if isinstance(each := args[position], Num):
                args[position] = Fill(each.number, extent)
        return Call("lerp", args[0], args[1:], {}, extent)

    # Statements ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for index in sorted(self.live):
            if self._leaf(index) or self.is_number[index] or self.inline(index):
                continue
            if self.lazy(index):
                self._choose(index)
            else:
                self._define(index, self.expr(index, top=True), self.home.get(index), self.guards[index], index)
        for store, index in self.outputs.items():
            node = self.nodes[index]
            if node.op == INPUT and node.payload == store:
                continue
            if self.home.get(index) == store and self.inline(index):
                self._define(index, self.expr(index, top=True), store, (), index)
            if self.home.get(index) != store:
                self._copy(store, self.expr(index), (), len(self.nodes) + index)

    def _define(self, value: int, expr: Expr, store: str | None, guard: Guard, order: float) -> None:
        start = self._start(expr)
        inside = isinstance(start, Atom) and store is not None and self.home.get(start.value) == store
        if store is not None and not inside:  # it turned out not to start from what is in the storage
            store = None
            self.home.pop(value, None)
            if self.inline(value):
                return
        overwritten = start.value if inside and isinstance(start, Atom) else None
        self._settle(expr, guard, order, overwritten, store)
        over = frozenset(() if overwritten is None else (overwritten,))
        self._add(Statement(value, store, expr, guard, order, overwrites=over))

    def _copy(self, store: str, expr: Expr, guard: Guard, order: float) -> None:
        if store in self.buffered and not isinstance(expr, Num):
            expr = self._named(expr, guard, order, -1, force=True)
        self._settle(expr, guard, order, None)
        old = {index for index, home in self.home.items() if home == store} | self._old(store)
        self._add(Statement(None, store, expr, guard, order, copy=True, overwrites=frozenset(old)))

    def _old(self, store: str) -> set[int]:
        return {i for i, node in enumerate(self.nodes) if node.op == INPUT and node.payload == store}

    def _below(self, index: int, store: str) -> frozenset[int]:
        """The values that lie in a storage before this one does."""
        below: set[int] = set()
        stack = [index]
        while stack:
            value = stack.pop()
            under = [self.base[value]] if value in self.base else []
            if self.nodes[value].op == "where" and self.lazy(value):
                under += [each for each, _ in self.branches(value) if self.home.get(each) == store]
            stack += [each for each in under if each not in below]
            below.update(under)
        return frozenset(below - {index})

    def _choose(self, index: int) -> None:
        """A choice by a number: at most one statement for each branch."""
        condition = self.number(self.nodes[index].args[0])
        extent = self.nodes[index].type.extent
        store = self.home.get(index)
        under = self.base.get(index)
        resident = under
        while resident is not None and self.inline(resident):
            resident = self.base.get(resident)
        if store is None:
            self.aliases[index] = []
        for value, holds in self.branches(index):
            guard = (*self.guards[index], (condition, holds))
            expr = self.expr(value)
            if store is None:
                if isinstance(expr, Num):
                    expr = Fill(expr.number, extent)
                elif expr.extent != extent:
                    expr = Fn("expand", [expr], extent)
                self._settle(expr, guard, index, None)
                self.aliases[index] += [each.value for each in parts(expr) if isinstance(each, Atom)]
                self._add(Statement(index, None, expr, guard, index))
            elif isinstance(expr, Atom) and self.home.get(value) == store and (value in self.base or value == resident):
                self._add(Statement(index, store, expr, guard, index))
            else:
                start = self._start(expr)
                if isinstance(start, Atom) and self.home.get(start.value) == store and not isinstance(expr, Atom):
                    self._settle(expr, guard, index, start.value)
                    self._add(Statement(index, store, expr, guard, index, overwrites=frozenset({start.value})))
                else:
                    self._settle(expr, guard, index, None)
                    self._add(
                        Statement(index, store, expr, guard, index, copy=True, overwrites=self._below(index, store))
                    )

    def _start(self, expr: Expr) -> Expr:
        while isinstance(expr, Call) and self._receiver_fits(expr):
            expr = expr.receiver
        return expr

    def _receiver_fits(self, call: Call) -> bool:
        return isinstance(call.receiver, Fill | Num) or call.receiver.extent == call.extent

    def _settle(
        self, expr: Expr, guard: Guard, order: float, overwritten: int | None, store: str | None = None
    ) -> None:
        """Gives a name to arguments that are too long to stand inside, or that must be read before the first write."""
        if isinstance(expr, Fn):
            for position, arg in enumerate(expr.args):
                divisor = expr.op == "div" and position == 1
                expr.args[position] = self._named(arg, guard, order, 2, "denom" if divisor else "")
        while isinstance(expr, Call):
            first = isinstance(expr.receiver, Atom)
            for position, arg in enumerate(expr.args):
                divisor = expr.method == "addcdiv" and position == 1
                reads = any(isinstance(each, Atom) and each.value == overwritten for each in parts(arg))
                limit = 0 if divisor or (reads and not first) else 1
                name = "denom" if divisor or expr.method == "div" else "u" if store == "p" else ""
                expr.args[position] = self._named(arg, guard, order, limit, name, reads and not first)
            expr = expr.receiver
            if isinstance(expr, Fn):
                self._settle(expr, guard, order, overwritten, store)

    def _named(self, expr: Expr, guard: Guard, order: float, limit: int, name: str = "", force: bool = False) -> Expr:
        if isinstance(expr, Num) or (isinstance(expr, Atom) and not force):
            return expr
        if isinstance(expr, Atom):
            expr = Call("clone", expr, [], {}, expr.extent)
        if size(expr) <= limit and not force and not self._hinted(expr):
            self._settle(expr, guard, order, None)
            return expr
        value = expr.value if isinstance(expr, Call | Fn) and expr.value is not None else None
        if value is None or any(statement.value == value for statement in self.statements):
            value, self.synthetic = self.synthetic, self.synthetic + 1
        if name:
            self.default_names.setdefault(value, name)
        extent = expr.extent if not isinstance(expr, Num) else _FULL
        self.home.pop(value, None)
        self._define(value, expr, None, guard, order - 0.5)
        return Atom(value, extent)

    def _hinted(self, expr: Expr) -> bool:
        """Whether the program itself gives it a name."""
        return isinstance(expr, Call | Fn) and expr.value in self.hints and size(expr) > 1

    def _add(self, statement: Statement) -> None:
        reads = Counter(each.value for each in parts(statement.expr) if isinstance(each, Atom))
        statement.reads = reads
        self.statements.append(statement)

    # Order --------------------------------------------------------------------------------------------------------

    def _order(self) -> bool:
        """Sorts so that values come before their readers, and readers before what overwrites them.

        Returns False, one more storage then being written by a copy at the end, where the two contradict.
        """
        statements = self.statements
        defines: dict[int, list[int]] = {}
        readers: dict[int, list[int]] = {}
        for position, statement in enumerate(statements):
            if statement.value is not None:
                defines.setdefault(statement.value, []).append(position)
            for value in self._reached(statement):
                readers.setdefault(value, []).append(position)
        before: list[set[int]] = [set() for _ in statements]
        for position, statement in enumerate(statements):
            for value in self._reached(statement):
                before[position].update(defines.get(value, []))
            for value in statement.overwrites:
                before[position].update(readers.get(value, []))
                before[position].update(defines.get(value, []))
            before[position].discard(position)
            if statement.overwrites and statement.value is not None:
                before[position] -= set(defines[statement.value])
        after: list[list[int]] = [[] for _ in statements]
        missing = [len(each) for each in before]
        for position, earlier in enumerate(before):
            for each in earlier:
                after[each].append(position)
        ready = [(statements[i].order, i) for i, count in enumerate(missing) if not count]
        heapq.heapify(ready)
        ordered: list[int] = []
        while ready:
            guard = statements[ordered[-1]].guard if ordered else ()
            same = [each for each in ready if guard and statements[each[1]].guard == guard]
            chosen = min(same) if same else ready[0]
            ready.remove(chosen)
            heapq.heapify(ready)
            ordered.append(chosen[1])
            for each in after[chosen[1]]:
                missing[each] -= 1
                if not missing[each]:
                    heapq.heappush(ready, (statements[each].order, each))
        if len(ordered) == len(statements):
            self.statements = [statements[i] for i in ordered]
            return True
        stuck = set(range(len(statements))) - set(ordered)
        stores = [s.store for i, s in enumerate(statements) if i in stuck and s.store]
        for given_up in (self.fixed, self.buffered):
            if left := [store for store in stores if store not in given_up]:
                given_up.add(left[-1])
                return False
        raise AssertionError("statements that wait for each other without writing anything")

    def _reached(self, statement: Statement) -> set[int]:
        """The values it reads, those included that a name it reads may stand for."""
        reached: set[int] = set()
        stack = list(statement.reads)
        while stack:
            value = stack.pop()
            if value not in reached:
                reached.add(value)
                stack.extend(self.aliases.get(value, ()))
        return reached
