"""Laws of workers: a unit that hangs, bursts or kills its worker costs itself alone, nobody waits for a slow one, and a
bug is not taken for an accident."""

from __future__ import annotations

import re
import signal
import sqlite3
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dsl
import tasks
from benchmarks.virtual_ray import Reference, Sleeping, VirtualRay
from discover import cluster, connection, costs, runs, session
from discover.actor import Actor, bounded_memory
from discover.archive import Archive
from discover.cluster import ATTEMPTS, RayWorkers
from discover.environment import read_environment
from discover.errors import ClusterError, SpaceError, UserError
from discover.evaluate import Entry, Grid, Instance, Unit, UnitResult, evaluate
from discover.pools import AHEAD, Pool
from discover.records import Incident
from discover.space import Space
from discover.workers import Crew, Done, InProcess

TASK = """
import os, time
import torch
from tasks import Parameter, Task

class Quiet(Task):
    name, title, source = "quiet", "a quadratic", "a test"
    parameters = (Parameter.normal("w", (4,), "vector", 1.0),)
    batch_size, horizon, warmup, learning_rate = 2, 4, 1, 0.1

    def __init__(self):
        x = torch.ones(8, 4)
        super().__init__((x,), (x,))

    def loss(self, parameters, batch):
        return (parameters["w"].unsqueeze(1) * batch[0]).square().mean((1, 2))

class Hangs(Quiet):
    name = "hangs"

    def loss(self, parameters, batch):
        if len(parameters["w"]) > 2:  # beyond the trial that every task is put to when it is loaded
            time.sleep(3600)
        return super().loss(parameters, batch)

class Dies(Quiet):
    name = "dies"

    def loss(self, parameters, batch):
        if len(parameters["w"]) > 2:
            os._exit(1)
        return super().loss(parameters, batch)

class Hoards(Quiet):
    name = "hoards"

    def loss(self, parameters, batch):
        hoard = []
        while len(parameters["w"]) > 2:
            hoard.append(torch.ones(1 << 20))
        return super().loss(parameters, batch)

class Wrong(Quiet):
    name = "wrong"

    def loss(self, parameters, batch):
        if len(parameters["w"]) > 2:
            raise LookupError("a bug in the loss")
        return super().loss(parameters, batch)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(textwrap.dedent(TASK))
    return path


@pytest.fixture(scope="module")
def crew() -> Iterator[RayWorkers]:
    crew = RayWorkers(Crew(1, memory=400 * 10**6))
    yield crew
    crew.close()


def unit(own: Path, name: str) -> Unit:
    entry = Entry(1, dsl.format(dsl.load("adamw")), 1.0, 0.0)
    return Unit(
        instance=Instance(f"{own}:{name}", seed=0, steps=4),
        entries=(entry,),
        grid=Grid(3, 3.0),
        reference_scale=1.0,
        weight_decay=0.0,
        compiled=False,
        native=False,
    )


def next_done(crew: RayWorkers) -> Done:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (done := crew.next()) is not None:
            return done
    raise AssertionError("nothing was done in two minutes")


@pytest.mark.slow
def test_a_unit_that_hangs_is_killed_and_the_one_that_waited_behind_it_is_done(
    crew: RayWorkers, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew.submit("warm", unit(own, "Quiet"))
    assert next_done(crew).result is not None
    monkeypatch.setattr(crew, "time_limit", 3.0)
    crew.submit("hangs", unit(own, "Hangs"))
    crew.submit("waits", unit(own, "Quiet"))
    (worker,) = next(iter(crew._pools.values())).workers
    assert len(worker.jobs) == 2  # both are the actor's by now
    first, second = next_done(crew), next_done(crew)
    assert first == Done("hangs", None, "timed out")
    assert second.key == "waits"
    assert second.result is not None
    assert second.result.outcomes == evaluate(unit(own, "Quiet")).outcomes


@pytest.mark.slow
def test_a_unit_that_kills_its_workers_is_given_up_after_some_and_takes_no_other_with_it(
    crew: RayWorkers, own: Path
) -> None:
    crew.notes.clear()
    crew.incidents.clear()
    crew.submit("dies", unit(own, "Dies"))
    crew.submit("waits", unit(own, "Quiet"))
    done = {each.key: each for each in (next_done(crew), next_done(crew))}
    assert done["dies"] == Done("dies", None, "worker lost")
    assert done["waits"].result is not None
    assert len(crew.notes) == ATTEMPTS
    assert all(note.startswith("a worker was lost (ActorDiedError: ") for note in crew.notes)
    kinds = [each.kind for each in crew.incidents]
    assert kinds == ["worker lost", "unit retried", "worker lost", "unit retried", "worker lost", "unit given up"]


@pytest.mark.slow
def test_a_unit_that_takes_more_memory_than_it_may_is_given_up_at_once_and_its_worker_lives(
    crew: RayWorkers, own: Path
) -> None:
    crew.incidents.clear()
    crew.submit("hoards", unit(own, "Hoards"))
    crew.submit("waits", unit(own, "Quiet"))
    done = {each.key: each for each in (next_done(crew), next_done(crew))}
    assert done["hoards"] == Done("hoards", None, "out of memory")
    assert done["waits"].result is not None
    assert crew.notes.pop() == "a unit took more than the 0.4 GB of unit.memory; its programs are trained one by one"
    (incident,) = crew.incidents
    assert incident.kind == "out of memory"
    assert "candidates 1 on" in incident.text


@pytest.mark.slow
def test_an_exception_costs_the_programs_of_its_unit_and_is_raised_where_adamw_alone_meets_it(
    crew: RayWorkers, own: Path
) -> None:
    crew.incidents.clear()
    wrong = unit(own, "Wrong")
    crew.submit("wrong", wrong)
    reason = "fault in own.py, line 48: LookupError: a bug in the loss"
    assert next_done(crew) == Done("wrong", None, reason)
    (incident,) = crew.incidents
    assert incident.kind == "fault"
    assert incident.text.endswith(f"candidates 1 on {own}:Wrong, seed 0: {reason}")
    crew.submit("reference", replace(wrong, entries=(replace(wrong.entries[0], candidate=None),)))
    with pytest.raises(LookupError, match="a bug in the loss"):
        next_done(crew)


class _Ray(VirtualRay):
    """Units are done when told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Unit, Reference]] = []

    def ask(self, unit: Unit, reference: Reference) -> None:
        self.asked.append((unit, reference))

    def cancel(self, reference: Reference) -> None:
        if not reference.promise.done():
            reference.promise.set_exception(self.exceptions.TaskCancelledError())

    def finish(self, actor: int, error: Exception | None = None) -> None:
        """Ends the first unit that an actor has."""
        unit, reference = self._of(actor)[0]
        if error:
            reference.promise.set_exception(error)
        else:
            reference.promise.set_result(UnitResult((), 0.0, (unit.instance.task,)))

    def has(self, actor: int) -> list[str]:
        """The tasks of the units that an actor has."""
        return [unit.instance.task for unit, _ in self._of(actor)]

    def _of(self, actor: int) -> list[tuple[Unit, Reference]]:
        return [(unit, each) for unit, each in self.asked if each.actor == actor and not each.promise.done()]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> _Ray:
    ray = _Ray()
    monkeypatch.setattr("discover.cluster.connect", lambda crew: ray)
    return ray


