"""Proposers: what a search asks for programs, and tells what became of them.

A proposer sees nothing but its own random generator for each proposal and the candidates it was told of, in order of
proposal; so the same seed proposes the same programs, however many workers train them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from numpy.random import Generator

from discover.mutate import Grammar, mutate, random_program
from dsl import Program


@dataclass(frozen=True, slots=True)
class Proposal:
    """A program to try, what it was made from, and how, in words."""

    program: Program
    parents: tuple[int, ...]
    origin: str


@dataclass(slots=True)
class Member:
    """A candidate that can be a parent. Its fitness may change while it is one: elites are scored again."""

    candidate: int
    program: Program


class Proposer(Protocol):
    """Ask and tell over programs."""

    def propose(self, rng: Generator) -> Proposal: ...

    def tell(self, candidate: int, program: Program) -> None:
        """A candidate that was trained, or is a duplicate of one; its fitness is in the mapping given at the start."""


class Evolution:
    """Aging evolution (Real et al. 2019, arXiv:1802.01548), as in the search for Lion (arXiv:2302.06675).

    The best of a random sample of the population is the parent of a new member; the oldest member leaves. The
    population starts as copies of the ancestors.

    Args:
        ancestors: flat programs.
        fitness: candidate -> fitness, higher is better, kept by the search; ancestors are ids -1, -2, ...
        grammar: how programs may change.
        population_size, tournament_size: of aging evolution.
    """

    def __init__(
        self,
        ancestors: tuple[Program, ...],
        fitness: Mapping[int, float],
        grammar: Grammar,
        population_size: int,
        tournament_size: int,
    ) -> None:
        self.fitness, self.grammar, self.tournament_size = fitness, grammar, tournament_size
        first = [
            Member(-1 - index % len(ancestors), ancestors[index % len(ancestors)]) for index in range(population_size)
        ]
        self.population: deque[Member] = deque(first, maxlen=population_size)

    def propose(self, rng: Generator) -> Proposal:
        parent = self.tournament(rng)
        child = mutate(parent.program, self.grammar, rng)
        return Proposal(child.program, (parent.candidate,) if parent.candidate >= 0 else (), child.change)

    def tournament(self, rng: Generator) -> Member:
        sample = [self.population[index] for index in rng.integers(len(self.population), size=self.tournament_size)]
        return max(sample, key=lambda member: self.fitness[member.candidate])

    def tell(self, candidate: int, program: Program) -> None:
        self.population.append(Member(candidate, program))


class RandomSearch:
    """Programs grown at random, each from the same seedling; what was found so far has no influence."""

    def __init__(self, seedling: Program, grammar: Grammar) -> None:
        self.seedling, self.grammar = seedling, grammar

    def propose(self, rng: Generator) -> Proposal:
        grown = random_program(self.grammar, rng, self.seedling)
        return Proposal(grown.program, (), grown.change)

    def tell(self, candidate: int, program: Program) -> None:
        pass
