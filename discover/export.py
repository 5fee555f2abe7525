"""A rule as one Python file that depends on torch alone: an optimizer as one would write it by hand.

The update functions are the very text that `discover.optim` runs, so an exported optimizer follows it bit for bit.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

from discover.optimizer import class_name
from dsl import torch_functions
from dsl.codegen import Code, generate
from dsl.codegen_numbers import literal
from dsl.codegen_print import Function
from dsl.graph import lower_all
from dsl.program import Facts, HasRole, Program, Slot, tests
from dsl.types import EXTENTS

_WIDTH = 120


def source(program: Program) -> str:
    """The text of a Python file with the rule as a `torch.optim.Optimizer` subclass.

    Args:
        program: a rule that takes no other rule.

    Raises:
        RuleError: the program is not well formed.
    """
    return _Exporter(program).file()


class _Kind:
    """A kind of parameter with code of its own: the condition for it, and the names of its functions."""

    def __init__(self, code: Code, condition: str, suffix: str, vectors: bool) -> None:
        self.code, self.condition, self.suffix, self.vectors = code, condition, suffix, vectors

    def name(self, function: Function) -> str:
        return function.name + self.suffix


class _Exporter:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.name = class_name(program.name)
        self.kinds = _kinds(program)
        functions = [function for kind in self.kinds for function in kind.code.functions]
        self.reads = {name for function in functions for name in function.params}
        self.helpers = dict.fromkeys(name for function in functions for name in function.helpers)
        self.barriers = max(len(kind.code.barriers) for kind in self.kinds)
        self.moves = any(kind.code.evaluation for kind in self.kinds)
        self.math = any("math." in line for function in functions for line in function.body)

    # The file -----------------------------------------------------------------------------------------------------

    def file(self) -> str:
        parts = ["\n".join(self.head())]
        parts += [inspect.getsource(getattr(torch_functions, name)).rstrip() for name in self.helpers]
        for kind in self.kinds:
            for function in kind.code.functions:
                head = _wrapped(f"def {kind.name(function)}(", list(function.params), "):", "")
                parts.append("\n".join([*head, *(function.body or ("    pass",))]))
        parts.append("\n".join(self.class_()))
        return "\n\n\n".join(parts) + "\n"

    def head(self) -> list[str]:
        lines = [
            f'"""The optimizer {self.name}, written by `discover export` from the rule `{self.program.name}`."""',
            "",
        ]
        lines += ["from __future__ import annotations", ""]
        lines += ["import math"] if self.math else []
        lines += ["from collections.abc import Callable", "from typing import Any", "", "import torch"]
        return lines

    def class_(self) -> list[str]:
        blocks = [[f"class {self.name}(torch.optim.Optimizer):", *self.docstring()], self.init()]
        if "lr_ratio" in self.reads:
            blocks.append(self.add_param_group())
        blocks.append(self.step())
        if self.moves:
            blocks.append(self.modes())
        return "\n\n".join("\n".join(block) for block in blocks).split("\n")

    def docstring(self) -> list[str]:
        doc = (self.program.doc or f"The rule {self.program.name}.").replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
        lines = []
        for paragraph in doc.split("\n\n"):
            lines += [*textwrap.wrap(paragraph, _WIDTH - 8), ""]
        lines += ["Args:", "    params: parameters, or parameter groups, each of which may set any of what follows."]
        named = ", ".join(hyper.name for hyper in self.program.hypers)
        lines += textwrap.wrap(f"    {named}: hyperparameters of the rule.", _WIDTH - 4, subsequent_indent=" " * 8)
        lines.append("    maximize: goes up the gradient instead of down.")
        if roles := _roles(self.program):
            quoted = " or ".join(f'"{role}"' for role in roles)
            lines.append(f"    role: of a parameter group; {quoted} is treated apart.")
        if self.moves:
            lines += ["", "Call `eval()` before evaluating or saving the model, and `train()` before training goes on."]
        first, *rest = lines
        return [f'    """{first}', *(f"    {line}" if line else "" for line in rest), '    """']

    def init(self) -> list[str]:
        roles = _roles(self.program)
        params = ["self", "params: Any"]
        params += [f"{hyper.name}: float = {literal(hyper.default)}" for hyper in self.program.hypers]
        params += ["*", "maximize: bool = False"]
        lines = _wrapped("def __init__(", params, ") -> None:", "    ")
        if "lr" in self.program.defaults:
            lines += ["        if lr < 0:", '            raise ValueError(f"lr must not be negative, but is {lr}")']
        entries = [f'"{hyper.name}": {hyper.name}' for hyper in self.program.hypers]
        entries += ['"maximize": maximize']
        entries += ['"role": None'] if roles else []
        entries += ['"evaluating": False'] if self.moves else []
        return [
            *lines,
            *_wrapped("defaults = {", entries, "}", "        "),
            "        super().__init__(params, defaults)",
        ]

    def add_param_group(self) -> list[str]:
        return _block(
            """
            def add_param_group(self, param_group: dict[str, Any]) -> None:
                \"""Adds a group; schedules inside the rule go by its lr over the lr that it has now.\"""
                super().add_param_group(param_group)
                group = self.param_groups[-1]
                group.setdefault("reference_lr", group["lr"])
            """
        )

    # The step -----------------------------------------------------------------------------------------------------

    def step(self) -> list[str]:
        lines = _block(
            """
            @torch.no_grad()
            def step(self, closure: Callable[[], Any] | None = None) -> Any:
                \"""Updates every parameter that has a gradient; returns the loss that a `closure` computes.\"""
                loss = None
                if closure is not None:
                    with torch.enable_grad():
                        loss = closure()
            """
        )
        if self.barriers:
            lines.append("        work = []")
        lines += _block(
            """
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None or p.numel() == 0:
                        continue
                    g = -p.grad if group["maximize"] else p.grad
                    state = self.state[p]
            """,
            "        ",
        )
        indent = " " * 16
        lines += [f"{indent}if not state:", f'{indent}    state["step"] = 0']
        lines += [indent + "    " + line for line in self.each(lambda kind: self.initial(kind))]
        lines.append(f'{indent}state["step"] += 1')
        if not self.barriers:
            lines += [indent + line for line in self.each(lambda kind: self.call(kind, kind.code.update))]
            return [*lines, "        return loss"]
        lines.append(f"{indent}work.append((p, g, state, group))")
        for level in range(self.barriers):
            totals = dict.fromkeys(
                name
                for kind in self.kinds
                for barrier in kind.code.barriers[level : level + 1]
                for name in barrier.totals
            )
            lines += [f"        {name} = None" for name in totals]
            lines.append("        for p, g, state, group in work:")
            lines += [" " * 12 + line for line in self.each(lambda kind, level=level: self.share(kind, level))]
        lines.append("        for p, g, state, group in work:")
        lines += [" " * 12 + line for line in self.each(lambda kind: self.call(kind, kind.code.update))]
        return [*lines, "        return loss"]

    def each(self, lines: object) -> Iterator[str]:
        """Lines for each kind of parameter, under its condition where there are several kinds."""
        assert callable(lines)
        made = [lines(kind) for kind in self.kinds]
        if len(made) == 1:
            yield from made[0]
            return
        for position, (kind, text) in enumerate(zip(self.kinds, made, strict=True)):
            word = "if" if position == 0 else "elif"
            yield f"{word} {kind.condition}:" if position < len(made) - 1 else "else:"
            yield from (f"    {line}" for line in text or ["pass"])

    def initial(self, kind: _Kind) -> list[str]:
        lines = []
        shaped = any(slot.extent != EXTENTS["full"] for slot in kind.code.slots) and kind.code.matrix
        if shaped:
            lines.append(self.rows(kind))
        for slot in kind.code.slots:
            lines.append(f'state["{slot.name}"] = {_initial(slot, kind.code.matrix)}')
        return lines

    @staticmethod
    def rows(kind: _Kind) -> str:
        return "rows = p.shape[0] if p.ndim >= 2 else p.numel()" if kind.vectors else "rows = p.shape[0]"

    def call(self, kind: _Kind, function: Function, result: str = "") -> list[str]:
        lines = []
        p, g, view = "p", "g", ""
        if kind.code.matrix:
            lines += [self.rows(kind), "matrix = p.reshape(rows, p.numel() // rows)  # a conv kernel as out x rest"]
            p, g, view = "matrix", "g.reshape(matrix.shape)", ".view(matrix.shape)"
        slots = {slot.name: slot for slot in kind.code.slots}
        args = [p, g]
        for name in function.params[2:]:
            if name in slots:
                args.append(f'state["{name}"]' + (view if slots[name].extent == EXTENTS["full"] else ""))
            elif name == "t":
                args.append('state["step"]')
            elif name == "lr_ratio":
                lines.append('lr_ratio = group["lr"] / group["reference_lr"] if group["reference_lr"] != 0 else 1.0')
                args.append(name)
            elif name in self.program.defaults:
                args.append(f'group["{name}"]')
            else:
                args.append(name)
        lines += _wrapped(f"{result}{kind.name(function)}(", args, ")", "", _WIDTH - 24)
        if kind.code.matrix and function.name == "update":
            lines.append("if matrix.data_ptr() != p.data_ptr():  # p's strides have no such view")
            lines.append("    p.copy_(matrix.view(p.shape))")
        return lines

    def share(self, kind: _Kind, level: int) -> list[str]:
        if level >= len(kind.code.barriers):
            return []
        barrier = kind.code.barriers[level]
        shares = [f"{name}_share" for name in barrier.totals]
        assigned = f"({shares[0]},)" if len(shares) == 1 else ", ".join(shares)
        lines = self.call(kind, barrier.share, f"{assigned} = ")
        for name, share, how, plain in zip(barrier.totals, shares, barrier.combine, barrier.plain, strict=True):
            flat = f"{share}.reshape(())" if kind.code.matrix and not plain else share
            joined = f"{name} + {flat}" if how == "sum" else f"torch.maximum({name}, {flat})"
            lines.append(f"{name} = {flat} if {name} is None else {joined}")
        return lines

    # The evaluation point -----------------------------------------------------------------------------------------

    def modes(self) -> list[str]:
        lines = _block(
            """
            def eval(self) -> None:
                \"""Puts the point to evaluate and save into the parameters.\"""
                self._swap(True)

            def train(self) -> None:
                \"""Puts the point to train from back into the parameters.\"""
                self._swap(False)

            @torch.no_grad()
            def _swap(self, evaluating: bool) -> None:
                for group in self.param_groups:
                    if group["evaluating"] == evaluating:
                        continue
                    group["evaluating"] = evaluating
                    for p in group["params"]:
                        state = self.state[p]
                        if not state:
                            continue
            """
        )
        return [*lines, *(" " * 16 + line for line in self.each(self.swap))]

    @staticmethod
    def swap(kind: _Kind) -> list[str]:
        if not kind.code.evaluation:
            return []
        other = f'state["{kind.code.evaluation}"]'
        return [f"other = {other}.clone()", f"{other}.copy_(p)", "p.copy_(other)"]