def named(name: str) -> Unit:
    return Unit(Instance(name, seed=0, steps=4), (), Grid(3, 3.0), 1.0, 0.0, compiled=False, native=False)


def settle(crew: RayWorkers) -> list[Done]:
    """All that has come in, taken in."""
    done = []
    while not crew._inbox.empty() or crew._done:
        done += [each for each in (crew.next(wait=False),) if each]
    return done


def errors() -> list[Any]:
    from ray import exceptions

    return [
        exceptions.OutOfMemoryError("the node ran low on memory\nand more lines"),
        exceptions.NodeDiedError("the node died"),
        exceptions.ObjectLostError("00" * 28, None, ""),
        exceptions.ActorUnschedulableError("the actor cannot be placed"),
        exceptions.WorkerCrashedError(),
        exceptions.ActorDiedError(),
    ]


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_whatever_ray_says_of_an_actor_that_is_gone_its_units_are_done_by_another(error: Exception, ray: _Ray) -> None:
    crew = RayWorkers(Crew(1))
    crew.submit(1, named("one"))
    crew.submit(2, named("two"))
    assert settle(crew) == []
    assert ray.has(1) == ["one", "two"]
    ray.finish(1, error)
    ray.finish(1, error)
    assert settle(crew) == []
    assert ray.killed == [1]  # it may be alive, with a unit that is now another's
    assert ray.has(2) == ["one", "two"]
    ray.finish(2)
    ray.finish(2)
    assert [each.key for each in settle(crew) if each.result] == [1, 2]
    (note,) = crew.notes
    assert note.startswith(f"a worker was lost ({type(error).__name__}: ")
    assert "\n" not in note
    assert [each.kind for each in crew.incidents] == ["worker lost", "unit retried"]


