"""Confirmations as a search makes them, where no generation had any luck."""

from __future__ import annotations

from discover.records import Confirmation
from discover.standing import expected


def confirmed(
    candidate: int, generation: int, fitness: float | None, error: float | None, count: int, usual: float = 0.0
) -> Confirmation:
    """A candidate with that mean over fresh scores, where others usually come to `usual`; None: it failed."""
    hoped = None if fitness is None else expected(fitness, count, usual)
    return Confirmation(candidate, generation, fitness, error, count, fitness, hoped)