# Kinds of parameters ----------------------------------------------------------------------------------------------


def _roles(program: Program) -> list[str]:
    found = dict.fromkeys(test.role for test in _asked(program))
    return list(found)


def _asked(program: Program) -> Iterator[HasRole]:
    stack = list(tests(program.body))
    while stack:
        test = stack.pop(0)
        if isinstance(test, HasRole):
            yield test
        for inner in (*getattr(test, "tests", ()), *filter(None, [getattr(test, "test", None)])):
            stack.append(inner)


def _kinds(program: Program) -> list[_Kind]:
    """The kinds of parameters that have different code, with a condition for each but the last."""
    roles = _roles(program)
    codes: dict[str, Code] = {}
    table: dict[bool, dict[str | None, str]] = {True: {}, False: {}}
    lower_all(program)
    for matrix in (True, False):
        for role in (None, *roles):
            code = generate(program, Facts.of(2 if matrix else 1, role))
            text = f"{code.matrix} {code.evaluation} {code.slots} {code.source}"
            table[matrix][role] = text
            codes.setdefault(text, code)
    suffixes = {1: [""], 2: ["_matrix", "_rest"]}.get(len(codes)) or [f"_{i + 1}" for i in range(len(codes))]
    kinds = []
    for (text, code), suffix in zip(codes.items(), suffixes, strict=True):
        conditions = [each for matrix in (True, False) if (each := _condition(table[matrix], text, matrix)) is not None]
        kinds.append(_Kind(code, " or ".join(conditions), suffix, text in table[False].values()))
    return kinds