@pytest.fixture
def on_nodes(ray: _Ray, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RayWorkers]:
    """A crew on a cluster: of each actor in turn, on which node it is."""

    def made(places: str) -> RayWorkers:
        nodes = [
            {"NodeID": name, "NodeManagerAddress": name, "Resources": {"CPU": 1.0}, "Alive": True}
            for name in sorted(set(places))
        ]
        monkeypatch.setattr("discover.cluster.RayWorkers._watch", lambda *_: None)
        monkeypatch.setattr("discover.cluster.Head", lambda ray: None)
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        ray.place = lambda actor: places[min(actor, len(places)) - 1]
        crew = RayWorkers(Crew(min(2, len(places)), address="here:1"))
        settle(crew)
        return crew

    return made


def full_disk(ray: _Ray) -> Exception:
    error = ray.exceptions.RayTaskError("evaluate", "OSError: No space left", OSError(28, "No space left"))
    return cast(Exception, error.as_instanceof_cause())


def test_a_node_that_cannot_train_is_given_nothing_more_and_others_do_its_units(
    ray: _Ray, on_nodes: Callable[[str], RayWorkers]
) -> None:
    """Its disk is full, say. Actors that come after the first there get nothing, and no unit is charged with it."""
    crew = on_nodes("aba")
    for name in "stuv":
        crew.submit(name, named(name))
    assert (ray.has(1), ray.has(2)) == (["s", "u"], ["t", "v"])
    ray.finish(1, full_disk(ray))
    assert settle(crew) == []
    assert ray.killed == [1]
    assert len(ray.actors) == 3
    done = []
    for _ in "stuv":
        assert ray.has(3) == []
        assert all(job.attempts == 0 for worker in pool_of(crew).workers for _, job in worker.jobs)
        ray.finish(2)
        done += settle(crew)
    assert sorted(str(each.key) for each in done if each.result) == list("stuv")
    assert [each.kind for each in crew.incidents] == ["node failed", "unit retried"]
    assert "No space left" in crew.incidents[0].text
    assert crew.notes[0].startswith("process 1 on a (a): OSError: ")


@pytest.mark.parametrize("places", ["aab", "a"], ids=["the other node has no worker", "there is no other node"])
def test_where_no_worker_is_left_elsewhere_a_node_that_fails_ends_the_search(
    places: str, ray: _Ray, on_nodes: Callable[[str], RayWorkers]
) -> None:
    crew = on_nodes(places)
    crew.submit("s", named("s"))
    ray.finish(1, full_disk(ray))
    with pytest.raises(OSError, match="No space left"):
        settle(crew)


def test_when_the_last_good_node_leaves_nobody_waits_for_one_that_failed(
    ray: _Ray, on_nodes: Callable[[str], RayWorkers]
) -> None:
    crew = on_nodes("abaa")
    for name in "st":
        crew.submit(name, named(name))
    ray.finish(1, full_disk(ray))
    assert settle(crew) == []
    crew._on_nodes({"a": ("a", {"CPU": 1.0})})
    settle(crew)
    crew._looked = 0.0  # long ago
    with pytest.raises(OSError, match="No space left"):
        crew.next(wait=False)


def pool_of(crew: RayWorkers) -> Pool:
    (pool,) = crew._pools.values()
    return pool


def test_units_of_an_earlier_generation_go_first(ray: _Ray) -> None:
    crew = RayWorkers(Crew(1))
    for name, order in (("late", 1), ("later", 2), ("early", 0)):
        crew.submit(name, named(name), order)
    settle(crew)
    assert ray.has(1) == ["early", "late"]


