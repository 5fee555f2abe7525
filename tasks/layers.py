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
    """x @ weight^T + bias in every lane: [K, B, in] -> [K, B, out]."""
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    return torch.baddbmm(bias.unsqueeze(1), x.to(weight.dtype), weight.mT)


def convolve3x3(parameters: Mapping[str, Tensor], name: str, x: Tensor, *, stride: int = 1) -> Tensor:
    """3x3 convolution with a border of zeros, channels last: [K, B, H, W, in] -> [K, B, H/stride, W/stride, out].

    Picks out all patches with one index and multiplies once. Measured on one core with 16 lanes of `digits_cnn`, loss
    and gradient, model-steps/s eager and compiled: this 2.8k and 6.1k, grouped F.conv2d 3.3k and 3.5k, F.unfold and
    bmm 1.7k and 4.3k, nine shifted slices 2.3k and 4.5k.
    """
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]  # [K, out, in, 3, 3], [K, out]
    lanes, examples, height, width, channels = x.shape
    rows = torch.arange(0, height, stride, device=x.device)
    columns = torch.arange(0, width, stride, device=x.device)
    near = torch.arange(3, device=x.device)
    row = (rows.view(-1, 1, 1, 1) + near.view(3, 1)) * (width + 2)
    patches = row + columns.view(-1, 1, 1) + near  # [H/stride, W/stride, 3, 3]: places in the bordered image
    bordered = functional.pad(x.to(weight.dtype), (0, 0, 1, 1, 1, 1)).flatten(2, 3)
    taken = bordered[:, :, patches.flatten()].reshape(lanes, -1, 9 * channels)
    y = torch.baddbmm(bias.unsqueeze(1), taken, weight.permute(0, 3, 4, 2, 1).flatten(1, 3))
    return y.view(lanes, examples, len(rows), len(columns), -1)


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
