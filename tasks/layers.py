"""Layers over a leading lanes axis: the parts that tasks build their losses from.

Each computes K independent layers with one batched kernel. Letters in shapes: K lanes, B examples, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tasks.task import Parameter, Role

FEW_CLASSES = 16
"""Up to so many, `cross_entropy` goes over examples in vectors, and over classes outside of that: loss and gradient of
`digits_mlp` take 17 us a lane in place of 30 on a CPU, its held-out loss a third of the time; compiled it makes no
difference. With the 97 classes of `bytes_mlp` the compiled gradient would take 27 us in place of 19."""

WRITTEN_OUT_TO = 256
"""Positions up to which `causal_attention` is written out on a CPU."""


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

    The sides are rounded up; the bias is added where there is one.

    Nine shifted copies of the image, one product. With the examples last every copy, and every sum of the gradient, is
    over contiguous numbers. Measured on one core with `digits_cnn` (batch 64), loss and gradient, compiled, in one run:
    this 5.9k model-steps/s; patches picked by an index, channels last, 2.7k; a loop over torch.nn.Conv2d models 0.9k.
    """
    weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")  # [K, out, in, 3, 3], [K, out]
    lanes, channels, height, width, examples = x.shape
    bordered = functional.pad(x, (0, 0, 1, 1, 1, 1))
    shifted = [bordered[:, :, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    patches = torch.stack(shifted, 2).view(lanes, channels * 9, -1)
    matrix = weight.reshape(lanes, -1, channels * 9)
    y = torch.bmm(matrix, patches) if bias is None else torch.baddbmm(bias.unsqueeze(2), matrix, patches)
    return y.view(lanes, -1, -(-height // stride), -(-width // stride), examples)


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

    Written out for short contexts on a CPU, where two products and a softmax compile to faster code than
    F.scaled_dot_product_attention: 1.54k to 1.40k model-steps/s of `bytes_transformer` (16 lanes on one core), and with
    the network of `gpt` 228 to 208 at 32 positions, 214 to 210 at 64, 189 to 183 at 128, 145 to 136 at 256. Beyond, and
    on a GPU, the scores of all pairs of positions would not fit where they are fast to reach.
    """
    lanes, examples, positions, width = query.shape
    size = width // heads
    if positions > WRITTEN_OUT_TO or query.is_cuda:
        q, k, v = (x.reshape(-1, positions, heads, size).transpose(1, 2) for x in (query, key, value))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return attended.transpose(1, 2).reshape(lanes, examples, positions, width)

    def by_head(x: Tensor) -> Tensor:
        return x.view(-1, positions, heads, size).transpose(1, 2).reshape(-1, positions, size)

    future = torch.full((positions, positions), -math.inf, dtype=query.dtype, device=query.device).triu(1)
    scores = torch.baddbmm(future, by_head(query), by_head(key).mT, alpha=1 / math.sqrt(size))
    mixed = torch.bmm(scores.softmax(-1), by_head(value)).view(-1, heads, positions, size)
    return mixed.transpose(1, 2).reshape(lanes, examples, positions, width)


@dataclass
class Draws:
    """Where labels are drawn from, and whether any were: a generator on the CPU for each lane."""

    generators: Sequence[torch.Generator]
    made: bool = False

    def labels(self, logits: Tensor) -> Tensor:
        """A class for each example, drawn with the model's own probabilities: [K, B, classes] -> [K, B] int64."""
        self.made = True
        probabilities = logits.detach().double().softmax(-1).cpu()
        drawn = [
            torch.multinomial(each, 1, generator=generator).squeeze(1)
            for each, generator in zip(probabilities, self.generators, strict=True)
        ]
        return torch.stack(drawn).to(logits.device)


_draws: ContextVar[Draws | None] = ContextVar("draws", default=None)


@contextmanager
def drawn_labels(generators: Sequence[torch.Generator]) -> Iterator[Draws]:
    """Within it, `cross_entropy` takes labels that the model itself draws, which is how Sophia-G sees the curvature."""
    draws = Draws(generators)
    token = _draws.set(draws)
    try:
        yield draws
    finally:
        _draws.reset(token)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of each lane: logits [K, B, classes], target [K, B] int64 -> [K].

    Within `drawn_labels` the targets are the model's own.
    """
    if draws := _draws.get():
        target = draws.labels(logits)
    if logits.shape[-1] <= FEW_CLASSES:
        return functional.cross_entropy(logits.mT, target, reduction="none").mean(1)
    losses = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return losses.view(target.shape).mean(1)
