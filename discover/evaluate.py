"""From programs to scores: task instances, learning-rate grids, units of work, and the score against tuned AdamW.

An *instance* is a task with a seed, a length, scales and a batch size. A *unit* trains a block of programs on one
instance, each at a grid of learning rates, and is what a worker takes at a time. A program's loss on an instance is
read off at the interpolated best learning rate, and so is the reference's: with a coarse grid, search would mostly
learn to step between its points.

The grid is centred where AdamW does best on the task, in units that a rule cannot choose: a rule's `lr` is divided by
its stride, the RMS of its step at lr = 1 on random gradients of the instance's size (`discover.strides`), and by the
scale of the instance's parameters (the RMS of them, where each tensor has its own).
"""

from __future__ import annotations

import math
import re
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.random import Generator

from discover import lanes, native
from discover.errors import UserError, first_line, is_shortage
from discover.gradient import Gradient, build
from discover.strides import measured, sees_more_than_an_element
from dsl import Program, parse
from tasks import Task, load
from tasks.options import with_options

Ends = tuple[float, float]
"""Lowest and highest of what is drawn between them."""

FAULT = "fault"
"""How the reason begins why a unit has no result, where an exception was raised that nobody foresaw."""

LOSS_FLOOR = 1e-12

SMALLEST_GRADIENT = 1e-12
"""Root mean square below which gradients are not told from zero."""

SHORTEST = 1e-12
"""A stride below this is not a step; learning rates stay finite."""

STEEPEST = 0.5
"""Nats by which a neighbour in the grid may be worse than the best point when the optimum between them is read off. A
rule that fails just beside its best learning rate would otherwise be credited with a loss that it never reached."""


@dataclass(frozen=True, slots=True)
class Instance:
    """What a program is trained on.

    Attributes:
        task: its name, as `tasks.load` takes it.
        seed: of initial parameters and batches.
        steps: length of the training; the schedule is stretched to it.
        loss_scale, parameter_scale, tensor_scales: see `discover.lanes.Lane`.
        batch_size: None for the task's own.
    """

    task: str
    seed: int
    steps: int
    loss_scale: float = 1.0
    parameter_scale: float = 1.0
    tensor_scales: tuple[float, ...] = ()
    batch_size: int | None = None

    @property
    def variant(self) -> str:
        """What `tasks.load` is asked for: the task, with the instance's batch size."""
        return self.task if self.batch_size is None else with_options(self.task, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True)
class Entry:
    """A program in a unit.

    Attributes:
        candidate: its id; None for the reference.
        text: the rule.
        scale: RMS of its step at lr=1 on unit-normal gradients, as a multiple of AdamW's.
        degree: how its step grows with the gradient (0 for Adam, 1 for gradient descent).
    """

    candidate: int | None
    text: str
    scale: float
    degree: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Learning rates: `points` of them, each `factor` times the one before, around the task's own."""

    points: int
    factor: float

    def multipliers(self) -> tuple[float, ...]:
        middle = (self.points - 1) / 2
        return tuple(self.factor ** (index - middle) for index in range(self.points))


@dataclass(frozen=True, slots=True)
class Unit:
    """Work for one worker: a block of programs on one instance. `request` is what Ray sets aside for the worker."""

    instance: Instance
    entries: tuple[Entry, ...]
    grid: Grid
    reference_scale: float
    weight_decay: float
    compiled: bool
    native: bool
    request: tuple[tuple[str, float], ...] = (("CPU", 1.0),)
    twice: ClassVar[bool] = True

    def moved(self, here: Callable[[str], str]) -> Unit:
        """The unit where files lie elsewhere; `here` spells a task as this machine does."""
        return replace(self, instance=replace(self.instance, task=here(self.instance.task)))

    def carry_out(self) -> UnitResult | str:
        """Its result. An exception that nobody foresaw is laid to the programs and comes as text, but for what cannot
        be theirs: memory, files, packages, the task. What AdamW alone meets is everybody's."""
        try:
            return evaluate(self)
        except (MemoryError, OSError, ImportError, UserError):
            raise
        except Exception as error:
            if is_shortage(error) or [entry.candidate for entry in self.entries] == [None]:
                raise
            _gradient(self.instance.variant, self.compiled)  # raises what is the task's
            last = traceback.extract_tb(error.__traceback__)[-1]
            said = re.sub(r"0x[0-9a-f]+", "0x...", first_line(error))  # the same wherever it is trained
            return f"{FAULT} in {Path(last.filename).name}, line {last.lineno}: {said}"

    def __str__(self) -> str:
        """In a line: the candidates of a small one by id."""
        ids = ["AdamW" if entry.candidate is None else str(entry.candidate) for entry in self.entries]
        named = ", ".join(ids) if len(ids) <= 8 else f"{ids[0]} to {ids[-1]}, {len(ids)} in all"
        return f"candidates {named} on {self.instance.task}, seed {self.instance.seed}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one program came to on one instance: a validation loss for each learning rate, inf where it was lost."""

    candidate: int | None
    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    model_steps: int


