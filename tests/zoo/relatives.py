"""Element by element and tensor by tensor: Adam's relatives and momentum's."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import adam_mini
import pytorch_optimizer
import sgd_sai
import torch
import zij
from torch import Tensor

from tests.zoo.case import (
    KERNEL,
    MATRIX,
    MOMENTS,
    SCALAR,
    VECTOR,
    Case,
    Maker,
    Oracle,
    State,
    as_matrices,
    betas,
    by_formula,
    by_joint_formula,
    by_optimizer,
    warmed_up,
)
from tests.zoo.standard import adamw

# Equations ----------------------------------------------------------------------------------------------------------


def adafactor(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta2_decay: float,
    eps: float,
    scale_min: float,
    rms_max: float,
    weight_decay: float,
) -> Tensor:
    """Algorithms 4 and 5, with the relative step of section 8."""

    def rms(x: Tensor) -> float:
        return float(x.norm()) / math.sqrt(x.numel())

    beta2 = 1 - t**-beta2_decay
    squares = (g**2 + eps).flatten(1) if g.ndim > 1 else g**2 + eps
    if g.ndim > 1:
        r = state["r"] = beta2 * state.get("r", 0) + (1 - beta2) * squares.sum(1)
        c = state["c"] = beta2 * state.get("c", 0) + (1 - beta2) * squares.sum(0)
        v = torch.outer(r, c) / r.sum()
    else:
        v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * squares
    u = g / v.reshape(g.shape).sqrt()
    alpha = max(scale_min, rms(p)) * min(lr, 1 / math.sqrt(t))
    return p - lr * weight_decay * p - alpha * u / max(1.0, rms(u) / rms_max)


def laprop(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g / ((v / (1 - beta2**t)) ** 0.5 + eps)
    return (p - lr * m / (1 - beta1**t)) * (1 - lr * weight_decay)


def adam_mini_as_published(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    role: str | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    heads: float,
    weight_decay: float,
) -> Tensor:
    """Algorithm 1 with the partition of algorithms 2 and 3: each block's second moment is one number."""
    if role == "bias":
        blocks = [slice(i, i + 1) for i in range(g.numel())]
    elif g.ndim < 2:
        blocks = [slice(0, g.numel())]
    else:
        cols = g.numel() // g.shape[0]
        length = cols * max(1, int(cols / heads)) if role == "query_key" else cols
        blocks = [slice(i, min(i + length, g.numel())) for i in range(0, g.numel(), length)]
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    before = state.get("v", [0.0] * len(blocks))
    flat, step = g.flatten(), torch.empty(g.numel(), dtype=g.dtype)
    v = state["v"] = [
        beta2 * old + (1 - beta2) * float((flat[block] ** 2).mean()) for old, block in zip(before, blocks, strict=True)
    ]
    for each, block in zip(v, blocks, strict=True):
        step[block] = (m.flatten()[block] / (1 - beta1**t)) / (math.sqrt(each / (1 - beta2**t)) + eps)
    decay = 0 if role in ("bias", "norm") else weight_decay
    return p - lr * decay * p - lr * step.view(p.shape)


def mars(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    gamma: float,
    weight_decay: float,
    adam_lr_ratio: float,
    adam_beta1: float,
    adam_beta2: float,
    adam_weight_decay: float,
) -> Tensor:
    if p.ndim < 2:
        return adamw(p, g, state, t, lr * adam_lr_ratio, adam_beta1, adam_beta2, eps, adam_weight_decay)
    c = g + gamma * beta1 / (1 - beta1) * (g - state.get("g", torch.zeros_like(g)))
    state["g"] = g
    return adamw(p, c / max(1.0, float(c.norm())), state, t, lr, beta1, beta2, eps, weight_decay)


