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
from discover.templates import RandomChoices
from dsl import Program, properties

MOST_CHANGES = 8
"""How many random changes a program of best-of-n is away from its ancestor, at most."""

UNCHANGED = 1 / 16
"""Of the first proposals: ancestors themselves, whose fitness is not known yet."""

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
    which is in the first generation. What fresh scores confirmed joins anew. What else has been published for it was
    tried, and shows no gain here: `benchmarks.devices`, where `child`, `learn` and `joins` are what is made otherwise.

    Attributes:
        population: the oldest member first.
        joined: how many candidates have, those that did so anew not counted.
    """

    def __init__(self, context: Context) -> None:
        _without_template(context, "evolution")
        self.context, self.settings = context, context.space.evolution
        self.objectives = context.space.objectives
        self.joined = 0
        self._costs: dict[int, tuple[float, ...]] = {}
        first = [
            Member(-1 - index, program, self._costs_of(properties.of(program).plain()) if self.objectives[1:] else ())
            for index, program in enumerate(context.ancestors)
        ]
        adamw = genotype(dsl.load("adamw"))
        self._unmeasured = {each.candidate: each for each in first if each.program.renamed(adamw.name) != adamw}
        """Copies of ancestors whose fitness is not known yet, by their number."""
        size = self.settings.population
        self.population = deque((first[index % len(first)] for index in range(size)), maxlen=size)

    def propose(self, rng: Generator) -> Proposal:
        child, parents = self._ancestor(rng) or self.child(rng)
        known = dict.fromkeys(each.candidate for each in parents if each.candidate >= 0)
        return Proposal(child.program, tuple(known), child.change)

    def _ancestor(self, rng: Generator) -> Bred | None:
        """An ancestor as it is, now and then, until its fitness is known or it has been rejected for long."""
        if not self._unmeasured or self.joined >= self.settings.population or rng.random() >= UNCHANGED:
            return None
        first = pick(rng, list(self._unmeasured.values()))
        return Mutation(first.program, f"ancestor {-first.candidate}, {first.program.name}"), ()

    def child(self, rng: Generator) -> Bred:
        parent = self.tournament(rng)
        return mutate(parent.program, self.context.grammar, rng), (parent,)

    def tournament(self, rng: Generator) -> Member:
        sample = [pick(rng, self.population) for _ in range(self.settings.tournament)]
        if self.objectives[1:]:
            return next(each for each in sample if not any(self._dominates(other, each) for other in sample))
        return max(sample, key=self._fitness)

    def tell(self, told: Told) -> None:
        self.learn(told)
        if told.original in self.context.fitness and self.joins(told):
            self.population.append(Member(told.original, told.program, self._costs.get(told.original, ())))
            self.joined += 1

    def learn(self, told: Told) -> None:
        """What a candidate costs, and, where it is an ancestor, how fit all copies of that are."""
        if self.objectives[1:] and told.properties:
            self._costs[told.id] = self._costs_of(told.properties)
        if (ancestor := _ANCESTOR.match(told.origin)) and (copy := self._unmeasured.pop(-int(ancestor[1]), None)):
            for place, member in enumerate(self.population):
                if member == copy:
                    self.population[place] = replace(member, candidate=told.original)

    def joins(self, told: Told) -> bool:
        """Not what does as another does: a population fills up with spellings of one rule, whose changes do nothing."""
        return told.id == told.original

    def confirm(self, candidates: Sequence[int]) -> None:
        """Those that were scored again join anew, at their new fitness. An elite that waits for its fresh scores has
        mostly left by the time that they are there, and what is known best would have no children."""
        if self.settings.rejoin:
            self.population.extend(map(self.elite, candidates))

    def elite(self, candidate: int) -> Member:
        """One that reached the last rung, as a member."""
        return Member(candidate, _parsed(self.context.elites[candidate]), self._costs.get(candidate, ()))

    def _fitness(self, member: Member) -> float:
        return self.context.fitness.get(member.candidate, -math.inf)  # none: an ancestor that failed

    def _dominates(self, one: Member, other: Member) -> bool:
        """Whether one is nowhere worse and somewhere better."""
        a, b = ((self._fitness(each), *(-cost for cost in each.costs)) for each in (one, other))
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    def _costs_of(self, facts: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(float(facts[name]) for name in self.objectives[1:])


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
