"""Prints a plan as a Python function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from dsl.codegen_expressions import Atom, Call, Expr, Fill, Fn, Num, parts
from dsl.codegen_numbers import NAME, Numbers, shape
from dsl.codegen_plan import Plan, Statement
from dsl.codegen_values import Guard
from dsl.graph import INPUT
from dsl.ops import OPS, Op
from dsl.program import BUILTINS, GENERATED, Program
from dsl.types import EXTENTS

_FULL, _SCALAR = EXTENTS["full"], EXTENTS["scalar"]
_INFIX = {"mul": "*", "div": "/", "add": "+", "sub": "-", "pow": "**", "remainder": "%"}
_PRECEDENCE = {"mul": 5, "div": 5, "add": 4, "sub": 4, "pow": 7, "remainder": 5}
_WIDTH = 84


@dataclass(frozen=True, slots=True)
class Function:
    """A generated function.

    Attributes:
        name: `update` or `share_N`.
        params: its arguments' names in order: p, g, slots, totals, hyperparameters, t, lr_ratio.
        body: its lines, indented once.
        helpers: names of functions in `dsl.torch_functions` that it calls.
    """

    name: str
    params: tuple[str, ...]
    body: tuple[str, ...]
    helpers: tuple[str, ...]

    @property
    def source(self) -> str:
        line = f"def {self.name}({', '.join(self.params)}):"
        return "\n".join([line, *(self.body or ("    pass",))]) + "\n"


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number behind it if it is taken; takes it."""
    result, number = name, 2
    while result in taken:
        result, number = f"{name}_{number}", number + 1
    taken.add(result)
    return result


def _is_view(expr: Expr) -> TypeGuard[Fn]:
    return isinstance(expr, Fn) and expr.op in OPS and OPS[expr.op].view