def sgd_with_ratio(
    p: Tensor, g: Tensor, state: State, t: int, *, lr: float, momentum: float, eps: float, weight_decay: float
) -> Tensor:
    if t == 1:
        state["ratio"] = float(g.norm() / (g.std() + eps)) if g.numel() > 1 else float(g.norm())
    m = state["m"] = g if t == 1 else momentum * state["m"] + (1 - momentum) * g
    return p - lr * weight_decay * p - lr * state["ratio"] * m


def spam(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    threshold: float,
    interval: int,
    warmup: int,
    start: int,
    weight_decay: float,
) -> Tensor:
    since = t % interval
    zero = torch.zeros_like(g)
    m, v = (zero, zero) if since == 0 else (state.get("m", zero), state.get("v", zero))
    if since >= start:
        g = torch.where(g**2 > threshold * v, g.sign() * (threshold * v).sqrt(), g)
    m = state["m"] = beta1 * m + (1 - beta1) * g
    v = state["v"] = beta2 * v + (1 - beta2) * g**2
    if t >= interval and since < warmup:
        lr_now = lr * (1 - 0.99 * (1 + math.cos(math.pi * since / (warmup + 1))) / 2)
    else:
        lr_now = lr
    p = p - lr_now * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (v.sqrt() + eps)
    return p - lr * weight_decay * p


def clipped_adaptively(
    gs: Sequence[Tensor],
    state: State,
    t: int,
    *,
    warmup: float,
    relative: float,
    absolute: float,
    ema: float,
    eps: float = 1e-8,
) -> list[Tensor]:
    """Algorithm 1 of AdaGC up to Adam: what is clipped, and the thresholds in the state."""
    joint = math.sqrt(sum(float((g**2).sum()) for g in gs)) + eps
    found, gammas = [], []
    for g, gamma in zip(gs, state.get("gamma", [math.inf] * len(gs)), strict=True):
        size = float(g.norm())
        if t < warmup:
            g = g * min(1.0, absolute / joint)
            gammas.append(min(gamma, float(g.norm())))
        else:
            g = g * min(1.0, relative * gamma / size)
            gammas.append(ema * gamma + (1 - ema) * float(g.norm()))
        found.append(g)
    state["gamma"] = gammas
    return found


def adagc(
    ps: list[Tensor],
    gs: list[Tensor],
    state: State,
    t: int,
    *,
    warmup: float,
    relative: float,
    absolute: float,
    ema: float,
    **hypers: float,
) -> list[Tensor]:
    each = state.setdefault("each", [{} for _ in ps])
    eps = hypers["eps"]
    gs = clipped_adaptively(gs, state, t, warmup=warmup, relative=relative, absolute=absolute, ema=ema, eps=eps)
    return [adamw(p, g, one, t, **hypers) for p, g, one in zip(ps, gs, each, strict=True)]


def am_sgd(
    ps: list[Tensor], gs: list[Tensor], state: State, t: int, *, lr: float, beta_max: float, lamb: float
) -> list[Tensor]:
    def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))

    ds = state.get("d", gs)
    apart = [d - g for d, g in zip(ds, gs, strict=True)]
    if t == 1:
        beta = 0.0
    else:
        mixed = [g + lamb * d for d, g in zip(ds, gs, strict=True)]
        beta = ((1 + lamb) * dot(gs, ds) - dot(apart, mixed)) / dot(apart, apart)
        beta = min(max(beta, 0.0), beta_max)
    ds = state["d"] = [((beta + lamb) * d + (1 - beta) * g) / (1 + lamb) for d, g in zip(ds, gs, strict=True)]
    return [p - lr * d for p, d in zip(ps, ds, strict=True)]


