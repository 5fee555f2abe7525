"""Torch functions that operators call where one expression does not say them; an exported file carries their text."""

from __future__ import annotations

import torch


def newton_schulz(x: torch.Tensor, steps: int) -> torch.Tensor:
    """Orthogonalises the last two dimensions of x approximately, by quintic Newton-Schulz steps (Jordan 2024, Muon)."""
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(int(steps)):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
    return x.mT if tall else x
