"""A rule as one Python file that depends on torch alone: an optimizer as one would write it by hand.

The update functions are the very text that `discover.optim` runs, so an exported optimizer follows it bit for bit.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

from discover import closures
from discover.excerpt import Excerpt, excerpt
from discover.export_kinds import Kind, condition, functions, kinds, roles
from discover.export_text import (
    ADD_PARAM_GROUP,
    MODES,
    TELLS,
    block,
    folded,
    import_lines,
    refusal,
    refusal_while_evaluating,
    wrapped,
)
from discover.optimizer import class_name
from dsl import torch_functions
from dsl.codegen import Barrier, Total
from dsl.codegen_numbers import literal
from dsl.codegen_print import Function
from dsl.graph import needs
from dsl.ops import OPS
from dsl.program import Program
from dsl.types import EXTENTS

_WIDTH = 120
_OWN = {"p", "g", "state", "group", "loss", "closure", "work", "answers", "index", "rows", "matrix", "self", "torch"}
"""Local names of the step that no shared value may have."""
_COUNT = 'state["step"] += 1'
"""The step is counted when parameters are updated: a closure that raised has changed nothing."""


def source(program: Program) -> str:
    """The text of a Python file with the rule as a `torch.optim.Optimizer` subclass.

    Args:
        program: a rule that takes no other rule.

    Raises:
        RuleError: the program is not well formed.
    """
    return _Exporter(program).file()


class _Exporter:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.name = class_name(program.name)
        self.needs = needs(program)
        self.kinds = kinds(program)
        self.functions = functions(self.kinds)
        self.reads = {name for function in self.functions.values() for name in function.params}
        self.helpers = dict.fromkeys(name for each in self.functions.values() for name in each.helpers)
        self.levels = sorted({barrier.level for kind in self.kinds for barrier in kind.code.barriers})
        self.totals = self._named_totals()
        self.moves = any(kind.code.evaluation for kind in self.kinds)
        self.codes = [slot.name for slot in program.slots if slot.code]
        self.closure: Excerpt | None = None
        if self.needs.closure:
            self.closure = excerpt(closures, "Closure", ("__call__", "release"), self.needs.closure)

    def _named_totals(self) -> dict[float, str]:
        """A local name of the step for each value that parameters share, by its place in the program."""
        names: dict[float, str] = {}
        totals = [total for kind in self.kinds for barrier in kind.code.barriers for total in barrier.totals]
        for total in totals:
            if total.place not in names:
                taken = _OWN | set(names.values())
                count = 2
                name = total.name
                while name in taken:
                    name, count = f"{total.name}_{count}", count + 1
                names[total.place] = name
        return names

    # The file -----------------------------------------------------------------------------------------------------

    def file(self) -> str:
        parts = [inspect.getsource(getattr(torch_functions, name)).rstrip() for name in self.helpers]
        for name, function in self.functions.items():
            head = wrapped(f"def {name}(", self.params(function), "):", "")
            body = [line for long in function.body or ("    pass",) for line in folded(long)]
            parts.append("\n".join([*head, *body]))
        constants: list[str] = []
        for part in self.closure.parts if self.closure else ():
            (parts if part.startswith(("def ", "class ", "@")) else constants).append(part)
        parts.append("\n".join(self.class_()))
        top = "\n\n".join(["\n".join(self.head("\n".join(parts))), *constants])
        return "\n\n\n".join([top, *parts]) + "\n"

    def params(self, function: Function) -> list[str]:
        """Its arguments; a rule that takes no gradient is given none."""
        return [name for name in function.params if name != "g" or self.needs.gradient]

    def head(self, text: str) -> list[str]:
        about = f"The optimizer {self.name}, written by `discover export` from the rule `{self.program.name}`."
        lines = textwrap.wrap(f'"""{about}"""', _WIDTH)
        lines += ["", "from __future__ import annotations", ""]
        wanted = {"from collections.abc import Callable", "from typing import Any", "import torch"}
        wanted |= {"import math"} if "math." in text else set()
        wanted |= set(self.closure.imports) if self.closure else set()
        return [*lines, *import_lines(wanted)]

    def class_(self) -> list[str]:
        blocks = [[f"class {self.name}(torch.optim.Optimizer):", *self.docstring()], self.init()]
        if "lr_ratio" in self.reads and "lr" in self.program.defaults:
            blocks.append(ADD_PARAM_GROUP)
        blocks.append(self.step())
        if self.codes:
            blocks.append(self.load_state_dict())
        if self.moves:
            blocks.append([*MODES, *(" " * 16 + line for line in self.each(self.swap))])
        return "\n\n".join("\n".join(block) for block in blocks).split("\n")

    def docstring(self) -> list[str]:
        doc = (self.program.doc or f"The rule {self.program.name}.").replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
        lines = []
        for paragraph in doc.split("\n\n"):
            lines += [*textwrap.wrap(paragraph, _WIDTH - 8), ""]
        lines += ["Args:", "    params: parameters, or parameter groups, each of which may set any of what follows."]
        if self.program.hypers:
            named = ", ".join(hyper.name for hyper in self.program.hypers)
            lines += textwrap.wrap(f"    {named}: hyperparameters of the rule.", _WIDTH - 4, subsequent_indent=" " * 8)
        lines.append("    maximize: goes up the gradient instead of down.")
        if asked := roles(self.program):
            quoted = " or ".join(f'"{role}"' for role in asked)
            lines.append(f"    role: of a parameter group; {quoted} is treated apart.")
        if self.moves:
            lines += ["", "Call `eval()` before evaluating or saving the model, and `train()` before training goes on."]
        first, *rest = lines
        return [f'    """{first}', *(f"    {line}" if line else "" for line in rest), '    """']

    def init(self) -> list[str]:
        params = ["self", "params: Any"]
        params += [f"{hyper.name}: float = {literal(hyper.default)}" for hyper in self.program.hypers]
        params += ["*", "maximize: bool = False"]
        lines = wrapped("def __init__(", params, ") -> None:", "    ")
        if "lr" in self.program.defaults:
            lines += ["        if lr < 0:", '            raise ValueError(f"lr must not be negative, but is {lr}")']
        entries = [f'"{hyper.name}": {hyper.name}' for hyper in self.program.hypers]
        entries += ['"maximize": maximize']
        entries += ['"role": None'] if roles(self.program) else []
        entries += ['"evaluating": False'] if self.moves else []
        return [
            *lines,
            *wrapped("defaults = {", entries, "}", "        "),
            "        super().__init__(params, defaults)",
        ]

    def load_state_dict(self) -> list[str]:
        names = ", ".join(f'"{name}"' for name in self.codes) + ("," if len(self.codes) == 1 else "")
        return block(
            f"""
            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                \"""As torch's own, which makes every state a float: codes are made codes again.\"""
                super().load_state_dict(state_dict)
                for state in self.state.values():
                    for name in ({names}):
                        if name in state:
                            state[name] = state[name].to(torch.uint8)
            """
        )

    # The step -----------------------------------------------------------------------------------------------------

    def step(self) -> list[str]:
        lines = self.step_head()
        if self.levels:
            lines.append("        work = []")
        lines += self.gather()
        if not self.levels:
            lines += [" " * 16 + line for line in (_COUNT, *self.each(lambda kind: self.update(kind)))]
            return [*lines, "        return loss"]
        lines.append(f"                work.append(({self.item()}))")
        if self.closure:
            lines += self.answers()
        for level in self.levels:
            lines += [" " * 8 + line for line in self.exchange(level)]
        indexed = any(self.shaped(total) for kind in self.kinds for b in kind.code.barriers for total in b.totals)
        body = [_COUNT, *self.each(lambda kind: self.update(kind))]
        lines += [" " * 8 + line for line in self.loop(body, indexed)]
        if self.closure:
            lines.append("        answers.release()")
            lines += [] if self.needs.gradient else ["        loss = answers.loss"]
        return [*lines, "        return loss"]

    def step_head(self) -> list[str]:
        params = ["self", f"closure: Callable[{'...' if self.closure else '[]'}, Any] | None = None"]
        params += ["*", "examples: int | None = None"] if self.needs.examples else []
        lines = ["    @torch.no_grad()", *wrapped("def step(", params, ") -> Any:", "    ")]
        which = "has a gradient" if self.needs.gradient else "requires one"
        if not self.closure:
            lines.append(
                f'        """Updates every parameter that {which}; returns the loss that a `closure` computes."""'
            )
        else:
            lines += [f'        """Updates every parameter that {which}; returns the loss.', "", "        Args:"]
            told = " ".join(TELLS[op] for op in self.needs.closure)
            lines += textwrap.wrap(f"closure: {told}", _WIDTH, initial_indent=" " * 12, subsequent_indent=" " * 16)
            if self.needs.examples:
                lines.append("            examples: how many the loss is a mean over.")
            lines.append('        """')
            lines += refusal("closure", f"{self.name} needs a closure; call opt.step(closure)")
        if self.needs.examples:
            lines += refusal("examples", f"{self.name} needs the number of examples; call opt.step(examples=len(x))")
        if self.moves:
            lines += refusal_while_evaluating()
        lines.append("        loss = None")
        if self.needs.closure and not self.needs.gradient:
            return lines
        call = ["    with torch.enable_grad():", "        loss = closure()"]
        if self.closure:
            return [*lines[:-1], *(" " * 4 + line for line in call)]
        return [*lines, "        if closure is not None:", *(" " * 8 + line for line in call)]

    def gather(self) -> list[str]:
        """The loop over parameters, as far as every rule needs it."""
        missing = "p.grad is None" if self.needs.gradient else "not p.requires_grad"
        places = "place" in self.reads
        lines = ["        place = -1"] if places else []
        lines += ["        for group in self.param_groups:", '            for p in group["params"]:']
        lines += ["                place += 1"] if places else []
        lines += [f"                if {missing} or p.numel() == 0:", "                    continue"]
        if self.needs.gradient:
            detached = "p.grad.detach()" if self.closure else "p.grad"
            lines.append(f'                g = -{detached} if group["maximize"] else {detached}')
        lines += block(
            """
            state = self.state[p]
            if not state:
                state["step"] = 0
            """,
            " " * 16,
        )
        return [*lines, *(" " * 20 + line for line in self.each(lambda kind: kind.initial()))]

    def item(self) -> str:
        """What the step keeps of a parameter while all of them share values."""
        names = ["p", *(["g"] if self.needs.gradient else []), "state", "group"]
        return ", ".join(names + (["place"] if "place" in self.reads else []))

    def loop(self, body: list[str], indexed: bool) -> list[str]:
        """A loop over what the step keeps of each parameter; what the body does not read has no name."""
        read = set(re.findall(r"\w+", "\n".join(body)))
        item = ", ".join(name if name in read else "_" for name in self.item().split(", "))
        head = f"for index, ({item}) in enumerate(work):" if indexed else f"for {item} in work:"
        return [head, *(f"    {line}" for line in body)]

    def each(self, lines: Callable[[Kind], list[str]]) -> Iterator[str]:
        """Lines for each kind of parameter; kinds with the same lines together, under their condition if need be."""
        made: dict[tuple[str, ...], list[Kind]] = {}
        for kind in self.kinds:
            made.setdefault(tuple(lines(kind)), []).append(kind)
        if len(made) == 1:
            yield from next(iter(made))
            return
        silent = () in made
        shown = [(text, some) for text, some in made.items() if text]
        for position, (text, some) in enumerate(shown):
            if position == len(shown) - 1 and not silent:
                yield "else:"
            else:
                yield f"{'elif' if position else 'if'} {condition(some, self.kinds)}:"
            yield from (f"    {line}" for line in text)

    def update(self, kind: Kind) -> list[str]:
        lines = self.call(kind, kind.code.update)
        if kind.code.matrix:
            lines.append("if matrix.data_ptr() != p.data_ptr():  # p's strides have no such view")
            lines.append("    p.copy_(matrix.view(p.shape))")
        return lines

    def call(self, kind: Kind, function: Function, result: str = "") -> list[str]:
        lines = []
        view = ""
        t = 'state["step"]' if function is kind.code.update else 'state["step"] + 1'
        values = {"p": "p", "g": "g", "t": t, "place": "place", "examples": "examples"}
        if kind.code.matrix:
            lines += [kind.rows, "matrix = p.reshape(rows, p.numel() // rows)  # a conv kernel as out x rest"]
            values |= {"p": "matrix", "g": "g.reshape(matrix.shape)"}
            view = ".view(matrix.shape)"
        if "lr_ratio" in function.params:
            ratio = 'group["lr"] / group["reference_lr"] if group["reference_lr"] != 0 else 1.0'
            lines.append(f"lr_ratio = {ratio if 'lr' in self.program.defaults else '1.0'}")
        values |= {name: f'group["{name}"]' for name in self.program.defaults}
        for slot in kind.code.slots:
            values[slot.name] = f'state["{slot.name}"]' + (view if slot.extent == EXTENTS["full"] else "")
        for barrier in kind.code.barriers:
            values |= {total.name: self.shared(total, kind, barrier) for total in barrier.totals}
        args = [values.get(name, name) for name in self.params(function)]
        lines += wrapped(f"{result}{kind.name(function)}(", args, ")", "", _WIDTH - 24)
        return lines

    # Values that all parameters share -----------------------------------------------------------------------------

    def answers(self) -> list[str]:
        args = [
            f"\"optimizer '{self.program.name}'\"",
            "closure",
            "[p for p, *_ in work]",
            f"takes_gradient={closures.calls_backward(self.needs)}",
            f'maximize=[group["maximize"] for {self.item()} in work]',
            *(["examples=examples"] if self.needs.examples else []),
        ]
        return wrapped("answers = Closure(", args, ")", "        ")

    @staticmethod
    def shaped(total: Total) -> bool:
        """Whether it is a closure's answer of the parameter's shape, another for each parameter."""
        return total.combine == "closure" and not total.scalar

    def shared(self, total: Total, kind: Kind, barrier: Barrier) -> str:
        """A shared value as an argument."""
        name = self.totals[total.place]
        if not self.shaped(total):
            return name
        if not kind.code.matrix:
            return f"{name}[index]"
        reshaped = f"{name}[index].reshape(matrix.shape)"
        return f"None if {name}[index] is None else {reshaped}" if _sometimes(barrier) else reshaped

    def exchange(self, level: int) -> Iterator[str]:
        """Joins what the parameters have to share in one level, and asks what they have to ask."""
        barriers = [barrier for kind in self.kinds if (barrier := kind.barrier(level))]
        totals = {total.place: total for barrier in barriers for total in barrier.totals}
        asked = {place: total for place, total in totals.items() if total.combine == "closure"}
        for place, total in totals.items():
            name = self.totals[place]
            if place not in asked:
                yield f"{name} = None"
                continue
            yield f"{name}_asked: list[Any] = [None] * len(work)"
            yield from (f"{number} = None" for number in self.numbers(total))
        yield from self.loop(list(self.each(lambda kind: self.share(kind, level))), bool(asked))
        for place, total in asked.items():
            name = self.totals[place]
            numbers = "".join(f", {number}" for number in self.numbers(total))
            answer = f'answers("{total.op}", {name}_asked{numbers})'
            if any(_sometimes(barrier) for barrier in barriers if total in barrier.totals):
                nothing = "None" if total.scalar else "[None] * len(work)"
                yield f"{name} = {nothing}"
                yield f"if any(each is not None for each in {name}_asked):"
                yield f"    {name} = {answer}"
            else:
                yield f"{name} = {answer}"

    def numbers(self, total: Total) -> list[str]:
        """Local names of a closure operator's arguments but the first."""
        number = self.totals[total.place].removeprefix(total.op)  # "_2" for a second one
        return [param + number for param in OPS[total.op].params[1:]]

    def share(self, kind: Kind, level: int) -> list[str]:
        barrier = kind.barrier(level)
        if barrier is None:
            return []
        targets, after = [], []
        for total in barrier.totals:
            name = self.totals[total.place]
            if total.combine == "closure":
                numbers = self.numbers(total)
                targets += [f"{name}_asked[index]", *(f"{number}_here" for number in numbers)]
                after += [f"{number} = {number}_here if {number} is None else {number}" for number in numbers]
                continue
            targets.append(f"{name}_share")
            flat = f"{name}_share" + (".reshape(())" if kind.code.matrix and total.scalar and not total.plain else "")
            joined = f"{name} + {flat}" if total.combine == "sum" else f"torch.maximum({name}, {flat})"
            after.append(f"{name} = {flat} if {name} is None else {joined}")
        left = f"({targets[0]},)" if len(targets) == 1 else ", ".join(targets)
        return [*self.call(kind, barrier.share, f"{left} = "), *after]

    # The evaluation point -----------------------------------------------------------------------------------------

    @staticmethod
    def swap(kind: Kind) -> list[str]:
        if not kind.code.evaluation:
            return []
        other = f'state["{kind.code.evaluation}"]'
        return [f"other = {other}.clone()", f"{other}.copy_(p)", "p.copy_(other)"]


def _sometimes(barrier: Barrier) -> bool:
    """Whether it asks at some steps only: what it gives is None at the others."""
    return any(" else None" in line for line in barrier.share.body[-1:])
