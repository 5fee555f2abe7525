"""A language model with a window: the last eight bytes, embedded, through one hidden layer to the next."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tasks import data
from tasks.layers import cross_entropy, dense, embed, linear
from tasks.task import Batch, Parameter, Task

_CONTEXT, _WIDTH, _HIDDEN = 8, 8, 28


class BytesMLP(Task):
    """8 bytes x 8 numbers - 28 - 97 symbols, tanh, cross-entropy in nats a byte.

    Measured, 8 seeds: AdamW 2.530 at lr 0.032, no momentum 2.525 (-0.002, 0.003), no correction 2.564 (+0.013, 0.002),
    SGD 2.570 (+0.016, 0.003), SGD with momentum 2.567 (+0.015, 0.003). (negative) Momentum does not pay here, and costs
    more the shorter the horizon (at 200 steps no momentum is 0.016 better; with relu, 0.022): why this task has 400.
    """

    name = "bytes_mlp"
    title = "context MLP language model on the Python manual"
    source = "pydoc_data.topics of the running Python; Bengio et al. 2003: sparse gradients in a table, skewed classes"
    parameters = (
        Parameter.normal("embedding.weight", (data.SYMBOLS, _WIDTH), "embedding", 0.3),
        *dense("hidden", _CONTEXT * _WIDTH, _HIDDEN),
        *dense("head", _HIDDEN, data.SYMBOLS, role="head"),
    )
    batch_size = 32
    horizon = 400
    warmup = 20
    learning_rate = 3e-2

    def __init__(self) -> None:
        split = data.manual(_CONTEXT + 1, stride=4, held_out=2048)
        super().__init__(split.train, split.held_out, split.data_sha256)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        (window,) = batch
        context = embed(parameters["embedding.weight"], window[..., :-1]).flatten(2)
        hidden = linear(parameters, "hidden", context).tanh()
        return cross_entropy(linear(parameters, "head", hidden), window[..., -1])