def am_adamw(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta2: float,
    eps: float,
    beta_max: float,
    lamb: float,
    weight_decay: float,
) -> Tensor:
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    scale = (1 - beta_max * math.prod(state.get("betas", ()))) * ((v / (1 - beta2**t)).sqrt() + eps)
    metric = 1 / (scale * (1 + lamb * scale))
    d = state.get("d", torch.zeros_like(g))
    beta = beta_max
    if t > 1:
        gap = (1 + weight_decay * lr) * state["lr"] * (g * (d / scale + weight_decay * p)).sum() / lr
        gap = gap - ((d - g) * metric * (g + lamb * scale * d)).sum() - weight_decay * (p * (d - g)).sum()
        beta = min(max(float(gap / ((d - g) * metric * (d - g)).sum()), 0.0), beta_max)
    d = state["d"] = ((1 - beta) * g + (lamb * scale + beta) * d) / (1 + lamb * scale)
    state["betas"], state["lr"] = (*state.get("betas", ()), beta), lr
    return p - weight_decay * lr * p - lr * d / scale


def sgd_ll(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    role: str | None,
    lr: float,
    momentum: float,
    row_norm_max: float,
    step_max: float,
) -> Tensor:
    u = state["m"] = momentum * state.get("m", 0) + (1 - momentum) * g
    if role == "head":
        u = u * (row_norm_max / u.norm(dim=1, keepdim=True)).clamp(max=1)
    rms = max(float(u.norm()) / math.sqrt(u.numel()), 1e-9)
    return p - lr * u * (step_max / (lr * rms) if lr * rms > step_max else 1.0)


def optimistic(p: Tensor, g: Tensor, state: State, t: int, *, lr: float, alpha: float, beta: float) -> Tensor:
    before = state.get("g", g)
    state["g"] = g
    return p - lr * ((alpha + beta) * g - beta * before)


# Other people's optimizers --------------------------------------------------------------------------------------------


def torch_adafactor(
    params: list[Tensor], eps: float, scale_min: float, beta2_decay: float, rms_max: float, **hypers: Any
) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(params, eps=(eps, scale_min), beta2_decay=-beta2_decay, d=rms_max, **hypers)


def zij_laprop(params: list[Tensor], lr: float, weight_decay: float, **hypers: Any) -> torch.optim.Optimizer:
    """Its decay is not multiplied by lr."""
    return betas(zij.LaProp)(params, lr=lr, weight_decay=lr * weight_decay, **hypers)  # type: ignore[no-any-return]


def zij_mars(
    params: list[Tensor],
    lr: float,
    adam_lr_ratio: float,
    adam_beta1: float,
    adam_beta2: float,
    adam_weight_decay: float,
    **hypers: Any,
) -> torch.optim.Optimizer:
    vectors = {"betas_1d": (adam_beta1, adam_beta2), "weight_decay_1d": adam_weight_decay, "lr_1d": lr * adam_lr_ratio}
    return betas(zij.MARS, **vectors)(params, lr=lr, **hypers)  # type: ignore[no-any-return]


def zij_spam(params: list[Tensor], interval: float, start: float, warmup: float, **hypers: Any) -> Any:
    return betas(zij.SPAM)(
        params, update_proj_gap=int(interval), grad_accu_steps=int(start), warmup_epoch=int(warmup), **hypers
    )


def zij_adagc(params: list[Tensor], warmup: float, relative: float, absolute: float, ema: float, **hypers: Any) -> Any:
    return betas(zij.AdaGC)(
        params, warmup_steps=int(warmup), lambda_rel=relative, lambda_abs=absolute, beta=ema, **hypers
    )


def quietly(make: Callable[..., Oracle]) -> Maker:
    """For an oracle that talks."""

    def maker(params: list[Tensor], **hypers: Any) -> Oracle:
        oracle = make(params, **hypers)

        def step(grads: list[Tensor], ratio: float) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                oracle.step(grads, ratio)

        return Oracle(step)

    return maker


ROLED = {
    "mlp.weight": (MATRIX, None),
    "mlp.kernel": (KERNEL, None),
    "q_proj.weight": ((6, 6), "query_key"),
    "embed.weight": ((5, 4), "embedding"),
    "lm_head.weight": ((4, 6), "head"),
    "mlp.bias": (VECTOR, "bias"),
    "norm.weight": (VECTOR, "norm"),
    "scale": ((3,), None),
    "temperature": (SCALAR, None),
}
"""What the parameters of a transformer are called, with their shapes and roles."""
ROLED_SHAPES = tuple(shape for shape, _ in ROLED.values())
ROLES = tuple(role for _, role in ROLED.values())