def _condition(side: dict[str | None, str], text: str, matrix: bool) -> str | None:
    """When a parameter of one side, matrices or not, has this code; None for never."""
    ndim = "p.ndim >= 2" if matrix else "p.ndim < 2"
    with_it = [role for role, other in side.items() if other == text and role is not None]
    without = [role for role, other in side.items() if other != text and role is not None]
    if side[None] == text:
        return f'{ndim} and group["role"] not in {_tuple(without)}' if without else ndim
    return f'{ndim} and group["role"] in {_tuple(with_it)}' if with_it else None


def _tuple(names: list[str]) -> str:
    return "(" + ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "") + ")"


def _initial(slot: Slot, matrix: bool) -> str:
    if slot.extent == EXTENTS["full"]:
        memory = ", memory_format=torch.contiguous_format" if matrix else ""
        if slot.init == "p":
            return f"p.detach().clone({memory[2:]})"
        if slot.init == 0:
            return f"torch.zeros_like(p{memory})"
        assert not isinstance(slot.init, str)
        return f"torch.full_like(p, {literal(slot.init)}{memory})"
    if not matrix:
        assert not isinstance(slot.init, str)
        return f"p.new_full((), {literal(slot.init)})"
    sizes = {"r": "rows", "c": "p.numel() // rows", "1": "1"}
    rows, cols = (sizes[symbol] for symbol in slot.extent)
    if slot.init == "eye":
        return f"torch.eye({rows}, dtype=p.dtype, device=p.device)"
    assert not isinstance(slot.init, str)
    return f"p.new_full(({rows}, {cols}), {literal(slot.init)})"


# Layout -----------------------------------------------------------------------------------------------------------


def _wrapped(head: str, items: list[str], tail: str, indent: str, width: int = _WIDTH) -> list[str]:
    """One line, or, where that is too long, one line an item."""
    line = f"{indent}{head}{', '.join(items)}{tail}"
    if len(line) <= width:
        return [line]
    return [indent + head, *(f"{indent}    {item}," for item in items), indent + tail]


def _block(text: str, indent: str = "    ") -> list[str]:
    return [indent + line if line else "" for line in inspect.cleandoc(text).split("\n")]
