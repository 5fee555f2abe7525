"""Number expressions of generated code: what is known before a tensor is touched, as Python arithmetic.

Every distinct expression is kept once. A number is plain (a Python float) or, in the lanes style, *per lane*: a tensor
of one value a lane, which any hyperparameter declared so makes of the expressions that read it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

from dsl.format import format_number
from dsl.ops import OPS

CONSTANT, NAME = "constant", "name"
_TERNARY, _ATOM = 1, 9


@dataclass(frozen=True, slots=True)
class Number:
    op: str
    args: tuple[int, ...] = ()
    payload: float | str | None = None
    lane: bool = False
    ops: int = 0
    """How many operators it has, shared parts counted every time."""


class Numbers:
    """A table of number expressions, and their text.

    Attributes:
        local: expression -> the name of a local variable that holds it; it is printed by that name.
    """

    def __init__(self) -> None:
        self.table: list[Number] = []
        self.local: dict[int, str] = {}
        self._index: dict[tuple[str, tuple[int, ...], str], int] = {}
        self.one = self.constant(1.0)
        self.minus_one = self.constant(-1.0)

    def constant(self, value: float) -> int:
        return self._add(CONSTANT, (), float(value))

    def name(self, text: str, lane: bool = False) -> int:
        return self._add(NAME, (), text, lane)

    def _add(self, op: str, args: tuple[int, ...], payload: float | str | None = None, lane: bool = False) -> int:
        key = (op, args, repr(payload))
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self.table)
            ops = sum(self.table[arg].ops for arg in args) + 1 if args else 0
            self.table.append(Number(op, args, payload, lane or any(self.table[arg].lane for arg in args), ops))
        return index

    def is_lane(self, index: int) -> bool:
        return self.table[index].lane

    def value(self, index: int) -> float | None:
        """The value of a constant; None of anything else."""
        node = self.table[index]
        return node.payload if node.op == CONSTANT and isinstance(node.payload, float) else None

    # Arithmetic: just enough algebra that the text reads as if written by hand ------------------------------------

    def apply(self, op: str, *args: int) -> int:
        match op:
            case "add":
                return self.add(*args)
            case "sub":
                return self.add(args[0], self.neg(args[1]))
            case "mul":
                return self.mul(*args)
            case "div":
                return self.div(*args)
            case "neg":
                return self.neg(*args)
            case "square":
                return self._add("pow", (args[0], self.constant(2.0)))
            case "rsqrt":
                return self.div(self.one, self._add("sqrt", args))
            case "reciprocal":
                return self.div(self.one, args[0])
            case "lerp":
                return self.add(args[0], self.mul(args[2], self.add(args[1], self.neg(args[0]))))
        return self._add(op, args)

    def neg(self, a: int) -> int:
        node = self.table[a]
        if (value := self.value(a)) is not None:
            return self.constant(-value)
        if node.op == "neg":
            return node.args[0]
        if node.op in ("mul", "div"):
            return self._add(node.op, (self.neg(node.args[0]), node.args[1]))
        if node.op == "sub":
            return self._add("sub", (node.args[1], node.args[0]))
        return self._add("neg", (a,))

    def add(self, a: int, b: int) -> int:
        x, y = self.value(a), self.value(b)
        if x is not None and y is not None and math.isfinite(x + y):
            return self.constant(x + y)
        if y == 0:
            return a
        if x == 0:
            return b
        if y is not None and y < 0:
            return self._sub(a, self.constant(-y))
        node = self.table[b]
        if node.op == "sub" and node.args[1] == a == self.one:  # 1 + (beta - 1) is beta
            return node.args[0]
        if self.negated(b):
            return self._sub(a, self.neg(b))
        if self.negated(a):
            return self._sub(b, self.neg(a))
        return self._add("add", (a, b))

    def _sub(self, a: int, b: int) -> int:
        node = self.table[b]
        if node.op == "sub" and node.args[0] == a == self.one:  # 1 - (1 - beta) is beta
            return node.args[1]
        return self._add("sub", (a, b))

    def negated(self, a: int) -> bool:
        """Whether it is printed with a minus in front."""
        node = self.table[a]
        if node.op in ("mul", "div"):
            return self.negated(node.args[0])
        return node.op == "neg" or (node.op == CONSTANT and isinstance(node.payload, float) and node.payload < 0)

    def mul(self, a: int, b: int) -> int:
        x, y = self.value(a), self.value(b)
        if x is not None and y is not None and math.isfinite(x * y):
            return self.constant(x * y)
        for one, other in ((x, b), (y, a)):
            if one == 1:
                return other
            if one == -1:
                return self.neg(other)
        node = self.table[b]
        if node.op == "div" and node.args[0] == self.one:
            return self.div(a, node.args[1])
        if self.negated(b) and y is None:
            return self.mul(self.neg(a), self.neg(b))
        node = self.table[a]
        if node.op == "div":  # a / b * c is printed as a * c / b
            return self._add("div", (self.mul(node.args[0], b), node.args[1]))
        return self._add("mul", (a, b))

    def div(self, a: int, b: int) -> int:
        if self.value(b) == 1:
            return a
        if (divisor := self.value(b)) == 0:  # Python would raise where IEEE arithmetic has inf or nan, as a * inf does
            return self.mul(a, self.constant(math.copysign(math.inf, divisor)))
        return self._add("div", (a, b))

    def split(self, index: int) -> tuple[int, int | None]:
        """A coefficient as a plain factor and a per-lane factor (None where it has none)."""
        node = self.table[index]
        if not node.lane:
            return index, None
        if node.op == "neg":
            plain, lane = self.split(node.args[0])
            return self.neg(plain), lane
        if node.op in ("mul", "div"):
            (left, left_lane), (right, right_lane) = (self.split(arg) for arg in node.args)
            join = self.mul if node.op == "mul" else self.div
            lane = left_lane
            if right_lane is not None:
                lane = join(left_lane if left_lane is not None else self.one, right_lane)
            return join(left, right), lane
        return self.one, index

    # Text ---------------------------------------------------------------------------------------------------------

    def text(self, index: int, precedence: int = 0) -> str:
        """Python text; in parentheses where it stands inside an operator that binds more tightly."""
        if index in self.local:
            return self.local[index]
        node = self.table[index]
        if node.op == CONSTANT:
            assert isinstance(node.payload, float)
            text, own = literal(node.payload), 6 if node.payload < 0 else _ATOM
        elif node.op == NAME:
            text, own = str(node.payload), _ATOM
        elif node.op == "pow":
            text, own = self._power(node)
        elif OPS[node.op].infix:
            op = OPS[node.op]
            own = op.precedence
            left = own + 1 if own == 3 else own
            text = f"{self.text(node.args[0], left)} {op.infix} {self.text(node.args[1], own + 1)}"
        elif node.op == "neg":
            text, own = f"-{self.text(node.args[0], 6)}", 6
        elif node.op == "where" and not self.is_lane(node.args[0]):
            mask = self.text(node.args[0], _TERNARY + 1)
            a, b = (
                self.text(arg, _TERNARY + 1) if node.lane == self.is_lane(arg) else f"p.new_tensor({self.text(arg)})"
                for arg in node.args[1:]
            )
            text, own = f"{a} if {mask} else {b}", _TERNARY
        else:
            text, own = self._call(node)
        return f"({text})" if own < precedence else text

    def _power(self, node: Number) -> tuple[str, int]:
        base, exponent = node.args
        power = self.value(exponent)
        if node.lane and power not in (2.0, 3.0, 0.5, -1.0):
            return f"power({self.text(base)}, {self.text(exponent)})", _ATOM
        whole = (power is not None and power.is_integer()) or self.table[exponent].payload == "t"
        positive = self.table[base].payload == "t" or (self.value(base) or 0.0) > 0
        if not (node.lane or whole or positive):  # a fractional power of a negative float would be complex
            return f"math.pow({self.text(base)}, {self.text(exponent)})", _ATOM
        left, right = self.text(base, 8), self.text(exponent, 6)
        simple = re.fullmatch(r"[\w.]+", left) and re.fullmatch(r"-?[\w.]+", right)
        return (f"{left}**{right}" if simple else f"{left} ** {right}"), 7

    def _call(self, node: Number) -> tuple[str, int]:
        op = OPS[node.op]
        template = op.number or ""
        if not node.lane:
            precedences, own = shape(template)
            args = [self.text(arg, each) for arg, each in zip(node.args, precedences, strict=False)]
            return template.format(*args), own
        kinds = "".join("t" if self.is_lane(arg) else "n" for arg in node.args)
        every = "t" * len(kinds)
        forms = {every: op.torch} if isinstance(op.torch, str) else op.torch
        precedences, own = shape(forms.get(kinds, forms[every]))
        args = [self.text(arg, each) for arg, each in zip(node.args, precedences, strict=False)]
        if kinds not in forms:
            args = [text if kind == "t" else f"p.new_tensor({text})" for kind, text in zip(kinds, args, strict=True)]
        return forms.get(kinds, forms[every]).format(*args), own


def literal(value: float) -> str:
    """A number as people write it: 1e-8, not 1e-08."""
    if math.isinf(value):
        return "math.inf" if value > 0 else "-math.inf"
    return re.sub(r"e([+-])0(\d)", r"e\1\2", format_number(value)).replace("e+", "e")


@cache
def shape(template: str) -> tuple[tuple[int, ...], int]:
    """How tightly each argument of a template must bind to stand there without parentheses, and the whole outside."""
    needs: dict[int, int] = {}
    for match in re.finditer(r"\{(\d)\}", template):
        before, after = template[: match.start()], template[match.end() :]
        alone = before.endswith(("(", ", ", "=")) and after.startswith((")", ","))
        needs[int(match[1])] = max(needs.get(int(match[1]), 0), 0 if alone else _ATOM)
    call = re.fullmatch(r"(\{\d\}\.)?[\w.]+\(.*\)", template) or re.fullmatch(r"\{\d\}\.mT", template)
    if call and template.count("(") > 1 and not _one_call(template):
        call = None
    return tuple(needs.get(i, 0) for i in range(max(needs, default=-1) + 1)), _ATOM if call else 2


def _one_call(template: str) -> bool:
    """Whether the first parenthesis closes at the very end."""
    depth = 0
    for position, letter in enumerate(template):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == ")" and depth == 0:
            return position == len(template) - 1 or re.fullmatch(r"\{\d\}(\.\w+\([^()]*\))+", template) is not None
    return False
