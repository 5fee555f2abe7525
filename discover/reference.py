"""The command that tunes AdamW on tasks and keeps what it reaches: `discover reference`.

Tuning is a grid: learning rates a factor 2 apart, around the task's own, times weight decays. The setting with the
least mean log loss over the *tuning seeds* wins, and is scored on *fresh seeds*, which had no say in choosing it. Where
the best lies at an edge of the grid, the grid is extended beyond that edge and tuning goes on; where it does not, the
learning rates halfway to its neighbours are tried as well, since half a step off can cost some percent of the loss.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shlex
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import dsl
import tasks
from discover import named_tasks
from discover.compare import check_device
from discover.console import Rows
from discover.contenders import RuleContender
from discover.durations import format_duration
from discover.errors import UserError, first_line, is_shortage
from discover.evaluate import LOSS_FLOOR
from discover.files import refused, write_whole
from discover.keeper import Keeper, Notebook
from discover.trainers import Ground, Run, model_steps, train
from dsl.library import registered_directory
from tasks import Reference, Task, references

RULE = "adamw"
LEARNING_RATE_FACTOR = 2.0
WEIGHT_DECAYS = (0.0, 0.01, 0.1)
WEIGHT_DECAY_FACTOR = 10.0
EXTENSIONS = 4
"""How often the grid may be extended: each time by a learning rate, by a weight decay, or by both."""

_FIRST_FRESH_SEED = 1000
_DIGITS = 6  # kept of a number that was computed

Setting = tuple[float, float]  # learning rate, weight decay
Told = Callable[[int, int], None]  # model steps done, model steps planned by now


@dataclass(frozen=True, slots=True)
class GridBudget:
    """How much tuning and scoring may cost, before the grid is extended and refined.

    Attributes:
        trials: settings in the first grid: learning rates times `WEIGHT_DECAYS`.
        tuning_seeds: trainings of each setting.
        fresh_seeds: trainings of the best setting.
    """

    trials: int = 27
    tuning_seeds: int = 16
    fresh_seeds: int = 32

    def __post_init__(self) -> None:
        """Raises UserError where a number makes no grid, or no standard error."""
        count = len(WEIGHT_DECAYS)
        if self.trials % count or self.trials < 3 * count:
            raise UserError(
                f"--trials {self.trials}: expected a multiple of {count}, at least {3 * count}: learning rates times "
                f"the weight decays {', '.join(f'{decay:g}' for decay in WEIGHT_DECAYS)}"
            )
        if not 1 <= self.tuning_seeds <= _FIRST_FRESH_SEED:
            raise UserError(f"--tuning-seeds {self.tuning_seeds}: expected 1 to {_FIRST_FRESH_SEED}")
        if self.fresh_seeds < 2:
            raise UserError(f"--seeds {self.fresh_seeds}: expected at least 2, since one has no standard error")

    def learning_rates(self, task: Task) -> tuple[float, ...]:
        points = self.trials // len(WEIGHT_DECAYS)
        return tuple(
            _rounded(task.learning_rate * LEARNING_RATE_FACTOR ** (index - points // 2)) for index in range(points)
        )

    def command(self, name: str, device: torch.device) -> str:
        there = "" if device.type == "cpu" else f" --device {device}"
        return (
            f"discover reference {shlex.quote(name)} --trials {self.trials} --tuning-seeds {self.tuning_seeds}"
            f" --seeds {self.fresh_seeds}{there}"
        )


class LostError(UserError):
    """AdamW does not train on a task."""


def calibrate(
    ground: Ground,
    budget: GridBudget,
    *,
    name: str | None = None,
    tell: Told = lambda done, planned: None,
    keeper: Keeper | None = None,
) -> Reference:
    """Tunes AdamW on a task at its full horizon, and scores the best setting on fresh seeds.

    Args:
        ground: the task, and where it is trained.
        budget: how many settings and seeds.
        name: what the reference says its task is called; by default the task's own spelling.
        tell: is called now and then with the model steps done and planned.
        keeper: keeps trainings; the same call with what it kept goes on from there.

    Raises:
        LostError: AdamW is lost (not finite, or rising) at every setting, or on a fresh seed.
    """
    task = ground.task
    name = name or task.spelling
    trials = _Trials(ground, budget, tell, keeper)
    rates: tuple[float, ...] = budget.learning_rates(task)
    decays: tuple[float, ...] = WEIGHT_DECAYS
    extensions = 0
    while True:
        best = trials.best(rates, decays)
        if math.isinf(trials.scores[best]):
            raise LostError(f"{name}: AdamW is lost at all {len(trials.scores)} settings, {_span(rates)}")
        grown = _extended(rates, decays, best)
        at_edge = grown != (rates, decays)
        if at_edge and extensions < EXTENSIONS:
            extensions += 1
        else:
            grown = _refined(rates, best[0]), decays
        if grown == (rates, decays):
            break
        rates, decays = grown
    losses = trials.train([best], trials.fresh_seeds)
    if math.inf in losses:
        seed = trials.fresh_seeds[losses.index(math.inf)]
        at = f"lr {best[0]:g}, weight decay {best[1]:g}"
        raise LostError(f"{name}: AdamW where it did best ({at}) is lost on fresh seed {seed}")
    loss, error = _mean_and_error(losses)
    return Reference(
        task=name,
        loss=_rounded(loss),
        standard_error=_rounded(error),
        losses=tuple(map(_rounded, losses)),
        learning_rate=best[0],
        weight_decay=best[1],
        learning_rates=rates,
        weight_decays=decays,
        at_edge=at_edge,
        trials=len(trials.scores),
        tuning_seeds=tuple(trials.tuning_seeds),
        fresh_seeds=tuple(trials.fresh_seeds),
        steps=task.horizon,
        model_steps=trials.done,
        data_sha256=task.data_sha256,
        versions={"python": platform.python_version(), "torch": torch.__version__},
        command=budget.command(name, task.device),
        date=datetime.now(UTC).date().isoformat(),
    )


class _Trials:
    """AdamW on one task: what was tried, and what that came to.

    Attributes:
        scores: mean log loss over the tuning seeds of each setting that was tried.
        done, planned: model steps.
    """

    def __init__(self, ground: Ground, budget: GridBudget, tell: Told, keeper: Keeper | None) -> None:
        self.ground, self.tell, self.keeper = ground, tell, keeper
        self.adamw = RuleContender(RULE, dsl.load(RULE))
        self.tuning_seeds = range(budget.tuning_seeds)
        self.fresh_seeds = range(_FIRST_FRESH_SEED, _FIRST_FRESH_SEED + budget.fresh_seeds)
        self.scores: dict[Setting, float] = {}
        self.done = self.planned = 0

    def best(self, rates: Sequence[float], decays: Sequence[float]) -> Setting:
        """The best setting, once all of a grid have been tried."""
        new = [(rate, decay) for decay in decays for rate in rates if (rate, decay) not in self.scores]
        trainings = len(new) * len(self.tuning_seeds) + len(self.fresh_seeds)
        self.planned = self.done + trainings * self.ground.steps
        self.tell(self.done, self.planned)
        by_seed = [self.train(new, [seed]) for seed in self.tuning_seeds]  # lanes of one seed share their batches
        for setting, losses in zip(new, zip(*by_seed, strict=True), strict=True):
            self.scores[setting] = _mean_log(losses)
        return min(self.scores, key=lambda setting: self.scores[setting])

    def train(self, settings: Sequence[Setting], seeds: Sequence[int]) -> list[float]:
        """The losses of all settings on all seeds, as many at once as fit into memory."""
        runs = [Run({"lr": rate, "weight_decay": decay}, seed) for rate, decay in settings for seed in seeds]
        traces = train(self.adamw, self.ground, runs, keeper=self.keeper)
        self.done += model_steps(traces)
        self.tell(self.done, self.planned)
        return [trace.loss for trace in traces]


def _extended(
    rates: tuple[float, ...], decays: tuple[float, ...], best: Setting
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The grid, one step wider at each edge that the best setting lies on. Weight decay 0 is an end, not an edge."""
    rate, decay = best
    if rate == rates[0]:
        rates = (_rounded(rate / LEARNING_RATE_FACTOR), *rates)
    elif rate == rates[-1]:
        rates = (*rates, _rounded(rate * LEARNING_RATE_FACTOR))
    if decay == decays[-1]:
        decays = (*decays, _rounded(decay * WEIGHT_DECAY_FACTOR))
    return rates, decays


