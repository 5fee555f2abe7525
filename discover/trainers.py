"""Trains contenders on a task, and gives their curves: rules as lanes, optimizer classes each on their own parameters.

Both see the same: initial parameters and batches by seed, the task's schedule, the same compiled gradients, the same
notion of a lost run. A result depends on the contender, its hyperparameters and the seed alone, not on what is trained
beside it. So runs that would not fit into memory all at once train in groups, one after the other.

A long training is kept on disk now and then and goes on from there, to the same bits, when it is asked for again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dsl
from discover import gradient, lanes, memory
from discover.built import Built, machine
from discover.contenders import Contender, RuleContender, fresh
from discover.errors import NoLogarithmError
from discover.keeper import Keeper
from discover.lanes import CHECKPOINTS, Lane, Prune, Trace
from discover.native import available
from discover.singles import Pulse, train_loop
from discover.source import code
from discover.strides import STEPS
from tasks import Task

_DIGITS = 3  # kept of a stride, so that two implementations of a rule have one range of learning rates
_SMALLEST = 1e-12
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Run:
    """A training: hyperparameters (defaults otherwise; `lr` is the peak), and the seed of parameters and batches."""

    hypers: Mapping[str, float]
    seed: int


class Ground:
    """What trainings on one task, at one length, share.

    Args:
        task: what to train.
        steps: of each training; the schedule is stretched to it. None: the task's horizon.
        compile: gradients of lanes, see `gradient.build`.
        native: step elementwise rules by `discover.native`, where it is there.
        device: where to train.
        among: how many processes share this machine's memory.

    Attributes:
        built: what came of that here.
    """

    def __init__(
        self,
        task: Task,
        *,
        steps: int | None = None,
        compile: bool = True,
        native: bool = True,
        device: torch.device | str = "cpu",
        among: int = 1,
    ) -> None:
        self.among = among
        self.gradient = gradient.build(task, compile=compile, device=device)
        self.task = self.gradient.task
        self.steps = task.horizon if steps is None else steps
        stepped = native and self.gradient.device.type == "cpu" and available()
        self.built = Built(self.gradient.compiled, stepped, machine(self.gradient.device), code())
        self.ratios = [task.lr_ratio(t, self.steps) for t in range(1, self.steps + 1)]
        self._untrained: dict[int, float] = {}
        self._strides: dict[str, float] = {}
        self._bytes: dict[str, int] = {}

    @cached_property
    def single(self) -> gradient.Gradient:
        """The gradient of one lane, uncompiled."""
        return gradient.build(self.task, compile=False, device=self.gradient.device, tile=1)

    @cached_property
    def fingerprint(self) -> str:
        """Equal where a training would come to the same: data, losses, gradients, parameters, schedule, batches."""
        task, some = self.task, _sample(self.task)
        exact = gradient.build(some, compile=False, device=task.device, dtype=torch.float64, tile=1)
        flat, index = task.initial(0).double().unsqueeze(0), task.batches(0, 2)
        loss, grad = exact(flat, task.gather(index[:1, : some.batch_size]))
        held_out = float(some.validation_loss(task.split(flat))[0])
        numbers = [float(loss[0]), float(grad.norm()), float(grad.sum()), held_out, float(flat.norm())]
        shapes = [(p.name, p.shape, p.role) for p in task.parameters]
        digits = [f"{x:.6g}" for x in [*numbers, *self.ratios[:: max(1, self.steps // 16)], task.learning_rate]]
        facts = (task.spelling, task.data_sha256, self.steps, shapes, digits, index.tolist())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def untrained(self, seed: int) -> float:
        """The held-out loss before the first step."""
        if seed not in self._untrained:
            parts = self.task.split(self.start(seed).unsqueeze(0))
            self._untrained[seed] = float(self.task.validation_loss(parts)[0])
        return self._untrained[seed]

    def at_once(self, contender: Contender, together: int = 1) -> int:
        """How many runs of a contender train side by side now, see `memory.at_once`."""
        key = contender.fingerprint
        if key not in self._bytes:
            self._bytes[key] = memory.of_run(contender, self.task, self.steps, self.gradient.batch_bytes)
        return memory.at_once(self._bytes[key], memory.room(self.gradient.device, self.among), together)

    def stride(self, contender: Contender) -> float:
        """How far a contender steps at a learning rate, as a multiple of AdamW's: what its rates are measured in.

        Measured on the task's own parameters with random gradients of the size of the task's first, half of whose
        variance stays the same from step to step (see `discover.strides`). 1 where it cannot be measured.
        """
        key = contender.fingerprint
        if key not in self._strides:
            self._strides[key] = self._measured_stride(contender)
        return self._strides[key]

    def _measured_stride(self, contender: Contender) -> float:
        if isinstance(contender, RuleContender) and contender.asks:
            adamw = RuleContender("adamw", dsl.load("adamw"))
            ratio = self._stride_in_training(contender) / self._stride_in_training(adamw)
        else:
            ratio = self._stride(contender) / self._adamw_stride
        return float(f"{ratio:.{_DIGITS}g}") if math.isfinite(ratio) and ratio > 0 else 1.0

    @cached_property
    def _adamw_stride(self) -> float:
        return self._stride(RuleContender("adamw", dsl.load("adamw")))

    def _stride(self, contender: Contender) -> float:
        for dtype in (torch.float64, self.gradient.dtype):  # in float64 no step drowns in its parameter
            try:
                return self._stride_in(contender, dtype)
            except (ArithmeticError, ValueError, RuntimeError):
                continue
        return math.nan

    def _stride_in(self, contender: Contender, dtype: torch.dtype) -> float:
        task, rate = self.task, self.task.learning_rate
        start = fresh(task, self.start(0).to(dtype))
        parameters = fresh(task, self.start(0).to(dtype))
        hypers = {"lr": rate} | ({"weight_decay": 0.0} if "weight_decay" in contender.defaults else {})
        made = contender.optimizer(task, parameters, hypers)
        generator = torch.Generator().manual_seed(0)
        lasting = torch.randn(task.size, generator=generator)
        square, size = 0.0, 0.5**0.5 * self._gradient_rms
        for _ in range(STEPS):
            grad = size * (lasting + torch.randn(task.size, generator=generator))
            for p, part in zip(parameters, task.split(grad.to(self.gradient.device, dtype)).values(), strict=True):
                p.grad = part.clone()
            made.step()
            with torch.no_grad():
                for p, before in zip(parameters, start, strict=True):
                    square += float((p - before).double().square().sum())
                    p.copy_(before)
        return math.sqrt(square / (STEPS * task.size)) / rate

    def _stride_in_training(self, rule: RuleContender) -> float:
        """Of a rule that asks for more than a gradient, which random gradients cannot answer: its first steps on the
        task, at a tenth of the task's learning rate."""
        rate, steps = 0.1 * self.task.learning_rate, min(STEPS, self.steps)
        lane = Lane(0, 0, {"lr": rate} | ({"weight_decay": 0.0} if "weight_decay" in rule.defaults else {}))
        training = lanes.Training(
            self.task, [rule.program], [lane], self.steps, self.gradient, native=False, checkpoints=()
        )
        square = 0.0
        for t in range(1, steps + 1):
            before = training.buffer.clone()
            training.step(t)
            if not training.order:
                return math.nan
            square += float((training.buffer - before).double().square().mean()) / self.ratios[t - 1] ** 2
        return math.sqrt(square / steps) / rate

    @cached_property
    def _gradient_rms(self) -> float:
        _, grad = self.single(self.start(0).unsqueeze(0), self.task.gather(self.task.batches(0, 1)))
        return max(float(grad.square().mean().sqrt()), _SMALLEST)

    def start(self, seed: int) -> Tensor:
        return self.task.initial(seed).to(self.gradient.device, self.gradient.dtype)


