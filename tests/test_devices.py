"""Laws of what has been published for evolution and is not in the engine: arms of `benchmarks.ablation`."""

from __future__ import annotations

import re
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import dsl
from benchmarks import ablation, crossover, devices
from discover.errors import SpaceError
from discover.plan import genotype
from discover.proposers import load
from discover.space import Space
from discover.testing import ProposerContract, World
from dsl.dead import strip_dead
from tests.test_proposers import GENERATIONS, breeding

SMALL = {"evolution": {"population": 16}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "islands": ("devices.py:Islands", SMALL | {"proposer": {"islands": 3, "migrate_every": 8}}),
    "restarts": ("devices.py:Restarts", SMALL | {"proposer": {"restart_after": 10}}),
    "tuned elites": ("devices.py:TunedElites", SMALL | {"proposer": {"share": 0.5}}),
    "neutral drift": ("devices.py:NeutralDrift", SMALL),
    "crossover": ("crossover.py:Crossover", SMALL),
    "dead statements": ("drift.py:Drift", SMALL),
}


def algorithm(name: str) -> str:
    return str(Path(devices.__file__).with_name(name))


@pytest.mark.parametrize("case", CASES)
class TestContract(ProposerContract):
    _worlds: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _chosen(self, case: str) -> None:
        name, self.space = CASES[case]
        self.algorithm, self._case = algorithm(name), case

    def grown(self) -> Any:
        if self._case not in self._worlds:
            self._worlds[self._case] = super().grown()
        return self._worlds[self._case]


def evolved(device: str, generations: int = 6, settings: dict[str, Any] | None = None, **own: Any) -> World:
    world = World(
        algorithm(f"devices.py:{device}"), {"evolution": {"population": 16, **(settings or {})}, "proposer": own}
    )
    for number in range(generations):
        world.absorb(world.generation(number), number)
    return world


def test_each_arm_of_the_ablation_can_be_searched_with() -> None:
    for arm in ablation.parts(Space.load("lion_like")).values():
        assert Space.load("lion_like").changed(arm.changes)
        assert load(arm.algorithm or "evolution")


def members(proposer: Any) -> list[set[int]]:
    return [{each.candidate for each in island.population} for island in proposer.islands]


def test_only_what_fresh_scores_confirmed_migrates() -> None:
    world = evolved("Islands", islands=2, migrate_every=1000)
    proposer: Any = world.proposer
    assert [len(island.population) for island in proposer.islands] == [8, 8]
    before = members(proposer)
    assert set.union(*before) - set(world.confirmed)
    proposer.migrate()
    after = members(proposer)
    came = (after[0] - before[0]) | (after[1] - before[1])
    assert came
    assert came <= set(world.confirmed)
    home = proposer.homes
    for n in (0, 1):
        mine = sorted((each for each in world.confirmed if home[each] == 1 - n), key=lambda each: -world.fitness[each])
        assert set(mine[:2]) <= after[n] <= before[n] | set(mine[:2])


def test_children_join_the_island_of_their_parents() -> None:
    world = evolved("Islands", 4, islands=4, migrate_every=1000)
    proposer: Any = world.proposer
    home, joined = proposer.homes, 0
    for number in range(4, 8):
        passed = world.generation(number)
        assert {told.origin[-10:] for told in passed} <= {f"[island {n}]" for n in range(4)}
        for told in passed:
            assert {home[parent] for parent in told.parents} <= {int(told.origin[-2])}
        world.absorb(passed, number)
        for told in passed:
            if told.id == told.original and told.id in world.fitness:
                assert home[told.id] == int(told.origin[-2])
                joined += bool(told.parents)
    assert joined > 5
    assert {len(island.population) for island in proposer.islands} == {4}


def test_copies_of_an_ancestor_are_measured_on_every_island_and_it_joins_its_own() -> None:
    world = World(algorithm("devices.py:Islands"), SMALL | {"ancestor": ["adamw", "signum"]})
    proposer: Any = world.proposer
    assert set.union(*members(proposer)) == {-1, -2}
    trained = [told for told in world.generation(0, 64) if told.origin.startswith("ancestor")]
    (same,) = {told.original for told in trained}
    world.fitness[same] = -0.7
    proposer.tell(trained[0])
    assert all(-2 not in island and same in island for island in members(proposer))
    newest = [island.population[-1].candidate for island in proposer.islands]
    joined = [island.joined for island in proposer.islands]
    assert trained[0].id == same  # else it repeats an earlier child, and does not join
    assert joined == [int(n == int(trained[0].origin[-2])) for n in range(4)]
    assert newest[int(trained[0].origin[-2])] == same


