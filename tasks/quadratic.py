"""A noisy, badly conditioned, rotated quadratic: the one task whose curvature is known."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tasks.task import Batch, Parameter, Task

_MATRIX, _VECTOR = (12, 8), (4,)
_DIM = 100
_EXAMPLES = 1024  # in training, and as many held out
_NOISE = 0.03  # deviation of each of the 100 residuals: the loss cannot fall below 50 * _NOISE^2
_SEED = 1


class Quadratic(Task):
    """f_i(x) = 1/2 |R x - d_i|^2 with R = H^(1/2), that is 1/2 (x - c_i)^T H (x - c_i) with d_i = R c_i.

    H has eigenvalues spaced evenly in their logarithm from 1e4 to 10, in a random orthogonal basis of all 100
    coordinates: neither axes nor rows nor columns of the matrix are special, so no diagonal or Kronecker preconditioner
    is exact. d_i = R c + noise, so the gradients' covariance is proportional to H, as in regression at its optimum.
    The optimum c is 30 times further from 0 than the start, so that decaying the weights is no substitute for finding
    it, and lies further off along flat directions (its variance there is H^(-1/2)). The unit of x is such that Adam's
    best learning rate is like that of a network.

    Positive everywhere, with a positive least value `floor` that only noise makes up: log ratios are bounded.

    Measured, 32 seeds: AdamW 0.052 at lr 0.064, no momentum 0.483 (+2.22, 0.01), no correction 0.055 (+0.04, 0.01),
    SGD 0.748 (8 seeds), SGD with momentum 0.049 (-0.07, 0.01); floor 0.045.
    """

    name = "quadratic"
    title = "noisy rotated quadratic, condition number 1000"
    source = "generated, fixed seed: known curvature; neither axes nor rows nor columns are special"
    parameters = (
        Parameter.normal("matrix", _MATRIX, "hidden", 1e-3),
        Parameter.normal("vector", _VECTOR, "vector", 1e-3),
    )
    batch_size = 16
    horizon = 100
    warmup = 5
    learning_rate = 6e-2

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(_SEED)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        basis, _ = torch.linalg.qr(normal(_DIM, _DIM))
        eigenvalues = torch.logspace(4, 1, _DIM, dtype=torch.float64)
        root = basis * eigenvalues.sqrt() @ basis.mT
        optimum = basis @ (0.1 * eigenvalues**-0.25 * normal(_DIM))
        noise = normal(2 * _EXAMPLES, _DIM)
        pool = (root @ optimum + _NOISE * noise).float()
        super().__init__((pool[:_EXAMPLES],), (pool[_EXAMPLES:],))
        self.root = root.float()

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x = torch.cat([parameters["matrix"].flatten(1), parameters["vector"]], dim=1)
        (d,) = batch
        residual = (x @ self.root.to(x.dtype)).unsqueeze(1) - d.to(x.dtype)
        half: Tensor = 0.5 * residual.square()
        return half.sum(2).mean(1)

    @property
    def floor(self) -> float:
        """The least validation loss that any parameters can have; positive."""
        (d,) = self.held_out
        return 0.5 * (d - d.mean(0)).square().sum(1).mean().item()

    @property
    def flops(self) -> int:
        """Two products with R, and about 6 operations a coordinate of each example."""
        return 4 * _DIM * _DIM + 6 * self.batch_size * _DIM
