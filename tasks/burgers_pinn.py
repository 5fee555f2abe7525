"""A physics-informed network: it learns a differential equation's solution from the equation alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp

from tasks.layers import dense
from tasks.task import Batch, Task

VISCOSITY = 0.02
_POINTS, _HELD_OUT = 8192, 1024
_EDGE_WEIGHT = 10.0
_NODES = 200  # of the quadrature: its error is below 1e-9 for this viscosity
_SEED = 1989


def solution(points: Tensor, viscosity: float = VISCOSITY) -> Tensor:
    """u at points [M, 2] (t, x) of u_t + u u_x = viscosity u_xx with u(0, x) = -sin(pi x): [M] float64.

    The heat equation's solution by Cole and Hopf's transformation, with Gauss-Hermite quadrature.

    Source: Basdevant et al. 1986, as in Raissi, Perdikaris and Karniadakis 2019.
    """
    nodes, weights = np.polynomial.hermite.hermgauss(_NODES)
    t, x = points.double().unsqueeze(2).unbind(1)
    y = x - (4 * viscosity * t).sqrt() * torch.from_numpy(nodes)
    exponent = -(math.pi * y).cos() / (2 * math.pi * viscosity)
    heat = torch.from_numpy(weights) * (exponent - exponent.amax(1, keepdim=True)).exp()
    return -((math.pi * y).sin() * heat).sum(1) / heat.sum(1)


class BurgersPINN(Task):
    """2-20-20-20-1, tanh: mean square of u_t + u u_x - 0.02 u_xx, and ten times that of the error on the edge.

    t from 0 to 1, x from -1 to 1. A point inside and a point on the edge (u = -sin(pi x) at t = 0, u = 0 at x = -1 and
    1) are one example. The wave steepens towards x = 0, which a network fits late: the conditioning of such losses is
    bad enough that second-order methods are the rule. Derivatives are forward-mode (`torch.func.jvp`), for all points
    at once. `validation_loss` is not the loss but the mean squared error against the known solution over the
    solution's mean square: 1 is what u = 0 scores.

    Measured, 2 seeds: AdamW 0.0010, SGD with momentum 0.014, lion 0.0082, muon 0.0008.
    """

    name = "burgers_pinn"
    title = "physics-informed network for Burgers' equation"
    source = "the equation, points from a fixed seed; Raissi et al. 2019: derivatives in the loss, bad conditioning"
    parameters = (
        *dense("hidden1", 2, 20),
        *dense("hidden2", 20, 20),
        *dense("hidden3", 20, 20),
        *dense("head", 20, 1, role="head"),
    )
    batch_size = 64
    horizon = 400
    warmup = 20
    learning_rate = 1e-1

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        inside = torch.rand(_POINTS + _HELD_OUT, 2, generator=generator) * torch.tensor([1.0, 2.0])
        inside -= torch.tensor([0.0, 1.0])
        edge = torch.rand(_POINTS + _HELD_OUT, 2, generator=generator) * torch.tensor([1.0, 2.0])
        edge -= torch.tensor([0.0, 1.0])
        start = torch.rand(len(edge), generator=generator) < 0.5  # half of them at t = 0, the others on the two sides
        edge[start, 0] = 0.0
        edge[~start, 1] = edge[~start, 1].sign()
        value = torch.where(start, -(math.pi * edge[:, 1]).sin(), 0.0)
        whole = inside, edge, value
        super().__init__(tuple(part[:_POINTS] for part in whole), tuple(part[_POINTS:] for part in whole))
        self.exact = solution(self.held_out[0]).float()

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        dtype = parameters["head.weight"].dtype
        inside, edge, value = (part.to(dtype) for part in batch)

        def u(points: Tensor) -> Tensor:
            return _network(parameters, points)

        (value_inside, u_x), (_, u_xx) = _derivative(lambda points: _derivative(u, points, 1), inside, 1)
        _, u_t = _derivative(u, inside, 0)
        residual = u_t + value_inside * u_x - VISCOSITY * u_xx
        off = u(edge) - value
        return cast(Tensor, residual.square().mean(1) + _EDGE_WEIGHT * off.square().mean(1))

    def validation_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error of each lane at the held-out points, over the solution's mean square: [K]."""
        with torch.no_grad():
            lanes, dtype = len(parameters["head.weight"]), parameters["head.weight"].dtype
            guess = _network(parameters, self.held_out[0].to(dtype).expand(lanes, -1, -1))
            exact = self.exact.to(dtype)
            off: Tensor = (guess - exact).square().mean(1)
            return off / exact.square().mean()

    @property
    def flops(self) -> int:
        """Eleven times a plain network: seven forward passes (u and its derivatives, u on the edge), and backward more,
        since a derivative's gradient goes through the values that it was computed with.
        """
        return 11 * super().flops


def _network(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """u of each lane at its points: [K, B, 2] -> [K, B]."""
    for name in ("hidden1", "hidden2", "hidden3"):
        x = _layer(parameters, name, x).tanh()
    return _layer(parameters, "head", x).squeeze(2)


def _layer(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    # Not `linear`: the head's product would have one row, which rounds differently by the lane it stands in.
    return torch.baddbmm(parameters[f"{name}.bias"].unsqueeze(1), x, parameters[f"{name}.weight"].mT)


def _derivative(function: Callable[[Tensor], Any], points: Tensor, axis: int) -> tuple[Any, Any]:
    """A function's values at points [K, B, 2] and its derivative there along t (0) or x (1).

    Each value depends on its own point alone, so one direction for all points gives every point its derivative.
    """
    direction = torch.eye(2, dtype=points.dtype, device=points.device)[axis].expand_as(points)
    return cast(tuple[Any, Any], jvp(function, (points,), (direction,)))