def test_most_of_those_that_may_migrate_do() -> None:
    came = list[int]()

    def counted(proposer: Any) -> None:
        before = [deque(island.population) for island in proposer.islands]
        for island in proposer.islands:
            island.population.clear()
        type(proposer).migrate(proposer)
        came.append(sum(len(island.population) for island in proposer.islands))
        for island, old in zip(proposer.islands, before, strict=True):
            new = list(island.population)
            island.population.clear()
            island.population.extend([*old, *new])

    own = {"islands": 4, "migrate_every": 32, "migrants": 2}
    generations = 0
    for proposer, _ in breeding(algorithm=algorithm("devices.py:Islands"), own=own):
        proposer.migrate = partial(counted, proposer)
        generations += 1
    assert generations == GENERATIONS
    assert len(came) > 10
    assert sum(came) > len(came) * 4 * 2 / 2


MISTAKES = {
    "a key of none": ("Islands", {"migrant": 3}, "unknown key 'migrant'; there are islands, migrate_every, migrants"),
    "no island": ("Islands", {"islands": 0}, "proposer.islands: 0; expected 1 to 16, the population"),
    "more islands than members": ("Islands", {"islands": 17}, "17; expected 1 to 16"),
    "another's key": ("Restarts", {"share": 0.1}, "unknown key 'share'; there are restart_after"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_devices_settings_is_one_line(case: str) -> None:
    device, own, message = MISTAKES[case]
    with pytest.raises(SpaceError, match=re.escape(message)) as error:
        evolved(device, 0, **own)
    assert "\n" not in str(error.value)


def test_a_plateau_fills_the_population_with_the_best() -> None:
    world = evolved("Restarts", 2, restart_after=5)
    proposer: Any = world.proposer
    leader = max((c for c in world.confirmed), key=lambda each: world.fitness[each])
    passed = world.generation(2)
    world.confirmed.update({leader: [1.0]})
    world.fitness[leader] = 1.0
    told = next(each for each in passed if each.id == each.original)
    world.fitness[told.id] = 0.0
    proposer.tell(told)  # notes the record
    seen = []
    for number in range(6):
        proposer.tell(told)
        seen.append({each.candidate for each in proposer.population} == {leader})
        if seen[-1]:
            break
        assert number < 5
    assert seen[-1]


def test_elites_are_tuned_by_small_changes_of_constants() -> None:
    world = evolved("TunedElites", share=1.0)
    for number in range(1000, 1020):
        proposal = world.propose(number)
        assert proposal.origin.startswith(("constant", "unchanged"))
        assert set(proposal.parents) <= set(world.confirmed)


def test_with_drift_duplicates_join() -> None:
    proposer: Any = evolved("NeutralDrift", settings={"rejoin": False}).proposer
    members = [each.candidate for each in proposer.population if each.candidate >= 0]
    assert len(set(members)) < len(members)


def test_crossover_takes_statements_of_both() -> None:
    world = World("evolution", {})
    one, two = genotype(dsl.load("adamw")), genotype(dsl.load("lion"))
    children = [crossover.cross(one, two, world.plan.grammar, np.random.default_rng(n)) for n in range(40)]
    grown = [each for each in children if each is not None]
    assert len(grown) > 20
    assert any("sign(" in dsl.format(each.program) for each in grown)
    for each in grown:
        assert strip_dead(each.program) == each.program
        dsl.check(each.program)


def test_dead_statements_stay_where_a_proposer_keeps_them() -> None:
    """Its programs are the engine's with dead statements beside them, and they are passed on to children."""
    world = World(algorithm("drift.py:Drift"), SMALL)
    for number in range(12):
        world.absorb(world.generation(number), number)
    proposer: Any = world.proposer
    whole = [member.program for member in proposer.population if member.candidate >= 0]
    assert sum(len(strip_dead(program).body) < len(program.body) for program in whole) > len(whole) / 4
    assert all(len(program.body) <= proposer.context.grammar.max_statements for program in whole)
