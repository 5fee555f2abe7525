"""How far a rule steps at lr = 1: what its learning rates are measured in.

For a rule that treats every element alike it is a property of the rule (`Properties.scale`, and how it grows with the
gradient). A rule that divides by a norm steps less the more elements there are, so it is measured on the task's own
parameters.
"""

from __future__ import annotations

import torch

from dsl import Program
from dsl.graph import lower_all
from dsl.lane_rule import LaneRule
from tasks import Task

STEPS = 8


def sees_more_than_an_element(program: Program) -> bool:
    """Whether an update depends on more than its own element: whether the rule reduces over anything."""
    return any(not node.type.elementwise for graph in lower_all(program).values() for node in graph.nodes)


def measured(task: Task, program: Program, *, gradient_rms: float, parameter_scale: float) -> float:
    """Root mean square of a rule's steps at lr = 1 on a task's parameters, over the first steps.

    Args:
        task: whose parameters' shapes, roles and initial values are used.
        program: the rule; `weight_decay`, where it has one, is taken as 0.
        gradient_rms: of the gradients that the rule sees, which are drawn from a normal distribution.
        parameter_scale: c, where the rule sees p / c.

    Returns:
        Of all elements together; 0 where a number of the rule has no value.
    """
    generator = torch.Generator().manual_seed(0)
    layout = [(parameter.shape, parameter.role) for parameter in task.parameters]
    rule = LaneRule(program, layout, lanes=1, dtype=torch.float64)
    start = task.initial(0).cpu().double().unsqueeze(0) / parameter_scale
    hypers = {**program.defaults, "lr": 1.0} | ({"weight_decay": 0.0} if "weight_decay" in program.defaults else {})
    rule.start(start)
    squares = 0.0
    for t in range(1, STEPS + 1):
        p, g = start.clone(), gradient_rms * torch.randn(start.shape, generator=generator, dtype=torch.float64)
        try:
            rule.step(p, g, t, hypers)
        except ArithmeticError:
            return 0.0
        squares += float((start - p).square().mean())
    return float((squares / STEPS) ** 0.5)
