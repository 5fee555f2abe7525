"""Writes the tables of built-in tasks, and of their variants, into docs/tasks.md: `python -m tasks.docs`."""

from __future__ import annotations

from pathlib import Path

from tasks import references
from tasks.library import load, names
from tasks.task import Task

PAGE = Path(__file__).parent.parent / "docs" / "tasks.md"
BEGIN = "<!-- tasks: written by `python -m tasks.docs` -->"
END = "<!-- end of tasks -->"
BEGIN_VARIANTS = "<!-- variants: written by `python -m tasks.docs` -->"
END_VARIANTS = "<!-- end of variants -->"


def table() -> str:
    """The built-in tasks as Markdown, cheapest first as `names` has them."""
    head = "| task | what | class | parameters | batch | steps | FLOPs |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    return head + "".join(map(_row, map(load, names())))


def variants_table() -> str:
    """The variants that have a reference, as Markdown."""
    stored = references.read(references.PATH)
    head = "| variant | batch | steps | FLOPs | loss of tuned AdamW |\n| --- | --- | --- | --- | --- |\n"
    rows = []
    for name in references.variants():
        task, found = load(name), stored[name]
        reached = references.loss_and_error(found.loss, found.standard_error)
        cells = (f"`{name}`", str(task.batch_size), str(task.horizon), _flops(task), reached)
        rows.append(f"| {' | '.join(cells)} |\n")
    return head + "".join(rows)


def _row(task: Task) -> str:
    cells = (
        f"`{task.name}`",
        task.title,
        task.size_class,
        f"{task.size:,}",
        str(task.batch_size),
        str(task.horizon),
        _flops(task),
    )
    return f"| {' | '.join(cells)} |\n"


def _flops(task: Task) -> str:
    return f"{task.training_flops:.0e}".replace("e+0", "e").replace("e+", "e")


def updated(page: str) -> str:
    """The page with the tables between their markers as they are now."""
    for begin, made, end in ((BEGIN, table(), END), (BEGIN_VARIANTS, variants_table(), END_VARIANTS)):
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n\n{made}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
