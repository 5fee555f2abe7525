"""Writes the table of built-in tasks into docs/tasks.md: `python -m tasks.docs`."""

from __future__ import annotations

from pathlib import Path

from tasks.library import load, names
from tasks.task import Task

PAGE = Path(__file__).parent.parent / "docs" / "tasks.md"
BEGIN = "<!-- tasks: written by `python -m tasks.docs` -->"
END = "<!-- end of tasks -->"


def table() -> str:
    """The built-in tasks as Markdown, cheapest first as `names` has them."""
    head = "| task | what | class | parameters | batch | steps | FLOPs |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    return head + "".join(map(_row, map(load, names())))


def _row(task: Task) -> str:
    cells = (
        f"`{task.name}`",
        task.title,
        task.size_class,
        f"{task.size:,}",
        str(task.batch_size),
        str(task.horizon),
        f"{task.training_flops:.0e}".replace("e+0", "e").replace("e+", "e"),
    )
    return f"| {' | '.join(cells)} |\n"


def updated(page: str) -> str:
    """The page with the table between its markers as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
