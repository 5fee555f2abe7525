"""Layers over a leading lanes axis: the parts that tasks build their losses from.

Each computes K independent layers with one batched kernel. Letters in shapes: K lanes, B examples, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from tasks.task import Parameter, Role


def dense(
    name: str, inputs: int, outputs: int, *, role: Role = "hidden", gain: float = 1.0
) -> tuple[Parameter, Parameter]:
    """Weight [outputs, inputs] from N(0, gain^2 / inputs) and bias from 0, for `linear`; gain 2^0.5 goes with relu."""
    weight = Parameter.normal(f"{name}.weight", (outputs, inputs), role, gain / math.sqrt(inputs))
    return weight, Parameter.constant(f"{name}.bias", (outputs,), "bias")


def linear(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """x @ weight^T + bias in every lane: [K, B, in] -> [K, B, out].

    Computed as (weight @ x^T)^T, whose gradient by the weight is contiguous: compiled, `digits_mlp` makes 1.45 times as
    many model-steps a second for it, `bytes_mlp` 1.15 times.
    """
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    return torch.baddbmm(bias.unsqueeze(2), weight, x.to(weight.dtype).mT).mT


def convolve3x3(parameters: Mapping[str, Tensor], name: str, x: Tensor, *, stride: int = 1) -> Tensor:
    """3x3 convolution with a border of zeros, examples last: [K, in, H, W, B] -> [K, out, H/stride, W/stride, B].

    Nine shifted copies of the image, one product. With the examples last every copy, and every sum of the gradient, is
    over contiguous numbers. Measured on one core with `digits_cnn` (batch 64), loss and gradient, compiled, in one run:
    this 5.9k model-steps/s; patches picked by an index, channels last, 2.7k; a loop over torch.nn.Conv2d models 0.9k.
    """
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]  # [K, out, in, 3, 3], [K, out]
    lanes, channels, height, width, examples = x.shape
    bordered = functional.pad(x, (0, 0, 1, 1, 1, 1))
    shifted = [bordered[:, :, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    patches = torch.stack(shifted, 2).view(lanes, channels * 9, -1)
    y = torch.baddbmm(bias.unsqueeze(2), weight.reshape(lanes, -1, channels * 9), patches)
    return y.view(lanes, -1, height // stride, width // stride, examples)


def embed(table: Tensor, symbols: Tensor) -> Tensor:
    """Rows of each lane's own table: table [K, symbols, width], symbols [K, ...] int64 -> [K, ..., width].

    One index_select over all lanes' tables: with its gradient 1.1 to 3 times as fast on a CPU as gather, F.embedding
    or advanced indexing, and 10 times as fast as a product with one-hot vectors.
    """
    lanes, count, width = table.shape
    first = torch.arange(0, lanes * count, count, device=symbols.device)
    rows = symbols + first.view(-1, *[1] * (symbols.dim() - 1))
    return table.flatten(0, 1).index_select(0, rows.flatten()).view(*symbols.shape, width)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """x [K, B, width] at root mean square 1 over its last axis, times gain [K, width]. Zhang and Sennrich 2019."""
    return functional.rms_norm(x, x.shape[-1:], eps=1e-5) * gain.unsqueeze(1)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, heads: int) -> Tensor:
    """Scaled dot-product attention in which a position sees itself and those before: [K, B, T, width], all four.

    Written out, because for short contexts two products and a softmax compile to faster code than
    F.scaled_dot_product_attention (1.54k to 1.40k model-steps/s of `bytes_transformer`, 16 lanes on one core).
    """
    lanes, examples, positions, width = query.shape
    size = width // heads

    def by_head(x: Tensor) -> Tensor:
        return x.view(-1, positions, heads, size).transpose(1, 2).reshape(-1, positions, size)

    future = torch.full((positions, positions), -math.inf, dtype=query.dtype, device=query.device).triu(1)
    scores = torch.baddbmm(future, by_head(query), by_head(key).mT, alpha=1 / math.sqrt(size))
    mixed = torch.bmm(scores.softmax(-1), by_head(value)).view(-1, heads, positions, size)
    return mixed.transpose(1, 2).reshape(lanes, examples, positions, width)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of each lane: logits [K, B, classes], target [K, B] int64 -> [K]."""
    losses = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return losses.view(target.shape).mean(1)
