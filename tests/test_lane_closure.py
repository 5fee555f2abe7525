"""What rules may ask for beside a gradient, of many lanes of a task: against torch on one model at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dsl
import tasks
from discover import gradient, lanes
from discover.lane_closure import TaskClosure
from tasks import Batch

TASK = tasks.load("digits_mlp")
SCALE = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64)
LOSS_SCALE = torch.tensor([[1.0], [3.0], [0.25]], dtype=torch.float64)


def closure(t: int = 3) -> TaskClosure:
    points = torch.stack([TASK.initial(seed).double() for seed in range(3)]) / SCALE
    batch = TASK.gather(torch.stack([TASK.batches(seed, 1)[0] for seed in range(3)]))
    made = gradient.build(TASK, compile=False, dtype=torch.float64, tile=2)
    return TaskClosure(TASK, made, batch, points, SCALE, LOSS_SCALE, [0, 1, 2], t)


def seen(answers: TaskClosure, lane: int) -> Any:
    """The loss as the rule of one lane sees it, a function of its own coordinates [N]."""
    batch: Batch = tuple(x[lane : lane + 1] for x in answers.batch)

    def loss(q: Tensor) -> Tensor:
        return LOSS_SCALE[lane, 0] * TASK.loss(TASK.split((q * SCALE[lane]).unsqueeze(0)), batch)[0]

    return loss


def direction() -> Tensor:
    return torch.randn(3, TASK.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_gradient_and_loss_at_a_point_are_those_of_the_lane_alone() -> None:
    answers = closure()
    moved = answers.points + 0.01 * direction()
    grads, losses = answers("grad_at", moved), answers("loss_at", moved)
    for lane in range(3):
        q = moved[lane].clone().requires_grad_()
        loss = seen(answers, lane)(q)
        (expected,) = torch.autograd.grad(loss, q)
        torch.testing.assert_close(grads[lane], expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(losses[lane], loss.detach(), rtol=1e-12, atol=0)


def test_curvature_along_a_direction_is_the_change_of_the_gradient() -> None:
    answers = closure()
    z, h = direction(), 1e-6
    ahead, behind = (answers("grad_at", answers.points + sign * h * z) for sign in (1, -1))
    torch.testing.assert_close(answers("hvp", z), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


def test_clipped_gradients_are_the_mean_of_each_examples_own() -> None:
    answers = closure()
    limit = 0.3
    clipped = answers("clipped_grad", answers.points, limit)
    for lane in range(3):
        total = torch.zeros(TASK.size, dtype=torch.float64)
        for example in range(TASK.batch_size):
            one: Batch = tuple(x[lane : lane + 1, example : example + 1] for x in answers.batch)
            q = answers.points[lane].clone().requires_grad_()
            loss = LOSS_SCALE[lane, 0] * TASK.loss(TASK.split((q * SCALE[lane]).unsqueeze(0)), one)[0]
            (g,) = torch.autograd.grad(loss, q)
            total += g * min(1.0, limit / float(g.norm()))
        torch.testing.assert_close(clipped[lane], total / TASK.batch_size, rtol=1e-9, atol=1e-12)


def test_sampled_gradient_is_the_gradients_of_labels_drawn_with_the_models_probabilities() -> None:
    """Its mean over many draws is zero, and one draw is not; a lane's draws are its own and the step's."""
    answers = closure()
    first = answers("sampled_grad", answers.points)
    assert torch.equal(first, closure()("sampled_grad", answers.points))
    draws = torch.stack([closure(t)("sampled_grad", answers.points) for t in range(1, 201)])
    error = draws.std(0) / 200**0.5
    assert (draws.mean(0).norm(dim=1) < 1.5 * error.norm(dim=1)).all()
    assert (first.norm(dim=1) > 5 * draws.mean(0).norm(dim=1)).all()


def test_a_task_without_labels_says_so() -> None:
    task = tasks.load("quadratic")
    made = gradient.build(task, compile=False, tile=2)
    one = torch.ones(1, 1)
    batch = task.gather(task.batches(0, 1))
    answers = TaskClosure(task, made, batch, task.initial(0).unsqueeze(0), one, one, [0], 1)
    with pytest.raises(ValueError, match="task quadratic has no labels that a model could draw"):
        answers("sampled_grad", answers.points)


SAM = """
def sam_by_hand(p, g, *, lr=0.1, rho=0.05):
    p = p - lr * grad_at(p + rho * g / (global_norm(g) + 1e-12))
"""


def test_a_rule_that_asks_is_trained_in_lanes_as_alone() -> None:
    """Bitwise the same alone or beside others, and better than where it started."""
    program = dsl.parse(SAM)
    made = gradient.build(TASK, compile=False, tile=4)
    batch = [lanes.Lane(0, seed, {"lr": lr}) for lr in (0.1, 0.3) for seed in (1, 2, 3)]
    together = lanes.train(TASK, [program], batch, steps=10, gradient=made)
    alone = [lanes.train(TASK, [program], [lane], steps=10, gradient=made)[0] for lane in batch]
    assert together == alone
    assert all(trace.loss < 2.4 and not trace.lost for trace in together)


def test_draws_of_a_lane_follow_its_seed() -> None:
    program = dsl.parse("def noisy(p, g, *, lr=0.1, seed=0):\n    p = p - lr * (g + 0.1 * gaussian(p, seed, t))\n")
    made = gradient.build(TASK, compile=False, tile=4)
    batch = [lanes.Lane(0, seed, {"lr": 0.1}) for seed in (1, 2)]
    given = [lanes.Lane(0, seed, {"lr": 0.1, "seed": float(seed)}) for seed in (1, 2)]
    other = [lanes.Lane(0, seed, {"lr": 0.1, "seed": 7.0}) for seed in (1, 2)]
    first = lanes.train(TASK, [program], batch, steps=5, gradient=made)
    assert first == lanes.train(TASK, [program], given, steps=5, gradient=made)
    assert first != lanes.train(TASK, [program], other, steps=5, gradient=made)
