"""Trains many models of one task at once: programs x learning rates x seeds as lanes of one buffer.

All lanes of a call lie in one flat [K, N] buffer of parameters. A step goes through the lanes of all elementwise rules
a tile at a time: its gradient, then one call into `discover.native`, while both are in the cache. The lanes of the
other programs follow: one gradient for all of them, then each program's generated kernel on its own. At *checkpoints*
lanes that are lost (not finite, or far above where they started) are dropped and the buffer is compacted, so that what
is left runs faster.

A lane's result depends on that lane alone: not on the lanes beside it, nor on the process that runs it.

Letters in shapes: K lanes, N numbers in all parameters of a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from discover.gradient import Gradient
from discover.heap import keep_freed_memory
from discover.lane_closure import TaskClosure
from discover.lane_parts import Generated, Native, Part, parts_of
from discover.native_code import encode
from dsl import Program
from tasks import Batch, Task

CHECKPOINTS = (0.1, 0.25, 0.5, 0.75)
"""When lost runs are looked for, as fractions of the steps."""

LOST_ABOVE = 3.0
"""A lane whose training and held-out loss still exceed its first loss this many times when half its steps are done is
dropped.
Before that a loss may rise: on an ill-conditioned task Adam's first steps raise it, and a good end comes of it yet."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One training.

    Attributes:
        program: which of the call's programs.
        seed: of the initial parameters and of the batches.
        hypers: hyperparameters that may differ between the lanes of a program, which all name the same ones; the others
            are the program's defaults. `lr` is the peak learning rate.
        loss_scale: the loss is multiplied by it before the gradient is taken; reported losses are not.
        parameter_scale: c, where the rule sees q = p / c in place of the parameter p, and so the gradient c * dL/dp.
        tensor_scales: further factors of c, one for each of the task's parameters; empty for 1.
    """

    program: int
    seed: int
    hypers: Mapping[str, float] = field(default_factory=dict)
    loss_scale: float = 1.0
    parameter_scale: float = 1.0
    tensor_scales: tuple[float, ...] = ()

    @property
    def scales(self) -> tuple[float, float, tuple[float, ...]]:
        return self.loss_scale, self.parameter_scale, self.tensor_scales

    def scale(self, task: Task) -> Tensor:
        """What q is multiplied by to give p: [N] float64, or [1] where it is the same for all numbers.

        Raises:
            ValueError: another number of tensor scales than the task has parameters.
        """
        given, parameters = self.tensor_scales, task.parameters
        if not given:
            return torch.tensor([self.parameter_scale], dtype=torch.float64)
        if len(given) != len(parameters):
            raise ValueError(f"{len(given)} tensor scales; task {task.name} has {len(parameters)} parameters")
        each = torch.tensor([self.parameter_scale * scale for scale in given], dtype=torch.float64)
        return each.repeat_interleave(torch.tensor([parameter.size for parameter in parameters]))


@dataclass(frozen=True, slots=True)
class Trace:
    """What a training came to.

    Attributes:
        loss: validation loss at the end of the schedule; inf for a lane that was lost.
        steps: how many steps it ran.
        lost: empty, or why it was dropped: "not finite", "rising", "pruned", or the error of its program's kernel.
        curve: validation losses after the steps that `train` was asked for, as far as it came; inf where not finite.
    """

    loss: float
    steps: int
    lost: str = ""
    curve: tuple[float, ...] = ()


At = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Loss and gradient of some lanes, see `Gradient.at`."""

Prune = Callable[[int, Mapping[int, float]], Collection[int]]
"""Is told a step and the validation loss of every lane that is left, by its place in the call; says whom to drop."""


def _tiles(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(row, min(row + size, stop)) for row in range(start, stop, size))


