"""What has been published for evolution beside the plain one, to see whether it is worth it: arms of
`benchmarks.ablation`, none of which shows a gain (docs/log.md), so that the engine has none of them.

Each is a proposer in a few lines, and can be searched with as any other. Its settings are keys of `proposer` in the
space; without them it has those that it was tried with:

    discover search --space lion_like --algorithm benchmarks/devices.py:Islands
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from numpy.random import Generator

from discover.chance import pick
from discover.errors import SpaceError
from discover.evolution import Bred, Evolution
from discover.mutate import mutate
from discover.proposers import Context, Proposal, Told
from discover.standing import expected

FINE = 0.25
"""By how much smaller the changes of constants are where elites are tuned: 2 ** N(0, sigma / 4)."""

_ISLAND = re.compile(r" \[island (\d+)\]$")


def settings(context: Context, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A device's own settings.

    Raises:
        SpaceError: the space has one that it does not know.
    """
    if unknown := sorted(set(context.space.proposer) - set(defaults)):
        known = ", ".join(defaults) or "none"
        raise SpaceError(f"{context.space.name}: proposer: unknown key '{unknown[0]}'; there are {known}")
    return {**defaults, **context.space.proposer}


class Islands:
    """Populations that breed apart and share the space's number of members; after so many that joined, the best
    confirmed of each join the next one too. (AutoML-Zero, arXiv:2003.03384: the largest gain beside hurdles; every 100
    to 10,000, 50 of 100, scored or lucky alike.)"""

    defaults: ClassVar[dict[str, Any]] = {"islands": 4, "migrate_every": 200, "migrants": 2}

    def __init__(self, context: Context) -> None:
        self.context, self.own = context, settings(context, self.defaults)
        evolution, count = context.space.evolution, self.own["islands"]
        if not 1 <= count <= evolution.population:
            limits = f"1 to {evolution.population}, the population"
            raise SpaceError(f"{context.space.name}: proposer.islands: {count}; expected {limits}")
        small = {"evolution": {"population": evolution.population // count}}
        self.islands = [Evolution(replace(context, space=context.space.changed(small))) for _ in range(count)]
        self.homes: dict[int, int] = {}
        """The island that each candidate was made for."""

    def propose(self, rng: Generator) -> Proposal:
        number = pick(rng, range(len(self.islands)))
        proposal = self.islands[number].propose(rng)
        return replace(proposal, origin=f"{proposal.origin} [island {number}]")

    def tell(self, told: Told) -> None:
        before = self._joined()
        home = int(marked[1]) if (marked := _ISLAND.search(told.origin)) else 0
        self.homes.setdefault(told.original, home)
        for number, island in enumerate(self.islands):
            if number == home:
                island.tell(told)
            else:
                island.learn(told)
        if self._joined() > before and self._joined() % self.own["migrate_every"] == 0:
            self.migrate()

    def _joined(self) -> int:
        return sum(island.joined for island in self.islands)

    def confirm(self, candidates: Sequence[int]) -> None:
        for each in candidates:
            self.islands[self.homes[each]].confirm([each])

    def migrate(self) -> None:
        """The best of each island, still in its population or not, go to the next one too. Only what fresh instances
        confirmed may: a score that is luck would win there for as long as it lived, and everywhere."""
        best = _best(self.context)
        for number, island in enumerate(self.islands):
            leaving = [each for each in best if self.homes[each] == number][: self.own["migrants"]]
            self.islands[(number + 1) % len(self.islands)].population.extend(map(island.elite, leaving))


class Restarts(Evolution):
    """All members become copies of the best where so many that joined have brought nothing better. (Lion's search: at
    some 300,000 programs.)"""

    defaults: ClassVar[dict[str, Any]] = {"restart_after": 3000}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.own = settings(context, self.defaults)
        self._record: tuple[float, int] | None = None
        """The best fitness so far of those that led, and how many had joined then."""

    def tell(self, told: Told) -> None:
        before = self.joined
        super().tell(told)
        best = _best(self.context) if self.joined > before else []
        if not best:
            return
        scores = self.context.confirmed[best[0]]
        mean = math.fsum(scores) / len(scores)
        hoped = expected(mean, len(scores), usual=0.0)  # not today's, which goes up by itself
        if self._record is None or hoped > self._record[0]:
            self._record = hoped, self.joined
        elif self.joined - self._record[1] >= self.own["restart_after"]:
            self._record = self._record[0], self.joined
            self.population.extend([self.elite(best[0])] * len(self.population))


class TunedElites(Evolution):
    """Some children are one of the best confirmed with a constant moved a little."""

    defaults: ClassVar[dict[str, Any]] = {"share": 0.1, "top": 4}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.own = settings(context, self.defaults)

    def child(self, rng: Generator) -> Bred:
        if rng.random() >= self.own["share"] or not (best := _best(self.context)):
            return super().child(rng)
        parent, grammar = self.elite(pick(rng, best[: self.own["top"]])), self.context.grammar
        fine = replace(grammar, weights={"constant": 1.0}, constant_sigma=FINE * grammar.constant_sigma)
        return mutate(parent.program, fine, rng), (parent,)


class NeutralDrift(Evolution):
    """Duplicates join the population too, with the fitness of what they repeat, so that changes without effect may add
    up. (Lion and AutoML-Zero: so.)"""

    def joins(self, told: Told) -> bool:
        return True


def _best(context: Context) -> list[int]:
    """Those that were scored on fresh instances, the best first."""
    return sorted(context.confirmed, key=lambda each: (-context.fitness[each], each))


if __name__ == "__main__":
    print("a library: arms of `python -m benchmarks.ablation`")
