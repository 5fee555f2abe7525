"""Every built-in rule follows an independent implementation for fifty steps in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lion_pytorch
import pytest
import pytorch_optimizer
import torch
from torch import Tensor

import dsl
from discover import optim

STEPS = 50
SHAPES = {"matrix": (4, 3), "kernel": (3, 2, 2, 2), "vector": (5,), "scalar": ()}
Step = Callable[[list[Tensor]], None]
Maker = Callable[..., Step]
"""(parameters, **hyperparameters) -> one step on given gradients."""


def by_optimizer(make: Callable[..., torch.optim.Optimizer], clip: float | None = None) -> Maker:
    """An oracle from a PyTorch optimizer."""

    def maker(params: list[Tensor], **hypers: Any) -> Step:
        opt = make(params, **hypers)

        def step(grads: list[Tensor]) -> None:
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(params, clip)
            opt.step()

        return step

    return maker


def by_formula(update: Callable[..., None]) -> Maker:
    """An oracle from `update(p, g, state, t, **hypers)`, written from the paper."""

    def maker(params: list[Tensor], **hypers: Any) -> Step:
        states: list[dict[str, Any]] = [{} for _ in params]
        t = 0

        def step(grads: list[Tensor]) -> None:
            nonlocal t
            t += 1
            for p, g, state in zip(params, grads, states, strict=True):
                p.data.copy_(update(p.data.clone(), g, state, t, **hypers))

        return step

    return maker


def betas(make: Callable[..., Any], *names: str, **fixed: Any) -> Callable[..., Any]:
    """The maker with beta1, beta2 ... as torch's `betas`."""
    names = names or ("beta1", "beta2")
    return lambda params, **hypers: make(params, betas=tuple(hypers.pop(name) for name in names), **hypers, **fixed)


def lookahead(params: list[Tensor], k: float, alpha: float, **hypers: Any) -> torch.optim.Optimizer:
    return pytorch_optimizer.Lookahead(betas(torch.optim.Adam)(params, **hypers), k=k, alpha=alpha)


def rmsprop(centered: bool) -> Callable[..., torch.optim.Optimizer]:
    return lambda params, beta2, **hypers: torch.optim.RMSprop(params, alpha=beta2, centered=centered, **hypers)


def adamw(
    p: Tensor,
    g: Tensor,
    state: dict[str, Any],
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    return p - lr * weight_decay * p - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps)


def muon(
    p: Tensor,
    g: Tensor,
    state: dict[str, Any],
    t: int,
    *,
    momentum: float,
    steps: int,
    adam_lr_ratio: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    if p.ndim < 2:
        return adamw(p, g, state, t, lr * adam_lr_ratio, beta1, beta2, eps, weight_decay)
    grad = g.reshape(g.shape[0], -1)
    m = state["m"] = momentum * state.get("m", 0) + (1 - momentum) * grad
    x = (1 - momentum) * grad + momentum * m
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(int(steps)):
        a = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * a + 2.0315 * a @ a) @ wide
    x = wide if x.shape[0] <= x.shape[1] else wide.T
    rows, cols = x.shape
    return p - lr * weight_decay * p - lr * max(1, rows / cols) ** 0.5 * x.reshape(p.shape)


