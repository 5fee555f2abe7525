"""Aging evolution and the controls that it must beat."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from numpy.random import Generator

import dsl
from discover.chance import pick
from discover.errors import SpaceError
from discover.mutate import Mutation, mutate, random_program
from discover.plan import genotype
from discover.proposers import Context, Proposal, Told
from discover.standing import expected
from discover.templates import RandomChoices
from dsl import Program, properties

FINE = 0.25
"""By how much smaller the changes of constants are where elites are tuned: 2 ** N(0, sigma / 4)."""

MOST_CHANGES = 8
"""How many random changes a program of best-of-n is away from its ancestor, at most."""

UNCHANGED = 1 / 16
"""Of the first proposals: ancestors themselves, whose fitness is not known yet."""

_ISLAND = re.compile(r" \[island (\d+)\]$")
_ANCESTOR = re.compile(r"ancestor (\d+), ")

_SEEDLING = """
def seedling(p, g, *, lr=1e-3, weight_decay=0.01):
    x1 = weight_decay * p
    x2 = g + x1
    x3 = lr * x2
    p = p - x3
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A candidate that can be a parent, and what it costs. Its fitness may change: elites are scored again."""

    candidate: int
    program: Program
    costs: tuple[float, ...] = ()


Bred = tuple[Mutation, tuple[Member, ...]]
"""A program and its parents."""


class Evolution:
    """Aging evolution (Real et al. 2019, arXiv:1802.01548), as in the search for Lion (arXiv:2302.06675).

    The best of a random sample of the population is the parent of a new member; the oldest member leaves. The
    population starts as copies of the ancestors; those that are not AdamW count as fit as it until they were trained,
    which is in the first generation. What fresh scores confirmed joins anew. What can be switched on beside that is in
    `discover.space.Evolution`: islands, restarts, tuning.
    """

    def __init__(self, context: Context) -> None:
        _without_template(context, "evolution")
        self.context, self.settings = context, context.space.evolution
        self.objectives = context.space.objectives
        self._told = 0
        self._record: tuple[float, int] | None = None
        """The best fitness so far of those that led, and how many had been told then."""
        self._costs: dict[int, tuple[float, ...]] = {}
        self._homes: dict[int, int] = {}
        """The island that each candidate was made for."""
        first = [
            Member(-1 - index, program, self._costs_of(properties.of(program).plain()) if self.objectives[1:] else ())
            for index, program in enumerate(context.ancestors)
        ]
        adamw = genotype(dsl.load("adamw"))
        self._unmeasured = {each.candidate: each for each in first if each.program.renamed(adamw.name) != adamw}
        """Copies of ancestors whose fitness is not known yet, by their number."""
        size = self.settings.population // self.settings.islands
        self.islands = [
            deque((first[index % len(first)] for index in range(size)), maxlen=size)
            for _ in range(self.settings.islands)
        ]

    def propose(self, rng: Generator) -> Proposal:
        island = int(rng.integers(len(self.islands))) if len(self.islands) > 1 else 0
        child, parents = self._ancestor(rng) or self._tuned(rng, island) or self._child(rng, island)
        origin = child.change + (f" [island {island}]" if len(self.islands) > 1 else "")
        known = dict.fromkeys(each.candidate for each in parents if each.candidate >= 0)
        return Proposal(child.program, tuple(known), origin)

    def _ancestor(self, rng: Generator) -> Bred | None:
        """An ancestor as it is, now and then, until its fitness is known or it has been rejected for long."""
        if not self._unmeasured or self._told >= self.settings.population or rng.random() >= UNCHANGED:
            return None
        first = pick(rng, list(self._unmeasured.values()))
        return Mutation(first.program, f"ancestor {-first.candidate}, {first.program.name}"), ()

    def _tuned(self, rng: Generator, island: int) -> Bred | None:
        """One of the best confirmed with a constant moved a little; its share is 0 unless a space asks for it."""
        settings, grammar = self.settings, self.context.grammar
        if not settings.tune or rng.random() >= settings.tune or not (best := self._leaders(settings.tune_top, island)):
            return None
        parent = pick(rng, best)
        fine = replace(grammar, weights={"constant": 1.0}, constant_sigma=FINE * grammar.constant_sigma)
        return mutate(parent.program, fine, rng), (parent,)

    def _child(self, rng: Generator, island: int) -> Bred:
        parent = self.tournament(rng, island)
        return mutate(parent.program, self.context.grammar, rng), (parent,)

    def tournament(self, rng: Generator, island: int = 0) -> Member:
        population = self.islands[island]
        sample = [pick(rng, population) for _ in range(self.settings.tournament)]
        if self.objectives[1:]:
            return next(each for each in sample if not any(self._dominates(other, each) for other in sample))
        return max(sample, key=self._fitness)

    def tell(self, told: Told) -> None:
        if self.objectives[1:] and told.properties:
            self._costs[told.id] = self._costs_of(told.properties)
        if (ancestor := _ANCESTOR.match(told.origin)) and (copy := self._unmeasured.pop(-int(ancestor[1]), None)):
            self._measure(copy, told.original)
        if told.original not in self.context.fitness or (told.id != told.original and not self.settings.neutral):
            return
        marked = _ISLAND.search(told.origin)
        island = int(marked[1]) % len(self.islands) if marked else 0
        self._homes.setdefault(told.original, island)
        self.islands[island].append(Member(told.original, told.program, self._costs.get(told.original, ())))
        self._told += 1
        if self.settings.islands > 1 and self._told % self.settings.migrate_every == 0:
            self._migrate()
        if self.settings.restart_after:
            self._restart_at_a_plateau()

    def _measure(self, copy: Member, candidate: int) -> None:
        """All copies of an ancestor are as fit as it turned out to be."""
        for island in self.islands:
            for place, member in enumerate(island):
                if member == copy:
                    island[place] = replace(member, candidate=candidate)

    def confirm(self, candidates: Sequence[int]) -> None:
        """Those that were scored again join their islands anew, at their new fitness. An elite that waits for its fresh
        scores has mostly left by the time that they are there, and what is known best would have no children."""
        if self.settings.rejoin:
            for each in candidates:
                self.islands[self._homes[each]].append(self._elite(each))

    def _fitness(self, member: Member) -> float:
        return self.context.fitness.get(member.candidate, -math.inf)  # none: an ancestor that failed

    def _dominates(self, one: Member, other: Member) -> bool:
        """Whether one is nowhere worse and somewhere better."""
        a, b = ((self._fitness(each), *(-cost for cost in each.costs)) for each in (one, other))
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    def _costs_of(self, facts: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(float(facts[name]) for name in self.objectives[1:])

    def _elite(self, candidate: int) -> Member:
        return Member(candidate, _parsed(self.context.elites[candidate]), self._costs.get(candidate, ()))

    def _leaders(self, count: int, island: int | None = None) -> list[Member]:
        """The best of those that were scored on fresh instances, of an island or of all."""
        confirmed = [each for each in self.context.confirmed if island in (None, self._homes[each])]
        best = sorted(confirmed, key=lambda each: (-self.context.fitness[each], each))[:count]
        return [self._elite(each) for each in best]

    def _migrate(self) -> None:
        """The best of each island, still in its population or not, go to the next one too. Only what fresh instances
        confirmed may: a score that is luck would win there for as long as it lived, and everywhere."""
        leaving = [self._leaders(self.settings.migrants, number) for number in range(len(self.islands))]
        for number, members in enumerate(leaving):
            self.islands[(number + 1) % len(self.islands)].extend(members)

    def _restart_at_a_plateau(self) -> None:
        """Fills all islands with copies of the best where fresh scores have shown nothing better for long."""
        leader = next(iter(self._leaders(1)), None)
        if leader is None:
            return
        scores = self.context.confirmed[leader.candidate]
        best = expected(math.fsum(scores) / len(scores), len(scores), usual=0.0)  # not today's, which goes up by itself
        if self._record is None or best > self._record[0]:
            self._record = best, self._told
        elif self._told - self._record[1] >= self.settings.restart_after:
            self._record = self._record[0], self._told
            for island in self.islands:
                island.extend([leader] * (island.maxlen or 0))


# Controls -----------------------------------------------------------------------------------------------------------


class HyperparameterSearch(Evolution):
    """The control that may change constants alone: aging evolution of the ancestor's hyperparameters."""

    def __init__(self, context: Context) -> None:
        _without_template(context, "hyperparameters")
        super().__init__(replace(context, grammar=replace(context.grammar, weights={"constant": 1.0})))


