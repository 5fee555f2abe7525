"""Laws of the reference: it is torch's optimizers where they exist, and IEEE arithmetic everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import dsl
from dsl import reference
from dsl.program import RuleError

STEPS = 10


def problem() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rng = np.random.default_rng(3)
    start = {
        "conv": rng.standard_normal((4, 2, 3, 3)),
        "weight": rng.standard_normal((5, 3)),
        "bias": rng.standard_normal(5),
    }
    gradients = [{name: rng.standard_normal(value.shape) for name, value in start.items()} for _ in range(STEPS)]
    return start, gradients


ORACLES: dict[str, tuple[str, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": ("p = p - lr * (g + 0.1 * p)", lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1)),
    "momentum": (
        "m = where(t == 1, g, 0.9 * m + g); p = p - lr * m",
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    ),
    "adam": (
        "m = lerp(m, g, 0.1); v = lerp(v, g * g, 0.001); p = p - lr * debias(m, 0.9) / (sqrt(debias(v, 0.999)) + 1e-8)",
        lambda p: torch.optim.Adam(p, lr=0.05),
    ),
    "rmsprop": (
        "v = lerp(v, square(g), 0.01); p = p - lr * g / (sqrt(v) + 1e-8)",
        lambda p: torch.optim.RMSprop(p, lr=0.05),
    ),
    "adagrad": ("v = v + g * g; p = p - lr * g / (sqrt(v) + 1e-10)", lambda p: torch.optim.Adagrad(p, lr=0.05)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_reference_follows_torch(name: str) -> None:
    body, oracle = ORACLES[name]
    lines = "".join(f"    {line.strip()}\n" for line in body.split(";"))
    program = dsl.parse(f"def f(p, g, m: zeros, v: zeros, *, lr=0.05):\n{lines}")
    start, gradients = problem()
    tensors = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in start.items()}
    optimizer = oracle(list(tensors.values()))
    for state, gradient in zip(reference.run(program, start, gradients), gradients, strict=True):
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[key])
        optimizer.step()
        for key, tensor in tensors.items():
            np.testing.assert_allclose(state.parameters[key], tensor.detach().numpy(), 1e-12, 1e-14)


def test_global_values_are_over_all_parameters() -> None:
    start, gradients = problem()
    flat = np.concatenate([value.ravel() for value in gradients[0].values()])
    program = dsl.parse("def f(p, g):\n    p = p - g / global_norm(g)\n")
    for name, value in reference.run(program, start, gradients[:1])[0].parameters.items():
        np.testing.assert_allclose(value, start[name] - gradients[0][name] / np.linalg.norm(flat), 1e-12)


def test_a_global_of_a_global_waits_for_it() -> None:
    program = dsl.parse("def f(p, g):\n    u = g / global_norm(g)\n    p = p - u / global_amax(abs(u))\n")
    start, gradients = problem()
    flat = np.concatenate([value.ravel() for value in gradients[0].values()])
    for name, value in reference.run(program, start, gradients[:1])[0].parameters.items():
        np.testing.assert_allclose(value, start[name] - gradients[0][name] / np.abs(flat).max(), 1e-12)


def test_parameters_treated_differently_add_up_to_the_same_global() -> None:
    program = dsl.parse("def f(p, g):\n    if matrix(p):\n        g = 2 * g\n    p = p - global_sum(g)\n")
    start = {"w": np.zeros((2, 2)), "b": np.zeros(3)}
    gradient = {name: np.ones_like(value) for name, value in start.items()}
    state = reference.run(program, start, [gradient])[0]
    assert all(np.all(value == -11.0) for value in state.parameters.values())


def test_special_values_do_not_raise() -> None:
    program = dsl.parse("def f(p, g, *, zero=0):\n    p = p - g / zero + log(g) * (1 / zero)\n")
    state = reference.run(program, {"p": np.ones(3)}, [{"p": np.array([0.0, 1.0, -1.0])}])[0]
    np.testing.assert_array_equal(state.parameters["p"], [np.nan, np.nan, np.nan])


def test_schedule_start_and_hyperparameters_are_the_callers() -> None:
    program = dsl.parse("def f(p, g, *, lr=1, scale=1):\n    p = p - lr * scale * t * g + 100 * lr_ratio\n")
    states = reference.run(
        program,
        {"p": np.zeros(1)},
        lambda t, parameters: {"p": np.ones(1)},
        steps=2,
        start=5,
        hypers={"lr": 0.5, "scale": 2.0},
        lr_ratio=lambda t: 1.0 if t == 5 else 0.1,
    )
    assert [state.parameters["p"].item() for state in states] == pytest.approx([95.0, 95.0 - 0.6 + 10.0])
    with pytest.raises(RuleError, match="no hyperparameter 'beta'"):
        reference.run(program, {"p": np.zeros(1)}, [], hypers={"beta": 1.0})
    with pytest.raises(ValueError, match="give steps="):
        reference.run(program, {"p": np.zeros(1)}, lambda t, parameters: {})


def test_roles_slots_and_returned_value() -> None:
    program = dsl.parse(
        "def f(p, g, m: rows(zeros), x: like(p), e: left(eye)):\n"
        "    if role('head'):\n        m = m + 1\n        e = 2 * e\n        g = e @ g * m\n"
        "    p = p - g\n    x = lerp(x, p, 0.5)\n    return x\n"
    )
    start = {"head": np.zeros((2, 3)), "body": np.zeros((2, 3))}
    ones = {name: np.ones((2, 3)) for name in start}
    state = reference.run(program, start, [ones, ones], roles={"head": "head"})[-1]
    assert np.all(state.parameters["head"] == -(2 + 8))
    assert np.all(state.parameters["body"] == -2)
    assert np.all(state.result["body"] == -1.25)
    assert state.slots["head"]["m"].shape == (2, 1)
    assert np.all(state.slots["head"]["e"] == 4 * np.eye(2))
    assert set(state.slots["body"]) == {"x"}


def test_situations_side_by_side_are_situations_alone() -> None:
    """The leading axes of a machine are independent."""
    from dsl.graph import lower_all
    from dsl.program import Facts

    program = dsl.load("muon")
    graph = lower_all(program)[Facts(True, "hidden")]
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((4, 5, 3)), rng.standard_normal((3, 4, 5, 3))
    together = reference.Machine([graph], [p], program.slots, program.defaults)
    for step in range(3):
        together.step([g[step]], step + 1, 0.1, 1.0)
    for lane in range(4):
        alone = reference.Machine([graph], [p[lane]], program.slots, program.defaults)
        for step in range(3):
            alone.step([g[step, lane]], step + 1, 0.1, 1.0)
        np.testing.assert_allclose(together.units[0].p[lane], alone.units[0].p, 1e-12)