def cautious_lion(
    p: Tensor,
    g: Tensor,
    state: dict[str, Any],
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


@dataclass(frozen=True)
class Case:
    """A rule and what it must follow; `other` are hyperparameters away from the defaults."""

    rule: str
    oracle: Maker
    other: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 1e-9


MOMENTS = {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}
LION = {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.3}
SGD = torch.optim.SGD
CASES = [
    Case("sgd", by_optimizer(SGD), {"lr": 0.1, "weight_decay": 0.2}),
    Case("momentum", by_optimizer(SGD), {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2}),
    Case("nesterov", by_optimizer(partial(SGD, nesterov=True)), {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.2}),
    Case("adagrad", by_optimizer(torch.optim.Adagrad), {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.2}),
    Case("rmsprop", by_optimizer(rmsprop(False)), {"lr": 0.1, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.2}),
    Case("rmsprop_centered", by_optimizer(rmsprop(True)), {"lr": 0.1, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.2}),
    Case("adam", by_optimizer(betas(torch.optim.Adam)), MOMENTS),
    Case("adamw", by_optimizer(betas(torch.optim.AdamW)), MOMENTS),
    Case("nadam", by_optimizer(betas(torch.optim.NAdam)), {**MOMENTS, "momentum_decay": 0.1}),
    Case("lion", by_optimizer(betas(lion_pytorch.Lion)), LION),
    Case("signsgd", by_optimizer(partial(pytorch_optimizer.SignSGD, momentum=0)), {"lr": 0.02, "weight_decay": 0.3}),
    Case("signum", by_optimizer(pytorch_optimizer.SignSGD), {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3}),
    Case("adabelief", by_optimizer(betas(pytorch_optimizer.AdaBelief, rectify=False)), MOMENTS),
    Case(
        "adan",
        by_optimizer(betas(pytorch_optimizer.Adan, "beta1", "beta2", "beta3", weight_decouple=False)),
        {**MOMENTS, "beta3": 0.97},
    ),
    Case("muon", by_formula(muon), {**MOMENTS, "momentum": 0.8, "steps": 3, "adam_lr_ratio": 0.3}),
    Case(
        "lookahead(adam)",
        by_optimizer(lookahead),
        {**MOMENTS, "k": 3, "alpha": 0.3},
    ),
    Case("cautious(lion)", by_formula(cautious_lion), {**LION, "floor": 0.4}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _scalars_in_float64() -> Iterator[None]:
    """torch.optim.NAdam keeps a running product in the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def parameters(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in SHAPES.values()]


def gradients(params: Iterable[Tensor], t: int) -> list[Tensor]:
    """Of a noisy, badly scaled quadratic, so that parameters and moments matter and signs change."""
    generator = torch.Generator().manual_seed(1000 + t)
    return [
        (p.detach() * (1 + i) + 0.7 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for i, p in enumerate(params)
    ]


def deviation(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest difference, over the size of the parameter."""
    return max(
        float(((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).detach()) for a, b in zip(mine, theirs, strict=True)
    )


@pytest.mark.parametrize("other", [False, True], ids=["default", "other"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule_follows_its_oracle_for_fifty_steps(case: Case, other: bool) -> None:
    hypers = {**dsl.load(case.rule).defaults, **(case.other if other else {})}
    mine, theirs = parameters(), parameters()
    opt = optim.create(case.rule, mine, **hypers)
    follow = case.oracle(theirs, **hypers)
    for t in range(1, STEPS + 1):
        for p, g in zip(mine, gradients(mine, t), strict=True):
            p.grad = g
        opt.step()
        follow(gradients(theirs, t))
        assert deviation(mine, theirs) < case.tolerance, t


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_global_clipping_follows_torch(base: str) -> None:
    make: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[base]
    mine, theirs = parameters(), parameters()
    opt = optim.create(f"clip_global({base})", mine, lr=0.1, max_norm=1.5)
    follow = by_optimizer(make, clip=1.5)(theirs, lr=0.1)
    for t in range(1, STEPS + 1):
        for p, g in zip(mine, gradients(mine, t), strict=True):
            p.grad = g
        opt.step()
        follow(gradients(theirs, t))
        assert deviation(mine, theirs) < 1e-9, t


def test_global_clipping_joins_all_groups() -> None:
    mine, theirs = parameters(), parameters()
    opt = optim.create("clip_global(sgd)", [{"params": mine[:1]}, {"params": mine[1:], "lr": 0.03}], lr=0.1)
    groups = torch.optim.SGD([{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.03}], lr=0.1)
    for t in range(1, 6):
        for a, b, g in zip(mine, theirs, gradients(mine, t), strict=True):
            a.grad, b.grad = g, g.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        opt.step()
        groups.step()
    assert deviation(mine, theirs) < 1e-12


def test_muon_follows_torch_to_the_precision_of_bfloat16() -> None:
    mine = [torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()]
    theirs = [mine[0].detach().clone().requires_grad_()]
    opt = optim.create("muon", mine, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for t in range(1, 11):
        mine[0].grad = gradients(theirs, t)[0]
        theirs[0].grad = mine[0].grad.clone()
        opt.step()
        other.step()
    assert deviation(mine, theirs) < 2e-2


def lr_at(t: int) -> float:
    """Warm-up to 1 at step 10, then down."""
    return min(1.0, t / 10) * (1 - t / 80)


@pytest.mark.parametrize("base", ["adamw", "muon"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_ema_nesterov_follows_the_two_lines_of_its_paper(base: str, scheduled: bool) -> None:
    """theta' = A(theta + beta_t m), m' = gamma m + (1 - gamma)(theta' - theta), the gradient at theta + beta_t m."""
    gamma, beta, warmup, rest, lr = 0.9, 0.6, 12, 40, 0.03
    opt_params = parameters()
    opt = optim.create(f"ema_nesterov({base})", opt_params, lr=lr, gamma=gamma, beta=beta, warmup=warmup, rest=rest)
    theta = [p.detach().clone() for p in opt_params]
    m = [torch.zeros_like(p) for p in theta]
    inner = [p.clone().requires_grad_() for p in theta]
    hypers = dsl.load(base).defaults | {"lr": lr}
    if base == "adamw":
        base_opt: Any = betas(torch.optim.AdamW)(inner, **hypers)
    else:
        states: list[dict[str, Any]] = [{} for _ in inner]
    for t in range(1, STEPS + 1):
        ratio = lr_at(t) if scheduled else 1.0
        used = lr_at(t - 1) if scheduled else 1.0  # the shift was made at the end of the step before
        beta_t = beta * used if warmup <= t < rest else 0.0
        shifted = [a + beta_t * b for a, b in zip(theta, m, strict=True)]
        assert deviation(opt_params, shifted) < 1e-9, t
        grads = gradients(shifted, t)
        for p, y, g in zip(inner, shifted, grads, strict=True):
            p.data.copy_(y)
            p.grad = g
        if base == "adamw":
            base_opt.param_groups[0]["lr"] = lr * ratio
            base_opt.step()
        else:
            for p, g, state in zip(inner, grads, states, strict=True):
                p.data.copy_(muon(p.data.clone(), g, state, t, **(hypers | {"lr": lr * ratio})))
        m = [gamma * b + (1 - gamma) * (x.detach() - a) for a, b, x in zip(theta, m, inner, strict=True)]
        theta = [x.detach().clone() for x in inner]
        for p, g in zip(opt_params, gradients(opt_params, t), strict=True):
            p.grad = g
        opt.param_groups[0]["lr"] = lr * ratio
        opt.step()
        opt.eval()
        assert deviation(opt_params, theta) < 1e-9, t
        opt.train()


@pytest.mark.parametrize("rule", dsl.names())
def test_rule_is_documented_and_has_the_hyperparameters_of_its_kind(rule: str) -> None:
    program = dsl.load(rule)
    assert program.doc[:1].isupper()
    assert program.rules or "lr" in program.defaults
