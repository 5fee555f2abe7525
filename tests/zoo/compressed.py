"""Rules that keep or send their state in few bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from discover import optim
from tests.zoo.case import MOMENTS, Case, Deviations, Maker, State, betas, by_formula, by_optimizer, deviation

# Eight bits -----------------------------------------------------------------------------------------------------------


def book(signed: bool) -> np.ndarray[Any, Any]:
    """The values of eight bits, from section 1.3 of the paper: a sign bit where signed, then a run of zeros that says
    the power of ten, a one, and what is left says how far between a tenth and one, at the middle of equal parts."""
    values = [0.0, 1.0]
    for zeros in range(7):
        rest = 2 ** ((6 if signed else 7) - zeros)
        edges = np.linspace(0.1, 1.0, rest + 1)
        middles = 10.0**-zeros * (edges[:-1] + edges[1:]) / 2
        values += [*middles, *(-middles if signed else ())]
    assert len(values) == 256
    return np.sort(values)


def rounded(x: np.ndarray[Any, Any], block: int, signed: bool) -> np.ndarray[Any, Any]:
    """What is left of x [n] after eight bits a value and one scale a block."""
    values = book(signed)
    parts = []
    for start in range(0, len(x), block):
        part = x[start : start + block]
        scale = np.abs(part).max()
        nearest = np.abs(part[:, None] / (scale or 1.0) - values).argmin(1)
        parts.append(values[nearest] * scale)
    return np.concatenate(parts)


def adam8bit(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    block: float,
    weight_decay: float,
) -> Tensor:
    x, grad = p.numpy().ravel(), g.numpy().ravel()
    m = beta1 * state.get("m", 0.0) + (1 - beta1) * grad
    v = beta2 * state.get("v", 0.0) + (1 - beta2) * grad**2
    state["m"], state["v"] = rounded(m, int(block), True), rounded(v, int(block), False)
    u = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return torch.from_numpy(x - lr * weight_decay * x - lr * u).view(p.shape)


def torchao(params: list[Tensor], block: float, **hypers: Any) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    opt: torch.optim.Optimizer = betas(AdamW8bit, block_size=int(block))(params, **hypers)
    return opt


def in_float32(case: Case, hypers: Mapping[str, float], theirs_are: Mapping[str, float]) -> Deviations:
    """As `side_by_side`, in the only precision that torchao has; compiled, it would be the same and slower."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in case.shapes]
    mine, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    opt = optim.create(case.rule, mine, **hypers)
    oracle = case.oracle(theirs, **theirs_are)
    with mock.patch("torch.compile", lambda function, **_: function):
        for t in range(1, case.steps + 1):
            for p, g in zip(mine, case.gradients(mine, t), strict=True):
                p.grad = g
            opt.step()
            oracle.step(case.gradients(theirs, t), 1.0)
            yield deviation(mine, theirs)


# Communication in few bits --------------------------------------------------------------------------------------------


def onebit_adam(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    warmup: float,
    weight_decay: float,
) -> Tensor:
    """A worker and a server that has one worker."""

    def compress(u: Tensor) -> Tensor:
        signs = torch.ones_like(u)
        signs[u < 0] = -1
        return signs * u.norm() / math.sqrt(u.numel())

    m = beta1 * state.get("m", torch.zeros_like(p)) + (1 - beta1) * g
    if t <= warmup:
        state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    else:
        up = m + state.get("worker", 0)
        state["worker"] = up - compress(up)
        down = compress(up) + state.get("server", 0)
        state["server"] = down - compress(down)
        m = compress(down)
    state["m"] = m
    return p - lr * (m / (state["v"].sqrt() + eps) + weight_decay * p)


def to_powers_of_two(u: Tensor, levels: float) -> Tensor:
    """Each element's nearest among 0 and the largest magnitude times 1, 1/2, ..., 2**-levels and their negatives."""
    powers = [2.0**-j for j in range(int(levels) + 1)]
    grid = torch.tensor([0.0, *powers, *(-power for power in powers)], dtype=u.dtype) * u.abs().max()
    return grid[(u[..., None] - grid).abs().argmin(-1)]


def efficient_adam(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    levels: float,
    weight_decay: float,
) -> Tensor:
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    up = lr * m / (v + eps).sqrt() + state.get("worker", 0)
    sent = to_powers_of_two(up, levels)
    state["worker"] = up - sent
    down = sent + state.get("server", 0)
    received = to_powers_of_two(down, levels)
    state["server"] = down - received
    return p - lr * weight_decay * p - received


def qadam_ef(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    levels: float,
    weight_bits: float,
    weight_decay: float,
) -> Tensor:
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    u = lr * m / (v + eps).sqrt() + state.get("error", 0)
    sent = to_powers_of_two(u, levels)
    state["error"] = u - sent
    x = state.get("x", p)
    x = state["x"] = x - lr * weight_decay * x - sent
    steps = 2 ** int(weight_bits - 1)
    grid = torch.arange(-steps, steps + 1, dtype=x.dtype) / steps * x.abs().max()
    return grid[(x[..., None] - grid).abs().argmin(-1)]


_EQUATIONS = "its equations"
_LARGE = ((64, 64), (16, 16, 4, 4))
_TORCHAO: Maker = by_optimizer(torchao)
CASES: tuple[Case, ...] = (
    Case("adam8bit", by_formula(adam8bit), "its equations, in numpy", {**MOMENTS, "block": 5}),
    Case(
        "adam8bit",
        _TORCHAO,
        "torchao.optim.AdamW8bit in float32, tensors of 4096 elements",
        {**MOMENTS, "block": 128},
        shapes=_LARGE,
        run=in_float32,
        tolerance=1e-2,
        note="in float32 a value between two codes goes to one here and the other there, a few at each step",
    ),
    Case("onebit_adam", by_formula(onebit_adam), _EQUATIONS, MOMENTS, changed={"warmup": 15}),
    Case("efficient_adam", by_formula(efficient_adam), _EQUATIONS, {**MOMENTS, "levels": 4}),
    Case("qadam_ef", by_formula(qadam_ef), _EQUATIONS, {**MOMENTS, "levels": 3, "weight_bits": 5}),
)
