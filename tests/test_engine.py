"""Laws of the loop: what was launched is brought to its end, all time is accounted for, what went otherwise is said."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import tasks
from discover import costs, evaluate, native, runs, session
from discover.archive import Archive
from discover.budget import Budget
from discover.clock import Clock
from discover.console import summary
from discover.costs import Pace
from discover.evaluate import Unit, UnitResult
from discover.events import Finished, Notice
from discover.generation import Key, Live
from discover.progress import Progress
from discover.records import Generation
from discover.workers import InProcess

SPACE = """
operators: [add, sub, mul, div, neg, sign, square, sqrt, lerp]
max_statements: 18
evolution: {population: 8}
proposals_per_generation: 12
lag: 3
tasks: {search: [quadratic]}
learning_rates: {points: 3, factor: 3.0}
rungs: [{tasks: [quadratic], steps: 10}]
confirm: {every: 3, top: 2}
compile: never
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SPACE)
    return path


def searched(space: Path, out: Path, **options: object) -> Finished:
    configuration = session.configure(str(space), workers=0, **options)  # type: ignore[arg-type]
    with runs.create(configuration, out=out) as run:
        *_, last = session.search(run)
    assert isinstance(last, Finished)
    return last


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A short search."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "tiny.yaml").write_text(SPACE)
    return searched(folder / "tiny.yaml", folder / "out", budget=Budget(candidates=3))


def generations(out: Path) -> list[Generation]:
    with Archive.read(out / "archive.sqlite") as archive:
        return list(archive.generations())


