"""Writes the operators' table into docs/language.md and the rules' tables into docs/zoo.md: `python -m dsl.docs`."""

from __future__ import annotations

import re
from pathlib import Path

from dsl import zoo
from dsl.ops import OPS, Op

PAGE = Path(__file__).parent.parent / "docs" / "language.md"
ZOO = PAGE.parent / "zoo.md"
BEGIN = "<!-- operators: written by `python -m dsl.docs` -->"
END = "<!-- end of operators -->"

GROUPS = {
    "arithmetic": "Arithmetic",
    "comparison": "Comparison and choice",
    "elementwise": "Element by element",
    "reduction": "Over a tensor, its rows or its columns",
    "global": "Over all parameters",
    "matrix": "Matrices (under `if matrix(p)`)",
    "shape": "Sizes (under `if matrix(p)`)",
    "history": "What is remembered of all parameters",
    "random": "Draws",
    "eight bits": "Eight bits",
    "closure": "What a closure answers",
}


def table() -> str:
    """The operators as Markdown, a table for each group."""
    parts = []
    for group, title in GROUPS.items():
        parts.append(f"#### {title}\n\n| operator | meaning | passes |\n| --- | --- | --- |\n")
        shown = [op for op in OPS.values() if op.group == group and not op.name.startswith("draw_")]
        parts += [f"| `{_usage(op)}` | {_meaning(op)} | {_cost(op)} |\n" for op in shown]
        parts.append("\n")
    return "".join(parts)


def _usage(op: Op) -> str:
    if op.infix:
        return f"{op.params[0]} {op.infix} {op.params[1]}"
    if op.name == "neg":
        return "-a"
    return f"{op.name}({', '.join(op.params)})"


def _meaning(op: Op) -> str:
    notes = [op.doc]
    kinds = {"mask": "a mask", "number": "a number", "scalar": "a scalar", "code": "of codes"}
    notes += [f"`{param}` is {kinds[kind]}." for param, kind in op.kinds.items() if kind in kinds and param != kind]
    if op.expand and op.group != "random":  # a draw's long form is written for the user
        notes.append(f"Short for `{op.expand}`.")
    if op.special:
        notes.append(f"Special values: {op.special}.")
    return " ".join(notes).replace("|", "\\|")


def _cost(op: Op) -> str:
    if op.group == "random":
        return f"{OPS[f'draw_{op.name}'].cost:g}"
    return "" if op.expand else f"{op.cost:g}"


def updated(page: str) -> str:
    """The page with the table between its markers as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}{END}{after}"


def examples(page: str) -> list[str]:
    """The whole rules shown on the page."""
    return [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if text.startswith("def ")]


# The zoo ------------------------------------------------------------------------------------------------------------

_HEAD = """# The zoo

The built-in rules, each a text of a few lines: `discover show NAME` prints it, `--latex` as a formula, `--code` as
PyTorch, `discover export NAME -o FILE.py` writes it as one file. `discover list rules` is this page on the terminal.
Every rule follows an independent implementation, or the equations of its paper, for fifty steps; `python -m tests.zoo`
says which and how closely. What a rule leaves out of its paper, and where it follows the authors' code instead, its own
text says.

- **state**: what is kept for each parameter; with its extent, where that is not the parameter's shape. A rule that
  treats kinds of parameters differently keeps for each only what it uses.
- **bytes**: of state, per element of a float32 matrix of 4096 x 4096; a wrapper's own.
- **needs**: what `opt.step` must be given beside gradients: a closure that answers these operators, or the number of
  examples; see [closures.md](closures.md).
- **is**: measured. *odd*: the opposite gradient gives the opposite step. *degree k*: a gradient c times as large gives
  a step c^k times as large. *elementwise*: rows and columns mean nothing to it.

This page is written by `make docs`.
"""


def zoo_page() -> str:
    """docs/zoo.md as it should be."""
    parts = [_HEAD]
    for group, entries in zoo.entries().items():
        wrappers = any(entry.kind == "wrapper" for entry in entries)
        columns = ["rule", "year", "what it does", "source", "state", "bytes", "needs"] + ([] if wrappers else ["is"])
        parts.append(f"\n## {group}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n")
        parts += [f"| {' | '.join(_cells(entry)[: len(columns)])} |\n" for entry in entries]
    parts.append("\n## Not update rules\n\n| what | why |\n| --- | --- |\n")
    parts += [f"| {what} | {why} |\n" for what, why in zoo.NOT_RULES.items()]
    return "".join(parts)


def _cells(entry: zoo.Entry) -> list[str]:
    found = entry.source
    cited = "" if found is None else f"[{found.text}]({found.link})" if found.link else found.text
    return [
        f"`{entry.name}`",
        str(found.year) if found else "",
        (found.about if found else "").replace("|", "\\|"),
        cited,
        " ".join(f"`{slot}`" for slot in entry.state),
        f"{entry.state_bytes:g}",
        entry.needs,
        ", ".join(entry.traits),
    ]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    ZOO.write_text(zoo_page(), encoding="utf-8")
