"""What a graph's values are to the code: numbers or tensors, part of one statement or of several, sums and products.

Sums and products are gathered with their number coefficients, so that `p - lr * (m / c) / d` can be said in one pass
over p: `p.addcdiv_(m, d, value=-lr / c)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsl.codegen_numbers import Numbers
from dsl.graph import CONSTANT, INPUT, Graph
from dsl.ops import OPS
from dsl.types import EXTENTS, SIZED_BY

Guard = tuple[tuple[int, bool], ...]
"""Conditions (number expressions) under which something is needed, outermost first."""

_FULL = EXTENTS["full"]


@dataclass(frozen=True, slots=True)
class Term:
    """coefficient * x, coefficient * x * y, coefficient * x / y, or the coefficient alone."""

    coefficient: int
    kind: str = ""
    x: int | None = None
    y: int | None = None


class Values:
    """The values of a graph.

    Args:
        graph: what to compute.
        outputs: storage -> value to leave there.
        external: values that are given under a name (global values combined before).
        lanes: whether values have a leading axis of lanes.
        per_lane: hyperparameters that are tensors of one value a lane.
        results: values to return.
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
        self.base: dict[int, int] = {}
        """Value -> the value over which it is computed in place; a sum then starts from that one."""
        self._number: dict[int, int] = {}
        self._find_numbers()
        self._count_uses()

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
            return self.length(symbol)
        if node.op == "size":
            rows, cols = (self.length(symbol) for symbol in self.nodes[node.args[0]].type.extent)
            if self.nodes[node.args[0]].type.extent == _FULL:
                return numbers.name("p[0].numel()" if self.lanes else "p.numel()")
            return numbers.mul(rows, cols)
        if self.is_global_size(index):
            return self.number(node.args[0])
        return numbers.apply(node.op, *(self.number(arg) for arg in node.args))

    def length(self, symbol: str) -> int:
        numbers = self.numbers
        if symbol == "1":
            return numbers.one
        if symbol in "rc":
            return numbers.name("p.shape[-2]" if symbol == "r" else "p.shape[-1]")
        elements = numbers.mul(self.length("r"), self.length("c"))
        if symbol == "n":
            return elements
        given = numbers.name(SIZED_BY[symbol], SIZED_BY[symbol] in self.per_lane)
        if symbol == "k":
            return numbers.apply("min", numbers.apply("min", given, self.length("r")), self.length("c"))
        blocks = numbers.neg(numbers.apply("floor", numbers.neg(numbers.div(elements, given))))
        return given if symbol == "h" else blocks

    # What is part of what -----------------------------------------------------------------------------------------

    def leaf(self, index: int) -> bool:
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

    def users(self, index: int) -> list[tuple[int, Guard]]:
        """The tensors that a value is computed from, with the condition under which each is needed."""
        node = self.nodes[index]
        if self.leaf(index) or self.is_number[index]:
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
            for arg, _ in self.users(index):
                if not self.is_number[arg]:
                    self.uses[arg] += 1
                    stack.append(arg)

    def inline(self, index: int) -> bool:
        """Whether it is part of the one statement that uses it."""
        op = self.nodes[index].op
        if op in OPS and OPS[op].view:
            return not self.is_number[index] and not self.leaf(index)
        return self.uses[index] == 1 and not self.leaf(index) and not self.lazy(index) and not self.is_number[index]

    # Terms and factors --------------------------------------------------------------------------------------------

    def strip(self, index: int, top: bool = True) -> tuple[int, int]:
        """A value as (number coefficient, rest)."""
        coefficient = self.numbers.one
        while top or self.inline(index):
            node = self.nodes[index]
            if self.leaf(index) or self.is_number[index]:
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

    def terms(self, index: int) -> list[Term]:
        """A sum, flattened, like terms collected."""
        terms: dict[tuple[str, int | None, int | None], int] = {}
        for term in self._gather(index, self.numbers.one, True):
            key = (term.kind, term.x, term.y)
            terms[key] = self.numbers.add(terms[key], term.coefficient) if key in terms else term.coefficient
        return [Term(coefficient, *key) for key, coefficient in terms.items()]

    def _gather(self, index: int, coefficient: int, top: bool = False) -> Iterator[Term]:
        numbers, node = self.numbers, self.nodes[index]
        if self.is_number[index]:
            yield Term(numbers.mul(coefficient, self.number(index)))
            return
        if not (top or self.inline(index)) or self.leaf(index):
            yield Term(coefficient, "", index)
            return
        if node.op in ("add", "sub"):
            yield from self._gather(node.args[0], coefficient)
            yield from self._gather(node.args[1], coefficient if node.op == "add" else numbers.neg(coefficient))
            return
        factor, rest = self.strip(index)
        if rest != index:
            yield from self._gather(rest, numbers.mul(coefficient, factor))
            return
        product = self._product(index)
        yield Term(numbers.mul(coefficient, product[0]), *product[1:]) if product else Term(coefficient, "", index)

    def _product(self, index: int) -> tuple[int, str, int, int] | None:
        """A product or quotient of two tensors as (coefficient, "*" or "/", x, y); None if it is none."""
        node, numbers = self.nodes[index], self.numbers
        if node.op == "square":
            coefficient, x = self.strip(node.args[0], top=False)
            if self.inline(x):  # computed here, once: squared in place
                return None
            return numbers.mul(coefficient, coefficient), "*", x, x
        if node.op not in ("mul", "div") or any(self.is_number[arg] or self._is_mask(arg) for arg in node.args):
            return None
        (first, x), (second, y) = (self.strip(arg, top=False) for arg in node.args)
        if node.op == "mul":
            return numbers.mul(first, second), "*", x, y
        return numbers.div(first, second), "/", x, y

    def _is_mask(self, index: int) -> bool:
        """Whether it is a mask brought to numbers for this use alone; a product takes the mask itself."""
        return self.nodes[index].op == "number" and self.inline(index)
