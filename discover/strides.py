"""How far a rule steps at lr = 1: what its learning rates are measured in.

For a rule that treats every element alike it is a property of the rule (`Properties.scale`). A rule that divides by a
norm steps less the more elements there are, so it is measured on the task's own parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from discover.native import NativeRules
from discover.native_code import encode
from dsl import Program
from dsl.graph import lower_all
from dsl.lane_rule import LaneRule
from tasks import Task

STEPS = 8

RATE = 1e3
"""The learning rate of the measurement: steps so long that the parameters they start from do not drown them."""


def sees_more_than_an_element(program: Program) -> bool:
    """Whether an update depends on more than its own element: whether the rule reduces over anything."""
    return any(not node.type.elementwise for graph in lower_all(program).values() for node in graph.nodes)


def measured(task: Task, programs: Sequence[Program], *, native: bool) -> list[float]:
    """Root mean square of each rule's steps at lr = 1 on a task's parameters, over the first steps.

    Gradients are normal, and half of their variance stays the same from step to step, as in `dsl.properties`.

    Args:
        task: whose parameters' shapes, roles and initial values are used.
        programs: the rules; `weight_decay`, where a rule has it, is taken as 0.
        native: measure those that `discover.native` can step by it, all at once.

    Returns:
        Of all elements together; 0 where a number of the rule has no value, or the steps are not finite.
    """
    codes = [encode(program) if native else None for program in programs]
    start = task.initial(0).cpu()
    generator = torch.Generator().manual_seed(0)
    lasting, fresh = torch.randn(len(start), generator=generator), torch.randn(STEPS, len(start), generator=generator)
    gradients = 0.5**0.5 * (lasting + fresh)
    found = [0.0] * len(programs)
    if able := [index for index, code in enumerate(codes) if code is not None]:
        p = start.repeat(len(able), 1)
        sizes = [parameter.size for parameter in task.parameters]
        own = [code for code in codes if code is not None]
        rules = NativeRules(own, range(len(able)), [_hypers(programs[i]) for i in able], p, sizes, [1.0] * STEPS)
        squares = torch.zeros(len(able), dtype=torch.float64)
        for t in range(1, STEPS + 1):
            p = start.repeat(len(able), 1)
            rules.step(p, gradients[t - 1].expand_as(p).contiguous(), t)
            squares += (start - p).double().square().mean(1)
        for index, square in zip(able, squares.tolist(), strict=True):
            found[index] = _stride(square)
    for index, code in enumerate(codes):
        if code is None:
            found[index] = _by_generated_code(task, programs[index], start, gradients)
    return found


def _by_generated_code(task: Task, program: Program, start: Tensor, gradients: Tensor) -> float:
    layout = [(parameter.shape, parameter.role) for parameter in task.parameters]
    rule = LaneRule(program, layout, lanes=1)
    rule.start(start.unsqueeze(0))
    square = 0.0
    for t, gradient in enumerate(gradients, start=1):
        p = start.unsqueeze(0).clone()
        try:
            rule.step(p, gradient.unsqueeze(0).clone(), t, _hypers(program))
        except (ArithmeticError, ValueError, TypeError):
            return 0.0
        square += float((start - p).double().square().mean())
    return _stride(square)


def _hypers(program: Program) -> dict[str, float]:
    hypers = {**program.defaults, "lr": RATE}
    return hypers | ({"weight_decay": 0.0} if "weight_decay" in hypers else {})


def _stride(square: float) -> float:
    stride = (square / STEPS) ** 0.5 / RATE
    return stride if stride < float("inf") else 0.0
