"""The contract of proposers as a test class: subclass it in a test module of your own, and pytest runs its laws.

from discover.testing import ProposerContract

class TestMine(ProposerContract):
    algorithm = "my_proposer.py:Mine"        # as for `discover search --algorithm`
    space = {"proposer": {"temperature": 1}} # keys of the search space that it needs, if any
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from numpy.random import default_rng

import dsl
from discover.gate import Duplicate, Gate, Rejected
from discover.plan import Plan
from discover.proposers import Attentive, Context, Proposal, Proposer, Told, load
from discover.space import Space
from dsl.graph import lower_all

SPACE: dict[str, Any] = {
    "name": "contract",
    "operators": ["add", "sub", "mul", "div", "neg", "abs", "sign", "square", "sqrt", "max", "lerp", "norm"],
    "max_statements": 20,
    "evolution": {"population": 16},
    "tasks": {"search": ["quadratic"]},
    "rungs": [{"tasks": ["quadratic"], "steps": 2}],
}


class World:
    """A search without training: it proposes, gates and tells, and gives each behaviour a fitness of its own.

    Candidates whose number leaves 3 over 7 fail; every second generation the best are scored again.
    """

    def __init__(self, algorithm: str, changes: Mapping[str, Any]) -> None:
        self.space = Space.of({**SPACE, **changes}, "contract")
        ancestors = tuple(dsl.format(program) for program in self.space.ancestors())
        self.plan = Plan(self.space, 0, algorithm, {}, False, ancestors)
        self.fitness: dict[int, float] = {-1 - index: 0.0 for index in range(len(ancestors))}
        self.confirmed: dict[int, list[float]] = {}
        self.elites: dict[int, str] = {}
        self.gate = Gate(self.space.require, self.space.probes, weight_decay=self.space.weight_decay)
        self.proposer: Proposer = load(algorithm)(
            Context(self.space, self.plan.ancestors, self.plan.grammar, self.fitness, self.confirmed, self.elites)
        )

    def propose(self, number: int) -> Proposal:
        return self.proposer.propose(self.plan.proposal_rng(number))

    def generation(self, number: int, size: int = 16) -> list[Told]:
        """Proposes a generation and gates it: what passed, not yet told."""
        passed = []
        for id in range(number * size, (number + 1) * size):
            proposal = self.propose(id)
            verdict = self.gate.examine(proposal.program)
            if isinstance(verdict, Rejected):
                continue
            original = verdict.of if isinstance(verdict, Duplicate) else id
            facts = {} if isinstance(verdict, Duplicate) else verdict.properties.plain()
            self.gate.remember(original, verdict.structure, verdict.behaviour)
            passed.append(Told(id, original, verdict.program, proposal.parents, proposal.origin, facts))
        return passed

    def absorb(self, passed: list[Told], number: int) -> None:
        """Gives a generation its fitness, and tells the proposer."""
        for told in passed:
            if told.id == told.original and told.id % 7 != 3:
                self.fitness[told.id] = math.sin(told.id) * 0.1
                self.elites[told.id] = dsl.format(told.program)
            self.proposer.tell(told)
        if number % 2:
            best = sorted(sorted(self.elites, key=lambda each: -self.fitness[each])[:3])
            for candidate in best:
                self.confirmed.setdefault(candidate, []).append(math.cos(candidate) * 0.05)
                self.fitness[candidate] = sum(self.confirmed[candidate]) / len(self.confirmed[candidate])
            if best and isinstance(self.proposer, Attentive):
                self.proposer.confirm(best)


class ProposerContract:
    """The laws that every proposer must keep. `generations` are enough for it to have learned something."""

    algorithm: ClassVar[str]
    space: ClassVar[Mapping[str, Any]] = {}
    generations: ClassVar[int] = 4

    def world(self) -> World:
        return World(self.algorithm, self.space)

    def grown(self) -> tuple[World, list[list[Told]]]:
        """A world some generations old, and what was told in it."""
        world, history = self.world(), []
        for number in range(self.generations):
            history.append(world.generation(number))
            world.absorb(history[-1], number)
        return world, history

    def test_the_same_generator_gives_the_same_proposal(self) -> None:
        world, _ = self.grown()
        for number in range(1000, 1010):
            assert world.propose(number) == world.propose(number)

    def test_chance_comes_from_the_generator_alone(self) -> None:
        """Neither from a generator that all share, Python's, numpy's or torch's, nor from a clock."""
        world, _ = self.grown()
        with _elsewhere(seed=1, later=0.0):
            before = [world.propose(number) for number in range(1000, 1006)]
        with _elsewhere(seed=2, later=1e6):
            after = [world.propose(number) for number in range(1000, 1006)]
        assert after == before
        assert len({dsl.format(each.program) for each in before}) > 1

    def test_proposing_changes_nothing(self) -> None:
        world, _ = self.grown()
        wanted = [world.propose(number) for number in range(1000, 1006)]
        for number in range(2000, 2010):
            world.propose(number)
        assert [world.propose(number) for number in range(1005, 999, -1)] == wanted[::-1]

    def test_telling_again_what_was_told_rebuilds_it(self) -> None:
        """What a resumed search does: it never proposes what the archive holds, and reads programs from text."""
        world, history = self.grown()
        resumed = self.world()
        for number, passed in enumerate(history):
            resumed.absorb([_read_again(told) for told in passed], number)
        assert [resumed.propose(n) for n in range(1000, 1010)] == [world.propose(n) for n in range(1000, 1010)]

    def test_programs_are_well_typed_and_can_be_written_down(self) -> None:
        """That one does not use the gradient, or is not finite, is the gate's to say."""
        world, _ = self.grown()
        for number in range(1000, 1030):
            proposal = world.propose(number)
            lower_all(proposal.program)
            assert dsl.parse(dsl.format(proposal.program)) == proposal.program
            assert "lr" in proposal.program.defaults
            assert "\n" not in proposal.origin

    def test_parents_are_candidates_that_were_told(self) -> None:
        world, history = self.grown()
        told = {each.original for passed in history for each in passed}
        for number in range(1000, 1030):
            assert set(world.propose(number).parents) <= told

    def test_failures_and_duplicates_do_no_harm(self) -> None:
        world, told_of = self.world(), 0
        for number in range(self.generations):
            passed = world.generation(number)
            told_of += len(passed)
            for told in passed:  # all of them fail, then come again as duplicates of a failure
                world.proposer.tell(told)
                world.proposer.tell(Told(told.id + 500, told.id, told.program, told.parents, told.origin))
        assert told_of
        for number in range(1000, 1006):
            lower_all(world.propose(number).program)

    def test_something_passes_the_gate(self) -> None:
        _, history = self.grown()
        assert any(told.id == told.original for passed in history for told in passed)

    def test_a_generator_of_another_seed_gives_other_proposals(self) -> None:
        world, _ = self.grown()
        proposals = {dsl.format(world.proposer.propose(default_rng([9, n])).program) for n in range(12)}
        assert len(proposals) > 1


@contextmanager
def _elsewhere(seed: int, later: float) -> Iterator[None]:
    """Another seed for the generators that all share, and so many seconds later by every clock of `time`. What asks the
    system for the time itself, as `datetime` does, sees no more than that the time goes on."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        with ExitStack() as stack:
            for name in ("time", "monotonic", "perf_counter"):
                ahead = partial(_ahead, getattr(time, name), later)
                stack.enter_context(patch.object(time, name, ahead))
                ahead = partial(_ahead, getattr(time, f"{name}_ns"), int(later * 1e9))
                stack.enter_context(patch.object(time, f"{name}_ns", ahead))
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _ahead(clock: Callable[[], float], later: float) -> float:
    return clock() + later


def _read_again(told: Told) -> Told:
    program = dsl.parse(dsl.format(told.program))
    return Told(told.id, told.original, program, told.parents, told.origin, told.properties)
