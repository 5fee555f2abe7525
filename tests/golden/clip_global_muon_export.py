"""The optimizer ClipGlobalMuon, written by `discover export` from the rule `clip_global_muon`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


def newton_schulz(x: torch.Tensor, steps: float) -> torch.Tensor:
    """Orthogonalises the last two dimensions of x approximately, by quintic Newton-Schulz steps (Jordan 2024, Muon)."""
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(int(min(max(0, steps), 32))):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
    return x.mT if tall else x


def share_1_matrix(p, g):
    return (g.square().sum(dim=(-2, -1), keepdim=True),)


def update_matrix(p, g, m, total, lr, max_norm, momentum, steps, weight_decay):
    scale = (max_norm / total.sqrt().add_(1e-6)).clamp_(max=1)
    muon_g = g * scale
    m.lerp_(muon_g, 1 - momentum)
    u = newton_schulz(muon_g.lerp_(m, momentum), steps)
    p.mul_(1 - lr * weight_decay)
    p.add_(u, alpha=-lr * math.sqrt(max(1, p.shape[-2] / p.shape[-1])))


def share_1_rest(p, g):
    return (g.square().sum(),)


def update_rest(p, g, m, v, total, lr, max_norm, weight_decay, adam_lr_ratio, beta1, beta2, eps, t):
    bias_correction1 = 1 - beta1**t
    bias_correction2 = 1 - beta2**t
    scale = (max_norm / total.sqrt().add_(1e-6)).clamp_(max=1)
    muon_g = g * scale
    m.lerp_(muon_g, 1 - beta1)
    v.mul_(beta2).addcmul_(muon_g, muon_g, value=1 - beta2)
    denom = (v / bias_correction2).sqrt_().add_(eps)
    p.mul_(1 - lr * adam_lr_ratio * weight_decay)
    p.addcdiv_(m, denom, value=-lr * adam_lr_ratio / bias_correction1)


class ClipGlobalMuon(torch.optim.Optimizer):
    """Scales all gradients down together where their norm exceeds max_norm. Pascanu et al. 2013, arXiv:1211.5063; as
    torch's clip_grad_norm_.

    Args:
        params: parameters, or parameter groups, each of which may set any of what follows.
        lr, max_norm, momentum, steps, weight_decay, adam_lr_ratio, beta1, beta2, eps: hyperparameters of the rule.
        maximize: goes up the gradient instead of down.
        role: of a parameter group; "embedding" or "head" is treated apart.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        max_norm: float = 1,
        momentum: float = 0.95,
        steps: float = 5,
        weight_decay: float = 0,
        adam_lr_ratio: float = 0.05,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr must not be negative, but is {lr}")
        defaults = {
            "lr": lr,
            "max_norm": max_norm,
            "momentum": momentum,
            "steps": steps,
            "weight_decay": weight_decay,
            "adam_lr_ratio": adam_lr_ratio,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "maximize": maximize,
            "role": None,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns the loss that a `closure` computes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or p.numel() == 0:
                    continue
                g = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    if p.ndim >= 2 and group["role"] not in ("embedding", "head"):
                        state["m"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                    else:
                        state["m"] = torch.zeros_like(p)
                        state["v"] = torch.zeros_like(p)
                work.append((p, g, state, group))
        total = None
        for p, g, _, group in work:
            if p.ndim >= 2 and group["role"] not in ("embedding", "head"):
                rows = p.shape[0]
                matrix = p.reshape(rows, p.numel() // rows)  # a conv kernel as out x rest
                (total_share,) = share_1_matrix(matrix, g.reshape(matrix.shape))
                total = total_share.reshape(()) if total is None else total + total_share.reshape(())
            else:
                (total_share,) = share_1_rest(p, g)
                total = total_share if total is None else total + total_share
        for p, g, state, group in work:
            state["step"] += 1
            if p.ndim >= 2 and group["role"] not in ("embedding", "head"):
                rows = p.shape[0]
                matrix = p.reshape(rows, p.numel() // rows)  # a conv kernel as out x rest
                update_matrix(
                    matrix,
                    g.reshape(matrix.shape),
                    state["m"].view(matrix.shape),
                    total,
                    group["lr"],
                    group["max_norm"],
                    group["momentum"],
                    group["steps"],
                    group["weight_decay"],
                )
                if matrix.data_ptr() != p.data_ptr():  # p's strides have no such view
                    p.copy_(matrix.view(p.shape))
            else:
                update_rest(
                    p,
                    g,
                    state["m"],
                    state["v"],
                    total,
                    group["lr"],
                    group["max_norm"],
                    group["weight_decay"],
                    group["adam_lr_ratio"],
                    group["beta1"],
                    group["beta2"],
                    group["eps"],
                    state["step"],
                )
        return loss