def test_who_has_nothing_to_do_takes_what_waits_elsewhere(ray: _Ray) -> None:
    crew = RayWorkers(Crew(2))
    settle(crew)
    for name in "abcd":
        crew.submit(name, named(name))
    assert (ray.has(1), ray.has(2)) == (["a", "c"], ["b", "d"])
    ray.finish(1)
    ray.finish(1)
    assert [each.key for each in settle(crew)] == ["a", "c"]
    assert (ray.has(1), ray.has(2)) == (["d"], ["b"])  # the second is slow, and is left with the one that it is at
    ray.finish(1)
    ray.finish(2)
    assert [each.key for each in settle(crew)] == ["d", "b"]
    assert all(not worker.jobs for pool in crew._pools.values() for worker in pool.workers)


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=60))
def test_who_is_wanted_next_is_known_without_looking_at_all(events: list[tuple[int, bool]]) -> None:
    ray = _Ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("discover.cluster.connect", lambda crew: ray)
        crew = RayWorkers(Crew(4))
    settle(crew)
    for number, (actor, fails) in enumerate(events):
        crew.submit(number, named(str(number)))
        if actor not in ray.killed and ray.has(actor):
            ray.finish(actor, ray.exceptions.ActorDiedError() if fails else None)
        settle(crew)
        (pool,) = crew._pools.values()
        assert set(pool.busy) == {each for each in pool.workers if each.jobs}
        assert [each.since for each in pool.busy] == sorted(each.since for each in pool.busy)
        assert [set(load) for load in pool.loads] == [
            {each for each in pool.workers if each.ready and len(each.jobs) == count} for count in range(AHEAD + 1)
        ]
        assert pool.beyond(-1.0) == list(pool.busy)
        assert pool.beyond(60.0) == []


def test_a_unit_that_two_workers_have_is_done_once(ray: _Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cancel", lambda reference: None)  # too late: it was in work by then
    crew = RayWorkers(Crew(2))
    settle(crew)
    for name in "abcd":
        crew.submit(name, named(name))
    ray.finish(1)
    ray.finish(1)
    settle(crew)
    assert (ray.has(1), ray.has(2)) == (["d"], ["b", "d"])
    ray.finish(2)
    ray.finish(2)
    assert [each.key for each in settle(crew)] == ["b", "d"]
    ray.finish(1)
    assert settle(crew) == []


def test_a_unit_on_a_machine_that_is_far_too_slow_is_given_to_another_too(
    ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = RayWorkers(Crew(2))
    settle(crew)
    crew.submit("a", named("a"))
    crew.submit("b", named("b"))
    ray.finish(1)
    settle(crew)
    assert ray.has(1) == []
    now = time.monotonic()
    monkeypatch.setattr("discover.cluster.time.monotonic", lambda: now + 60.0)
    crew.next(wait=False)
    assert (ray.has(1), ray.has(2)) == (["b"], ["b"])
    ray.finish(1)
    assert [each.key for each in settle(crew)] == ["b"]


def test_a_unit_is_given_up_when_it_has_cost_three_workers_and_not_before(ray: _Ray) -> None:
    crew = RayWorkers(Crew(1))
    crew.submit("a", named("a"))
    for actor in range(1, ATTEMPTS + 1):
        assert settle(crew) == []
        ray.finish(actor, ray.exceptions.OutOfMemoryError("the node ran low on memory"))
    assert settle(crew) == [Done("a", None, "out of memory")]
    assert crew.incidents[-1].kind == "unit given up"


def test_a_node_that_dies_costs_a_unit_one_attempt_however_many_workers_it_had(
    ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "Head", lambda ray: None)
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 3600.0)  # looked at below, and at no other time
    ray.place = lambda number: "lasts" if number == 1 or number > 6 else "dies"
    crew = RayWorkers(Crew(6, "there"))
    settle(crew)
    crew._on_nodes({node: (node, {"CPU": 6.0}) for node in ("dies", "lasts")})
    for name in "abcdef":
        crew.submit(name, named(name))
    for actor in (3, 4, 5):
        ray.finish(actor)
    settle(crew)
    ray.finish(2, ray.exceptions.ActorDiedError())  # the first word of it
    settle(crew)
    assert [ray.has(actor) for actor in range(1, 8)] == [["a"], [], [], [], [], ["f"], ["b"]]
    crew.submit("h", named("h"))
    assert [ray.has(actor) for actor in (3, 4, 5)] == [[], [], []]  # idle, and dead
    ray.finish(6, ray.exceptions.ActorDiedError())
    crew._on_nodes({"lasts": ("lasts", {"CPU": 6.0})})
    assert len(ray.actors) == 6 + 5
    done = settle(crew)
    while busy := [actor for actor in range(1, len(ray.actors) + 1) if actor not in ray.killed and ray.has(actor)]:
        ray.finish(busy[0])
        done += settle(crew)
    assert sorted(each.key for each in done if each.result) == ["a", "b", "f", "h"]
    assert [each.kind for each in crew.incidents].count("unit retried") == 2


def test_a_node_whose_end_is_first_heard_of_from_the_cluster_costs_a_unit_one_attempt_too(
    ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "Head", lambda ray: None)
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 3600.0)
    ray.place = lambda number: "dies" if number <= 4 else "lasts"
    crew = RayWorkers(Crew(4, "there"))
    settle(crew)
    crew._on_nodes({node: (node, {"CPU": 4.0}) for node in ("dies", "lasts")})
    crew.submit("a", named("a"))
    crew._on_nodes({"lasts": ("lasts", {"CPU": 4.0})})
    done = settle(crew)
    (busy,) = [actor for actor in range(5, len(ray.actors) + 1) if ray.has(actor)]
    ray.finish(busy)
    assert [(each.key, bool(each.result)) for each in done + settle(crew)] == [("a", True)]
    assert [each.kind for each in crew.incidents].count("unit retried") == 1