class Printer:
    """Prints a plan as a function."""

    def __init__(self, plan: Plan, program: Program, slots: Sequence[str], keepdim: bool) -> None:
        self.plan, self.program, self.keepdim = plan, program, keepdim
        self.numbers: Numbers = plan.numbers
        self.slots = slots
        self.helpers: dict[str, None] = {}
        self.taken = {*GENERATED, "p", "g", *BUILTINS, *slots, *program.defaults, *plan.external.values()}
        self.names: dict[int, str] = {}
        for index, node in enumerate(plan.nodes):
            if node.op == INPUT:
                self.names[index] = str(node.payload)
            elif index in plan.external:
                self.names[index] = plan.external[index]
        self.left: Counter[int] = Counter()
        for statement in plan.statements:
            self.left.update(statement.reads)
        self.left.update(plan.results)
        self.owned: set[int] = set()
        if plan.lanes and not plan.results and "g" not in plan.outputs:
            self.owned = {index for index, node in enumerate(plan.nodes) if node.op == INPUT and node.payload == "g"}
        self.aliased = {value for values in plan.aliases.values() for value in values}
        self.owned -= self.aliased

    # The function -------------------------------------------------------------------------------------------------

    def function(self, name: str) -> Function:
        self._name_numbers()
        lines: list[tuple[Guard, str]] = []
        waiting = dict(self.numbers.local)
        for statement in self.plan.statements:
            lines += [(statement.guard, line) for line in self._statement(statement)]
        hoisted = [((), f"{text} = {self._definition(number)}") for number, text in sorted(waiting.items())]
        body = [f"    {line}" for line in self._nest([*hoisted, *lines])]
        if self.plan.results:
            results = [self._result(index) for index in self.plan.results]
            body.append(f"    return ({results[0]},)" if len(results) == 1 else f"    return {', '.join(results)}")
        return Function(name, self._params(), tuple(body), tuple(self.helpers))

    def _result(self, index: int) -> str:
        """What is returned: the value, or None at a step that does not need it."""
        when = self.plan.when.get(index, ())
        text = self._text(self.plan.expr(index), 2 if when else 0)
        tests = [self._number(number, 3) if holds else f"not ({self._number(number)})" for number, holds in when]
        return f"{text} if {' and '.join(tests)} else None" if tests else text

    def _params(self) -> tuple[str, ...]:
        plan = self.plan
        read = {str(node.payload) for index, node in enumerate(plan.nodes) if node.op == INPUT and index in plan.live}
        numbers = {str(node.payload) for node in self.numbers.table if node.op == NAME}
        slots = [name for name in self.slots if name in read or name in plan.outputs]
        hypers = [name for name in (*self.program.defaults, *BUILTINS) if name in numbers]
        return ("p", "g", *slots, *plan.external.values(), *hypers)

    def _nest(self, lines: list[tuple[Guard, str]]) -> Iterator[str]:
        """Lines under guards as nested ifs."""
        open_: Guard = ()
        for guard, line in lines:
            common = 0
            while common < min(len(open_), len(guard)) and open_[common] == guard[common]:
                common += 1
            for depth in range(common, len(guard)):
                condition, holds = guard[depth]
                indent = "    " * depth
                if depth == common and depth < len(open_) and open_[depth] == (condition, not holds) and not holds:
                    yield f"{indent}else:"
                else:
                    text = self.numbers.text(condition)
                    yield f"{indent}if {text}:" if holds else f"{indent}if not ({text}):"
            yield "    " * len(guard) + line
            open_ = guard

    # Numbers ------------------------------------------------------------------------------------------------------

    def _name_numbers(self) -> None:
        """Gives local names to number expressions that are read more than once, or that have a name of their own."""
        table = self.numbers.table
        uses: Counter[int] = Counter()
        used: list[int] = []
        hints = {self.plan._number[i]: hint for i, hint in self.plan.hints.items() if i in self.plan._number}
        for statement in self.plan.statements:
            for each in parts(statement.expr):
                if isinstance(each, Num | Fill):
                    used.append(each.number)
                elif isinstance(each, Call):
                    used += each.keywords.values()
        used += {condition for statement in self.plan.statements for condition, _ in statement.guard}
        used += [self.plan.number(index) for index in self.plan.results if self.plan.is_number[index]]
        used += [number for guard in self.plan.when.values() for number, _ in guard]
        seen: set[int] = set()
        for number in used:
            uses[number] += 1
        stack = list(used)
        while stack:
            number = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            for arg in table[number].args:
                uses[arg] += 1
                stack.append(arg)
        for number in sorted(seen):
            node = table[number]
            name = self._correction(number) or hints.get(number)
            again = uses[number] > 1 and node.ops >= (1 if node.lane else 2)
            if again or (name and node.ops > 2) or (self._correction(number)):
                self.numbers.local[number] = unique(name or "c", self.taken)

    def _correction(self, number: int) -> str | None:
        """A name for 1 - beta**t."""
        table = self.numbers.table
        node = table[number]
        if node.op == "sub" and node.args[0] == self.numbers.one and table[node.args[1]].op == "pow":
            base, exponent = table[node.args[1]].args
            if table[base].op == NAME and table[exponent].payload == "t":
                return (
                    f"bias_correction{str(table[base].payload)[-1] if str(table[base].payload)[-1].isdigit() else ''}"
                )
        return None

    def _definition(self, number: int) -> str:
        name = self.numbers.local.pop(number)
        text = self.numbers.text(number)
        self.numbers.local[number] = name
        self._use_power(text)
        return text

    def _number(self, number: int, precedence: int = 0) -> str:
        text = self.numbers.text(number, precedence)
        self._use_power(text)
        return text

    def _use_power(self, text: str) -> None:
        if "power(" in text:
            self.helpers["power"] = None

    # Statements ---------------------------------------------------------------------------------------------------

    def _statement(self, statement: Statement) -> list[str]:
        expr, store, value = statement.expr, statement.store, statement.value
        if statement.copy:
            assert store is not None
            lines = [self._stored(store, expr, statement)]
        elif store is not None:
            lines = [] if isinstance(expr, Atom) else self._in_place(store, expr, statement)
        else:
            assert value is not None
            text, _, fresh = self._render(expr, statement)
            if _is_view(expr):  # what it shows is about to be overwritten, or is so in another branch
                text, fresh = f"{text}.clone()", True
            if value not in self.names:
                self.names[value] = self._local(value, expr, statement)
            name = self.names[value]
            later: list[str] = []
            while len(name) + len(text) > _WIDTH and isinstance(expr, Call) and self._continues(expr, statement):
                later.insert(0, f"{name}.{expr.method}_({self._arguments(expr, statement)})")
                expr = expr.receiver
                text = self._render(expr, statement)[0]
            lines = [f"{name} = {text}", *later]
            if fresh and value not in self.aliased and value not in self.plan.aliases:
                self.owned.add(value)
        if value is not None and store is not None:
            self.names[value] = store
        self.left.subtract(statement.reads)
        return lines

    def _continues(self, expr: Call, statement: Statement) -> bool:
        """Whether a chain may be cut before this call: what it is called on is ours."""
        receiver = expr.receiver
        fits = isinstance(receiver, Call | Fn) and receiver.extent == expr.extent
        return fits and self._render(receiver, statement)[2]

    def _stored(self, store: str, expr: Expr, statement: Statement) -> str:
        if isinstance(expr, Num):
            lane = self.numbers.is_lane(expr.number)
            return f"{store}.{'copy_' if lane else 'fill_'}({self._number(expr.number)})"
        return f"{store}.copy_({self._beside(store, expr, statement)})"

    def _in_place(self, store: str, expr: Expr, statement: Statement) -> list[str]:
        calls: list[Call] = []
        while isinstance(expr, Call):
            calls.append(expr)
            expr = expr.receiver
        calls.reverse()
        steps = [f".{call.method}_({self._arguments(call, statement, store)})" for call in calls]
        if len(steps) > 1 and (store == "p" or len(store) + sum(map(len, steps)) > _WIDTH):
            return [store + step for step in steps]
        return [store + "".join(steps)]

    def _local(self, value: int, expr: Expr, statement: Statement) -> str:
        name = self.plan.hints.get(value)
        if name == "g":  # the program goes on with another gradient; so may the code, once the first is read no more
            first = next((i for i, node in enumerate(self.plan.nodes) if node.op == INPUT and node.payload == "g"), -1)
            if self.left[first] == statement.reads[first] and "g" not in self.plan.outputs:
                return "g"
        if name is None:
            name = self.plan.default_names.get(value)
        if name is None and isinstance(expr, Fn) and expr.op in OPS:
            name = {"newton_schulz": "u"}.get(expr.op, expr.op.split("_")[-1] if "_" in expr.op else None)
        return unique(name if name and name not in ("p", "g") else "x", self.taken)

    # Expressions --------------------------------------------------------------------------------------------------

    def _render(self, expr: Expr, statement: Statement | None) -> tuple[str, int, bool]:
        """Text, how tightly it binds, and whether it is a tensor that nobody else sees."""
        match expr:
            case Atom(value):
                return self.names[value], 9, statement is not None and self._dies(value, statement)
            case Num(number):
                return self._number(number), 0, False
            case Fill(number, extent):
                if self.numbers.is_lane(number):
                    return self._number(number, 9), 9, False
                like = "p" if extent == _FULL else "p[:, :1, :1]" if self.plan.lanes else "p[:1, :1]"
                if extent == _FULL or self.keepdim:
                    return f"torch.full_like({like}, {self._number(number)})", 9, extent in (_FULL, _SCALAR)
                return f"p.new_tensor({self._number(number)})", 9, True
            case Fn():
                return self._template(expr, statement)
        text, own, fresh = self._render(expr.receiver, statement)
        receiver = f"({text})" if own < 9 else text
        fits = not isinstance(expr.receiver, Num) and expr.receiver.extent == expr.extent
        if fresh and fits:
            return f"{receiver}.{expr.method}_({self._arguments(expr, statement)})", 9, True
        out = self._out(expr, statement)
        if out:
            return f"torch.{expr.method}({text}, {out}, out={out})", 9, True
        if expr.method == "neg":
            return f"-{text if own >= 6 else receiver}", 6, True
        if expr.method in _INFIX and not expr.keywords:
            precedence = _PRECEDENCE[expr.method]
            left = text if own >= precedence + (expr.method == "pow") else receiver
            right = self._text(expr.args[0], precedence + (expr.method != "pow"), statement)
            joint = _INFIX[expr.method]
            return self._join(left, joint, right), precedence, True
        return f"{receiver}.{expr.method}({self._arguments(expr, statement)})", 9, True

    @staticmethod
    def _join(left: str, joint: str, right: str) -> str:
        simple = left.isidentifier() and (right.isidentifier() or right.replace(".", "", 1).isdigit())
        return f"{left}{joint}{right}" if joint == "**" and simple else f"{left} {joint} {right}"

    def _out(self, expr: Call, statement: Statement | None) -> str:
        """The name of an argument whose storage the result may take, in the style where speed counts most."""
        if not self.plan.lanes or expr.method not in ("mul", "div", "add", "sub") or expr.keywords or statement is None:
            return ""
        arg = expr.args[0]
        if not isinstance(arg, Atom) or arg.extent != expr.extent or not self._dies(arg.value, statement):
            return ""
        mask = arg.value < len(self.plan.nodes) and self.plan.nodes[arg.value].type.mask
        return "" if mask else self.names[arg.value]

    def _arguments(self, expr: Call, statement: Statement | None, store: str = "") -> str:
        """The arguments of a call, one that writes into `store` where that is given."""
        args = [self._beside(store, arg, statement) for arg in expr.args]
        return ", ".join(args + [f"{key}={self._number(number)}" for key, number in expr.keywords.items()])

    def _beside(self, store: str, expr: Expr, statement: Statement | None) -> str:
        """The text of what is read while `store` is written: of a view of it a copy, which torch asks for."""
        text = self._text(expr, 0, statement)
        shows_it = _is_view(expr) and self._text(expr.args[0], 0, statement) == store
        return f"{text}.clone()" if shows_it else text

    def _text(self, expr: Expr, precedence: int, statement: Statement | None = None) -> str:
        if isinstance(expr, Num):
            return self._number(expr.number, precedence)
        text, own, _ = self._render(expr, statement)
        return f"({text})" if own < precedence else text

    def _template(self, expr: Fn, statement: Statement | None) -> tuple[str, int, bool]:
        if expr.op == "expand":
            value, *sizes = (self._text(arg, 9 if arg is expr.args[0] else 0, statement) for arg in expr.args)
            to = "expand_as(p)" if expr.extent == _FULL else f"expand({', '.join(['-1'] * self.plan.lanes + sizes)})"
            return f"{value}.{to}", 9, False
        if expr.op == "power":
            self.helpers["power"] = None
            return f"power({', '.join(self._text(arg, 0, statement) for arg in expr.args)})", 9, True
        op: Op = OPS[expr.op]
        if op.infix and not (op.lanes and self.plan.lanes):
            own = op.precedence
            left = self._text(expr.args[0], own + (own in (3, 7)), statement)
            right = self._text(expr.args[1], own + (own != 7), statement)
            return self._join(left, op.infix, right), own, True
        for helper in op.helpers:
            self.helpers[helper] = None
        kinds = "".join(
            "n" if isinstance(arg, Num) and not self.numbers.is_lane(arg.number) else "t" for arg in expr.args
        )
        template = op.torch if isinstance(op.torch, str) else op.torch.get(kinds) or op.torch["t" * len(kinds)]
        if op.lanes and self.keepdim:
            template = op.lanes
        needs, own = shape(template)
        args = [self._text(arg, need, statement) for arg, need in zip(expr.args, needs, strict=False)]
        return template.format(*args), own, not op.view

    def _dies(self, value: int, statement: Statement) -> bool:
        """Whether nobody reads it after this statement, which reads it once, and its storage is ours to reuse."""
        return value in self.owned and self.left[value] == statement.reads[value] == 1
