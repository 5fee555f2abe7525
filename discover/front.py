"""The Pareto front of a run: rules that no other beats in fitness, state and operations at once.

Fitness is what fresh scores let one expect, so the front is of those that were confirmed: of thousands of single
scores some are always lucky. Beside it stand those that were not confirmed and would enter it nevertheless, their own
score counted as one fresh score: what to confirm next, and all that there is as long as nobody is confirmed.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from discover.records import Ranked
from discover.standing import expected

COSTS = ("state_bytes", "operations")

Costs = tuple[float, ...]


class Front:
    """Kept up as generations come: of the confirmed what is known of them, and of the others, for each price, the
    scores. Where one more was confirmed, all that are confirmed are looked through: 20 ms for 2,000 of them.

    Attributes:
        usual: the usual score when the last of them were scored (`discover.standing.Confirmed`).
    """

    def __init__(self) -> None:
        self.usual = 0.0
        self._fresh: dict[int, tuple[float, int, Costs]] = {}
        """Of the confirmed: the mean of their scores, without luck, how many, and the price."""
        self._met: set[int] = set()
        """Who was scored on fresh instances, failures there included."""
        self._alone: defaultdict[Costs, list[tuple[float, int]]] = defaultdict(list)
        """Heaps, the best first, who was met since included."""
        self._confirmed: dict[int, tuple[float, ...]] | None = {}

    def add(self, candidate: int, fitness: float, costs: Costs) -> None:
        """A candidate with a score of its own."""
        heapq.heappush(self._alone[costs], (-fitness, candidate))

    def confirm(self, candidate: int, luckless: float | None, count: int, costs: Costs) -> None:
        """A candidate's fresh scores, in place of what it was; None where it failed."""
        self._met.add(candidate)
        self._fresh.pop(candidate, None)
        if luckless is not None:
            self._fresh[candidate] = luckless, count, costs
        self._confirmed = None

    def confirmed(self) -> Sequence[int]:
        """Those of the confirmed that no other of them beats, the fittest first."""
        return list(self._front())

    def _front(self) -> dict[int, tuple[float, ...]]:
        if self._confirmed is None:
            values = {
                candidate: (expected(mean, count, self.usual), *costs)
                for candidate, (mean, count, costs) in self._fresh.items()
            }
            self._confirmed = {candidate: values[candidate] for candidate in undominated(values)}
        return self._confirmed

    def others(self) -> Sequence[int]:
        """Those that are not confirmed and that none of the front or of their own beats, the fittest first."""
        values: dict[int, tuple[float, ...]] = {}
        for costs, heap in self._alone.items():
            while heap and heap[0][1] in self._met:
                heapq.heappop(heap)
            if heap:
                fitness = -heap[0][0]
                values[heap[0][1]] = (expected(fitness, 1, self.usual), *costs)
        front = self._front().values()
        return [each for each in undominated(values) if not any(_beats(other, values[each]) for other in front)]


def costs_of(properties: Mapping[str, Any]) -> Costs:
    """Bytes of state a parameter, and passes over the parameter a step."""
    return tuple(float(properties.get(name) or 0.0) for name in COSTS)


def costs(ranked: Ranked) -> Costs:
    """As `costs_of`."""
    return costs_of(ranked.candidate.properties)


def undominated(values: Mapping[int, tuple[float, ...]]) -> list[int]:
    """The keys that no other beats: as fit or fitter, and in no cost higher. Of equal ones the first.

    Args:
        values: key -> fitness (higher is better), then costs (lower is better).
    """
    order = sorted(values, key=lambda key: (-values[key][0], values[key][1:], key))
    found: list[int] = []
    for key in order:  # whatever beats a key comes before it
        if not any(_beats(values[other], values[key]) for other in found):
            found.append(key)
    return found


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] >= other[0] and all(a <= b for a, b in zip(one[1:], other[1:], strict=True))