class BestOfN:
    """The control that learns nothing: ancestors after some random changes each, so the luck of the best of many."""

    def __init__(self, context: Context) -> None:
        _without_template(context, "best_of_n")
        self.context = context

    def propose(self, rng: Generator) -> Proposal:
        program = pick(rng, self.context.ancestors)
        changes = int(rng.integers(1, MOST_CHANGES + 1))
        for _ in range(changes):
            program = mutate(program, self.context.grammar, rng).program
        return Proposal(program, (), f"{changes} random changes")

    def tell(self, told: Told) -> None:
        pass


def random_search(context: Context) -> RandomSearch | RandomChoices:
    """The control of random programs: grown from a seedling, or of random choices where the space is a template."""
    return RandomSearch(context) if context.space.template is None else RandomChoices(context)


class RandomSearch:
    """Programs grown at random, each from the same seedling; what was found so far has no influence."""

    def __init__(self, context: Context) -> None:
        self.seedling, self.grammar = dsl.parse(_SEEDLING), context.grammar

    def propose(self, rng: Generator) -> Proposal:
        grown: Mutation = random_program(self.grammar, rng, self.seedling)
        return Proposal(grown.program, (), grown.change)

    def tell(self, told: Told) -> None:
        pass


def _without_template(context: Context, name: str) -> None:
    if context.space.template is not None:
        raise SpaceError(
            f"{context.space.name}: algorithm '{name}' changes programs, and this space is a template"
            f" ('{context.space.template.name}'); use optuna or random"
        )


@lru_cache(maxsize=256)
def _parsed(text: str) -> Program:
    return dsl.parse(text)
