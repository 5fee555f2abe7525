"""What exported text is made of: its layout, as a formatter would leave it, and what is the same in every file."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

WIDTH = 120
_POWER = re.compile(r"(?<![\w.)\]])(\d+(?:\.\d+)?) \*\* (\w+)(?![\w.(\[])")


def wrapped(head: str, items: list[str], tail: str, indent: str, width: int = WIDTH) -> list[str]:
    """One line, or, where that is too long, one line an item."""
    line = f"{indent}{head}{', '.join(items)}{tail}"
    if len(line) <= width:
        return [line]
    return [indent + head, *(f"{indent}    {item}," for item in items), indent + tail]


def block(text: str, indent: str = "    ") -> list[str]:
    """Indented lines of a text whose own indentation counts nothing."""
    return [indent + line if line else "" for line in inspect.cleandoc(text).split("\n")]


def folded(line: str) -> Iterator[str]:
    """A line of generated code; a long one is cut at the bracket that ends it, its contents on lines of their own."""
    line = _POWER.sub(r"\1**\2", line)
    opened = _bracket(line)
    if len(line) <= WIDTH or opened is None:
        yield line
        return
    indent = line[: len(line) - len(line.lstrip())]
    yield line[: opened + 1]
    inner = f"{indent}    {line[opened + 1 : -1]}"
    if len(inner) <= WIDTH:
        yield inner
    else:
        yield from (f"{indent}    {item}," for item in _items(line[opened + 1 : -1]))
    yield indent + line[-1]


def _bracket(line: str) -> int | None:
    """Where the bracket opens that ends the line."""
    if line[-1:] not in ")]}":
        return None
    depth = 0
    for place in range(len(line) - 1, -1, -1):
        depth += (line[place] in ")]}") - (line[place] in "([{")
        if depth == 0:
            return place
    return None


def _items(text: str) -> Iterator[str]:
    """What top-level commas separate."""
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            yield text[start:place].strip()
            start = place + 1
    yield text[start:].strip()


# Fixed text ---------------------------------------------------------------------------------------------------------

TELLS = {
    "grad_at": "clears the gradients, computes the loss, calls backward() and returns the loss; it is called again "
    "with the parameters at another point.",
    "hvp": "clears the gradients, computes the loss, calls backward(create_graph=True) and returns the loss.",
    "loss_at": "returns the loss, without backward(); it is called with the parameters at other points.",
    "sampled_grad": "takes sample=False; clears the gradients, computes the loss, calls backward() and "
    "returns the loss; with sample=True the labels are drawn from the model's own prediction.",
    "clipped_grad": "takes examples=False; with examples=True it returns the loss of each example, [examples], without "
    "backward().",
}

ADD_PARAM_GROUP = block(
    """
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        \"""Adds a group; schedules inside the rule go by its lr over the lr that it has now.\"""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("reference_lr", group["lr"])
    """
)

MODES = block(
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


def refusal(name: str, message: str) -> list[str]:
    return [f"        if {name} is None:", f'            raise ValueError("{message}")']


def refusal_while_evaluating() -> list[str]:
    return [
        '        if any(group["evaluating"] for group in self.param_groups):',
        '            raise ValueError("call train() before step(): the parameters are at the evaluation point")',
    ]


def import_lines(wanted: set[str]) -> Iterator[str]:
    """Import statements in the usual order: plain ones first, the standard library before torch; one line a module."""
    modules: dict[str, set[str]] = {}
    for line in wanted:
        words = line.split()
        names = modules.setdefault(f"{words[0]} {words[1]}", set())
        names |= {words[3]} if words[0] == "from" else set()
    for ours in (False, True):
        lines = [head for head in modules if (head.split()[1].partition(".")[0] == "torch") == ours]
        if ours:
            yield ""
        for head in sorted(lines, key=lambda head: (head.startswith("from"), head)):
            imported = sorted(modules[head], key=lambda name: (not name.isupper(), not name[0].isupper(), name))
            yield f"{head} import {', '.join(imported)}" if imported else head