def _sample(task: Task) -> Task:
    """A task whose batch does not go through at once, with one example to train on and one held out: all of them in
    float64 would take hours on a CPU. Any other task as it is."""
    if task.microbatch is None or task.microbatch >= task.batch_size:
        return task
    sample = copy.copy(task)
    sample.batch_size, sample.held_out = 1, tuple(x[:1] for x in task.held_out)
    return sample


def train(
    contender: Contender,
    ground: Ground,
    runs: Sequence[Run],
    *,
    curve: Sequence[int] = (),
    prune: Prune | None = None,
    together: int = 1,
    keeper: Keeper | None = None,
) -> list[Trace]:
    """Trains a contender from each run's seed to the end of the schedule: as many runs side by side as fit into memory
    (`Ground.at_once`), in groups, in order. However they are cut, it comes to the same.

    Args:
        contender: what trains.
        ground: where.
        runs: trainings; those of a rule step together, as far as they are in one group.
        curve: steps after which held-out losses are taken, besides the end.
        prune: is asked after each of those steps, group by group, which runs of the group to drop. Its answer may
            depend on what it was told alone, and of other runs on what earlier ones came to at the same step.
        together: so many runs in a row are never parted, as those of a trial whose mean over seeds decides.
        keeper: keeps long trainings; without one they are not kept.

    Returns:
        For each run the loss at the end, inf for a lost run, and its curve.

    Raises:
        StoppedError: the keeper stops here; the same call with what it keeps goes on.
        UserError: the optimizer cannot be made with these hyperparameters.
    """
    keeper = keeper or Keeper(None)
    key, size = _key(contender, ground, runs, curve, prune is not None), ground.at_once(contender, together)
    if size < len(runs) and (whole := _finished(keeper.load(key), prune, curve, ground.steps)) is not None:
        return whole
    traces: list[Trace] = []
    for start in range(0, len(runs), size):
        some, asked = runs[start : start + size], _of_group(prune, start)
        name = key if len(some) == len(runs) else f"{key}-{start}-{start + len(some)}"
        traces += (found := _train_group(contender, ground, some, curve, asked, keeper, name))
        if name != key:  # until all groups are done
            keeper.keep(name, partial(dict, finished=found))
    keeper.done(key, partial(dict, finished=traces))
    return traces


