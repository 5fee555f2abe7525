"""Digits of which a few are corrupted: now and then a batch whose gradient is hundreds of times too long."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tasks import data
from tasks.layers import cross_entropy, dense, linear
from tasks.task import Batch, Task

CORRUPTED = 4
SCALE = 1000.0
_SEED = 20250112


def corrupted_digits() -> data.Split:
    """The digits, with the first `CORRUPTED` training examples of a seeded order ruined; held-out ones are untouched.

    Ruined: the pixels are multiplied by `SCALE` and the label is moved on by one to nine, as in a damaged record.
    """
    split = data.digits()
    x, y = (part.clone() for part in split.train)
    generator = torch.Generator().manual_seed(_SEED)
    chosen = torch.randperm(len(x), generator=generator)[:CORRUPTED]
    x[chosen] *= SCALE
    y[chosen] = (y[chosen] + torch.randint(1, 10, (CORRUPTED,), generator=generator)) % 10
    return data.Split((x, y), split.held_out, split.data_sha256)


class DigitsSpikes(Task):
    """64-32-10, relu, cross-entropy; 4 of 1,200 examples have pixels 1,000 times too large and a wrong label.

    One batch in ten holds such an example; its gradient is at first 100 to 250 times as long as its neighbours'.
    Such spikes, from data and from the network itself, are what derails the training of language models; Huang et al.
    2025 (SPAM, arXiv:2501.06842) and Wang et al. 2025 (AdaGC, arXiv:2502.11034) describe and clip them. What is
    measured here is how much a rule lets one step destroy.

    Measured, 2 seeds: AdamW 1.04, SGD with momentum 2.25, lion 1.87, muon 0.40.
    Without corruption AdamW is at 0.16 and SGD with momentum at 0.18 (`digits_mlp`).
    """

    name = "digits_spikes"
    title = "multilayer perceptron on digits, some corrupted"
    source = (
        "scikit-learn digits (UCI), 4 examples corrupted with a fixed seed: rare gradients, hundreds of times too long"
    )
    parameters = (*dense("hidden", 64, 32), *dense("head", 32, 10, role="head"))
    batch_size = 32
    horizon = 150
    warmup = 8
    learning_rate = 1e-2

    def __init__(self) -> None:
        split = corrupted_digits()
        super().__init__(split.train, split.held_out, split.data_sha256)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x, y = batch
        hidden = linear(parameters, "hidden", x).relu()
        return cross_entropy(linear(parameters, "head", hidden), y)
