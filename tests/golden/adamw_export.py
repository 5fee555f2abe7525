"""The optimizer Adamw, written by `discover export` from the rule `adamw`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def update(p, g, m, v, lr, beta1, beta2, eps, weight_decay, t):
    bias_correction1 = 1 - beta1**t
    bias_correction2 = 1 - beta2**t
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denom = (v / bias_correction2).sqrt_().add_(eps)
    p.mul_(1 - lr * weight_decay)
    p.addcdiv_(m, denom, value=-lr / bias_correction1)


class Adamw(torch.optim.Optimizer):
    """Adam with weight decay apart from the gradient: p shrinks by lr * weight_decay. Loshchilov & Hutter 2019,
    arXiv:1711.05101.

    As torch.optim.AdamW: eps is added outside the root, after the correction; the decay comes before the step.

    Args:
        params: parameters, or parameter groups, each of which may set any of what follows.
        lr, beta1, beta2, eps, weight_decay: hyperparameters of the rule.
        maximize: goes up the gradient instead of down.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr must not be negative, but is {lr}")
        defaults = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns the loss that a `closure` computes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or p.numel() == 0:
                    continue
                g = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["m"] = torch.zeros_like(p)
                    state["v"] = torch.zeros_like(p)
                state["step"] += 1
                update(
                    p,
                    g,
                    state["m"],
                    state["v"],
                    group["lr"],
                    group["beta1"],
                    group["beta2"],
                    group["eps"],
                    group["weight_decay"],
                    state["step"],
                )
        return loss