def train(
    task: Task,
    programs: Sequence[Program],
    lanes: Sequence[Lane],
    *,
    steps: int,
    gradient: Gradient,
    native: bool = False,
    checkpoints: Sequence[float] = CHECKPOINTS,
    curve: Sequence[int] = (),
    prune: Prune | None = None,
    resume: Mapping[str, Any] | None = None,
    pulse: Callable[[Training], None] | None = None,
) -> list[Trace]:
    """Trains every lane from its seed to the end of the task's schedule, stretched or shrunk to `steps`.

    Args:
        task: what to train.
        programs: the rules, as programs.
        lanes: K trainings, in any order.
        steps: how long each lasts.
        gradient: of the same task, from `discover.gradient.build`.
        native: step elementwise rules by `discover.native` (float32 on the CPU; it must be available).
        checkpoints: when to look for lost lanes, as fractions of `steps`.
        curve: steps after which validation losses are taken, besides the end.
        prune: is asked after each of those steps.
        resume: what `Training.state` gave in a call with the same arguments; goes on from there, to the same bits.
        pulse: is called after every step; may raise, to stop.

    Returns:
        A trace for each lane, in the order of `lanes`.

    A program whose kernel raises an arithmetic error loses its own lanes and no others.
    """
    keep_freed_memory()
    training = Training(
        task, programs, lanes, steps, gradient, native=native, checkpoints=checkpoints, curve=curve, prune=prune
    )
    if resume is not None:
        training.restore(resume)
    torch.set_flush_denormal(True)  # denormals are slow; the flag is the thread's, numpy's arithmetic included
    try:
        return training.run(pulse)
    finally:
        torch.set_flush_denormal(False)


