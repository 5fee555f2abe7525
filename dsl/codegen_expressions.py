"""A graph's values as PyTorch expressions: what is one call, what has an in-place form, what starts from what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dsl.codegen_values import Term, Values
from dsl.ops import OPS
from dsl.types import EXTENTS, Extent

_FULL, _SCALAR = EXTENTS["full"], EXTENTS["scalar"]
UNARY = {
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


class Expressions(Values):
    """How each value of a graph is computed; arguments as for `Values`."""

    def expr(self, index: int, top: bool = False) -> Expr:
        """The expression of a value: its name, or, where it is inline (or `top`), how it is computed."""
        node = self.nodes[index]
        extent = node.type.extent
        if self.is_number[index]:
            return Num(self.number(index))
        if self.leaf(index) or not (top or self.inline(index)):
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
        if node.op in UNARY:
            return Call(UNARY[node.op], args[0], [], {}, extent)
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
            wanted = op.kinds.get(op.params[position]) == "tensor"
            free = (
                (op.infix and not wanted)
                or op.kinds.get(op.params[position]) in ("number", "key")
                or (forms and kinds in forms)
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
        coefficient, rest = self.strip(index)
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
        if not isinstance(args[0], Num) and args[0].extent == node.type.extent:
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
        terms = self.terms(index)
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

    def _first(self, index: int, terms: list[Term]) -> Term | None:
        """The term that the others are added to: in place if it can be, then what is computed here, then any."""

        def rank(term: Term) -> tuple[bool, ...]:
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

    def _extent(self, term: Term) -> Extent:
        assert term.x is not None
        a = self.nodes[term.x].type.extent
        b = self.nodes[term.y].type.extent if term.y is not None else a
        return (a[0] if a[0] != "1" else b[0], a[1] if a[1] != "1" else b[1])

    def _plus(self, expr: Expr, term: Term, extent: Extent) -> Expr:
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
                return self._plus(start, Term(numbers.mul(rest, self.number(a))), extent)
        args = [self.expr(arg) for arg in node.args]
        for position in (0, 1):
            if isinstance(each := args[position], Num):
                args[position] = Fill(each.number, extent)
        return Call("lerp", args[0], args[1:], {}, extent)