def _of_group(prune: Prune | None, start: int) -> Prune | None:
    """As a group of runs asks it, whose first is number `start` of all."""
    if prune is None or start == 0:
        return prune
    return lambda step, losses: [run - start for run in prune(step, {start + i: loss for i, loss in losses.items()})]


def _train_group(
    contender: Contender,
    ground: Ground,
    runs: Sequence[Run],
    curve: Sequence[int],
    prune: Prune | None,
    keeper: Keeper,
    name: str,
) -> list[Trace]:
    """Trains runs side by side, or goes on with what is kept of them."""
    stored = keeper.load(name)
    if (found := _finished(stored, prune, curve, ground.steps)) is not None:
        return found
    asked = (ground, runs, curve, prune, stored, lambda state: keeper.pulse(name, state))
    if isinstance(contender, RuleContender):
        return _train_lanes(contender, *asked)
    return train_loop(contender, *asked)


def _finished(stored: Any, prune: Prune | None, curve: Sequence[int], steps: int) -> list[Trace] | None:
    """What runs came to that are done, as it is kept; who prunes is told of it."""
    if stored is None or "finished" not in stored:
        return None
    found: list[Trace] = stored["finished"]
    _tell_again(prune, curve, steps, steps, [trace.curve for trace in found])
    return found


def _tell_again(
    prune: Prune | None, curve: Sequence[int], done: int, steps: int, curves: Sequence[Sequence[float]]
) -> None:
    """Tells who prunes what it was told before, up to a step."""
    for place, step in enumerate(t for t in sorted(set(curve)) if t <= done and t < steps):
        told = {i: each[place] for i, each in enumerate(curves) if place < len(each)}
        if prune is not None and told:
            prune(step, told)


def _key(contender: Contender, ground: Ground, runs: Sequence[Run], curve: Sequence[int], pruned: bool) -> str:
    """Trainings of one key come to the same bits; whatever may change one is in it."""
    versions = [platform.python_version(), torch.__version__, np.__version__]
    built = [*asdict(ground.built).values(), ground.gradient.tile, str(ground.gradient.device)]
    asked = [[sorted(run.hypers.items()), run.seed] for run in runs]
    parts = [contender.fingerprint, ground.fingerprint, asked, list(curve), pruned, versions, built]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _train_lanes(
    contender: RuleContender,
    ground: Ground,
    runs: Sequence[Run],
    curve: Sequence[int],
    prune: Prune | None,
    stored: Any,
    pulse: Pulse,
) -> list[Trace]:
    names = {name for run in runs for name in run.hypers}
    some = [Lane(0, r.seed, {name: r.hypers.get(name, contender.defaults[name]) for name in names}) for r in runs]
    if stored is not None:
        _tell_again(prune, curve, stored["done"], ground.steps, stored["curves"])
    return lanes.train(
        ground.task,
        [contender.program],
        some,
        steps=ground.steps,
        gradient=ground.gradient,
        native=ground.built.native,
        checkpoints=CHECKPOINTS,
        curve=curve,
        prune=prune,
        resume=stored,
        pulse=lambda training: pulse(training.state),
    )


def model_steps(traces: Iterable[Trace]) -> int:
    return sum(trace.steps for trace in traces)


def capped_log(loss: float, untrained: float) -> float:
    """The logarithm of a loss; a run that was lost, or ends above where it began, has learned nothing: its beginning.
    A loss under a millionth of the beginning counts as that: on a tiny table it may be exactly 0.

    Raises:
        NoLogarithmError: the loss is below 0, or that of the beginning is not above it.
    """
    value = min(loss, untrained) if math.isfinite(loss) else untrained
    if value < 0 or not untrained > 0:
        raise NoLogarithmError(f"a held-out loss is {value:.4g}; contenders are compared by ratios of losses above 0")
    return math.log(max(value, _LEAST * untrained))
