"""Commands that show what there is: report, compare-runs, list."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from discover.cli_options import Json, Kind, RunArgument, print_json
from discover.errors import UserError

if TYPE_CHECKING:
    from discover.console import Rows


def report(
    run: RunArgument,
    out: Annotated[
        Path | None,
        Option("-o", "--out", metavar="FILE.html", help="The file; by default report.html in the run's folder."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a run as one HTML page, also while it is searching."""
    from discover import report as reporting

    reporting.run(run, out=out, as_json=json)


def compare_runs(
    run: Annotated[
        list[str], Argument(metavar="RUN...", help="Runs' folders, names or beginnings of them, or 'last'.")
    ],
    json: Json = False,
) -> None:
    """Show runs side by side: fitness over compute, funnel, best rules. Seeds of one search are taken together."""
    from discover import report_runs

    report_runs.run(run, as_json=json)


def list_(what: Annotated[Kind, Argument(help="What to list.")], json: Json = False) -> None:
    """List rules, tasks, search spaces or runs.

    Of a rule: its state (with extents other than the parameter's shape), in bytes per element of a 4096 x 4096 matrix;
    what it is (odd: the opposite gradient gives the opposite step; degree k: c times the gradient gives c**k times the
    step; elementwise); what opt.step needs beside gradients. A wrapper's are its own.

    Of a space: how far its proxies agree with its select tasks on the order of known rules (Spearman, 95 % interval),
    and at what part of their cost; see discover calibrate.
    """
    rows = _LISTS[what]()
    if json:
        print_json(rows)
    elif not rows:
        print(f"no {what} yet")
    else:
        _print(rows, [name for name in rows[0] if name not in _JSON_ALONE.get(what, ())], _WHERE_WIDE.get(what, ()))


def _print(rows: Sequence[Mapping[str, Any]], columns: list[str], where_wide: Sequence[str]) -> None:
    """A table; of the columns in `where_wide` that say anything as many, from the first on, as there is room for. Where
    there is not room for all, variants of what stands above them are shown by their options alone."""
    from rich.console import Console

    from discover.console import Rows

    def table(*, brief: bool = False) -> Rows:
        cells = [[_shown(name, row[name]) for name in columns] for row in rows]
        above = ""
        for row in cells if brief else ():
            if above and row[0].startswith(f"{above}("):
                row[0] = f"  {row[0].removeprefix(above)}"
            else:
                above = row[0]
        return Rows(columns, cells)

    for name in [name for name in where_wide if not any(row[name] for row in rows)]:
        columns.remove(name)
    console, left = Console(), [name for name in where_wide if name in columns]
    anything = console.options.update(max_width=10_000)
    while left and console.measure(table(), options=anything).maximum > console.width:
        columns.remove(left.pop())
    console.print(table(brief=console.measure(table(), options=anything).maximum > console.width))


def _shown(name: str, value: object) -> str:
    if name == "flops" and isinstance(value, float):
        return re.sub(r"e\+0*", "e", f"{value:.1e}")
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rules() -> list[dict[str, Any]]:
    import dsl
    from dsl import zoo
    from dsl.library import registered_names

    rows = []
    for registered, names in ((False, dsl.names()), (True, registered_names())):
        for name in names:
            row: dict[str, Any] = dict.fromkeys(("rule", "year", "state", "bytes", "is", "needs", "kind"), "")
            row |= {"rule": name, "kind": "registered" if registered else "rule"}
            rows.append(row)
            try:
                entry = zoo.entry(name)
            except dsl.RuleError as error:
                row["is"] = row["about"] = f"cannot be read: {error}"
                continue
            found = entry.source
            row |= {"rule": entry.name if not registered else name, "year": found.year if found else ""}
            row |= {"state": " ".join(entry.state), "bytes": entry.state_bytes}
            row |= {"is": ", ".join(entry.traits), "needs": entry.needs}
            row |= {"kind": "registered" if registered else entry.kind}
            row |= {"about": dsl.load(name).doc.partition("\n")[0], "source": found.text if found else ""}
            row["link"] = found.link if found else ""
    return rows


def _tasks() -> list[dict[str, Any]]:
    """The built-in tasks, each with those of its variants that have a reference."""
    import tasks

    try:
        variants = tasks.variants()
    except ValueError as error:
        raise UserError(str(error)) from None
    rows = []
    for name in [each for base in tasks.names() for each in (base, *(x for x in variants if x.startswith(f"{base}(")))]:
        row: dict[str, Any] = dict.fromkeys(("task", "class", "parameters", "batch", "steps", "flops", "reference"), "")
        row["task"] = name
        rows.append(row)
        try:
            task = tasks.load(name)
        except ValueError as error:  # its data come with a package that is not installed
            row["reference"] = str(error)
            continue
        row |= {"class": task.size_class, "parameters": task.size, "batch": task.batch_size, "steps": task.horizon}
        row["flops"] = float(f"{task.training_flops:.2g}")
        try:
            row["reference"] = tasks.reference(name) or "none"
        except ValueError as error:
            raise UserError(str(error)) from None
    return rows


def _spaces() -> list[dict[str, Any]]:
    from discover import calibration, space

    rows = []
    for name in space.names():
        loaded = space.Space.load(name)
        short, long = calibration.brief(name, loaded), calibration.line(name, loaded)
        rows.append({"space": name, "about": loaded.description, "proxies agree": short, "calibration": long})
    return rows


def _runs() -> list[dict[str, Any]]:
    from discover import runs

    return [runs.describe(folder) for folder in runs.folders()]


_JSON_ALONE = {Kind.rules: ("about", "source", "link"), Kind.spaces: ("calibration",)}
"""What a list says to machines only: too long for a line."""

_WHERE_WIDE = {Kind.runs: ("incidents", "algorithm", "tasks")}
"""What a list says to people where there is room for it; `--json` always has it."""

_LISTS: dict[Kind, Callable[[], list[dict[str, Any]]]] = {
    Kind.rules: _rules,
    Kind.tasks: _tasks,
    Kind.spaces: _spaces,
    Kind.runs: _runs,
}
