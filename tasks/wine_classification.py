"""Classification of a small table: 118 wines, easily told apart."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tasks import data
from tasks.layers import cross_entropy, dense, linear
from tasks.task import Batch, Task


class WineClassification(Task):
    """13-16-3, relu, cross-entropy.

    Measured, 2 seeds: AdamW 0.081, SGD with momentum 0.094, lion 0.082, muon 0.083.
    """

    name = "wine_classification"
    title = "multilayer perceptron on wines"
    source = "scikit-learn wine (UCI): a table so small that every step sees an eighth of it"
    parameters = (*dense("hidden", 13, 16), *dense("head", 16, 3, role="head"))
    batch_size = 16
    horizon = 40
    warmup = 2
    learning_rate = 4e-2

    def __init__(self) -> None:
        split = data.wine()
        super().__init__(split.train, split.held_out, split.data_sha256)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x, y = batch
        hidden = linear(parameters, "hidden", x).relu()
        return cross_entropy(linear(parameters, "head", hidden), y)
