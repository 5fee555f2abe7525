"""Trains optimizer classes: a run has an optimizer and parameters of its own, and gradients come a tile at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from discover.contenders import Contender, fresh, switch
from discover.generators import left_alone, seeded, states, take_up
from discover.keeper import UnkeepableError
from discover.lanes import CHECKPOINTS, LOST_ABOVE, Prune, Trace
from discover.whole_optimizer import packed, unpacked

if TYPE_CHECKING:
    from discover.trainers import Ground, Run

Pulse = Callable[[Callable[[], object]], None]
"""Is called after every step with what makes the state; may keep it, and may raise, to stop."""


def train_loop(
    contender: Contender,
    ground: Ground,
    runs: Sequence[Run],
    curve: Sequence[int],
    prune: Prune | None,
    stored: Any,
    pulse: Pulse,
) -> list[Trace]:
    """Every run has an optimizer and parameters of its own; gradients are taken a tile at a time, as for lanes. Tiles
    go to the end one after the other, or, where runs may be pruned, all to the next look."""
    looks = sorted({step for step in curve if step < ground.steps})
    traces: list[Trace | None] = [None] * len(runs)
    singles: dict[int, _Single] = {}

    def fresh_run(index: int) -> _Single:
        return _Single(contender, ground, runs[index], curve)

    if stored is not None:
        try:
            singles = {index: fresh_run(index).restored(kept) for index, kept in stored["singles"].items()}
            traces = list(stored["traces"])
        except UnkeepableError:
            pass  # an optimizer that cannot be made again: train anew

    def state() -> dict[str, Any]:
        return {"traces": traces, "singles": {index: single.state() for index, single in singles.items()}}

    torch.set_flush_denormal(True)  # as lanes do
    try:
        for stop in [*(looks if prune else ()), ground.steps]:
            left = [index for index, trace in enumerate(traces) if trace is None]
            for start in range(0, len(left), ground.gradient.tile):
                block = left[start : start + ground.gradient.tile]
                for index in block:
                    if index not in singles:
                        singles[index] = fresh_run(index)
                _advance(ground, [singles[index] for index in block], stop, lambda: pulse(state))
                for index in block:
                    if singles[index].lost or stop == ground.steps:
                        traces[index] = singles.pop(index).trace()
            if prune is None or stop == ground.steps:
                continue
            place = looks.index(stop)
            curves = {i: singles[i].curve if i in singles else _curve(traces[i]) for i in range(len(runs))}
            told = {i: losses[place] for i, losses in curves.items() if place < len(losses)}
            for index in prune(stop, told) if told else ():
                if index in singles:
                    traces[index] = singles.pop(index).trace("pruned")
    finally:
        torch.set_flush_denormal(False)
    return [trace for trace in traces if trace is not None]


def _advance(ground: Ground, block: Sequence[_Single], stop: int, pulse: Callable[[], None]) -> None:
    """Steps runs side by side to step `stop`; those behind, of a block that was cut otherwise before, go first."""
    with left_alone(ground.gradient.device):
        while left := [single for single in block if single.done < stop and not single.lost]:
            t = 1 + min(single.done for single in left)
            now = [single for single in left if single.done == t - 1]
            flat = torch.stack([single.flat() for single in now])
            index = torch.stack([single.batches[t - 1] for single in now])
            losses, grads = ground.gradient(flat, ground.task.gather(index))
            for single, loss, grad in zip(now, losses.tolist(), grads, strict=True):
                single.step(t, loss, grad)
            pulse()


def _curve(trace: Trace | None) -> Sequence[float]:
    return trace.curve if trace else ()


class _Single:
    """A run of an optimizer class, as far as it is."""

    def __init__(self, contender: Contender, ground: Ground, run: Run, curve: Iterable[int]) -> None:
        self.ground, self.task = ground, ground.task
        self.parameters = fresh(self.task, ground.start(run.seed))
        self.optimizer = contender.optimizer(self.task, self.parameters, run.hypers)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.batches = self.task.batches(run.seed, ground.steps)
        self.looks = {max(1, round(fraction * ground.steps)) for fraction in CHECKPOINTS}
        self.wanted = frozenset(curve)
        self.done, self.first_loss, self.lost, self.curve = 0, 0.0, "", list[float]()
        self.device = ground.gradient.device
        self.random = seeded(self.device, run.seed)  # of an optimizer that draws, on the CPU or where it trains

    def step(self, t: int, loss: float, grad: Tensor) -> None:
        """Step t, with the training loss and gradient [N] before it; may be what loses the run."""
        if t == 1:
            self.first_loss = loss
        for p, part in zip(self.parameters, self.task.split(grad).values(), strict=True):
            p.grad = part.clone()  # at an address of its own: products round by how their operands are aligned
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.ground.ratios[t - 1]
        self.done = t
        take_up(self.device, self.random)
        try:
            self.optimizer.step()
        except (ArithmeticError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            self.lost = f"{type(error).__name__.lstrip('_')}: {error}"
            return
        self.random = states(self.device)
        if t in self.looks:
            self._look(loss, 2 * t >= self.ground.steps)
        if t in self.wanted and not self.lost:
            self.curve.append(self._held_out())

    def _look(self, loss: float, late: bool) -> None:
        if not (math.isfinite(loss) and bool(self.flat().isfinite().all())):
            self.lost = "not finite"
        elif late and min(loss, self._held_out()) > LOST_ABOVE * self.first_loss:
            self.lost = "rising"

    def _held_out(self) -> float:
        """The held-out loss. The training goes on as if it had not been taken: to another point and back is rounded."""
        before = [p.detach().clone() for p in self.parameters]
        switch(self.optimizer, "eval")
        loss = float(self.task.validation_loss(self.task.split(self.flat().unsqueeze(0)))[0])
        switch(self.optimizer, "train")
        with torch.no_grad():
            for p, old in zip(self.parameters, before, strict=True):
                p.copy_(old)
        return loss if math.isfinite(loss) else math.inf

    def trace(self, pruned: str = "") -> Trace:
        """How it ended."""
        lost = self.lost or pruned
        loss = math.inf if lost else self._held_out()
        return Trace(loss, self.done, lost or ("" if math.isfinite(loss) else "not finite"), tuple(self.curve))

    def flat(self) -> Tensor:
        """The parameters, [N]; copied, since an optimizer may put other memory under them."""
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def state(self) -> dict[str, Any]:
        """All that `restored` needs. Raises UnkeepableError where the optimizer cannot be written down."""
        return {
            "own": (self.done, self.first_loss, self.lost, self.curve, self.random),
            "optimizer": packed(self.optimizer, self.parameters),
        }

    def restored(self, state: Mapping[str, Any]) -> _Single:
        """Itself, as far as it was then. Raises UnkeepableError where its optimizer cannot be made again."""
        self.parameters, self.optimizer = unpacked(state["optimizer"])
        self.done, self.first_loss, self.lost, self.curve, self.random = state["own"]
        return self
