"""The names of the pruners; what they do is in `discover.pruning`, which needs Optuna."""

from __future__ import annotations

from typing import Literal

Pruner = Literal["none", "median", "hyperband", "wilcoxon"]

FEWEST_PAIRS = 4
"""Seeds with which a one-sided signed-rank test can first fall below `pruning.THRESHOLD`: 2**-4 is 0.06."""


def least_seeds(pruner: Pruner) -> int:
    """With how many tuning seeds a pruner can save anything."""
    return FEWEST_PAIRS + 1 if pruner == "wilcoxon" else 1
