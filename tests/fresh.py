"""Confirmations as a search makes them, where no generation had any luck."""

from __future__ import annotations

from discover.records import Confirmation


def confirmed(candidate: int, generation: int, fitness: float | None, error: float | None, count: int) -> Confirmation:
    """A candidate with that mean over fresh scores; None: it failed."""
    return Confirmation(candidate, generation, fitness, error, count, fitness)
