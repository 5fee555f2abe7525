"""What has been published for evolution beside the plain one, to see whether it is worth it: arms of
`benchmarks.ablation`, none of which shows a gain (docs/log.md), so that the engine has none of them.

Each is a proposer in a few lines, and can be searched with as any other. Its settings are keys of `proposer` in the
space; without them it has those that it was tried with:

    discover search --space lion_like --algorithm benchmarks/devices.py:Islands
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from numpy.random import Generator

from discover.chance import pick
from discover.evolution import Bred, Evolution, Member
from discover.mutate import mutate
from discover.proposers import Context, Proposal, Told
from discover.standing import expected

FINE = 0.25
"""By how much smaller the changes of constants are where elites are tuned: 2 ** N(0, sigma / 4)."""

_ISLAND = re.compile(r" \[island (\d+)\]$")


class Device(Evolution):
    """Evolution and something more.

    Attributes:
        defaults: its settings, and what they are where the space does not say.
    """

    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.own = {**self.defaults, **context.space.proposer}

    def leaders(self, count: int) -> list[Member]:
        """The best of those that were scored on fresh instances."""
        best = sorted(self.context.confirmed, key=lambda each: (-self.context.fitness[each], each))
        return list(map(self.elite, best[:count]))


class Islands(Device):
    """Populations that breed apart and share the members; after so many that joined, the best confirmed of each join
    the next one too. (AutoML-Zero, arXiv:2003.03384: the largest gain beside hurdles; every 100 to 10,000, 50 of 100,
    scored or lucky alike.)"""

    defaults: ClassVar[dict[str, Any]] = {"islands": 4, "migrate_every": 200, "migrants": 2}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        size = len(self.population) // self.own["islands"]
        first = list(self.population)[:size]
        self.islands = [deque(first, maxlen=size) for _ in range(self.own["islands"])]
        self.homes: dict[int, int] = {}
        """The island that each candidate was made for."""

    def propose(self, rng: Generator) -> Proposal:
        island = int(rng.integers(len(self.islands)))
        self.population = self.islands[island]
        proposal = super().propose(rng)
        return replace(proposal, origin=f"{proposal.origin} [island {island}]")

    def tell(self, told: Told) -> None:
        marked = _ISLAND.search(told.origin)
        island = int(marked[1]) if marked else 0
        self.homes.setdefault(told.original, island)
        self.population, before = self.islands[island], self._told
        super().tell(told)
        if self._told > before and self._told % self.own["migrate_every"] == 0:
            self.migrate()

    def _measure(self, copy: Member, candidate: int) -> None:
        for island in self.islands:
            self.population = island
            super()._measure(copy, candidate)

    def confirm(self, candidates: Sequence[int]) -> None:
        for each in candidates:
            self.population = self.islands[self.homes[each]]
            super().confirm([each])

    def migrate(self) -> None:
        """The best of each island, still in its population or not, go to the next one too. Only what fresh instances
        confirmed may: a score that is luck would win there for as long as it lived, and everywhere."""
        best = self.leaders(len(self.context.confirmed))
        for number in range(len(self.islands)):
            leaving = [each for each in best if self.homes[each.candidate] == number][: self.own["migrants"]]
            self.islands[(number + 1) % len(self.islands)].extend(leaving)


class Restarts(Device):
    """All members become copies of the best where so many that joined have brought nothing better. (Lion's search: at
    some 300,000 programs.)"""

    defaults: ClassVar[dict[str, Any]] = {"restart_after": 3000}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._record: tuple[float, int] | None = None
        """The best fitness so far of those that led, and how many had joined then."""

    def tell(self, told: Told) -> None:
        before = self._told
        super().tell(told)
        leader = next(iter(self.leaders(1)), None) if self._told > before else None
        if leader is None:
            return
        scores = self.context.confirmed[leader.candidate]
        best = expected(math.fsum(scores) / len(scores), len(scores), usual=0.0)  # not today's, which goes up by itself
        if self._record is None or best > self._record[0]:
            self._record = best, self._told
        elif self._told - self._record[1] >= self.own["restart_after"]:
            self._record = self._record[0], self._told
            self.population.extend([leader] * len(self.population))


class TunedElites(Device):
    """Some children are one of the best confirmed with a constant moved a little."""

    defaults: ClassVar[dict[str, Any]] = {"share": 0.1, "top": 4}

    def _child(self, rng: Generator) -> Bred:
        if rng.random() >= self.own["share"] or not (best := self.leaders(self.own["top"])):
            return super()._child(rng)
        parent, grammar = pick(rng, best), self.context.grammar
        fine = replace(grammar, weights={"constant": 1.0}, constant_sigma=FINE * grammar.constant_sigma)
        return mutate(parent.program, fine, rng), (parent,)


class NeutralDrift(Device):
    """Duplicates join the population too, with the fitness of what they repeat, so that changes without effect may add
    up. (Lion and AutoML-Zero: so.)"""

    def joins(self, told: Told) -> bool:
        return True


if __name__ == "__main__":
    print("a library: arms of `python -m benchmarks.ablation`")
