"""What training costs: by a rule of thumb, so that units of work can be cut before anything was timed, and then by what
they took. No result depends on where they are cut: a lane's result depends on that lane alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import TypeVar

from tasks import Task

STEP_SECONDS = 2e-6
"""Of a lane's step that does nothing: its part of what Python and a call into a tile cost."""

FLOP_SECONDS = 7.5e-12

NUMBER_SECONDS = 2.5e-9
"""Of a step of the rule for each number in the parameters. These three fit what one core of an AMD EPYC (family 26)
takes on quadratic, digits_mlp, digits_autoencoder and bytes_mlp, compiled, within a fifth. With AVX2 alone (family 25,
beside other work) the networks took three to five times as long; in plain PyTorch a gradient takes three times."""

KEPT = 0.9
"""Of what earlier units say of the next one, with each that comes back."""

T = TypeVar("T")


def seconds(task: Task, steps: int, batch_size: int | None = None) -> float:
    """About how long a core trains one lane of an elementwise rule; None is the task's own batch size."""
    flops = task.flops * (1.0 if batch_size is None else batch_size / task.batch_size)
    return steps * (STEP_SECONDS + flops * FLOP_SECONDS + task.size * NUMBER_SECONDS)


class Pace:
    """How many times the estimate units take, of each kind: those of a rung on a task. Rules with matrix operators, or
    others that run as generated code, take some ten times as long; so does a task whose `flops` say too little, a
    gradient that is not compiled yet, a busy machine."""

    def __init__(self) -> None:
        self._sums: dict[Hashable, tuple[float, float]] = {}
        """What units of a kind were estimated at, and what they took, the latest counting most."""

    def note(self, kind: Hashable, estimated: float, took: float) -> None:
        """A unit is back."""
        before = self._sums.get(kind, (0.0, 0.0))
        self._sums[kind] = (KEPT * before[0] + estimated, KEPT * before[1] + took)

    def of(self, kind: Hashable) -> float:
        """Times the estimate; 1 as long as nothing is known."""
        estimated, took = self._sums.get(kind, (1.0, 1.0))
        return took / estimated if took > 0.0 else 1.0


def unit_size(
    task: Task,
    steps: int,
    points: int,
    unit_seconds: float,
    most: int,
    batch_size: int | None = None,
    pace: float = 1.0,
) -> int:
    """How many programs, each at `points` learning rates, make a unit of about so long, at a `Pace`."""
    return max(1, min(most, round(unit_seconds / (points * pace * seconds(task, steps, batch_size)))))


def blocks(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """The items in order, in as few blocks of at most `size` as there can be, their lengths as equal as can be."""
    count = math.ceil(len(items) / size)
    if not count:
        return []
    ends = [len(items) * index // count for index in range(count + 1)]
    return [tuple(items[start:stop]) for start, stop in pairwise(ends)]