@dataclass(frozen=True, slots=True)
class UnitResult:
    """The outcomes of a unit, in the order of its entries, and how long the training took, in seconds.

    `notes` are lines for the user: what this process could not do as it was asked. `load_seconds` are what went by
    before the training: in making or loading the task and its gradient, once a process.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    load_seconds: float = 0.0


def draw_instance(
    task: str,
    steps: int,
    loss_scales: Ends,
    parameter_scales: Ends,
    rng: Generator,
    *,
    tensor_scales: Ends = (1.0, 1.0),
    batch_scales: Ends = (1.0, 1.0),
) -> Instance:
    """An instance of a task with a fresh seed and scales, each uniform in its logarithm between two ends.

    Args:
        task: as `tasks.load` takes it.
        steps: length of the training.
        loss_scales, parameter_scales: of the whole instance.
        rng: where all of it is drawn from; for what lies between 1 and 1 of the following, nothing is drawn.
        tensor_scales: of each of the task's parameters, one after the other. As in the training of VeLO (Metz et al.
            2022, arXiv:2211.09760) and Celo2 (arXiv:2602.19142), where random factors re-parametrise a task's tensors.
        batch_scales: of the task's batch size; see `batch_sizes`.
    """
    seed = int(rng.integers(2**31))
    loss_scale, parameter_scale = _scale(loss_scales, rng), _scale(parameter_scales, rng)
    tensors: tuple[float, ...] = ()
    if tensor_scales != (1.0, 1.0):
        tensors = tuple(_scale(tensor_scales, rng) for _ in load(task).parameters)
    batch_size = None
    if batch_scales != (1.0, 1.0):
        sizes = batch_sizes(load(task), batch_scales)
        batch_size = sizes[int(rng.integers(len(sizes)))]
    return Instance(task, seed, steps, loss_scale, parameter_scale, tensors, batch_size)


def batch_sizes(task: Task, scales: Ends) -> tuple[int, ...]:
    """The task's batch size times each power of two between two ends, as far as they are whole and there are examples.

    Few values, since a gradient is compiled for each of them. The task's own where no other can be.
    """
    low, high = (math.log2(end) for end in scales)
    sizes = (task.batch_size * 2.0**power for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))
    possible = tuple(int(size) for size in sizes if size == int(size) and 1 <= size <= len(task.train[0]))
    return possible or (task.batch_size,)


def _scale(ends: Ends, rng: Generator) -> float:
    return float(f"{log_uniform(ends, rng):.4g}")


def log_uniform(ends: Ends, rng: Generator) -> float:
    """A number between two, whose logarithm is as likely in one place as in another."""
    low, high = ends
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def evaluate(unit: Unit) -> UnitResult:
    """Trains a unit's programs, in this process."""
    asked = time.perf_counter()
    instance = unit.instance
    gradient = _gradient(instance.variant, unit.compiled)
    stepped = unit.native and not _without_native()
    began = time.perf_counter()
    task = gradient.task
    programs = [parse(entry.text) for entry in unit.entries]
    scale = _scale_of(task, instance)
    rates = [_learning_rates(task, scale, stride, unit.grid) for stride in _strides(gradient, unit, programs, stepped)]
    all_lanes = [
        lanes.Lane(
            program=index,
            seed=instance.seed,
            hypers=_hypers(programs[index], rate, unit.weight_decay * scale),
            loss_scale=instance.loss_scale,
            parameter_scale=instance.parameter_scale,
            tensor_scales=instance.tensor_scales,
        )
        for index, mine in enumerate(rates)
        for rate in mine
    ]
    traces = lanes.train(task, programs, all_lanes, steps=instance.steps, gradient=gradient, native=stepped)
    outcomes = []
    for index, (entry, mine) in enumerate(zip(unit.entries, rates, strict=True)):
        own = traces[index * unit.grid.points : (index + 1) * unit.grid.points]
        outcomes.append(
            Outcome(entry.candidate, mine, tuple(trace.loss for trace in own), sum(trace.steps for trace in own))
        )
    return UnitResult(tuple(outcomes), time.perf_counter() - began, _notes(unit, gradient), began - asked)


