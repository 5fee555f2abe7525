"""The command that compares optimizers fairly: `discover compare`.

Every contender, the baseline as well, is tuned on each task with the same budget, several times over; the best setting
of each tuning is trained on fresh seeds, the same for all; statistics are of those runs alone (`discover.verdict`).
All that is trained is kept in the store, so that a comparison that was interrupted goes on, and what was tuned once is
used again by every later comparison on the same task, budget and versions.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from discover import footprint, named_tasks, plain, verdict
from discover.asks import Ask, evenly
from discover.console import Rows
from discover.contenders import Contender, RuleContender, check, contender, spelled
from discover.durations import format_duration
from discover.errors import UserError
from discover.files import free, refused, remove_empty, write_whole
from discover.footprint import Footprint
from discover.keeper import StoppedError
from discover.pieces import CORE, ONE_GPU
from discover.pruners import Pruner
from discover.runs import directory
from discover.statistics import Estimate
from discover.storage import as_typed, default_url, masked, public_url
from discover.studies import Tuned, TuningBudget
from discover.verdict import Cell, Reach, Verdict, percent
from discover.workers import Request
from discover.workshop import Staff, Workshop, interrupted, opened
from tasks import Task, references

FORMAT = 1
"""Version of compare.json."""

TASKS = ("digits_mlp", "digits_autoencoder", "digits_cnn", "bytes_mlp")
"""What is trained where no task is named: each takes seconds."""

BASELINE = "adamw"
POINTS = 20
"""Of a curve, at even distances, the end left out."""

_STUDIES = 100  # studies of seed s are 100 s, 100 s + 1, ...
_SEEDS = 10**6  # of greater ones the studies would be promotion's (`promote.STAGE`)


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    Attributes:
        trials: settings of each tuning.
        seeds: fresh seeds on each task, rounded up to as many for every tuning.
        tunings: how often each contender is tuned, each time on seeds of its own.
        tuning_seeds: on which each setting is trained.
        steps: of each training; None for each task's horizon.
        seed: fixes everything.
        own: also tune hyperparameters other than lr and weight_decay.
        pruner: see `studies.TuningBudget`.
        device: where to train.
        target: a held-out loss; how many steps everybody needs to it is shown. Changes nothing that is trained.
    """

    trials: int = 20
    seeds: int = 24
    tunings: int = 6
    tuning_seeds: int = 2
    steps: int | None = None
    seed: int = 0
    own: bool = False
    pruner: Pruner = "none"
    device: str = "cpu"
    target: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError where a number is out of range."""
        if self.target is not None and not 0 < self.target < math.inf:
            raise UserError(f"--target {self.target:g}: expected a loss above 0")
        if not 0 <= self.seed < _SEEDS:
            raise UserError(f"--seed {self.seed}: expected 0 to {_SEEDS - 1}")
        if not 1 <= self.tunings <= _STUDIES:
            raise UserError(f"--tunings {self.tunings}: expected 1 to {_STUDIES}")
        if self.seeds < max(2, self.tunings):
            least = max(2, self.tunings)
            raise UserError(f"--seeds {self.seeds}: expected at least {least}, one for each tuning and two in all")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"--steps {self.steps}: expected at least 1")

    @property
    def budget(self) -> TuningBudget:
        fresh = math.ceil(self.seeds / self.tunings)
        return TuningBudget(self.trials, self.tuning_seeds, fresh, self.own, self.pruner)

    @property
    def studies(self) -> range:
        return range(self.seed * _STUDIES, self.seed * _STUDIES + self.tunings)


@dataclass(slots=True)
class Comparison:
    """A comparison, as far as it is.

    Attributes:
        results: task -> contender -> tunings.
        strides: task -> contender -> see `Ground.stride`.
        footprints: task -> contender -> what a step costs.
    """

    options: Options
    baseline: str
    contenders: Sequence[Contender]
    tasks: Mapping[str, Task]
    results: dict[str, dict[str, list[Tuned]]] = field(default_factory=dict)
    strides: dict[str, dict[str, float]] = field(default_factory=dict)
    footprints: dict[str, dict[str, Footprint]] = field(default_factory=dict)


def select(names: Sequence[str], baseline: str | None, task_names: Sequence[str], options: Options) -> Comparison:
    """Finds what was asked for, and tries whether every contender can train every task.

    Args:
        names: contenders, as `contenders.contender` takes them.
        baseline: one of them, or another, which then joins them; None: adamw.
        task_names: as `tasks.load` takes them; none for `TASKS`.

    Raises:
        UserError, RuleError: no such rule, class or task; a name given twice; nothing to compare; a contender that
            cannot train a task.
    """
    if twice := next((name for name in names if list(names).count(name) > 1), None):
        raise UserError(f"'{twice}' is given twice")
    reference = BASELINE if baseline is None else baseline
    asked = list(names) if reference in names else [reference, *names]
    if len(asked) < 2:
        raise UserError(f"'{asked[0]}' is all there is to compare; name another rule, or another one with --baseline")
    found = [contender(name) for name in asked]
    loaded: dict[str, Task] = {}
    for name in task_names or TASKS:
        task = named_tasks.load(name)
        loaded[task.spelling] = task
    for one in found:
        for task in loaded.values():
            check(one, task)
    return Comparison(options, reference, found, loaded)


def carry_out(comparison: Comparison, workshop: Workshop, *, compile: bool = True) -> None:
    """Tunes and scores every contender on every task, and measures what a step costs.

    Raises:
        StoppedError: the workshop was asked to stop; what was trained is in the store.
        UserError: losses that cannot be compared; ClusterError: the workers' cluster is gone.
    """
    request = _request(comparison.options.device, workshop)
    for answer in workshop.tuned(_asks(comparison, compile, request)):
        ask, found = answer.ask, answer.tunings
        task, name = ask.task.spelling, ask.contender.name
        comparison.results.setdefault(task, {})[name] = found
        comparison.strides.setdefault(task, {})[name] = workshop.ground(ask).stride(ask.contender)
        mean = math.exp(float(verdict.log_losses(found).mean()))
        workshop.say(f"{task}: {name} {mean:.4g} ({format_duration(answer.seconds)})")
    for name, loaded in comparison.tasks.items():  # when nothing trains beside it
        task_there = footprint.placed(loaded, comparison.options.device)
        comparison.footprints[name] = footprint.measure(comparison.contenders, task_there)


def _request(device: str, workshop: Workshop) -> Request:
    """What workers must have for a device."""
    if device == "cpu" or workshop.staff.workers == 0:
        return CORE
    if torch.device(device).type != "cuda":
        raise UserError(f"--device {device}: workers train on CPUs and CUDA GPUs; for this one give --workers 0")
    place = workshop.place(ONE_GPU)
    if place.missing:
        raise UserError(f"--device {device}: {place.missing}")
    return place.request


def _asks(comparison: Comparison, compile: bool, request: Request) -> Iterator[Ask]:
    options = comparison.options
    for task in comparison.tasks.values():
        steps = task.horizon if options.steps is None else options.steps
        for one in comparison.contenders:
            yield Ask(
                contender=one,
                task=task,
                steps=steps,
                budget=options.budget,
                seeds=options.studies,
                curve=evenly(steps, POINTS),
                device=options.device if request == CORE else "cuda",  # a worker sees the one GPU that is its own
                compile=compile,
                request=request,
            )


def judged(comparison: Comparison) -> Verdict:
    """The verdict; the same for the same results."""
    return verdict.judge(comparison.results, comparison.baseline, np.random.default_rng(comparison.options.seed))


def reached(comparison: Comparison) -> dict[str, dict[str, Reach]]:
    """Task -> contender -> how soon it reaches the target; nothing where none is stated."""
    target = comparison.options.target
    if target is None:
        return {}
    rng = np.random.default_rng(comparison.options.seed)
    return {
        task: {name: verdict.reach(tuned, target, rng) for name, tuned in row.items()}
        for task, row in comparison.results.items()
    }


# The command ----------------------------------------------------------------------------------------------------------


def run(
    names: Sequence[str],
    task_names: Sequence[str],
    options: Options,
    *,
    baseline: str | None,
    storage: str | None,
    staff: Staff,
    out: Path | None,
    as_json: bool,
    command: Sequence[str],
) -> None:
    """Compares, shows what came of it, and writes compare.json and a picture.

    Args:
        names, task_names, baseline: see `select`.
        storage: URL of an Optuna storage; None for the user's own file.
        staff: who trains.
        out: folder for what is written; None for a new one among the runs.
        as_json: print JSON on stdout, and what is shown to people on stderr.
        command: what was typed.

    Raises:
        UserError: a mistake of the user's; nothing has been trained then.
    """
    console = Console(stderr=as_json)
    torch.set_num_threads(1)
    if staff.address is None:
        check_device(options.device)
    comparison = select(names, baseline, task_names, options)
    runs = len(comparison.tasks) * len(comparison.contenders) * options.tunings * options.budget.planned
    url, began = storage or default_url(), time.perf_counter()
    folder = free(directory() / f"compare-{datetime.now():%Y%m%d-%H%M%S}") if out is None else out
    try:
        with opened(url, staff, console, runs=runs, before=lambda: _make(folder)) as workshop:
            carry_out(comparison, workshop)
    except StoppedError:
        remove_empty(folder)
        interrupted(console, url, as_json=as_json)
        return
    except UserError:
        remove_empty(folder)
        raise
    seconds = time.perf_counter() - began
    found = judged(comparison)
    data = data_of(comparison, found, command, seconds, public_url(url))
    write_whole(folder / "compare.json", json.dumps(data, indent=1) + "\n")
    from discover.pictures import draw

    write_whole(folder / "compare.png", draw(comparison.results, found))
    _show(comparison, found, console)
    for line in ("", *_endings(comparison, found, folder, masked(url), seconds)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(data | {"folder": str(folder)}, indent=1))


def data_of(
    comparison: Comparison, found: Verdict, command: Sequence[str], seconds: float, storage: str | None
) -> dict[str, Any]:
    """What compare.json holds: what was asked, of whom, every run on a fresh seed, statistics and words. An older file
    has no "contenders" of its own: rules go by their fingerprints there."""
    rows: dict[str, Any] = {}
    soon = reached(comparison)
    for task, row in comparison.results.items():
        rows[task] = {
            "steps": next(iter(row.values()))[0].horizon,
            "data_sha256": comparison.tasks[task].data_sha256,
            "contenders": {
                name: {
                    **_cell(found.cells[task][name]),
                    **({"to_target": plain.ready(asdict(soon[task][name]))} if soon else {}),
                    "stride": comparison.strides[task][name],
                    "step_seconds": comparison.footprints[task][name].seconds,
                    "state_bytes": comparison.footprints[task][name].state_bytes,
                    "tunings": [plain.ready(asdict(each)) for each in tuned],
                }
                for name, tuned in row.items()
            },
        }
    overall = {name: plain.ready(asdict(each)) for name, each in found.overall.items()}
    return {
        "format": FORMAT,
        "command": as_typed(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "storage": storage,
        "options": asdict(comparison.options),
        "baseline": comparison.baseline,
        "rules": {one.name: one.fingerprint for one in comparison.contenders},
        "contenders": {
            one.name: {"text": next(iter(spelled(one).values())), "from": dict(one.origin)}
            for one in comparison.contenders
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "model_steps": sum(t.model_steps for row in comparison.results.values() for own in row.values() for t in own),
        "tasks": rows,
        "overall": overall,
        "words": list(verdict.words(found)),
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return dict(plain.ready(asdict(cell)))


# What a person sees ---------------------------------------------------------------------------------------------------

COLUMNS = ("rule", "loss", "vs {}", "p", "speed-up", "lr", "decay", "step", "bytes")
TO_TARGET = 5
"""Where the column of steps to the target stands, if there is one."""


def _show(comparison: Comparison, found: Verdict, console: Console) -> None:
    soon = reached(comparison)
    for task, row in found.cells.items():
        steps = next(iter(comparison.results[task].values()))[0].horizon
        console.print(f"\n{task}, {steps} steps", style="bold", highlight=False, markup=False)
        columns = [column.format(found.baseline) for column in COLUMNS]
        prints = comparison.footprints[task]
        ordered = sorted(row, key=lambda name: row[name].loss.value)
        lines = [_row(name, row[name], prints[name], prints[found.baseline]) for name in ordered]
        if soon:
            columns.insert(TO_TARGET, f"to {comparison.options.target:g}")
            for name, cells in zip(ordered, lines, strict=True):
                cells.insert(TO_TARGET, _steps_to(soon[task][name]))
        console.print(Rows(columns, lines))
    console.print()
    for line in verdict.words(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _row(name: str, cell: Cell, cost: Footprint, reference: Footprint) -> list[str]:
    lost = f", {cell.lost} of {cell.runs} lost" if cell.lost else ""
    decay = "" if cell.weight_decay is None else f"{cell.weight_decay:.2g}"
    return [
        name,
        references.loss_and_error(cell.loss.value, _half(cell.loss)) + lost,
        "" if cell.difference is None else f"{percent(cell.difference.value)}{_mark(cell)}",
        "" if cell.p is None else f"{cell.p:.2g}",
        "" if cell.speed_up is None else f"{cell.speed_up.value:.2f}x",
        f"{cell.learning_rate:.2g}{' (edge)' if cell.at_edge else ''}",
        decay,
        _step_time(cost, reference),
        f"{cost.state_bytes:.2g}",
    ]


def _steps_to(reach: Reach) -> str:
    """ "3250 (3100 to 3400)", "not reached": on the mean curve, with its interval."""
    value, low, high = (
        f"{steps:.0f}" if math.isfinite(steps) else "not reached"
        for steps in (reach.steps.value, reach.steps.low, reach.steps.high)
    )
    some = f" (by {reach.reached} of {reach.runs} runs)" if value == "not reached" and reach.reached else ""
    return f"{value}{some}" if value == low == high else f"{value} ({low} to {high})"


def _step_time(cost: Footprint, reference: Footprint) -> str:
    if cost.seconds is None:
        return ""
    if cost is reference or reference.seconds is None:
        return f"{1e6 * cost.seconds:.0f} us"
    return f"{cost.seconds / reference.seconds:.2f}x"


def _mark(cell: Cell) -> str:
    return {"better": " better", "worse": " worse"}.get(cell.call or "", "")


def _half(estimate: Estimate) -> float:
    half = (estimate.high - estimate.low) / 2
    return half if math.isfinite(half) else 0.0


def _endings(comparison: Comparison, found: Verdict, folder: Path, url: str, seconds: float) -> Iterator[str]:
    options, budget = comparison.options, comparison.options.budget
    yield (
        f"loss: held-out, geometric mean over {options.tunings * budget.fresh} fresh seeds ± half of its 95 % interval."
        f" vs: the loss relative to {found.baseline}'s, by the same means."
    )
    yield (
        "In the sentences above: the interquartile mean of these differences over all tasks, which leaves out a quarter"
        " of the runs at either end; so it is another number, on one task too."
    )
    yield (
        "p: of no difference, Holm-corrected. speed-up: in steps, to what both reach. lr, decay: of the best settings."
    )
    if options.target is not None:
        yield (
            f"to {options.target:g}: steps to that held-out loss on the mean curve over fresh seeds, linear between its"
            f" {POINTS} points, and the 95 % bootstrap interval over {'tunings' if options.tunings > 1 else 'seeds'};"
            " the schedule ends with the training, and a shorter one may get there sooner."
        )
    yield f"step: time of the optimizer alone on these parameters, {found.baseline}'s and relative to it."
    yield "bytes: of state for each parameter."
    each = (
        f"{options.tunings} x {budget.trials} trials on {budget.seeds} seeds"
        if options.tunings > 1
        else (f"{budget.trials} trials on {budget.seeds} seeds")
    )
    yield f"tuned: {each} for every rule and task, lr and weight decay{' and the others' if options.own else ''}."
    for one in comparison.contenders:
        if isinstance(one, RuleContender) and one.asks:
            yield f"{one.name} asks for {', '.join(one.asks)} as well: its steps cost more than those of the others."
    if options.tunings == 1:
        yield "Tuned once: intervals and p leave out the luck of tuning; --tunings 6 takes it in."
    for task, row in comparison.results.items():
        for name, tuned in row.items():
            if edge := sum(one.at_edge for one in tuned):
                yield (
                    f"{task}: {name}'s best learning rate lies at the edge of what was tried in {edge} of {len(tuned)}"
                    " tunings; more --trials extend it"
                )
    yield f"{format_duration(seconds)}; written to {folder}; studies in {url}"


def check_device(name: str) -> None:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).strip().splitlines()[0]}") from None


def _make(folder: Path) -> None:
    """Makes the folder for what is written, so that what cannot be written is said before anything is trained."""
    if reason := refused(folder):
        raise UserError(f"cannot make the folder '{folder}': {reason}; --out names another one")