@pytest.fixture
def doubted(ray: _Ray, monkeypatch: pytest.MonkeyPatch) -> RayWorkers:
    """Three workers on one node, each with a unit in work and one behind it; then the first is lost, and another, on
    another node, has what it had. The third has ended the unit that was in work then."""
    monkeypatch.setattr(cluster, "Head", lambda ray: None)
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 3600.0)
    ray.place = lambda number: "0" if number < 4 else "1"
    crew = RayWorkers(Crew(3, "there"))
    settle(crew)
    for name in "abcdef":
        crew.submit(name, named(name))
    ray.finish(1, ray.exceptions.ActorDiedError())
    settle(crew)
    ray.finish(3)  # that may have been on its way when the node went
    settle(crew)
    crew.submit("g", named("g"))
    assert [ray.has(actor) for actor in (2, 3, 4)] == [["b", "e"], ["f"], ["a", "d"]]
    return crew


def test_a_doubted_node_is_given_units_again_when_a_worker_there_has_done_what_it_began_since(
    doubted: RayWorkers, ray: _Ray
) -> None:
    ray.finish(3)
    settle(doubted)
    assert ray.has(3) == ["g"]


def test_a_doubted_node_is_given_units_again_after_a_while(
    doubted: RayWorkers, ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("discover.cluster.time.monotonic", lambda: now + cluster.DOUBT_SECONDS + 1.0)
    doubted.next(wait=False)
    assert ray.has(3) == ["f", "g"]


def test_a_node_that_lost_a_worker_and_has_a_new_one_gets_units_again(
    ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "Head", lambda ray: None)
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 3600.0)
    ray.place = lambda number: "0"
    crew = RayWorkers(Crew(2, "there"))
    settle(crew)
    crew.submit("a", named("a"))
    ray.finish(1, ray.exceptions.ActorDiedError())
    settle(crew)
    ray.finish(2 if ray.has(2) else 3)
    assert [each.key for each in settle(crew)] == ["a"]


