"""Decoder-only transformers of 0.1M to 124M parameters, on the manual or on token shards: the network in its form of
today, at the size that a machine can afford."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tasks import bpe
from tasks.data import SYMBOLS, manual
from tasks.layers import causal_attention, cross_entropy, embed, rms_norm
from tasks.task import Batch, Parameter, Role, Task
from tasks.tokens import GPT2_VOCABULARY, Tokens, windows

_ROPE_BASE = 10_000.0
_MLP = 4  # hidden features of the MLP, in widths
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Size:
    """A network and the training that goes with it.

    Attributes:
        layers, heads, width: of the transformer; a head has width / heads features.
        context: positions, each of which predicts the token that follows.
        batch_size, horizon, warmup, learning_rate: as `Task` says.
        microbatch: examples that go through the network at once, by memory; see `Task.microbatch`.
        held_out: windows to validate on.
        tied: whether the head is the embedding's table, as in GPT-2.
    """

    layers: int
    heads: int
    width: int
    context: int
    batch_size: int
    horizon: int
    warmup: int
    learning_rate: float
    microbatch: int | None = None
    held_out: int = 256
    tied: bool = False


SIZES = {
    "100k": Size(2, 2, 64, context=64, batch_size=8, horizon=1200, warmup=120, learning_rate=7e-3),
    "360k": Size(3, 3, 96, context=64, batch_size=16, horizon=1200, warmup=120, learning_rate=6e-3),
    "1m": Size(5, 4, 128, context=128, batch_size=16, horizon=2000, warmup=200, learning_rate=4e-3),
    "10m": Size(8, 5, 320, context=256, batch_size=64, horizon=5000, warmup=250, learning_rate=2e-3, microbatch=32),
    "124m": Size(
        *(12, 12, 768),
        context=1024,
        batch_size=512,
        horizon=5000,
        warmup=256,
        learning_rate=1.8e-3,
        microbatch=16,
        held_out=10_240,
        tied=True,
    ),
}


class GPT(Task):
    """Pre-norm blocks with RMS gains, rotary positions, QK norm and relu^2; no biases.

    Args:
        size: 100k, 360k, 1m, 10m or 124m, the parameters that there are with the vocabulary it is made for: 97 symbols,
            and for 124m GPT-2's 50304. Another vocabulary has other tables.
        tokens: of the Python manual: `bytes`, 97 symbols, or `bpe`, 1280 tokens of about three bytes (`tasks.bpe`).
            The manual has 0.4M bytes: enough for 1m; larger ones soon know it by heart, and are for `data`.
        data: a folder or a glob of token shards (`tasks.tokens`), in place of the manual. Where it has fewer windows
            than a batch takes, the batch is all of them.
        vocabulary: of the tokens in `data`.
        qk_norm: queries and keys at root mean square 1 before they are rotated, without gains: attention then stays
            within bounds at learning rates that break it otherwise (Henry et al. 2020; Dehghani et al. 2023).
        precision: `bfloat16` multiplies matrices and attends in bfloat16 by torch.autocast, on parameters, a
            residual stream and a loss in float32; `float32` does not; `auto` does where the parameters are float32
            on a GPU.

    relu^2 and not SwiGLU: it needs two matrices a block, not three of odd sizes, is the cheaper one to compute, and no
    worse at a small size (So et al. 2021, Primer; modded-nanogpt).

    Measured at the best of five rates a factor 2 apart, two seeds each, 100k on bytes: AdamW (weight decay 0.01) 1.427
    at lr 0.007, SGD with momentum 1.475 at 0.4, Muon 1.341 at 0.04 with an `adam_lr_ratio` of 0.3, and 1.386 at 0.04
    with its own 0.05. 360k, one seed, three rates: AdamW 1.225 at 0.006. The learning rates of 1m and 10m are guesses,
    that of 124m is the one modded-nanogpt began with: measure before you search there.

    Positions of the window follow one another without regard to where documents end, as in GPT-2.

    Source: Vaswani et al. 2017; Radford et al. 2019; Su et al. 2021 (rotary). The norm right after the table, and the
    setting of `124m` (FineWeb, 2^19 tokens a step, AdamW at 0.0018), are those of Jordan et al. 2024, modded-nanogpt.
    """

    name = "gpt"
    source = "pydoc_data.topics of the running Python; the network that today's optimizers are judged on, at any size"

    def __init__(
        self,
        size: Literal["100k", "360k", "1m", "10m", "124m"] = "100k",
        tokens: Literal["bytes", "bpe"] = "bytes",
        data: Path | None = None,
        vocabulary: int = GPT2_VOCABULARY,
        qk_norm: bool = True,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        shape = SIZES[size]
        self.shape, self._qk_norm, self._precision = shape, qk_norm, precision
        self._stream: Tokens | None = None
        length = shape.context + 1
        if data is not None:
            if tokens != "bytes":
                raise ValueError(f"tokens={tokens} is for the manual, and data={data} brings tokens of its own")
            self._stream, split = windows(data, length, vocabulary=vocabulary, held_out=shape.held_out)
            self.source = f"token shards in {data}"
        elif tokens == "bytes":
            vocabulary, split = SYMBOLS, manual(length, stride=shape.context, held_out=shape.held_out)
        else:
            vocabulary, split = bpe.VOCABULARY, bpe.manual(length, stride=shape.context, held_out=shape.held_out)
        super().__init__(split.train, split.held_out, split.data_sha256)
        self.title = f"transformer of {shape.layers} layers, width {shape.width}, {shape.context} positions"
        self.parameters = _parameters(shape, vocabulary)
        self.batch_size = min(shape.batch_size, len(self.train[0]))
        self.horizon, self.warmup, self.learning_rate = shape.horizon, shape.warmup, shape.learning_rate
        self.microbatch = shape.microbatch
        self._cos, self._sin = _rotations(shape.context, shape.width // shape.heads)

    def gather(self, index: Tensor) -> Batch:
        """The windows at `index`: where the data are shards, `train` holds where each begins, and they are read now."""
        if self._stream is None:
            return super().gather(index)
        starts = self.train[0][index]
        return (self._stream.windows(starts, self.shape.context + 1).to(starts.device),)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        (window,) = batch
        table = parameters["embedding.weight"]
        with self._autocast(table):
            logits = self._logits(parameters, embed(table, window[..., :-1]))
        return cross_entropy(logits.to(table.dtype), window[..., 1:].flatten(1))

    def _autocast(self, x: Tensor) -> AbstractContextManager[object]:
        wanted = self._precision == "bfloat16" or (self._precision == "auto" and x.is_cuda)
        if not wanted or x.dtype != torch.float32:
            return nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)  # each weight is cast once anyway

    def _logits(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Embedded tokens [K, B, T, width] -> [K, B T, symbols]."""
        shape, lanes = self.shape, x.shape[0]
        by_head = (*x.shape[:3], shape.heads, shape.width // shape.heads)

        def multiply(name: str, x: Tensor) -> Tensor:
            return x.bmm(parameters[f"{name}.weight"].mT)

        def placed(x: Tensor) -> Tensor:
            x = x.view(by_head)
            return self._rotate(_rms(x) if self._qk_norm else x).flatten(3)

        x = _rms(x.flatten(1, 2))
        for i in range(shape.layers):
            seen = rms_norm(x, parameters[f"block{i}.norm1.gain"])
            query, key, value = (multiply(f"block{i}.{part}", seen) for part in ("query", "key", "value"))
            value = value.view(*by_head[:3], shape.width)
            attended = causal_attention(placed(query), placed(key), value, heads=shape.heads)
            x = x + multiply(f"block{i}.mix", attended.view(lanes, -1, shape.width))
            seen = rms_norm(x, parameters[f"block{i}.norm2.gain"])
            x = x + multiply(f"block{i}.down", multiply(f"block{i}.up", seen).relu().square())
        return multiply("embedding" if shape.tied else "head", rms_norm(x, parameters["norm.gain"]))

    def _rotate(self, x: Tensor) -> Tensor:
        """Turns feature i and the one half a head on by position / 10000^(2i / features): [..., T, heads, features]."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (table[: x.shape[-3]].to(dtype).unsqueeze(1) for table in (self._cos, self._sin))
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    @property
    def flops(self) -> int:
        """Every matrix at every position, and in attention two products of T x T x width an example and layer."""
        shape = self.shape
        used = sum(p.size for p in self.parameters if len(p.shape) > 1 and (p.role != "embedding" or shape.tied))
        attention = shape.layers * 2 * shape.context * shape.width
        return 6 * self.batch_size * shape.context * (used + attention)


def _parameters(shape: Size, symbols: int) -> tuple[Parameter, ...]:
    """Tables start at GPT-2's 0.02, brought from its width to this one; what writes to the residual stream, smaller the
    more of it there is (Radford et al. 2019)."""
    width, table = shape.width, 0.02 * math.sqrt(768 / shape.width)

    def matrix(name: str, inputs: int, outputs: int, role: Role = "hidden", gain: float = 1.0) -> Parameter:
        return Parameter.normal(f"{name}.weight", (outputs, inputs), role, gain / math.sqrt(inputs))

    def block(name: str) -> tuple[Parameter, ...]:
        writes = 1 / math.sqrt(2 * shape.layers)
        return (
            Parameter.constant(f"{name}.norm1.gain", (width,), "norm", 1.0),
            *(matrix(f"{name}.{part}", width, width, "query_key") for part in ("query", "key")),
            matrix(f"{name}.value", width, width),
            matrix(f"{name}.mix", width, width, gain=writes),
            Parameter.constant(f"{name}.norm2.gain", (width,), "norm", 1.0),
            matrix(f"{name}.up", width, _MLP * width),
            matrix(f"{name}.down", _MLP * width, width, gain=writes),
        )

    head = (Parameter.normal("head.weight", (symbols, width), "head", table),)
    return (
        Parameter.normal("embedding.weight", (symbols, width), "embedding", table),
        *(parameter for i in range(shape.layers) for parameter in block(f"block{i}")),
        Parameter.constant("norm.gain", (width,), "norm", 1.0),
        *(() if shape.tied else head),
    )


def _rms(x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], eps=_EPS)


def _rotations(positions: int, features: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every rotation, [positions, features / 2] float64."""
    speed = _ROPE_BASE ** -torch.arange(0, 1, 2 / features, dtype=torch.float64)
    angle = torch.outer(torch.arange(positions, dtype=torch.float64), speed)
    return angle.cos(), angle.sin()
