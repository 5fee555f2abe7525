"""Regression on a small table: few examples, strong noise, where over-fitting comes early."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tasks import data
from tasks.layers import dense, linear
from tasks.task import Batch, Task


class DiabetesRegression(Task):
    """10-32-1, tanh, mean squared error of the standardised target: 1 is what the mean alone scores.

    Measured, 2 seeds: AdamW 0.421, SGD with momentum 0.418, lion 0.423, muon 0.471.
    (negative) It tells rules apart hardly at all, nor learning rates: what is left of the loss is noise.
    """

    name = "diabetes_regression"
    title = "multilayer perceptron on diabetes patients"
    source = "scikit-learn diabetes (Efron et al. 2004): a table of 442 noisy examples, half of whose variance is noise"
    parameters = (*dense("hidden", 10, 32), *dense("head", 32, 1, role="head"))
    batch_size = 32
    horizon = 60
    warmup = 3
    learning_rate = 1e-2

    def __init__(self) -> None:
        split = data.diabetes()
        super().__init__(split.train, split.held_out, split.data_sha256)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x, y = batch
        hidden = linear(parameters, "hidden", x).tanh()
        # Not `linear`: a product with one row rounds differently by the lane it stands in.
        weight, bias = parameters["head.weight"], parameters["head.bias"]
        guess = torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT).squeeze(2)
        return (guess - y).square().mean(1)