@pytest.mark.parametrize("count", [None, 3])
def test_a_kind_of_worker_whose_last_node_goes_is_said_once(
    count: int | None, ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "Head", lambda ray: None)
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 3600.0)
    ray.place = lambda number: "big"
    crew = RayWorkers(Crew(count, "there", requests=((("GPU", 1.0),),)))
    crew.notes.clear()  # the node that is there at first has no GPU
    cpus, gpu = ("small", {"CPU": 4.0}), ("big", {"CPU": 4.0, "GPU": 1.0})
    crew._on_nodes({"small": cpus, "big": gpu})
    settle(crew)
    assert not crew.notes
    made = len(ray.actors)
    crew._on_nodes({"small": cpus})
    assert list(crew.notes) == ["no node has room for a worker with GPU 1; its units wait until one has"]
    assert [each.kind for each in crew.incidents].count("no room") == 2
    if count is None:
        assert len(ray.actors) == made  # nobody is asked for where there is no place
    crew._on_nodes({"small": cpus, "other": cpus})
    assert len(crew.notes) == 1
    crew._on_nodes({"small": cpus, "big": gpu})
    crew.submit("a", replace(named("a"), request=(("GPU", 1.0),)))
    settle(crew)
    assert [actor for actor in range(made + 1, len(ray.actors) + 1) if ray.has(actor)]