class Training:
    """A training in progress; see `train`."""

    def __init__(
        self,
        task: Task,
        programs: Sequence[Program],
        lanes: Sequence[Lane],
        steps: int,
        gradient: Gradient,
        *,
        native: bool,
        checkpoints: Sequence[float],
        curve: Sequence[int] = (),
        prune: Prune | None = None,
    ) -> None:
        self.task, self.lanes, self.steps, self.gradient = task, lanes, steps, gradient
        self.done = 0
        self.curve, self.prune = frozenset(curve), prune
        self.curves: list[list[float]] = [[] for _ in lanes]
        self.looks = {max(1, round(fraction * steps)) for fraction in checkpoints}
        self.traces: list[Trace | None] = [None] * len(lanes)
        codes = [encode(program) if native else None for program in programs]
        self.order = sorted(
            range(len(lanes)), key=lambda lane: (codes[lanes[lane].program] is None, lanes[lane].program)
        )
        """Which lane each row of the buffer is; rows of one program lie side by side, elementwise programs first."""
        self.seeds = sorted({lane.seed for lane in lanes})
        initial = {seed: task.initial(seed) for seed in self.seeds}
        rows = [lanes[lane] for lane in self.order]
        device = gradient.device
        scales = {lane.scales: lane.scale(task) for lane in {lane.scales: lane for lane in rows}.values()}
        gains = {key: scale * key[0] for key, scale in scales.items()}
        self.buffer = torch.stack(
            [initial[lane.seed] / scales[lane.scales].to(device, torch.float32) for lane in rows]
        ).to(device, gradient.dtype)
        self.scale = self._of_lanes([scales[lane.scales] for lane in rows])
        self.gain = self._of_lanes([gains[lane.scales] for lane in rows])
        """What gradients are multiplied by. Both are [K, N], with one row or column where they do not differ."""
        self.scaled = any(not bool((each == 1).all()) for each in (*scales.values(), *gains.values()))
        self.batches = torch.stack([task.batches(seed, steps) for seed in self.seeds])
        self.of_seed = torch.tensor([self.seeds.index(lane.seed) for lane in rows])
        self.first_loss = torch.zeros(len(rows), dtype=gradient.dtype, device=device)
        self.ratios = [task.lr_ratio(t, steps) for t in range(1, steps + 1)]
        self.parts = parts_of(task, programs, codes, rows, self.buffer, self.ratios)

    def run(self, pulse: Callable[[Training], None] | None = None) -> list[Trace]:
        """All steps that are left, then validation."""
        for t in range(self.done + 1, self.steps + 1):
            if not self.order:
                break
            self.step(t)
            if t in self.curve and self.order:
                self._record(t)
            self.done = t
            if pulse is not None:
                pulse(self)
        if self.order:
            self._finish()
        return [trace for trace in self.traces if trace is not None]

    def step(self, t: int) -> None:
        """Step t, from 1, of all lanes that are left: those of elementwise rules a tile at a time, gradient and then
        rule, while the tile is in the cache; then the others."""
        loss = torch.empty(len(self.order), device=self.gradient.device, dtype=self.gradient.dtype)
        at = self.gradient.at(self._batch(t), len(self.order), shared=len(self.seeds) == 1)
        lost: dict[int, str] = {}
        others = len(self.order)
        for part in self.parts:
            if not isinstance(part, Native):
                others = min(others, part.start)
                continue
            for rows in _tiles(part.start, part.stop, self.gradient.tile):
                loss[rows], grad = self._gradient(at, rows)
                part.rules.step(self.buffer[rows], grad, t, rows.start - part.start)
        if others < len(self.order):
            grad = torch.empty_like(self.buffer[others:])
            for rows in _tiles(others, len(self.order), self.gradient.tile):
                loss[rows], grad[rows.start - others : rows.stop - others] = self._gradient(at, rows)
            lost = self._update(t, grad, others)
        if t == 1:
            self.first_loss = loss.clone()
        if t in self.looks:
            lost = self._look(t, loss) | lost
        if lost:
            self._drop(lost, t)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from here; its tensors are those in use, to be stored at once."""
        return {
            "done": self.done,
            "order": self.order,
            "traces": [None if trace is None else (trace.loss, trace.steps, trace.lost) for trace in self.traces],
            "curves": self.curves,
            "first_loss": self.first_loss,
            "buffer": self.buffer,
            "parts": [part.state() for part in self.parts],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Makes a training that was set up anew what it was when `state` was taken."""
        place = {lane: row for row, lane in enumerate(self.order)}
        self._keep([place[lane] for lane in state["order"]])
        self.done, self.curves = state["done"], [list(curve) for curve in state["curves"]]
        self.traces = [
            None if trace is None else Trace(trace[0], trace[1], trace[2], tuple(curve))
            for trace, curve in zip(state["traces"], self.curves, strict=True)
        ]
        self.first_loss.copy_(state["first_loss"])
        self.buffer.copy_(state["buffer"])
        for part, tensors in zip(self.parts, state["parts"], strict=True):
            for mine, stored in zip(part.state(), tensors, strict=True):
                mine.copy_(stored)

    def _gradient(self, at: At, rows: slice) -> tuple[Tensor, Tensor]:
        """Loss and gradient of some rows, as their rules see it."""
        if not self.scaled:
            return at(self.buffer[rows], rows.start)
        scale, gain = (x if x.shape[0] == 1 else x[rows] for x in (self.scale, self.gain))
        loss, grad = at(self.buffer[rows] * scale, rows.start)
        return loss, grad.mul_(gain)

    def _batch(self, t: int) -> Batch:
        """The step's examples: [1, B, ...] where all lanes share a seed, else [K, B, ...]."""
        index = self.batches[:, t - 1]
        return self.task.gather(index if len(self.seeds) == 1 else index[self.of_seed])

    def _update(self, t: int, grad: Tensor, first: int) -> dict[int, str]:
        """Steps the rules of generated code; the gradient is of the rows from `first` on. Returns the rows whose rule
        has no value, and why."""
        failed: dict[int, str] = {}
        for part in self.parts:
            if not isinstance(part, Generated):
                continue
            if part.asks:
                part.rule.closure = self._closure(part, t)
            try:
                part.step(self.buffer[part.start : part.stop], grad[part.start - first : part.stop - first], t)
            except (ArithmeticError, ValueError, TypeError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
                failed |= dict.fromkeys(range(part.start, part.stop), f"{type(error).__name__}: {error}")
        return failed

    def _closure(self, part: Part, t: int) -> TaskClosure:
        """Answers what a rule asks for beside the gradient, on the step's batch."""
        rows = slice(part.start, part.stop)
        batch = self._batch(t)
        mine = batch if len(batch[0]) == 1 else tuple(x[rows] for x in batch)
        scale = self.scale.expand(len(self.order), -1)[rows]
        losses = self._column([self.lanes[lane].loss_scale for lane in self.order[rows]])
        seeds = [self.lanes[lane].seed for lane in self.order[rows]]
        points = self.buffer[rows]
        return TaskClosure(self.task, self.gradient, mine, points, scale, losses, seeds, t)

    def _look(self, t: int, loss: Tensor) -> dict[int, str]:
        """The rows of lanes that are lost, and why."""
        finite = torch.isfinite(loss) & torch.isfinite(self.buffer).all(1)
        rising = finite & (loss > LOST_ABOVE * self.first_loss) & (2 * t >= self.steps)
        if rising.any():  # a single batch may be corrupt, as in `digits_spikes`: the held-out examples decide
            held_out = torch.tensor(self._validation(self._points()[rising]), device=loss.device)
            rising[rising.clone()] = ~(held_out <= LOST_ABOVE * self.first_loss[rising])
        lost = (~finite | rising).nonzero().flatten().tolist()
        return {row: "rising" if finite[row] else "not finite" for row in lost}

    def _record(self, t: int) -> None:
        """Takes the validation losses, and drops whom `prune` names."""
        losses = dict(zip(self.order, self._validation(self._points()), strict=True))
        for lane, loss in losses.items():
            self.curves[lane].append(loss if math.isfinite(loss) else math.inf)
        if self.prune is None or t == self.steps:
            return
        pruned = self.prune(t, {lane: self.curves[lane][-1] for lane in sorted(losses)})
        if pruned:
            self._drop({row: "pruned" for row, lane in enumerate(self.order) if lane in pruned}, t)

    def _drop(self, lost: Mapping[int, str], t: int) -> None:
        for row, reason in lost.items():
            lane = self.order[row]
            self.traces[lane] = Trace(math.inf, t, reason, tuple(self.curves[lane]))
        self._keep([row for row in range(len(self.order)) if row not in lost])

    def _keep(self, rows: Sequence[int]) -> None:
        """Compacts the buffer to some of its rows, in order."""
        keep, kept = torch.tensor(rows, dtype=torch.long), set(rows)
        parts, start = [], 0
        for part in self.parts:
            mine = [row - part.start for row in range(part.start, part.stop) if row in kept]
            if not mine:
                continue
            if len(mine) < part.stop - part.start:
                part.keep(torch.tensor(mine))
            part.start, part.stop = start, start + len(mine)
            start = part.stop
            parts.append(part)
        self.parts = parts
        self.order = [self.order[row] for row in rows]
        self.buffer = self.buffer[keep]
        self.scale, self.gain = (x if len(x) == 1 else x[keep] for x in (self.scale, self.gain))
        self.of_seed, self.first_loss = self.of_seed[keep], self.first_loss[keep]

    def _finish(self) -> None:
        for lane, loss in zip(self.order, self._validation(self._points()), strict=True):
            finite = math.isfinite(loss)
            self.traces[lane] = Trace(
                loss if finite else math.inf, self.steps, "" if finite else "not finite", tuple(self.curves[lane])
            )

    def _points(self) -> Tensor:
        """Where every lane is evaluated, [K, N]."""
        points = [part.evaluation(self.buffer[part.start : part.stop]) for part in self.parts]
        return torch.cat(points) * self.scale

    def _validation(self, parameters: Tensor) -> list[float]:
        """Held-out losses of rows [K, N], in tiles as gradients are: a product of another number of lanes may round in
        another way."""
        tile = self.gradient.tile
        losses: list[float] = []
        for rows in torch.split(parameters, tile):
            full = torch.cat([rows, rows[:1].expand(tile - len(rows), -1)])
            losses += self.task.validation_loss(self.task.split(full))[: len(rows)].tolist()
        return losses

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=self.gradient.dtype, device=self.gradient.device)

    def _of_lanes(self, values: Sequence[Tensor]) -> Tensor:
        """A row for each lane, or one where they are all equal; of N numbers, or of one where no lane has more."""
        if values and all(each is values[0] or torch.equal(each, values[0]) for each in values):
            values = values[:1]
        width = max((len(each) for each in values), default=1)
        rows = [each.expand(width) for each in values] or [torch.ones(1)]
        return torch.stack(rows).to(self.gradient.device, self.gradient.dtype)

    def _column(self, values: Sequence[float]) -> Tensor:
        return self._tensor(values).unsqueeze(1)