def interpolated_best(learning_rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float] | None:
    """The learning rate that is best, between the grid's points, and the loss there.

    The minimum of the parabola through the best point and its neighbours, in log loss against log learning rate, and at
    most an eighth of `STEEPEST` nats below the best point. At the edge of the grid, or beside a lost lane, it is the
    best point itself: nothing is extrapolated.

    Returns:
        Learning rate and loss; None if no loss is finite.
    """
    if not any(math.isfinite(loss) for loss in losses):
        return None
    y = [math.log(max(loss, LOSS_FLOOR)) if math.isfinite(loss) else math.inf for loss in losses]
    best = int(np.argmin(y))
    if not 0 < best < len(y) - 1 or math.isinf(y[best - 1]) or math.isinf(y[best + 1]):
        return learning_rates[best], losses[best]
    here = y[best]
    below, above = (min(neighbour, here + STEEPEST) for neighbour in (y[best - 1], y[best + 1]))
    bend = below - 2 * here + above
    if bend <= 0:
        return learning_rates[best], losses[best]
    shift = 0.5 * (below - above) / bend
    log_factor = math.log(learning_rates[best + 1] / learning_rates[best])
    return learning_rates[best] * math.exp(shift * log_factor), math.exp(here - 0.25 * (below - above) * shift)


def score(loss: float, reference: float, limits: tuple[float, float]) -> float:
    """How much better than the reference, in nats of loss: log(reference / loss), kept within limits.

    The upper limit keeps one task from paying for all others; the lower one is what a lost training counts.
    """
    low, high = limits
    gain = math.log(max(reference, LOSS_FLOOR)) - math.log(max(loss, LOSS_FLOOR))
    return min(max(gain, low), high)


def _scale_of(task: Task, instance: Instance) -> float:
    """RMS of what the task's parameters are the multiples of: how much longer a step is there than a rule takes it."""
    if not instance.tensor_scales:
        return instance.parameter_scale
    squares = (scale**2 * p.size for scale, p in zip(instance.tensor_scales, task.parameters, strict=True))
    return instance.parameter_scale * math.sqrt(math.fsum(squares) / task.size)


def _learning_rates(task: Task, scale: float, stride: float, grid: Grid) -> tuple[float, ...]:
    centre = task.learning_rate / (scale * max(stride, SHORTEST))
    return tuple(float(f"{centre * multiplier:.6g}") for multiplier in grid.multipliers())


def _strides(gradient: Gradient, unit: Unit, programs: Sequence[Program], native: bool) -> list[float]:
    """How far each program steps at lr = 1 on the instance's gradients, as a multiple of AdamW's step there."""
    task, instance = gradient.task, unit.instance
    strides = [entry.scale for entry in unit.entries]
    if reducing := [index for index, program in enumerate(programs) if sees_more_than_an_element(program)]:
        found = measured(task, [programs[index] for index in reducing], native=native)
        for index, stride in zip(reducing, found, strict=True):
            strides[index] = stride / unit.reference_scale
    if not any(entry.degree for entry in unit.entries):
        return strides
    seen = _gradient_rms(gradient, instance)
    return [stride * seen**entry.degree for stride, entry in zip(strides, unit.entries, strict=True)]


def _gradient_rms(gradient: Gradient, instance: Instance) -> float:
    """Of the first gradient, as rules see it."""
    task = gradient.task
    flat = task.initial(instance.seed).unsqueeze(0)
    _, grad = gradient(flat, task.gather(task.batches(instance.seed, 1)), shared=True)
    if instance.tensor_scales:
        grad = grad * lanes.Lane(0, 0, tensor_scales=instance.tensor_scales).scale(task).to(grad)
    rms = max(float(grad.square().mean().sqrt()), SMALLEST_GRADIENT)
    return instance.loss_scale * instance.parameter_scale * rms


def _hypers(program: Program, lr: float, weight_decay: float) -> dict[str, float]:
    hypers = {"lr": lr}
    if "weight_decay" in program.defaults:
        hypers["weight_decay"] = weight_decay
    return hypers


def _notes(unit: Unit, gradient: Gradient) -> tuple[str, ...]:
    """What this process does in another way than asked; where bits differ for it, that is said."""
    differs = "results differ in the last bits from what this run would give elsewhere"
    notes = []
    if gradient.note:
        notes.append(gradient.note if gradient.compiled else f"{gradient.note}; {differs}")
    if unit.native and (why := _without_native()):
        notes.append(f"rules run as plain PyTorch: {why}; {differs}")
    return tuple(f"{socket.gethostname()}: {note}" for note in notes)


@cache
def _without_native() -> str:
    """Why rules cannot be stepped by `discover.native` in this process; empty if they can. Tried once."""
    try:
        native.library()
    except native.NativeError as error:
        return str(error)
    return ""


@cache
def _gradient(task: str, compiled: bool) -> Gradient:
    return build(load(task), compile=compiled)
