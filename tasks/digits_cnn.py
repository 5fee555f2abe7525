"""A convolutional network on digits: kernels shared over places, seen as matrices [out, in x 3 x 3]."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from tasks import data
from tasks.layers import convolve3x3, cross_entropy, dense, linear
from tasks.task import Batch, Parameter, Task


class DigitsCNN(Task):
    """8x8x1 - conv 3x3 - 8x8x8 - conv 3x3 stride 2 - 4x4x16 - dense 10, relu, cross-entropy.

    Measured, 12 seeds: AdamW 0.113 at lr 0.032, no correction 0.123 (+0.09, 0.03), SGD 0.151 (+0.30, 0.07), SGD with
    momentum 0.137 (+0.20, 0.06). (negative) AdamW with no momentum 0.095 (-0.17, 0.05). The noisiest task: seeds differ
    by 0.1 to 0.4 in the logarithm.
    """

    name = "digits_cnn"
    title = "small convolutional network on 8x8 digits"
    source = "scikit-learn digits (UCI): shared kernels, whose gradients sum over places"
    parameters = (
        Parameter.normal("conv1.weight", (8, 1, 3, 3), "hidden", math.sqrt(2 / 9)),
        Parameter.constant("conv1.bias", (8,), "bias"),
        Parameter.normal("conv2.weight", (16, 8, 3, 3), "hidden", math.sqrt(2 / 72)),
        Parameter.constant("conv2.bias", (16,), "bias"),
        *dense("head", 256, 10, role="head"),
    )
    batch_size = 64
    horizon = 60
    warmup = 3
    learning_rate = 3e-2

    def __init__(self) -> None:
        split = data.digits()
        super().__init__(split.train, split.held_out, split.data_sha256)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x, y = batch  # [K, B, 64], [K, B]
        image = x.to(parameters["conv1.weight"].dtype).mT.reshape(len(x), 1, 8, 8, -1)
        wide = convolve3x3(parameters, "conv1", image).relu()
        deep = convolve3x3(parameters, "conv2", wide, stride=2).relu()
        return cross_entropy(linear(parameters, "head", deep.flatten(1, 3).mT), y)

    @property
    def flops(self) -> int:
        """A kernel is used once a place: 64 in the first layer, 16 in the second."""
        uses = 64 * 8 * 9 + 16 * 16 * 72 + 2560
        return 6 * self.batch_size * uses
