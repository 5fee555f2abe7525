"""Laws of workers: a unit that hangs or kills its worker costs itself alone, and a bug is not taken for an accident."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dsl
from discover.evaluate import Entry, Grid, Instance, Unit, evaluate
from discover.workers import ATTEMPTS, Done, InProcess, RayWorkers

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
    crew = RayWorkers(1, None, 600.0)
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
    monkeypatch.setattr(crew, "time_limit", 1.0)
    crew.submit("hangs", unit(own, "Hangs"))
    crew.submit("waits", unit(own, "Quiet"))
    assert len(crew._queues[0].jobs) == 2  # both are the actor's by now
    replaced = crew._replace

    def with_time_to_start(*arguments: Any) -> None:
        monkeypatch.setattr(crew, "time_limit", 600.0)
        replaced(*arguments)

    monkeypatch.setattr(crew, "_replace", with_time_to_start)
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
    crew.submit("dies", unit(own, "Dies"))
    crew.submit("waits", unit(own, "Quiet"))
    done = {each.key: each for each in (next_done(crew), next_done(crew))}
    assert done["dies"] == Done("dies", None, "worker lost")
    assert done["waits"].result is not None
    assert len(crew.notes) == ATTEMPTS
    assert all(note.startswith("a worker was lost (ActorDiedError: ") for note in crew.notes)


@pytest.mark.slow
def test_a_bug_is_raised_here_as_it_was_there(crew: RayWorkers, own: Path) -> None:
    crew.submit("wrong", unit(own, "Wrong"))
    with pytest.raises(LookupError, match="a bug in the loss"):
        next_done(crew)
    crew._queues[0].jobs.clear()


class _Ray:
    """Stands in for Ray: whatever is asked of the first actor ends in an error; of later ones, in a result."""

    def __init__(self, error: Exception) -> None:
        import ray.exceptions

        self.exceptions, self.error = ray.exceptions, error
        self.made = 0
        self.killed: list[Any] = []

    def remote(self, **_: object) -> Any:
        return lambda _: type("Class", (), {"remote": staticmethod(self.actor)})

    def actor(self) -> Any:
        self.made += 1
        number = self.made

        class Method:
            @staticmethod
            def remote(unit: Unit) -> tuple[int, Unit]:
                return number, unit

        return type("Actor", (), {"evaluate": Method, "number": number})

    def wait(self, references: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, reference: tuple[int, Unit]) -> Any:
        if reference[0] == 1:
            raise self.error
        return evaluate(reference[1])

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.number)


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
def test_whatever_ray_says_of_an_actor_that_is_gone_its_units_are_done_by_another(
    error: Exception, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = _Ray(error)
    monkeypatch.setattr("discover.workers._start_ray", lambda count, address: ray)
    crew = RayWorkers(1, None, 600.0)
    for key in ("one", "two"):
        crew.submit(key, unit(own, "Quiet"))
    assert crew.next() is None
    assert ray.killed == [1]  # it may be alive, with a unit that is now another's
    done = [crew.next(), crew.next()]
    assert [each.key for each in done if each is not None and each.result is not None] == ["one", "two"]
    (note,) = crew.notes
    assert note.startswith(f"a worker was lost ({type(error).__name__}: ")
    assert "\n" not in note


def test_in_this_process_units_are_done_in_order(own: Path) -> None:
    crew = InProcess()
    for key in (1, 2, 3):
        crew.submit(key, replace(unit(own, "Quiet"), grid=Grid(3, 1.0 + key)))
    assert [crew.next().key for _ in range(3)] == [1, 2, 3]
    crew.submit(4, unit(own, "Quiet"))
    crew.close()
    assert not crew._waiting
