"""Rules that take a rule, each with one base; and the rules that are evaluated at a point of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_optimizer
import schedulefree
import torch
from pytorch_optimizer.optimizer.grokfast import gradfilter_ema
from torch import Tensor, nn

from tests.zoo.case import (
    MOMENTS,
    Case,
    Maker,
    Oracle,
    State,
    betas,
    by_formula,
    by_optimizer,
    warmed_up,
)
from tests.zoo.matrix import MUON, muon
from tests.zoo.relatives import clipped_adaptively
from tests.zoo.standard import LION, SGD, adamw


def lookahead(params: list[Tensor], k: float, alpha: float, **hypers: Any) -> torch.optim.Optimizer:
    return pytorch_optimizer.Lookahead(betas(torch.optim.Adam)(params, **hypers), k=k, alpha=alpha)


def cautious_lion(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    floor: float,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> Tensor:
    m = state.get("m", torch.zeros_like(p))
    u = lr * (torch.sign(beta1 * m + (1 - beta1) * g) + weight_decay * p)
    state["m"] = beta2 * m + (1 - beta2) * g
    mask = (u * g > 0).double()
    return p - u * mask / max(float(mask.mean()), floor)


def ema_nesterov(base: Maker) -> Maker:
    """theta' = A(theta + beta_t m), m' = gamma m + (1 - gamma)(theta' - theta), the gradient at theta + beta_t m.

    The oracle's parameters are theta + beta_t m between steps, with the lr of the step before in beta_t.
    """

    def maker(params: list[Tensor], gamma: float, beta: float, warmup: float, rest: float, **hypers: Any) -> Oracle:
        inner = base(params, **hypers)
        theta = [p.detach().clone() for p in params]
        m = [torch.zeros_like(p) for p in theta]
        t = 0

        def step(grads: list[Tensor], ratio: float) -> None:
            nonlocal t, theta, m
            t += 1
            inner.step(grads, ratio)
            new = [p.detach().clone() for p in params]
            m = [gamma * b + (1 - gamma) * (x - a) for a, b, x in zip(theta, m, new, strict=True)]
            theta = new
            now = beta * ratio if t + 1 >= warmup and (rest == 0 or t + 1 < rest) else 0.0
            for p, a, b in zip(params, theta, m, strict=True):
                p.data.copy_(a + now * b)

        return Oracle(step, lambda: theta)

    return maker


def filtered(base: Maker, change: Callable[..., list[Tensor]], *names: str) -> Maker:
    """An oracle on gradients that `change(gradients, state, t, **hypers)` has changed; `names` are its own."""

    def maker(params: list[Tensor], **hypers: Any) -> Oracle:
        own = {name: hypers.pop(name) for name in names}
        inner, state, t = base(params, **hypers), State(), 0

        def step(grads: list[Tensor], ratio: float) -> None:
            nonlocal t
            t += 1
            inner.step(change([g.clone() for g in grads], state, t, **own), ratio)

        return Oracle(step)

    return maker


def as_module(grads: list[Tensor]) -> nn.Module:
    """Gradients where torch's own functions look for them."""
    module = nn.ParameterList(torch.zeros_like(g) for g in grads)
    for p, g in zip(module, grads, strict=True):
        p.grad = g
    return module


def grokfast(grads: list[Tensor], state: State, t: int, *, alpha: float, lamb: float) -> list[Tensor]:
    state["slow"] = gradfilter_ema(as_module(grads), state.get("slow"), alpha, lamb)
    return grads


def clip_all(grads: list[Tensor], state: State, t: int, *, max_norm: float) -> list[Tensor]:
    torch.nn.utils.clip_grad_norm_(as_module(grads).parameters(), max_norm)
    return grads


def clip_each(grads: list[Tensor], state: State, t: int, *, max_norm: float) -> list[Tensor]:
    for p in as_module(grads).parameters():
        torch.nn.utils.clip_grad_norm_(p, max_norm)
    return grads


def clip_value(grads: list[Tensor], state: State, t: int, *, limit: float) -> list[Tensor]:
    torch.nn.utils.clip_grad_value_(as_module(grads).parameters(), limit)
    return grads


def momentum(
    p: Tensor, g: Tensor, state: State, t: int, *, lr: float, momentum: float, dampening: float, weight_decay: float
) -> Tensor:
    g = g + weight_decay * p
    b = state["b"] = g if t == 1 else momentum * state["b"] + (1 - dampening) * g
    return p - lr * b


def clip_quantile(p: Tensor, g: Tensor, state: State, t: int, *, fraction: float, **hypers: float) -> Tensor:
    u = p - momentum(p, g, state, t, **hypers)
    limit = torch.quantile(u.abs().flatten(), 1 - fraction)
    return p - u.sign() * torch.minimum(u.abs(), limit)


def decay_twice(params: list[Tensor], weight_decay: float, adamw_weight_decay: float, **hypers: Any) -> Any:
    return betas(torch.optim.AdamW)(params, weight_decay=weight_decay + adamw_weight_decay, **hypers)


def decay_cautious(
    p: Tensor, g: Tensor, state: State, t: int, *, weight_decay: float, adamw_weight_decay: float, **hypers: Any
) -> Tensor:
    """weight_decay is that of the rule over the initial lr, so that the schedule is in lr."""
    u = p - adamw(p, g, state, t, weight_decay=adamw_weight_decay, **hypers)
    return p - u - hypers["lr"] * weight_decay * p * (u * p >= 0)


def over_lr(make: Maker) -> Maker:
    """The oracle of a decay that is multiplied by lr, for a rule whose decay is not."""
    return lambda params, lr, weight_decay, **hypers: make(params, lr=lr, weight_decay=weight_decay / lr, **hypers)


def l2_twice(params: list[Tensor], weight_decay: float, adam_weight_decay: float, **hypers: Any) -> Any:
    return betas(torch.optim.Adam)(params, weight_decay=weight_decay + adam_weight_decay, **hypers)


def schedule_free_sgd(params: list[Tensor], warmup: float, **hypers: Any) -> torch.optim.Optimizer:
    return schedulefree.SGDScheduleFree(params, warmup_steps=int(warmup), **hypers)  # type: ignore[no-any-return]


def schedule_free_adamw(params: list[Tensor], warmup: float, **hypers: Any) -> Any:
    return betas(schedulefree.AdamWScheduleFree, warmup_steps=int(warmup))(params, **hypers)


def schedule_free(params: list[Tensor], beta: float, **hypers: Any) -> torch.optim.Optimizer:
    return schedulefree.ScheduleFreeWrapperReference(SGD(params, **hypers), momentum=beta)  # type: ignore[no-any-return]


_MOMENTUM = {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2}
_EMA = {"lr": 0.03, "gamma": 0.9, "beta": 0.6, "warmup": 12, "rest": 40}
CASES: tuple[Case, ...] = (
    Case("lookahead(adam)", by_optimizer(lookahead), "pytorch_optimizer.Lookahead", {**MOMENTS, "k": 3, "alpha": 0.3}),
    Case("cautious(lion)", by_formula(cautious_lion), "its equations", {**LION, "floor": 0.9}),
    Case(
        "clip_global(sgd)",
        filtered(by_optimizer(SGD), clip_all, "max_norm"),
        "clip_grad_norm_, SGD of torch",
        {"lr": 0.1, "weight_decay": 0.2, "max_norm": 1.5},
    ),
    Case(
        "clip_global(adamw)",
        filtered(by_optimizer(betas(torch.optim.AdamW)), clip_all, "max_norm"),
        "clip_grad_norm_, AdamW of torch",
        {**MOMENTS, "max_norm": 1.5},
    ),
    Case(
        "ema_nesterov(adamw)",
        ema_nesterov(by_optimizer(betas(torch.optim.AdamW))),
        "its two equations around torch.optim.AdamW",
        {**MOMENTS, **_EMA},
    ),
    Case(
        "ema_nesterov(adamw)",
        ema_nesterov(by_optimizer(betas(torch.optim.AdamW))),
        "its two equations around torch.optim.AdamW, lr scheduled",
        {**MOMENTS, **_EMA},
        lr_ratio=warmed_up,
    ),
    Case(
        "ema_nesterov(muon)",
        ema_nesterov(by_formula(muon)),
        "its two equations around Muon's, lr scheduled",
        {**MUON, **_EMA},
        lr_ratio=warmed_up,
    ),
    Case(
        "grokfast(adam)",
        filtered(by_optimizer(betas(torch.optim.Adam)), grokfast, "alpha", "lamb"),
        "pytorch_optimizer's gradfilter_ema, torch.optim.Adam",
        {**MOMENTS, "alpha": 0.9, "lamb": 1.3},
    ),
    Case(
        "clip_tensor(momentum)",
        filtered(by_optimizer(SGD), clip_each, "max_norm"),
        "clip_grad_norm_ of torch a tensor, torch.optim.SGD",
        {**_MOMENTUM, "max_norm": 1.5},
    ),
    Case(
        "clip_value(momentum)",
        filtered(by_optimizer(SGD), clip_value, "limit"),
        "clip_grad_value_ and SGD of torch",
        {**_MOMENTUM, "limit": 0.7},
    ),
    Case(
        "clip_adaptive(momentum)",
        filtered(by_optimizer(SGD), clipped_adaptively, "warmup", "relative", "absolute", "ema"),
        "AdaGC's algorithm 1, torch.optim.SGD",
        {**_MOMENTUM, "warmup": 10, "relative": 1.02, "absolute": 0.5, "ema": 0.9},
    ),
    Case(
        "clip_quantile(momentum)",
        by_formula(clip_quantile),
        "its equation",
        {**_MOMENTUM, "fraction": 0.33},
    ),
    Case(
        "schedule_free_sgd",
        by_optimizer(schedule_free_sgd),
        "schedulefree.SGDScheduleFree",
        {"lr": 0.1, "momentum": 0.8, "warmup": 12, "weight_decay": 0.1},
    ),
    Case(
        "schedule_free_adamw",
        by_optimizer(schedule_free_adamw),
        "schedulefree.AdamWScheduleFree, lr scheduled",
        {**MOMENTS, "warmup": 12},
        lr_ratio=warmed_up,
    ),
    Case(
        "schedule_free(momentum)",
        by_optimizer(schedule_free),
        "schedulefree.ScheduleFreeWrapperReference, lr scheduled",
        {**_MOMENTUM, "beta": 0.8},
        lr_ratio=warmed_up,
    ),
    Case(
        "decay_l2(adam)",
        by_optimizer(l2_twice),
        "torch.optim.Adam",
        {**MOMENTS, "weight_decay": 0.2, "adam_weight_decay": 0.1},
    ),
    Case(
        "decay_decoupled(adamw)",
        over_lr(by_optimizer(decay_twice)),
        "torch.optim.AdamW, lr scheduled",
        {**MOMENTS, "weight_decay": 0.01, "adamw_weight_decay": 0.3},
        lr_ratio=warmed_up,
    ),
    Case(
        "decay_cautious(adamw)",
        over_lr(by_formula(decay_cautious)),
        "its equation, lr scheduled",
        {**MOMENTS, "weight_decay": 0.01, "adamw_weight_decay": 0.3},
        lr_ratio=warmed_up,
    ),
)
