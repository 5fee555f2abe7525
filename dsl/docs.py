"""Writes the operators' table into docs/language.md: `python -m dsl.docs`."""

from __future__ import annotations

import re
from pathlib import Path

from dsl.ops import OPS, Op

PAGE = Path(__file__).parent.parent / "docs" / "language.md"
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
}


def table() -> str:
    """The operators as Markdown, a table for each group."""
    parts = []
    for group, title in GROUPS.items():
        parts.append(f"#### {title}\n\n| operator | meaning | passes |\n| --- | --- | --- |\n")
        parts += [f"| `{_usage(op)}` | {_meaning(op)} | {_cost(op)} |\n" for op in OPS.values() if op.group == group]
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
    kinds = {"mask": "a mask", "number": "a number", "scalar": "a scalar"}
    notes += [f"`{param}` is {kinds[kind]}." for param, kind in op.kinds.items() if kind in kinds and param != kind]
    if op.expand:
        notes.append(f"Short for `{op.expand}`.")
    if op.special:
        notes.append(f"Special values: {op.special}.")
    return " ".join(notes).replace("|", "\\|")


def _cost(op: Op) -> str:
    return "" if op.expand else f"{op.cost:g}"


def updated(page: str) -> str:
    """The page with the table between its markers as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}{END}{after}"


def examples(page: str) -> list[str]:
    """The whole rules shown on the page."""
    return [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if text.startswith("def ")]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
