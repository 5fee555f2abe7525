"""Torch's own generators, the CPU's and a GPU's, as a run of an optimizer that draws has them for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def generators(device: torch.device) -> list[torch.Generator]:
    """Those that an optimizer on a device may draw from."""
    own = [torch.default_generator]
    if device.type == "cuda":
        own.append(torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index])
    return own


@contextmanager
def left_alone(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the process goes on as if it had not been."""
    before = states(device)
    try:
        yield
    finally:
        take_up(device, before)


def seeded(device: torch.device, seed: int) -> list[Tensor]:
    """The states that a seed begins with."""
    with left_alone(device):
        for each in generators(device):
            each.manual_seed(seed)
        return states(device)


def states(device: torch.device) -> list[Tensor]:
    return [each.get_state() for each in generators(device)]


def take_up(device: torch.device, kept: Sequence[Tensor]) -> None:
    """Goes on from states."""
    for each, state in zip(generators(device), kept, strict=True):
        each.set_state(state)
