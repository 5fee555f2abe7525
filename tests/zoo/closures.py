"""Rules that need more than a gradient: both sides train one small network and are asked the same questions of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_optimizer
import sophia_opt
import torch
from torch import Tensor

import dsl
from discover import optim
from discover.closures import calls_backward
from dsl import numpy_functions
from dsl.graph import needs
from dsl.program import Program
from tests.zoo.case import (
    MOMENTS,
    Case,
    Deviations,
    Maker,
    Oracle,
    State,
    betas,
    deviation,
    parameters,
    scalars_in_float64,
)
from tests.zoo.standard import adamw

EXAMPLES = 6
SHAPES: tuple[tuple[int, ...], ...] = ((3, 2, 2, 2), (5, 12), (5,), (3, 5), (3,), ())
"""A convolution, two layers and a scale: 130 numbers."""


# The network ----------------------------------------------------------------------------------------------------------


def batch(t: int) -> tuple[Tensor, Tensor]:
    """Images [examples, 2, 3, 3] and labels [examples] of step t."""
    generator = torch.Generator().manual_seed(500 + t)
    x = torch.randn(EXAMPLES, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (EXAMPLES,), generator=generator)


def logits(params: Sequence[Tensor], x: Tensor) -> Tensor:
    kernel, first, first_bias, second, second_bias, scale = params
    hidden = torch.nn.functional.conv2d(x, kernel).tanh().flatten(1)
    return (hidden @ first.mT + first_bias).tanh() @ second.mT * scale + second_bias


def losses(params: Sequence[Tensor], t: int, sample: bool = False) -> Tensor:
    """The loss of each example, [examples]; `sample` takes labels that the network draws."""
    x, labels = batch(t)
    found = logits(params, x)
    if sample:
        edges = found.detach().softmax(1).cumsum(1)
        draws = torch.rand(EXAMPLES, 1, generator=torch.Generator().manual_seed(900 + t), dtype=x.dtype)
        labels = (draws > edges).sum(1).clamp(max=2)
    return torch.nn.functional.cross_entropy(found, labels, reduction="none")


def closure_of(
    rule: str | Program, params: Iterable[Tensor], losses: Callable[[bool], Tensor]
) -> Callable[..., Tensor]:
    """What a user of the rule gives to `step`, no more than it needs; `losses(sample)` are those of the examples."""
    asks = needs(rule if isinstance(rule, Program) else dsl.load(rule))
    kept = list(params)

    def compute(sample: bool = False, examples: bool = False) -> Tensor:
        each = losses(sample)
        if examples:
            return each
        for p in kept:
            p.grad = None
        if calls_backward(asks):
            each.mean().backward(create_graph="hvp" in asks.closure)
        return each.mean()

    def plain() -> Tensor:
        return compute()

    def sampling(sample: bool = False) -> Tensor:
        return compute(sample=sample)

    def one_by_one(examples: bool = False) -> Tensor:
        return compute(examples=examples)

    return sampling if "sampled_grad" in asks.closure else one_by_one if "clipped_grad" in asks.closure else plain


def gradients(params: Sequence[Tensor], t: int, sample: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(losses(params, t, sample).mean(), list(params)))


def curvature(params: Sequence[Tensor], t: int, z: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian times z."""
    grads = torch.autograd.grad(losses(params, t).mean(), list(params), create_graph=True)
    return list(torch.autograd.grad(grads, list(params), list(z)))


def drawn(kind: str, params: Sequence[Tensor], seed: float, t: int) -> list[Tensor]:
    """The language's draws, by their meaning in numpy."""
    draw = getattr(numpy_functions, f"draw_{kind}")
    return [
        torch.from_numpy(np.array(draw(np.zeros((1, p.numel())), seed, t, place))).view(p.shape)
        for place, p in enumerate(params)
    ]


def beside_the_network(case: Case, hypers: Mapping[str, float], theirs_are: Mapping[str, float]) -> Deviations:
    """Steps the rule, by closures, and its oracle; the deviation after each step."""
    with scalars_in_float64():
        mine, theirs = parameters(shapes=SHAPES), parameters(shapes=SHAPES)
        opt = optim.create(case.rule, case.groups(mine), **hypers)
        oracle = case.oracle(theirs, **theirs_are)
        for t in range(1, case.steps + 1):
            opt.step(closure_of(case.rule, mine, partial(losses, mine, t)), examples=EXAMPLES)
            oracle.step(gradients(theirs, t), 1.0)
            yield deviation(mine, theirs)