def official_adam_mini(params: list[Tensor], heads: float, **hypers: Any) -> torch.optim.Optimizer:
    named = list(zip(ROLED, params, strict=True))
    return betas(adam_mini.Adam_mini)(named, dim=6, n_heads=int(heads), verbose=False, **hypers)  # type: ignore[no-any-return]


# Gradients ------------------------------------------------------------------------------------------------------------


def spiked(params: list[Tensor], t: int) -> list[Tensor]:
    """Of a noisy quadratic, a thousand times as large in some elements at every seventh step."""
    generator = torch.Generator().manual_seed(500 + t)
    factors = [1 + 1000 * (torch.rand(p.shape, generator=generator) < 0.3) * (t % 7 == 0) for p in params]
    noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]
    return [(0.5 * p.detach() + n) * f for p, n, f in zip(params, noise, factors, strict=True)]


def across(params: list[Tensor], t: int) -> list[Tensor]:
    """More or less at right angles to the parameters: row by row, as a whole, or not at all, by turns."""
    generator = torch.Generator().manual_seed(700 + t)
    found = []
    for p in params:
        x, g = p.detach(), torch.randn(p.shape, generator=generator, dtype=p.dtype)
        if p.ndim > 1 and t % 3 == 1:
            rows, like = g.flatten(1), x.flatten(1)
            rows = rows - like * (rows * like).sum(1, keepdim=True) / (like**2).sum(1, keepdim=True)
            g = rows.view_as(p) + 0.01 * g
        elif p.ndim > 1 and t % 3 == 2:
            g = g - x * (g * x).sum() / (x**2).sum()
        found.append(g)
    return found


# Cases ----------------------------------------------------------------------------------------------------------------

_PROJECTED = {"delta": 0.2, "wd_ratio": 0.3}
_SPAM = {"interval": 20, "start": 5, "threshold": 3.0}
_AGC = {"weight_decay": 0.2, "relative": 1.02, "absolute": 0.5, "ema": 0.9}
_MARS = {"gamma": 0.1, "adam_lr_ratio": 0.4, "adam_beta1": 0.85, "adam_beta2": 0.9, "adam_weight_decay": 0.3}
_ADAFACTOR = {"lr": 0.3, "beta2_decay": 0.6, "scale_min": 1.1, "rms_max": 0.7, "weight_decay": 0.4}
_AM = {"lr": 0.05, "beta_max": 0.7, "lamb": 0.3}
NOT_ONE = (MATRIX, KERNEL, VECTOR)

