"""A small causal transformer on bytes: every role of parameter in one network."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from tasks import data
from tasks.layers import causal_attention, cross_entropy, embed, rms_norm
from tasks.task import Batch, Parameter, Task

_CONTEXT, _WIDTH, _HEADS, _MLP, _BLOCKS = 32, 32, 2, 64, 2


def _matrix(name: str, inputs: int, outputs: int, gain: float = 1.0) -> Parameter:
    return Parameter.normal(f"{name}.weight", (outputs, inputs), "hidden", gain / math.sqrt(inputs))


def _gain(name: str) -> Parameter:
    return Parameter.constant(f"{name}.gain", (_WIDTH,), "norm", 1.0)


def _block(name: str) -> tuple[Parameter, ...]:
    return (
        _gain(f"{name}.norm1"),
        *(_matrix(f"{name}.{part}", _WIDTH, _WIDTH) for part in ("query", "key", "value")),
        _matrix(f"{name}.mix", _WIDTH, _WIDTH, gain=0.1),
        _gain(f"{name}.norm2"),
        _matrix(f"{name}.up", _WIDTH, _MLP),
        _matrix(f"{name}.down", _MLP, _WIDTH, gain=0.1),
    )


class BytesTransformer(Task):
    """Two blocks of width 32, 2 heads, 32 positions; pre-norm with RMS gains, relu^2, no biases, head of its own.

    Measured, 4 seeds: AdamW 2.551 at lr 0.016, no momentum 2.546 (-0.002, 0.001), no correction 2.583 (+0.012, 0.002),
    SGD 2.661 (+0.042, 0.003), SGD with momentum 2.645 (+0.036, 0.004), both at the edge of their grids. (negative)
    Adam's momentum does not pay yet, and less the shorter the horizon: at 200 steps, with the matrices that write to
    the residual stream from 0, no momentum was better by 0.006 in the logarithm.
    """

    name = "bytes_transformer"
    title = "two-block transformer language model on the Python manual"
    source = "pydoc_data.topics of the running Python; the network that today's optimizers are judged on, in small"
    parameters = (
        Parameter.normal("embedding.weight", (data.SYMBOLS, _WIDTH), "embedding", 0.3),
        Parameter.normal("position.weight", (_CONTEXT, _WIDTH), "embedding", 0.3),
        *(parameter for i in range(_BLOCKS) for parameter in _block(f"block{i}")),
        _gain("norm"),
        Parameter.normal("head.weight", (data.SYMBOLS, _WIDTH), "head", 1 / math.sqrt(_WIDTH)),
    )
    batch_size = 8
    horizon = 300
    warmup = 30
    learning_rate = 2e-2

    def __init__(self) -> None:
        split = data.manual(_CONTEXT + 1, stride=_CONTEXT, held_out=128)
        super().__init__(split.train, split.held_out, split.data_sha256)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        (window,) = batch
        lanes, examples, _ = window.shape

        def multiply(name: str, x: Tensor) -> Tensor:
            return x.bmm(parameters[f"{name}.weight"].mT)

        place = parameters["position.weight"].unsqueeze(1)
        x = (embed(parameters["embedding.weight"], window[..., :-1]) + place).flatten(1, 2)
        for i in range(_BLOCKS):
            seen = rms_norm(x, parameters[f"block{i}.norm1.gain"])
            query, key, value = (
                multiply(f"block{i}.{part}", seen).view(lanes, examples, _CONTEXT, _WIDTH)
                for part in ("query", "key", "value")
            )
            attended = causal_attention(query, key, value, heads=_HEADS).flatten(1, 2)
            x = x + multiply(f"block{i}.mix", attended)
            seen = rms_norm(x, parameters[f"block{i}.norm2.gain"])
            x = x + multiply(f"block{i}.down", multiply(f"block{i}.up", seen).relu().square())
        logits = multiply("head", rms_norm(x, parameters["norm.gain"]))
        return cross_entropy(logits, window[..., 1:].flatten(1))

    @property
    def flops(self) -> int:
        """Every matrix at every position, and two products of 32 x 32 x 32 an example and block in attention."""
        dense = super().flops * _CONTEXT
        return dense + 6 * self.batch_size * _BLOCKS * 2 * _CONTEXT * _CONTEXT * _WIDTH
