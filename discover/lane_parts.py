"""The rows of a training's buffer by what steps them: all elementwise programs at once, the others one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from discover.native import NativeRules
from discover.native_code import Code
from dsl import Program
from dsl.graph import needs
from dsl.lane_rule import LaneRule
from tasks import Task

if TYPE_CHECKING:
    from discover.lanes import Lane

_SEEDS = 2**24
"""Seeds of a rule's own draws are smaller, so that every dtype holds them exactly."""


class Part(Protocol):
    """Some rows of the buffer, side by side, and the rules that step them."""

    start: int
    stop: int

    def keep(self, rows: Tensor) -> None: ...

    def evaluation(self, parameters: Tensor) -> Tensor: ...

    def state(self) -> list[Tensor]: ...


@dataclass(slots=True)
class Generated:
    """The lanes of one program, stepped by its generated kernel."""

    rule: LaneRule
    lr: Tensor
    hypers: dict[str, float | Tensor]
    ratios: Sequence[float]
    start: int
    stop: int
    asks: bool = False
    """Whether the rule needs a closure."""

    def step(self, parameters: Tensor, gradients: Tensor, t: int) -> None:
        ratio = self.ratios[t - 1]
        self.hypers["lr"] = self.lr * ratio
        self.rule.step(parameters, gradients, t, self.hypers, lr_ratio=ratio)

    def keep(self, rows: Tensor) -> None:
        self.rule.keep(rows)
        self.lr = self.lr[rows]
        self.hypers = {name: v[rows] if isinstance(v, Tensor) else v for name, v in self.hypers.items()}

    def evaluation(self, parameters: Tensor) -> Tensor:
        return self.rule.evaluation(parameters)

    def state(self) -> list[Tensor]:
        return [unit.state[name] for unit in self.rule.units for name in sorted(unit.state)]


@dataclass(slots=True)
class Native:
    """The lanes of all elementwise programs, stepped by one call."""

    rules: NativeRules
    start: int
    stop: int

    def keep(self, rows: Tensor) -> None:
        self.rules.keep(rows)

    def evaluation(self, parameters: Tensor) -> Tensor:
        return self.rules.evaluation(parameters)

    def state(self) -> list[Tensor]:
        return [self.rules.state]


def parts_of(
    task: Task,
    programs: Sequence[Program],
    codes: Sequence[Code | None],
    rows: Sequence[Lane],
    buffer: Tensor,
    ratios: Sequence[float],
) -> list[Part]:
    """The parts of a buffer [K, N].

    Args:
        task: what is trained.
        programs: the rules; codes: of those that are stepped by `discover.native`.
        rows: the lane of each row; those of one program side by side, those with codes first.
        buffer: parameters.
        ratios: lr over its peak, for each step from 1.
    """

    def tensor(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=buffer.dtype, device=buffer.device)

    hypers = [{**programs[lane.program].defaults, **lane.hypers} for lane in rows]
    parts: list[Part] = []
    encoded = [index for index, code in enumerate(codes) if code is not None]
    stop = sum(codes[lane.program] is not None for lane in rows)
    if stop:
        owners = [encoded.index(lane.program) for lane in rows[:stop]]
        encodings = [code for code in codes if code is not None]
        sizes = [parameter.size for parameter in task.parameters]
        parts.append(Native(NativeRules(encodings, owners, hypers[:stop], buffer[:stop], sizes, ratios), 0, stop))
    layout = [(parameter.shape, parameter.role) for parameter in task.parameters]
    while (start := stop) < len(rows):
        program = programs[rows[start].program]
        stop = next((r for r in range(start, len(rows)) if rows[r].program != rows[start].program), len(rows))
        rule = LaneRule(program, layout, lanes=stop - start, device=buffer.device, dtype=buffer.dtype)
        rule.examples = task.batch_size
        own = rows[start].hypers
        mine: dict[str, float | Tensor] = {
            name: tensor([each[name] for each in hypers[start:stop]]) if name in own else default
            for name, default in program.defaults.items()
        }
        if "seed" in program.defaults and "seed" not in own:  # what a rule draws is a lane's own
            mine["seed"] = tensor([float(each.seed % _SEEDS) for each in rows[start:stop]])
        rule.start(buffer[start:stop], mine)
        lr = tensor([each.get("lr", 1.0) for each in hypers[start:stop]])
        asks = bool(needs(program).closure)
        parts.append(Generated(rule, lr, mine, ratios, start, stop, asks))
    return parts
