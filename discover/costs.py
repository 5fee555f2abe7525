"""What training costs, by a rule of thumb, so that units of work can be cut before anything was timed.

The estimate depends on the task alone, not on a clock, so every machine cuts the same units. No result depends on where
they are cut: a lane's result depends on that lane alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from tasks import Task

STEP_SECONDS = 2e-6
"""Of a lane's step that does nothing: its part of what Python and a call into a tile cost."""

FLOP_SECONDS = 7.5e-12

NUMBER_SECONDS = 2.5e-9
"""Of a step of the rule for each number in the parameters. These three fit what one core of an AMD EPYC (family 26)
takes on quadratic, digits_mlp, digits_autoencoder and bytes_mlp, compiled, within a fifth; without AVX-512 a gradient
takes half as long again, in plain PyTorch three times as long."""

T = TypeVar("T")


def seconds(task: Task, steps: int) -> float:
    """About how long a core trains one lane."""
    return steps * (STEP_SECONDS + task.flops * FLOP_SECONDS + task.size * NUMBER_SECONDS)


def unit_size(task: Task, steps: int, points: int, unit_seconds: float, most: int) -> int:
    """How many programs, each at `points` learning rates, make a unit of about so long."""
    return max(1, min(most, round(unit_seconds / (points * seconds(task, steps)))))


def blocks(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """The items in order, in as few blocks of at most `size` as there can be, their lengths as equal as can be."""
    count = math.ceil(len(items) / size)
    if not count:
        return []
    ends = [len(items) * index // count for index in range(count + 1)]
    return [tuple(items[start:stop]) for start, stop in pairwise(ends)]