def _refined(rates: tuple[float, ...], best: float) -> tuple[float, ...]:
    """The learning rates, and those halfway to the neighbours of the best where it has two, unless halved before."""
    place = rates.index(best)
    if not 0 < place < len(rates) - 1:
        return rates
    below, above = rates[place - 1], rates[place + 1]
    coarse = math.sqrt(LEARNING_RATE_FACTOR) * 1.01  # a step wider than this was not halved yet
    halves = [math.sqrt(low * high) for low, high in ((below, best), (best, above)) if high / low > coarse]
    return tuple(sorted([*rates, *map(_rounded, halves)]))


def _span(rates: Sequence[float]) -> str:
    return f"lr {rates[0]:.3g} to {rates[-1]:.3g}"


def _mean_log(losses: Sequence[float]) -> float:
    return statistics.fmean(math.log(max(loss, LOSS_FLOOR)) for loss in losses)


def _mean_and_error(losses: Sequence[float]) -> tuple[float, float]:
    """Geometric mean, and its standard error."""
    mean = math.exp(_mean_log(losses))
    logs = [math.log(max(loss, LOSS_FLOOR)) for loss in losses]
    return mean, mean * statistics.stdev(logs) / math.sqrt(len(logs))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


# The command --------------------------------------------------------------------------------------------------------