@pytest.mark.parametrize("budget", [Budget(candidates=12), Budget(candidates=12, time="10m"), Budget(time="0.4s")])
def test_what_was_launched_before_a_budget_ended_is_in_the_archive(
    budget: Budget, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []
    propose = Progress.propose

    def proposed(self: Progress, number: int, *rest: object) -> Live:
        launched.append(number)
        return propose(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Progress, "propose", proposed)
    ended = searched(space, tmp_path / "out", budget=budget)
    assert not ended.interrupted
    assert launched == [each.record.number for each in generations(tmp_path / "out")]
    assert len(launched) >= 3


def test_a_budget_raised_later_gives_the_archive_that_it_would_have_given_at_once(space: Path, tmp_path: Path) -> None:
    searched(space, tmp_path / "whole", budget=Budget(candidates=40))
    searched(space, tmp_path / "parts", budget=Budget(candidates=10))
    drained = generations(tmp_path / "parts")
    whole = generations(tmp_path / "whole")
    assert drained == whole[: len(drained)]
    assert len(drained) < len(whole)
    with runs.resume(str(tmp_path / "parts"), budget=Budget(candidates=40)) as run:
        list(session.search(run))
    assert generations(tmp_path / "parts") == whole


def test_resuming_holds_no_more_than_a_generation_at_a_time(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(space, tmp_path / "out", budget=Budget(candidates=60))
    count = len(generations(tmp_path / "out"))
    assert count > 5
    alive: list[int] = []
    absorb = Progress.absorb

    def absorbed(self: Progress, generation: Generation) -> None:
        alive.append(sum(type(each) is Generation for each in gc.get_objects()))
        absorb(self, generation)

    monkeypatch.setattr(Progress, "absorb", absorbed)
    with runs.resume(str(tmp_path / "out"), budget=Budget(candidates=60)) as run:
        list(session.search(run))
    assert len(alive) == count
    assert max(alive) <= 3


def test_units_are_cut_by_what_they_took_and_no_result_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = 3 * costs.seconds(tasks.load("quadratic"), 10)  # of a program
    text = SPACE.replace("proposals_per_generation: 12", "proposals_per_generation: 96")
    (tmp_path / "dear.yaml").write_text(f"{text}unit: {{seconds: {estimate * 40.0}, candidates: 64}}\n")
    carry_out, submit = Unit.carry_out, InProcess.submit
    sizes: list[dict[int, list[int]]] = []

    def ten_times_dearer(self: Unit) -> UnitResult | str:
        result = carry_out(self)
        return result if isinstance(result, str) else replace(result, seconds=10.0 * estimate * len(self.entries))

    def submitted(self: InProcess, key: Key, unit: Unit, order: int = 0) -> None:
        sizes[-1].setdefault(key.generation, []).append(len(unit.entries))
        submit(self, key, unit, order)

    monkeypatch.setattr(Unit, "carry_out", ten_times_dearer)
    monkeypatch.setattr(InProcess, "submit", submitted)
    for measured in (True, False):
        sizes.append({})
        with monkeypatch.context() as patch:
            if not measured:
                patch.setattr(Pace, "of", lambda self, kind: 1.0)
            searched(tmp_path / "dear.yaml", tmp_path / f"out{measured}", budget=Budget(candidates=200))
    by_measure, by_estimate = sizes
    assert all(max(by_measure[n]) == max(by_estimate[n]) > 10 for n in range(3))  # launched before anything was timed
    later = [size for n, cut in by_measure.items() if n >= 3 for size in cut]
    assert later
    assert max(later) == 4  # as many as take the 40 times the estimate of a program that a unit should
    assert max(size for n, cut in by_estimate.items() if n >= 3 for size in cut) > 10
    assert digest(tmp_path / "outTrue") == digest(tmp_path / "outFalse")


def digest(out: Path) -> str:
    with Archive.read(out / "archive.sqlite") as archive:
        return archive.digest()


# Time ---------------------------------------------------------------------------------------------------------------


def test_the_time_of_a_session_is_all_accounted_for(space: Path, tmp_path: Path) -> None:
    ended = searched(space, tmp_path / "out", budget=Budget(candidates=40))
    seconds = ended.totals.seconds
    assert set(seconds) == {"propose", "gate", "absorb", "store", "report", "training", "train", "load", "present"}
    assert all(value > 0 for value in seconds.values())
    assert seconds["train"] + seconds["load"] == pytest.approx(seconds["present"])  # here, training is all there is
    assert seconds["present"] == pytest.approx(seconds["training"], rel=0.1)
    assert ended.totals.elapsed == pytest.approx(ended.elapsed, rel=0.1)
    spent = ended.totals.time
    assert sum(spent["driver"].values()) == pytest.approx(ended.totals.elapsed)
    assert spent["workers"]["share"] == pytest.approx(seconds["train"] / seconds["present"])
    with Archive.read(tmp_path / "out" / "archive.sqlite") as archive:
        kept = archive.totals().seconds
    assert Counter(kept).keys() == seconds.keys()
    assert all(kept[phase] <= seconds[phase] for phase in kept)


def test_to_absorb_an_archive_anew_is_no_searching_and_can_be_stopped(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(space, tmp_path / "out", budget=Budget(candidates=40))
    stored = len(generations(tmp_path / "out"))
    absorb, absorbed = Progress.absorb, list[int]()

    def slowly(self: Progress, generation: Generation) -> None:
        absorbed.append(generation.record.number)
        time.sleep(0.5 if generation.record.number < stored else 0.0)
        absorb(self, generation)

    monkeypatch.setattr(Progress, "absorb", slowly)
    with runs.resume(str(tmp_path / "out"), budget=Budget(candidates=40)) as run:
        *_, last = session.search(run)
    assert isinstance(last, Finished)
    assert absorbed == list(range(stored))
    assert last.elapsed < 0.5 * stored
    assert last.ended.endswith("candidates are trained, and 40 were to be")
    with runs.resume(str(tmp_path / "out"), budget=Budget(candidates=80)) as run:
        *_, last = session.search(run, lambda: len(absorbed) > stored)
    assert isinstance(last, Finished)
    assert last.interrupted
    assert absorbed == [*range(stored), 0]
    assert len(generations(tmp_path / "out")) == stored
    with runs.resume(str(tmp_path / "out"), budget=Budget(time="0.6s", candidates=80)) as run:
        *_, last = session.search(run)
    assert isinstance(last, Finished)
    assert last.trained > 0


@pytest.mark.parametrize(
    ("elapsed", "budget", "interrupted", "said"),
    [
        (131.0, Budget(time="2m"), False, False),
        (133.0, Budget(time="2m"), False, True),
        (133.0, Budget(time="2m", candidates=3), False, True),
        (133.0, Budget(time="2m"), True, False),  # then nothing was brought to its end
        (133.0, Budget(candidates=3), False, False),
    ],
)
def test_what_took_much_longer_than_its_time_says_so(
    elapsed: float, budget: Budget, interrupted: bool, said: bool, ended: Finished
) -> None:
    why = "" if interrupted else "its 2m00s are over"
    lines = list(summary(replace(ended, elapsed=elapsed, ended=why), budget))
    assert ("ended since its 2m00s are over" in lines) is not interrupted
    line = "13s more than the 2m00s that it had: so long took what was in flight then"
    assert (line in lines) == said
    assert sum("that it had" in each for each in lines) == said


def test_a_phase_inside_another_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0, 1, 3, 4, 9, 10, 20, 26])
    monkeypatch.setattr("discover.clock.time.perf_counter", lambda: float(next(times)))
    clock = Clock()
    with clock("outer"):
        with clock("inner"):
            pass
        with clock("outer"):
            pass
    with clock("inner"):
        pass
    clock.add("train", 5.0)
    assert clock.added_to({"inner": 1.0, "store": 1.0}) == {"outer": 8.0, "inner": 9.0, "store": 1.0, "train": 5.0}
    assert clock.take() == {"outer": 8.0, "inner": 8.0, "train": 5.0}
    assert clock.take() == {}


# Notices ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A worker without compiler and without cache, beside a driver that had both."""
    for known in (evaluate._gradient, evaluate._without_native, native.library):
        known.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("DISCOVER_CACHE_DIR", str(tmp_path / "cache"))
    yield
    for known in (evaluate._gradient, evaluate._without_native, native.library):
        known.cache_clear()


def test_what_a_worker_cannot_do_is_said_once_and_the_search_goes_on(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_compiler: None
) -> None:
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr("discover.gradient.is_cached", lambda task: True)
    configuration = session.configure(str(space), workers=0, budget=Budget(candidates=20), compile="always")
    assert configuration.native
    with runs.create(configuration, out=tmp_path / "out") as run:
        *events, last = session.search(run)
    notes = [event.text for event in events if isinstance(event, Notice)]
    assert len(notes) == 2
    assert "quadratic: gradients run uncompiled: no C++ compiler ('no-such-compiler' not found)" in notes[0]
    assert "rules run as plain PyTorch: " in notes[1]
    assert all("; results differ in the last bits" in note for note in notes)
    assert isinstance(last, Finished)
    assert last.trained >= 20