# Oracles --------------------------------------------------------------------------------------------------------------


def by_network(update: Callable[..., list[Tensor]]) -> Maker:
    """An oracle from `update(ps, gs, state, t, **hypers)`, which gives the new ps; ps take gradients."""

    def maker(params: list[Tensor], **hypers: Any) -> Oracle:
        state: State = {}
        t = 0

        def step(grads: list[Tensor], ratio: float) -> None:
            nonlocal t
            t += 1
            new = update([p.detach().clone().requires_grad_() for p in params], grads, state, t, **hypers)
            for p, x in zip(params, new, strict=True):
                p.data.copy_(x.detach())

        return Oracle(step)

    return maker


def by_stepping(make: Callable[..., Any], step: Callable[..., None]) -> Maker:
    """An oracle from somebody's optimizer and `step(optimizer, params, t)`; gradients are on the parameters then."""

    def maker(params: list[Tensor], **hypers: Any) -> Oracle:
        opt = make(params, **hypers)
        t = 0

        def advance(grads: list[Tensor], ratio: float) -> None:
            nonlocal t
            t += 1
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            step(opt, params, t)

        return Oracle(advance)

    return maker


def adahessian_step(opt: Any, params: list[Tensor], t: int) -> None:
    z = drawn("rademacher", params, opt.seed, t)
    opt.step(hessian=curvature(params, t, z))


def adahessian_optimizer(params: list[Tensor], seed: float, block: float, **hypers: Any) -> Any:
    assert block == 1
    opt = betas(pytorch_optimizer.AdaHessian)(params, **hypers)
    opt.seed = seed
    return opt


def adahessian(
    ps: list[Tensor],
    gs: list[Tensor],
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    hessian_power: float,
    block: int,
    seed: float,
    weight_decay: float,
) -> list[Tensor]:
    products = curvature(ps, t, drawn("rademacher", ps, seed, t))
    new = []
    for i, (p, g, product) in enumerate(zip(ps, gs, products, strict=True)):
        flat = product.abs().flatten()
        d = torch.cat([part.mean().expand(len(part)) for part in flat.split(int(block))]).view(p.shape)
        m = state[i, "m"] = beta1 * state.get((i, "m"), 0) + (1 - beta1) * g
        v = state[i, "v"] = beta2 * state.get((i, "v"), 0) + (1 - beta2) * d**2
        u = m / (1 - beta1**t) / ((v / (1 - beta2**t)) ** (hessian_power / 2) + eps)
        new.append(p - lr * (u + weight_decay * p))
    return new


def sophia_h_optimizer(
    params: list[Tensor],
    seed: float,
    lr: float,
    rho: float,
    eps: float,
    weight_decay: float,
    frequency: float,
    **rest: Any,
) -> Any:
    """Its lr, clip and eps are those of the paper's first version."""
    opt = betas(pytorch_optimizer.SophiaH)(
        params, lr=lr / rho, p=rho, eps=eps / rho, weight_decay=weight_decay * rho, update_period=int(frequency), **rest
    )
    opt.seed = seed
    return opt


def sophia_h_step(opt: Any, params: list[Tensor], t: int) -> None:
    z = drawn("gaussian", params, opt.seed, t)
    refresh = (t - 1) % opt.update_period == 0
    opt.step(hessian=[a * b for a, b in zip(z, curvature(params, t, z), strict=True)] if refresh else None)


def sophia_g_optimizer(params: list[Tensor], eps: float, frequency: float, **hypers: Any) -> Any:
    assert eps == 1e-15
    opt = betas(sophia_opt.SophiaG)(params, **hypers)
    opt.frequency = frequency
    return opt


def sophia_g_step(opt: Any, params: list[Tensor], t: int) -> None:
    if (t - 1) % opt.frequency == 0:
        kept = [p.grad for p in params]
        for p, g in zip(params, gradients(params, t, sample=True), strict=True):
            p.grad = g
        opt.update_hessian()
        for p, grad in zip(params, kept, strict=True):
            p.grad = grad
    opt.step(bs=EXAMPLES)


