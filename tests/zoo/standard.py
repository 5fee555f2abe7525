"""The field's standards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lion_pytorch
import pytorch_optimizer
import torch
from torch import Tensor

from tests.zoo.case import MOMENTS, Case, State, betas, by_optimizer

SGD = torch.optim.SGD
LION = {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.3}


def rmsprop(centered: bool) -> Callable[..., torch.optim.Optimizer]:
    return lambda params, beta2, **hypers: torch.optim.RMSprop(params, alpha=beta2, centered=centered, **hypers)


def adamw(
    p: Tensor,
    g: Tensor,
    state: State,
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


_REST: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2}
CASES: tuple[Case, ...] = (
    Case("sgd", by_optimizer(SGD), "torch.optim.SGD", _REST),
    Case("momentum", by_optimizer(SGD), "torch.optim.SGD", {**_REST, "momentum": 0.8, "dampening": 0.3}),
    Case("nesterov", by_optimizer(partial(SGD, nesterov=True)), "torch.optim.SGD", {**_REST, "momentum": 0.8}),
    Case("adagrad", by_optimizer(torch.optim.Adagrad), "torch.optim.Adagrad", {**_REST, "eps": 1e-3}),
    Case("rmsprop", by_optimizer(rmsprop(False)), "torch.optim.RMSprop", {**_REST, "beta2": 0.9, "eps": 1e-3}),
    Case("rmsprop_centered", by_optimizer(rmsprop(True)), "torch.optim.RMSprop", {**_REST, "beta2": 0.9, "eps": 1e-3}),
    Case("adam", by_optimizer(betas(torch.optim.Adam)), "torch.optim.Adam", MOMENTS),
    Case("adamw", by_optimizer(betas(torch.optim.AdamW)), "torch.optim.AdamW", MOMENTS),
    Case("adamax", by_optimizer(betas(torch.optim.Adamax)), "torch.optim.Adamax", MOMENTS),
    Case("amsgrad", by_optimizer(betas(partial(torch.optim.Adam, amsgrad=True))), "torch.optim.Adam", MOMENTS),
    Case("adadelta", by_optimizer(torch.optim.Adadelta), "torch.optim.Adadelta", {**_REST, "rho": 0.8, "eps": 1e-3}),
    Case("nadam", by_optimizer(betas(torch.optim.NAdam)), "torch.optim.NAdam", {**MOMENTS, "momentum_decay": 0.1}),
    Case("lion", by_optimizer(betas(lion_pytorch.Lion)), "lion_pytorch.Lion", LION),
    Case(
        "signsgd",
        by_optimizer(partial(pytorch_optimizer.SignSGD, momentum=0)),
        "pytorch_optimizer.SignSGD",
        {"lr": 0.02, "weight_decay": 0.3},
    ),
    Case(
        "signum",
        by_optimizer(pytorch_optimizer.SignSGD),
        "pytorch_optimizer.SignSGD",
        {"lr": 0.02, "momentum": 0.7, "weight_decay": 0.3},
    ),
)