def test_where_workers_do_not_start_another_is_asked_for_ever_more_seldom(
    ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("discover.cluster.time.monotonic", lambda: now)
    ray.broken = lambda actor: actor > 1
    crew = RayWorkers(Crew(2))
    settle(crew)
    began, tried = now, []
    while now < began + 600.0:
        now += cluster.LOOK_SECONDS
        before = len(ray.actors)
        settle(crew)
        crew.next(wait=False)
        if len(ray.actors) > before:
            tried.append(now - began)
    pauses = [b - a for a, b in pairwise(tried)]
    assert len(tried) < 20  # and not 2,400
    assert pauses[0] <= 2.0
    assert max(pauses) == pytest.approx(cluster.REST_SECONDS, abs=1.0)
    (note,) = crew.notes
    assert note.startswith("a worker does not start (")
    assert [each.kind for each in crew.incidents] == ["worker lost"] * (len(tried) + 1)


def test_time_counts_from_when_workers_are_ready(ray: _Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = RayWorkers(Crew(2))
    now = time.monotonic()
    monkeypatch.setattr("discover.cluster.time.monotonic", lambda: now)
    settle(crew)
    crew.present()
    now += 3.0
    assert crew.present() == pytest.approx(6.0)
    assert crew.present() == 0.0


def test_actors_that_sleep_do_all_units_each_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Sleeping(20, lambda unit: UnitResult((), 0.02 * (unit.instance.seed + 1), (unit.instance.task,)))
    monkeypatch.setattr("discover.cluster.connect", lambda crew: ray)
    crew = RayWorkers(Crew(20))
    for number in range(200):
        crew.submit(number, replace(named(str(number)), instance=Instance(str(number), number % 5, 4)))
    done: list[Done] = []
    deadline = time.monotonic() + 60
    while len(done) < 200 and time.monotonic() < deadline:
        done += [each for each in (crew.next(),) if each]
    assert sorted(each.key for each in done) == list(range(200))
    assert all(each.result.notes == (str(each.key),) for each in done)
    assert 200 <= ray.units <= 220  # some were in work when another took them
    assert not crew.incidents
    crew.close()


# What a worker is -----------------------------------------------------------------------------------------------------


def test_memory_is_bounded_while_a_unit_is_trained_and_no_longer() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"), bounded_memory(50 * 10**6):
        torch.ones(10**8)
    with bounded_memory(800 * 10**6):
        assert torch.ones(10**8).sum() == 10**8
    assert torch.ones(10**8).sum() == 10**8


def test_a_task_file_that_is_not_there_is_what_the_driver_read(own: Path, tmp_path: Path) -> None:
    stale, same = tmp_path / "stale.py", tmp_path / "same.py"
    stale.write_text("raise SystemExit('an older copy')\n")
    same.write_bytes(own.read_bytes())
    absent = tmp_path / "absent" / "own.py"
    actor = Actor({str(path): own.read_bytes() for path in (stale, same, absent)}, 10**9)
    assert actor.here[str(same)] == same
    expected = evaluate(unit(own, "Quiet")).outcomes
    for path in (stale, same, absent):
        result = actor.evaluate(unit(path, "Quiet"))
        assert isinstance(result, UnitResult)
        assert result.outcomes == expected


ENVIRONMENTS = {
    "unknown key": ("pyp: [torch]\n", "unknown key 'pyp'; there are working_dir"),
    "no mapping": ("- torch\n", "expected 'key: value' lines"),
    "no such folder": ("working_dir: nowhere\n", "'nowhere' is not there; paths are relative to the file"),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_an_environment_that_cannot_be_is_one_line(case: str, tmp_path: Path) -> None:
    text, message = ENVIRONMENTS[case]
    (tmp_path / "environment.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_environment(tmp_path / "environment.yaml")


def test_folders_of_an_environment_are_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "environment.yaml").write_text("working_dir: code\npy_modules: [s3://bucket/more.zip]\npip: [torch]\n")
    assert read_environment(tmp_path / "environment.yaml") == {
        "working_dir": str(tmp_path / "code"),
        "py_modules": ["s3://bucket/more.zip"],
        "pip": ["torch"],
    }


RESOURCES = {
    "nothing": ("{}", {"CPU": 1.0}),
    "a GPU": ("{GPU: 0.5}", {"CPU": 1.0, "GPU": 0.5}),
    "no core": ("{CPU: 0, mine: 2}", {"CPU": 0.0, "mine": 2.0}),
    "asked for and given up": ("{CPU: 2, GPU: 0}", {"CPU": 2.0}),
}
NO_RESOURCES = {
    "less than nothing": ("{GPU: -1}", "rungs[0].resources.GPU: expected at least 0, not -1"),
    "no number": ("{GPU: one}", "rungs[0].resources.GPU: expected a number, not 'one'"),
    "parts of more than one": ("{GPU: 1.5}", "rungs[0].resources: GPU: 1.5: Ray takes parts of one, or whole numbers"),
}


def space(tmp_path: Path, resources: str) -> Space:
    rung = f"{{tasks: [quadratic], resources: {resources}}}"
    (tmp_path / "s.yaml").write_text(f"operators: [add]\ntasks: {{search: [quadratic]}}\nrungs: [{rung}]\n")
    return Space.load(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize("case", RESOURCES)
def test_a_rung_asks_for_resources_in_one_way(case: str, tmp_path: Path) -> None:
    text, request = RESOURCES[case]
    assert space(tmp_path, text).rungs[0].request == tuple(sorted(request.items()))


@pytest.mark.parametrize("case", NO_RESOURCES)
def test_resources_that_cannot_be_are_one_line(case: str, tmp_path: Path) -> None:
    text, message = NO_RESOURCES[case]
    with pytest.raises(SpaceError, match=re.escape(message)):
        space(tmp_path, text)


def test_what_befell_workers_is_kept_however_the_search_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: InProcess, wait: bool = True) -> Done | None:
        if wait:
            self.incidents.append(Incident("cluster lost", "nowhere"))
            raise ClusterError("it is gone")
        return None

    monkeypatch.setattr(InProcess, "next", lost)
    space(tmp_path, "{}")
    asked = session.configure(str(tmp_path / "s.yaml"), workers=0, compile="never")
    with runs.create(asked, out=tmp_path / "out") as run, pytest.raises(ClusterError):
        list(session.search(run))
    with Archive.read(tmp_path / "out" / "archive.sqlite") as archive:
        (incident,) = archive.incidents()
        assert (incident.kind, incident.text, incident.generation) == ("cluster lost", "nowhere", None)
        assert incident.at


def test_an_archive_of_an_earlier_version_has_no_incidents_until_it_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    Archive.create(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("drop table incidents")
    with Archive.read(path) as archive:
        assert archive.incidents() == ()
        digest = archive.digest()
    with Archive.open(path) as archive:
        archive.log([Incident("node added", "there", 3)])
        assert [each.text for each in archive.incidents()] == ["there"]
        assert archive.digest() == digest


# How units are cut ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(), max_size=200), st.integers(1, 40))
def test_blocks_are_all_items_in_order_in_as_few_and_as_equal_parts_as_can_be(items: list[int], size: int) -> None:
    blocks = costs.blocks(items, size)
    assert [item for block in blocks for item in block] == items
    assert len(blocks) == -(-len(items) // size)
    lengths = [len(block) for block in blocks]
    assert max(lengths, default=0) <= size
    assert max(lengths, default=0) - min(lengths, default=0) <= 1


def test_a_unit_is_about_a_second_of_work_or_one_program_or_as_many_as_may_be() -> None:
    cheap, dear = tasks.load("breast_cancer"), tasks.load("bytes_mlp")
    size = costs.unit_size(dear, 400, 5, 1.0, 128)
    assert 1 < size < 128
    assert size * 5 * costs.seconds(dear, 400) == pytest.approx(1.0, rel=0.1)
    assert costs.unit_size(cheap, 50, 5, 1.0, 128) == 128
    assert costs.unit_size(dear, 10**6, 5, 1.0, 128) == 1


def test_a_unit_is_as_large_as_units_of_its_kind_were_fast() -> None:
    task, pace = tasks.load("bytes_mlp"), costs.Pace()
    before = costs.unit_size(task, 400, 5, 1.0, 128)
    assert pace.of("matrices") == 1.0
    for _ in range(3):
        pace.note("matrices", 0.1, 1.0)
    assert pace.of("matrices") == pytest.approx(10.0)
    assert pace.of("others") == 1.0
    assert costs.unit_size(task, 400, 5, 1.0, 128, pace=pace.of("matrices")) == pytest.approx(before / 10, abs=0.5)
    for _ in range(30):  # compiled by now
        pace.note("matrices", 0.1, 0.1)
    assert pace.of("matrices") == pytest.approx(1.0, rel=0.5)


def test_in_this_process_units_are_done_in_order(own: Path) -> None:
    crew = InProcess()
    for key in (1, 2, 3):
        crew.submit(key, replace(unit(own, "Quiet"), grid=Grid(3, 1.0 + key)))
    assert crew.next(wait=False) is None
    assert [done.key for done in (crew.next() for _ in range(3)) if done] == [1, 2, 3]
    crew.submit(4, unit(own, "Quiet"))
    crew.close()
    assert not crew._waiting


def test_a_watch_goes_on_where_ray_answers_with_something_unforeseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.001)
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 0.5)
    asked: list[int] = []

    class Strange:
        def nodes(self) -> None:
            asked.append(1)
            raise RuntimeError("unforeseen")

    inbox: SimpleQueue[Any] = SimpleQueue()
    crew = SimpleNamespace(address="there")
    workers: Any = SimpleNamespace(_closed=Event(), _inbox=inbox, crew=crew, _on_loss=str, _on_nodes=dict)
    RayWorkers._watch(workers, Strange())  # type: ignore[arg-type]
    assert len(asked) > 1
    assert inbox.get_nowait()() == "the Ray cluster at there has not answered for 0.5 seconds"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no room for the object store\nmore"), "no room for the object store"),
        (PermissionError(13, "Permission denied", "x"), "[Errno 13] Permission denied: 'x'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_private_ray_that_cannot_start_blames_no_option_and_leaves_signals(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does, before it fails
        raise error

    def shipped() -> None:
        raise AssertionError("workers on this machine need no copy of the code")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("ray.init", fails)
    monkeypatch.setattr(connection, "_packed", shipped)
    with pytest.raises(ClusterError) as said:
        connection.connect(Crew(1))
    assert str(said.value) == f"Ray cannot start on this machine: {message}"
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_ray_itself_says_is_not_where_json_goes(capsys: pytest.CaptureFixture[str]) -> None:
    connection._ray()
    from ray._private import worker

    said = {"lines": ["A worker died or was killed"], "pid": "raylet", "is_err": False}  # as Ray's listener gives it
    worker.print_to_stdstream(said, ignore_prefix=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "A worker died or was killed" in err


@pytest.mark.parametrize("trap", ["anybody may write to it", "a link", "a file"])
def test_a_users_file_is_put_into_no_folder_that_others_may_write_to(
    trap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    gone = str(tmp_path / "own.py")
    first, second = (Actor({gone: b"x = 1"}, 2**40).here[gone] for _ in range(2))
    assert first == second
    assert first.read_bytes() == b"x = 1"
    usual = first.parent
    first.unlink()
    if trap == "anybody may write to it":
        usual.chmod(0o777)
    else:
        usual.rmdir()
        (tmp_path / "theirs").mkdir(mode=0o700)
        usual.symlink_to(tmp_path / "theirs") if trap == "a link" else usual.touch()
    elsewhere = Actor({gone: b"x = 1"}, 2**40).here[gone]
    assert elsewhere.parent not in (usual, tmp_path / "theirs")
    assert elsewhere.read_bytes() == b"x = 1"
    assert elsewhere.parent.stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "theirs").glob("*"))