CASES: tuple[Case, ...] = (
    Case(
        "adabelief",
        by_optimizer(betas(pytorch_optimizer.AdaBelief, rectify=False)),
        "pytorch_optimizer.AdaBelief",
        MOMENTS,
    ),
    Case(
        "adan",
        by_optimizer(betas(pytorch_optimizer.Adan, "beta1", "beta2", "beta3", weight_decouple=False)),
        "pytorch_optimizer.Adan",
        {**MOMENTS, "beta3": 0.97},
    ),
    Case("adafactor", by_formula(adafactor), "algorithms 4 and 5", {**_ADAFACTOR, "eps": 0.1}),
    Case(
        "adafactor",
        as_matrices(by_optimizer(torch_adafactor)),
        "torch.optim.Adafactor, kernels reshaped",
        {**_ADAFACTOR, "rms_max": 1.1},
        note="torch factors a kernel's last two dimensions; eps at its default, since torch clamps by it",
    ),
    Case("laprop", by_formula(laprop), "its equations", MOMENTS),
    Case("laprop", by_optimizer(zij_laprop), "zij.LaProp", MOMENTS, note="zij's decay is given lr * weight_decay"),
    Case("adamp", by_optimizer(betas(zij.AdamP)), "zij.AdamP", {**MOMENTS, **_PROJECTED}, gradients=across),
    Case(
        "sgdp",
        by_optimizer(pytorch_optimizer.SGDP),
        "pytorch_optimizer.SGDP",
        {"lr": 0.1, "momentum": 0.8, "eps": 1e-3, "weight_decay": 0.2, **_PROJECTED},
        gradients=across,
    ),
    Case("diffgrad", by_optimizer(betas(zij.DiffGrad)), "zij.DiffGrad", MOMENTS),
    Case("exadam", by_optimizer(betas(zij.EXAdam)), "zij.EXAdam", MOMENTS),
    Case("mars_adamw", by_formula(mars), "its equations", {**MOMENTS, **_MARS}),
    Case(
        "mars_adamw",
        as_matrices(by_optimizer(zij_mars)),
        "zij.MARS, kernels reshaped",
        {**MOMENTS, **_MARS},
        note="zij takes a kernel for a vector",
    ),
    Case(
        "adam_mini",
        as_matrices(quietly(by_optimizer(official_adam_mini))),
        "adam_mini.Adam_mini, kernels reshaped",
        MOMENTS,
        {"heads": 3},
        note="Adam_mini wants a matrix where it has a second moment a row",
        shapes=ROLED_SHAPES,
        roles=ROLES,
    ),
    Case(
        "adam_mini",
        by_formula(adam_mini_as_published, ROLES),
        "algorithms 1 to 3",
        {**MOMENTS, "heads": 2},
        shapes=ROLED_SHAPES,
        roles=ROLES,
    ),
    Case(
        "sgd_sai",
        by_formula(sgd_with_ratio),
        "its equations",
        {"lr": 0.1, "momentum": 0.7, "eps": 1e-2, "weight_decay": 0.3},
    ),
    Case(
        "sgd_sai",
        quietly(by_optimizer(sgd_sai.SGD_sai)),
        "sgd_sai.SGD_sai",
        {"lr": 0.1, "momentum": 0.7, "eps": 1e-2, "weight_decay": 0.3},
        note="without the scalar, whose ratio is there its norm over eps",
        shapes=NOT_ONE,
    ),
    Case("am_sgd", by_joint_formula(am_sgd), "algorithm 1", _AM),
    Case(
        "am_adamw",
        by_formula(am_adamw),
        "algorithm 3",
        {**_AM, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.2},
        lr_ratio=warmed_up,
    ),
    Case("spam", by_formula(spam), "its equations", {**MOMENTS, **_SPAM, "warmup": 9}, gradients=spiked),
    Case(
        "spam",
        by_optimizer(zij_spam),
        "zij.SPAM without its warm-up",
        {**MOMENTS, "threshold": 3.0, "weight_decay": 0},
        {"warmup": 0, "interval": 20, "start": 5},
        note="with warm-up zij's factor is a recursion that is off the cosine by 3e-2; matrices do not decay there",
        gradients=spiked,
    ),
    Case("adagc", by_joint_formula(adagc), "algorithm 1", {**MOMENTS, **_AGC, "warmup": 10}),
    Case(
        "adagc",
        by_optimizer(zij_adagc),
        "zij.AdaGC",
        {**MOMENTS, **_AGC, "warmup": 10},
        tolerance=1e-7,
        note="zij adds up the global norm in float32, and does not take a scalar",
        shapes=NOT_ONE,
    ),
    Case(
        "sgd_ll",
        by_formula(sgd_ll, (None, None, None, None, "head")),
        "its equations",
        {"lr": 0.1, "momentum": 0.8, "row_norm_max": 0.5, "step_max": 0.03},
        shapes=(MATRIX, KERNEL, VECTOR, SCALAR, (4, 6)),
        roles=(None, None, None, None, "head"),
    ),
    Case("optimistic", by_formula(optimistic), "its equation", {"lr": 0.05, "alpha": 0.7, "beta": 0.6}),
)