def run(names: Sequence[str], budget: GridBudget, *, device: str, out: Path | None, as_json: bool) -> None:
    """Calibrates tasks one after the other, and stores each when it is done. Those that are done are kept and shown
    whatever becomes of the next, and the trainings of one that was stopped or killed are there when it is asked for
    again.

    Args:
        names: built-in tasks or "FILE.py:NAME"; none for all that are built in.
        budget: of each task.
        device: where to train.
        out: where references are stored; by default built-in tasks' with the package, and others' nowhere.
        as_json: print JSON on stdout, and what is shown to people on stderr.

    Raises:
        UserError: no such device or task; a file that cannot be read or written; AdamW is lost; memory runs out.
    """
    check_device(device)
    loaded = {task.spelling: task for task in map(named_tasks.load, names or tasks.names())}
    built_in = {name for name in loaded if name.partition("(")[0] in tasks.names()}
    files = {name: out or (references.PATH if name in built_in else None) for name in loaded}
    for path in {path for path in files.values() if path}:
        _check_file(path)
    console = Console(stderr=as_json)
    torch.set_num_threads(1)
    found: list[Reference] = []
    seconds: list[float] = []
    stored: dict[str, Path | None] = {}
    try:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
        ) as progress:
            for name, task in loaded.items():
                began = time.perf_counter()
                kept = _kept(name)
                keeper = Notebook(kept) if not (reason := refused(kept)) else Keeper(None)
                if reason:
                    console.print(f"{name}: starts anew where it is stopped: cannot write '{kept}': {reason}")
                try:
                    found.append(_calibrate_with(progress, name, task, budget, device, keeper))
                except LostError:
                    shutil.rmtree(kept, ignore_errors=True)  # again it would come to the same
                    raise
                seconds.append(time.perf_counter() - began)
                stored[name] = None
                if file := files[name]:
                    _store(found[-1], file)
                    stored[name] = file
                shutil.rmtree(kept, ignore_errors=True)
    finally:
        if as_json and found:
            print(json.dumps({each.task: each.plain() for each in found}, indent=2))
        elif found:
            _show(found, seconds, stored, console)


def _calibrate_with(
    progress: Progress, name: str, task: Task, budget: GridBudget, device: str, keeper: Keeper
) -> Reference:
    """Shows a bar while it runs; where bars cannot be drawn, a line when it is done."""
    console, bar = progress.console, progress.add_task(name, total=None)

    def tell(done: int, planned: int) -> None:
        progress.update(bar, completed=done, total=planned)

    try:
        ground = Ground(task, device=device)
        if note := ground.gradient.note:
            console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
        reference = calibrate(ground, budget, name=name, tell=tell, keeper=keeper)
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise UserError(
            f"{name}: out of memory ({first_line(error)[:120]}); take smaller batches or a `microbatch`, or a machine"
            " with more memory"
        ) from None
    progress.remove_task(bar)
    if not console.is_terminal:
        console.print(f"{name}: {reference}", highlight=False, markup=False, soft_wrap=True)
    return reference


def _kept(name: str) -> Path:
    """The folder of what is trained for a task's reference."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return registered_directory().parent / "references.trainings" / digest


def _read(path: Path) -> dict[str, Reference]:
    try:
        return references.read(path)
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_file(path: Path) -> None:
    """Refuses now what could not be written when the work is done."""
    _read(path)
    if reason := refused(path.parent):
        raise UserError(f"cannot write '{path}': {reason}; --out FILE stores references elsewhere")


def _store(reference: Reference, path: Path) -> None:
    """Puts one reference into a file and leaves the others there as they are."""
    write_whole(path, references.text({**_read(path), reference.task: reference}))


def _show(
    found: Sequence[Reference], seconds: Sequence[float], files: Mapping[str, Path | None], console: Console
) -> None:
    columns = ("task", "loss", "lr", "decay", "trials", "seeds", "time")
    rows = [
        (
            each.task,
            references.loss_and_error(each.loss, each.standard_error),
            f"{each.learning_rate:.3g}",
            f"{each.weight_decay:g}",
            str(each.trials),
            f"{len(each.tuning_seeds)} + {len(each.fresh_seeds)}",
            format_duration(took),
        )
        for each, took in zip(found, seconds, strict=True)
    ]
    console.print(Rows(columns, rows))
    lines = ["loss: of AdamW on the fresh seeds, geometric mean ± its standard error. decay: weight decay."]
    lines += ["trials: settings of the grid. seeds: to tune each of them on + fresh ones for the best."]
    lines += [
        f"{each.task}: the best setting lies at the edge of its grid ({_span(each.learning_rates)},"
        f" weight decay up to {each.weight_decays[-1]:g}), extended {EXTENSIONS} times"
        for each in found
        if each.at_edge
    ]
    lines += [f"stored in {path}" for path in dict.fromkeys(files.values()) if path]
    unstored = [name for name, path in files.items() if path is None]
    lines += [f"not stored: {', '.join(unstored)}; --out FILE keeps it"] if unstored else []
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
