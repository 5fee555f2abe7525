"""Torch functions that operators call where one expression does not say them; an exported file carries their text."""

from __future__ import annotations

import torch


def newton_schulz(x: torch.Tensor, steps: float) -> torch.Tensor:
    """Orthogonalises the last two dimensions of x approximately, by quintic Newton-Schulz steps (Jordan 2024, Muon)."""
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(int(min(max(0, steps), 32))):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
    return x.mT if tall else x


def power(base: torch.Tensor | float, exponent: torch.Tensor | float) -> torch.Tensor:
    """base ** exponent, lane by lane: torch rounds it otherwise in vector registers than in the rest of a row, so that
    in one call a lane's bits would depend on where the lane lies."""
    like = base if isinstance(base, torch.Tensor) else exponent
    assert isinstance(like, torch.Tensor)
    bases, exponents = (x if isinstance(x, torch.Tensor) else like.new_tensor(x) for x in (base, exponent))
    lanes = max((len(x) for x in (bases, exponents) if x.ndim), default=0)
    if not lanes:
        return torch.pow(bases, exponents)
    pairs = zip(*(x.expand(lanes, *x.shape[1:]) for x in (bases, exponents)), strict=True)
    return torch.stack([torch.pow(b, e) for b, e in pairs])