def sophia_g(
    ps: list[Tensor],
    gs: list[Tensor],
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    rho: float,
    eps: float,
    frequency: float,
    weight_decay: float,
) -> list[Tensor]:
    new = []
    for i, (p, g) in enumerate(zip(ps, gs, strict=True)):
        if t % frequency == (1 if frequency > 1 else 0):
            h = EXAMPLES * gradients(ps, t, sample=True)[i] ** 2
            state[i, "h"] = beta2 * state.get((i, "h"), 0) + (1 - beta2) * h
        m = state[i, "m"] = beta1 * state.get((i, "m"), 0) + (1 - beta1) * g
        ratio = (m.abs() / (rho * state[i, "h"] + eps)).clamp(max=1)
        new.append(p - lr * weight_decay * p - lr * m.sign() * ratio)
    return new


def mezo(
    ps: list[Tensor],
    gs: list[Tensor],
    state: State,
    t: int,
    *,
    lr: float,
    scale: float,
    seed: float,
    weight_decay: float,
) -> list[Tensor]:
    """All but the last two layers' vectors decay, which the case calls biases."""
    z = drawn("gaussian", ps, seed, t)
    up, down = (
        losses([p + side * scale * each for p, each in zip(ps, z, strict=True)], t).mean() for side in (1.0, -1.0)
    )
    slope = (up - down) / (2 * scale)
    return [
        p - lr * (slope * each + (weight_decay * p if i not in (2, 4) else 0))
        for i, (p, each) in enumerate(zip(ps, z, strict=True))
    ]


def gradients_of_examples(params: list[Tensor], t: int) -> list[Tensor]:
    """[examples, ...] for each parameter."""
    each = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses(params, t)]
    return [torch.stack(grads) for grads in zip(*each, strict=True)]


def dp_sgd(
    ps: list[Tensor],
    gs: list[Tensor],
    state: State,
    t: int,
    *,
    lr: float,
    clip: float,
    noise: float,
    seed: float,
    weight_decay: float,
) -> list[Tensor]:
    examples = gradients_of_examples(ps, t)
    norms = torch.stack([g.reshape(EXAMPLES, -1).square().sum(1) for g in examples]).sum(0).sqrt()
    clipped = [torch.einsum("i,i...", torch.clamp(clip / norms, max=1), g) for g in examples]
    z = drawn("gaussian", ps, seed, t)
    noisy = [(g + noise * clip * each) / EXAMPLES for g, each in zip(clipped, z, strict=True)]
    return [p - lr * (g + weight_decay * p) for p, g in zip(ps, noisy, strict=True)]


def dp_sgd_optimizer(
    params: list[Tensor], lr: float, clip: float, noise: float, seed: float, weight_decay: float
) -> Any:
    """opacus's, with its own draws replaced by those that `dp_sgd_step` leaves in `draws`."""
    from opacus.optimizers import DPOptimizer  # slow to import

    opt: Any = DPOptimizer(
        torch.optim.SGD(params, lr=lr, weight_decay=weight_decay),
        noise_multiplier=noise,
        max_grad_norm=clip,
        expected_batch_size=EXAMPLES,
    )

    def add_noise() -> None:
        for p, z in zip(opt.params, opt.draws, strict=True):
            p.grad = p.summed_grad + noise * clip * z

    opt.add_noise, opt.seed = add_noise, seed
    return opt


def dp_sgd_step(opt: Any, params: list[Tensor], t: int) -> None:
    opt.zero_grad()
    for p, g in zip(params, gradients_of_examples(params, t), strict=True):
        p.grad_sample = g  # type: ignore[attr-defined]
    opt.draws = drawn("gaussian", params, opt.seed, t)
    opt.step()


def sharp(adaptive: bool, base: Callable[..., torch.optim.Optimizer]) -> Maker:
    """The perturbation in one line, then torch's optimizer on the gradient there."""

    def make(params: list[Tensor], rho: float, **hypers: Any) -> Any:
        opt: Any = base(params, **hypers)
        opt.rho = rho
        return opt

    def step(opt: Any, params: list[Tensor], t: int) -> None:
        grads = [p.grad for p in params]
        sizes = [p.detach().abs() if adaptive else torch.ones_like(p) for p in params]
        norm = sum(float((s * g).square().sum()) for s, g in zip(sizes, grads, strict=True)) ** 0.5
        there = [
            (p + opt.rho * s**2 * g / norm).detach().requires_grad_()
            for p, s, g in zip(params, sizes, grads, strict=True)
        ]
        for p, g in zip(params, gradients(there, t), strict=True):
            p.grad = g
        opt.step()

    return by_stepping(make, step)


