"""A recurrent language model on bytes: one gated recurrent unit, unrolled over a short window."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tasks import data
from tasks.layers import cross_entropy, embed, linear
from tasks.task import Batch, Parameter, Task

_CONTEXT, _WIDTH, _STATE = 24, 32, 88


class GRULM(Task):
    """Embedding 32, GRU of 88, 97 symbols; the state starts at 0 with each window of 24 bytes.

    What it is for: gradients through time. One matrix [264, 88] meets itself 24 times in a step, its gates saturate,
    and nothing normalises it, unlike any transformer. Reset, update and candidate gates lie side by side in the
    matrices, in torch.nn.GRU's order, and the reset gate acts on the recurrent product, as there.

    Measured at the best of five rates a factor 2 apart, two seeds each: AdamW (weight decay 0.01) 1.552 at lr 0.02, SGD
    with momentum 1.524 at 1, Muon 1.532 at 0.04 with an `adam_lr_ratio` of 0.3. The next rate up costs each of them a
    tenth or more.

    Source: Cho et al. 2014, arXiv:1406.1078.
    """

    name = "gru_lm"
    title = "recurrent (GRU) language model on the Python manual"
    source = "pydoc_data.topics of the running Python; Cho et al. 2014: gradients through time, saturating gates"
    parameters = (
        Parameter.normal("embedding.weight", (data.SYMBOLS, _WIDTH), "embedding", 0.3),
        Parameter.normal("input.weight", (3 * _STATE, _WIDTH), "hidden", 1 / math.sqrt(_WIDTH)),
        Parameter.normal("state.weight", (3 * _STATE, _STATE), "hidden", 1 / math.sqrt(_STATE)),
        Parameter.constant("input.bias", (3 * _STATE,), "bias"),
        Parameter.constant("state.bias", (3 * _STATE,), "bias"),
        Parameter.normal("head.weight", (data.SYMBOLS, _STATE), "head", 1 / math.sqrt(_STATE)),
        Parameter.constant("head.bias", (data.SYMBOLS,), "bias"),
    )
    batch_size = 16
    horizon = 1000
    warmup = 50
    learning_rate = 1.5e-2

    def __init__(self) -> None:
        split = data.manual(_CONTEXT + 1, stride=_CONTEXT, held_out=256)
        super().__init__(split.train, split.held_out, split.data_sha256)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        (window,) = batch
        lanes, examples, _ = window.shape
        # Positions first, so that those of one step lie together.
        symbols = window.transpose(1, 2)  # [K, T + 1, B]
        embedded = embed(parameters["embedding.weight"], symbols[:, :-1])
        inputs = linear(parameters, "input", embedded.flatten(1, 2)).view(lanes, _CONTEXT, examples, 3 * _STATE)
        state = inputs.new_zeros(lanes, examples, _STATE)
        states = []
        for step in inputs.unbind(1):
            reset_in, update_in, new_in = step.chunk(3, -1)
            reset_by, update_by, new_by = linear(parameters, "state", state).chunk(3, -1)
            reset, update = (reset_in + reset_by).sigmoid(), (update_in + update_by).sigmoid()
            new = (new_in + reset * new_by).tanh()
            state = new + update * (state - new)
            states.append(state)
        logits = linear(parameters, "head", torch.stack(states, 1).flatten(1, 2))
        return cross_entropy(logits, symbols[:, 1:].flatten(1))

    @property
    def flops(self) -> int:
        """Every matrix at every position."""
        return super().flops * _CONTEXT
