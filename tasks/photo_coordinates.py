"""A photograph as a function of the coordinates: no classes, no noise, and detail at every scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tasks import data
from tasks.layers import dense, linear
from tasks.task import Batch, Task

_BLOCK = 5  # pixels averaged a side: 85 x 128 points are left
_FREQUENCIES, _DEVIATION = 48, 2.0
_SEED = 2020


class PhotoCoordinates(Task):
    """(down, right) - 48 fixed sines and cosines each - 64 - 64 - 3 colours, relu, mean squared error a colour.

    Frequencies are drawn once from N(0, 2^2), in waves over half the longer side: Fourier features of Tancik et al.
    2020 (arXiv:2006.10739), without which such a network learns only what is smooth. Held out is a quarter of the
    points, so that what is measured is the picture between those seen; the mean colour scores 1.

    Measured on china, 2 seeds: AdamW 0.052, SGD with momentum 0.055, lion 0.061, muon 0.049.

    Args:
        photo: china, a temple, or flower, whose background is out of focus.
    """

    name = "photo_coordinates"
    title = "coordinate network of a photograph"
    source = "scikit-learn's sample photographs, averaged to 85 x 128; Tancik et al. 2020: a slowly fading spectrum"
    parameters = (
        *dense("hidden1", 2 * _FREQUENCIES, 64, gain=math.sqrt(2)),
        *dense("hidden2", 64, 64, gain=math.sqrt(2)),
        *dense("head", 64, 3, role="head"),
    )
    batch_size = 128
    horizon = 300
    warmup = 15
    learning_rate = 2e-2

    def __init__(self, photo: Literal["china", "flower"] = "china") -> None:
        split = data.photograph(photo, _BLOCK)
        super().__init__(split.train, split.held_out, split.data_sha256)
        generator = torch.Generator().manual_seed(_SEED)
        self.frequencies = 2 * math.pi * _DEVIATION * torch.randn(2, _FREQUENCIES, generator=generator)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        place, colour = batch
        dtype = parameters["head.weight"].dtype
        phase = place.to(dtype) @ self.frequencies.to(dtype)
        hidden = linear(parameters, "hidden1", torch.cat([phase.sin(), phase.cos()], -1)).relu()
        hidden = linear(parameters, "hidden2", hidden).relu()
        return (linear(parameters, "head", hidden) - colour).square().mean((1, 2))