def sharp_optimizer(adaptive: bool) -> Maker:
    """pytorch_optimizer.SAM around torch's SGD."""

    def make(params: list[Tensor], rho: float, **hypers: Any) -> Any:
        return pytorch_optimizer.SAM(params, torch.optim.SGD, rho=rho, adaptive=adaptive, **hypers)

    def step(opt: Any, params: list[Tensor], t: int) -> None:
        def again() -> Tensor:
            for p, g in zip(params, gradients(params, t), strict=True):
                p.grad = g
            return losses(params, t).mean()

        opt.step(torch.enable_grad()(again))

    return by_stepping(make, step)


def mars_adamw_exact(
    ps: list[Tensor],
    gs: list[Tensor],
    state: State,
    t: int,
    *,
    lr: float,
    gamma: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> list[Tensor]:
    before = gradients(state.get("ps", ps), t)
    state["ps"] = ps
    new = []
    for i, (p, g, old) in enumerate(zip(ps, gs, before, strict=True)):
        c = g + gamma * beta1 / (1 - beta1) * (g - old)
        c = c / c.norm() if c.norm() > 1 else c
        new.append(adamw(p, c, state.setdefault(i, {}), t, lr, beta1, beta2, eps, weight_decay))
    return new


def case(rule: str, oracle: Maker, follows: str, other: Mapping[str, float], **more: Any) -> Case:
    return Case(rule, oracle, follows, other, shapes=SHAPES, run=beside_the_network, **more)


_EQUATIONS = "its equations"
_SOPHIA = {"lr": 0.01, "beta1": 0.8, "beta2": 0.9, "rho": 0.3, "frequency": 3, "weight_decay": 0.3}
_DP = {"lr": 0.3, "clip": 0.4, "noise": 0.2, "seed": 7, "weight_decay": 0.1}
_BIASES = (None, None, "bias", None, "bias", None)
CASES: tuple[Case, ...] = (
    case(
        "adahessian",
        by_stepping(adahessian_optimizer, adahessian_step),
        "pytorch_optimizer.AdaHessian on the same draws",
        {**MOMENTS, "hessian_power": 0.6, "seed": 3},
    ),
    case("adahessian", by_network(adahessian), _EQUATIONS, {**MOMENTS, "hessian_power": 0.8, "block": 4, "seed": 5}),
    case(
        "sophia_h",
        by_stepping(sophia_h_optimizer, sophia_h_step),
        "pytorch_optimizer.SophiaH on the same draws",
        {**_SOPHIA, "eps": 1e-3, "seed": 3},
    ),
    case(
        "sophia_g",
        by_stepping(sophia_g_optimizer, sophia_g_step),
        "sophia_opt.SophiaG on the same labels",
        {**_SOPHIA, "rho": 2.0},
        note="update_hessian() is called before step() at t = 1, k + 1, ..., as in the paper",
    ),
    case("sophia_g", by_network(sophia_g), _EQUATIONS, {**_SOPHIA, "eps": 1e-3, "frequency": 1}),
    case(
        "mezo",
        by_network(mezo),
        _EQUATIONS,
        {"lr": 0.02, "scale": 1e-2, "seed": 3, "weight_decay": 0.1},
        changed={"lr": 0.01},
        roles=_BIASES,
    ),
    case(
        "dp_sgd",
        by_stepping(dp_sgd_optimizer, dp_sgd_step),
        "opacus.optimizers.DPOptimizer on the same draws",
        _DP,
        tolerance=1e-4,
        note="opacus adds 1e-6 to each example's norm",
    ),
    case("dp_sgd", by_network(dp_sgd), _EQUATIONS, _DP),
    case(
        "sam(sgd)",
        sharp_optimizer(False),
        "pytorch_optimizer.SAM",
        {"lr": 0.1, "rho": 0.3, "weight_decay": 0.1},
        tolerance=1e-6,
        note="it adds the norm up in float32",
    ),
    case("sam(adamw)", sharp(False, betas(torch.optim.AdamW)), "its equation, AdamW of torch", {**MOMENTS, "rho": 0.3}),
    case(
        "asam(sgd)",
        sharp_optimizer(True),
        "pytorch_optimizer.SAM(adaptive=True)",
        {"lr": 0.1, "rho": 0.3, "weight_decay": 0.1},
        tolerance=1e-6,
        note="it adds the norm up in float32",
    ),
    case("asam(adamw)", sharp(True, betas(torch.optim.AdamW)), "its equation, AdamW of torch", {**MOMENTS, "rho": 0.3}),
    case("mars_adamw_exact", by_network(mars_adamw_exact), _EQUATIONS, {**MOMENTS, "gamma": 0.1}),
)
