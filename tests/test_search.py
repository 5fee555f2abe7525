"""Laws of the search: the same seed gives the same archive, whoever trains and however often it is interrupted."""

from __future__ import annotations

import errno
import heapq
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from discover import runs, session
from discover.archive import Archive
from discover.budget import Budget
from discover.cluster import RayWorkers
from discover.errors import ArchiveError, RunError, UnwritableError
from discover.evaluate import Unit, UnitResult
from discover.events import Finished, GenerationDone
from discover.records import Generation

SPACE = """
ancestor: adamw
operators: [add, sub, mul, div, neg, abs, sign, square, sqrt, min, max, lerp, norm]
max_statements: 18
evolution: {population: 12, tournament: 3}
proposals_per_generation: 24
lag: 2
tasks: {search: [breast_cancer, quadratic]}
learning_rates: {points: 3, factor: 3.0}
rungs:
  - {tasks: [breast_cancer], steps: 12, keep: 0.5}
  - {tasks: [breast_cancer, quadratic], steps: 16}
confirm: {every: 2, top: 2, most: 3}
unit: {candidates: 4}
compile: never
budget: {candidates: 60}
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SPACE)
    return path


def searched(
    space: Path,
    out: Path,
    *,
    workers: int = 0,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    **options: object,
) -> Finished:
    configuration = session.configure(str(space), seed=seed, workers=workers, **options)  # type: ignore[arg-type]
    with runs.create(configuration, out=out) as run:
        *_, last = session.search(run, stop)
    assert isinstance(last, Finished)
    return last


def digest(out: Path) -> str:
    with Archive.read(out / "archive.sqlite") as archive:
        return archive.digest()


def generations(out: Path) -> list[Generation]:
    with Archive.read(out / "archive.sqlite") as archive:
        return list(archive.generations())


@pytest.mark.slow
def test_same_seed_same_archive_with_no_worker_one_or_three(space: Path, tmp_path: Path) -> None:
    for workers in (0, 1, 3):
        searched(space, tmp_path / str(workers), workers=workers)
    digests = {digest(tmp_path / str(workers)) for workers in (0, 1, 3)}
    assert len(digests) == 1
    searched(space, tmp_path / "other", seed=1)
    assert digest(tmp_path / "other") not in digests


@pytest.mark.slow
def test_a_search_killed_at_once_resumes_to_the_same_archive(space: Path, tmp_path: Path) -> None:
    searched(space, tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "discover.cli"]
    process = subprocess.Popen(
        [*command, "search", "--space", str(space), "--out", str(killed), "--workers", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not _stored(killed):
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = _stored(killed)
    assert 0 < before < len(generations(tmp_path / "whole"))
    resumed = subprocess.run([*command, "resume", str(killed), "--json"], capture_output=True, text=True, check=True)
    assert digest(killed) == digest(tmp_path / "whole")
    said = json.loads(resumed.stdout)
    assert said["trained"] >= 60
    assert said["incidents"] == {"driver gone": 1}
    with Archive.read(killed / "archive.sqlite") as archive:
        (gone,) = archive.incidents()
        began, *_, ended = archive.sessions()
    assert gone.text.startswith(
        f"the session that began at {began[0]} noted no end: it was killed, or could not write; "
    )
    assert f"; generation {before - 1}, the last, was stored at 20" in gone.text
    assert gone.text in resumed.stderr.replace("\n", " ")
    assert ended[1:] == ("ended", "finished")


def test_the_archive_notes_how_each_session_ended(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    searched(space, out, stop=lambda: True)
    with runs.resume(str(out)) as run:
        next(iter(session.search(run)))  # and wants no more

    def full(*_: object, **__: object) -> None:
        raise ArchiveError("the disk is full")

    def full_for_files(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, runs.resume(str(out)) as run:
        patch.setattr(Archive, "commit_generation", full)
        with pytest.raises(ArchiveError):
            list(session.search(run))
    with monkeypatch.context() as patch, runs.resume(str(out)) as run:
        patch.setattr("discover.files.os.replace", full_for_files)  # as of best.rule, where the archive has room left
        with pytest.raises(UnwritableError) as error:
            list(session.search(run))
    with Archive.read(out / "archive.sqlite") as archive:
        sessions = archive.sessions()
        assert [event for _, event, _ in sessions] == ["began", "ended"] * 4
        reasons = ["the disk is full", str(error.value)]
        assert [text for _, event, text in sessions if event == "ended"] == ["interrupted", "left", *reasons]
        assert [(each.kind, each.text) for each in archive.incidents()] == [("not stored", each) for each in reasons]
        assert "best.rule" in reasons[1]
        assert reasons[1].endswith("No space left on device")


def _stored(out: Path) -> int:
    return len(generations(out)) if (out / "archive.sqlite").exists() else 0


def test_asked_to_stop_it_ends_cleanly_and_goes_on_to_the_same_archive(space: Path, tmp_path: Path) -> None:
    searched(space, tmp_path / "whole")
    asked = iter([False] * 25 + [True] * 1000)
    stopped = searched(space, tmp_path / "stopped", stop=lambda: next(asked))
    assert stopped.interrupted
    assert 0 < len(generations(tmp_path / "stopped")) < len(generations(tmp_path / "whole"))
    with runs.resume(str(tmp_path / "stopped")) as run:
        *_, last = session.search(run)
    assert isinstance(last, Finished)
    assert not last.interrupted
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_a_lost_worker_costs_only_its_unit(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched(space, tmp_path / "whole")
    submit, killed = RayWorkers.submit, []

    def submit_and_kill(self: RayWorkers, key: object, unit: Unit, order: int = 0) -> None:
        submit(self, key, unit, order)  # type: ignore[arg-type]
        busy = [each.actor for pool in self._pools.values() for each in pool.workers if each.jobs]
        if len(killed) < 2 and busy:
            self._ray.kill(busy[0])
            killed.append(busy[0])

    monkeypatch.setattr(RayWorkers, "submit", submit_and_kill)
    searched(space, tmp_path / "bereft", workers=2)
    assert len(killed) == 2
    assert digest(tmp_path / "bereft") == digest(tmp_path / "whole")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[Generation]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(SPACE)
    searched(folder / "tiny.yaml", folder / "out", seed=3, budget=Budget(candidates=150))
    return generations(folder / "out")


def test_nothing_is_trained_twice(run: list[Generation]) -> None:
    trained = [c for g in run for c in g.candidates if c.duplicate_of is None]
    assert len(trained) >= 150
    assert len({c.structure for c in trained}) == len(trained)
    assert len({c.behaviour for c in trained}) == len(trained)
    searched_for = {e.candidate for g in run for e in g.evaluations if e.kind == "search"}
    assert searched_for <= {c.id for c in trained}
    originals = {c.id for c in trained}
    duplicates = [c for g in run for c in g.candidates if c.status == "duplicate"]
    assert duplicates
    assert all(c.duplicate_of in originals and c.duplicate_of < c.id for c in duplicates)


def test_the_funnel_adds_up(run: list[Generation]) -> None:
    for each in run:
        record = each.record
        assert record.proposed == sum(record.rejected.values()) + record.duplicates + record.trained == 24
        assert record.model_steps == sum(e.model_steps for e in each.evaluations)


def test_parents_were_absorbed_before(run: list[Generation]) -> None:
    generation_of = {c.id: c.generation for g in run for c in g.candidates}
    parents = [(c, parent) for g in run for c in g.candidates for parent in c.parents]
    assert parents
    assert all(generation_of[parent] <= c.generation - 2 for c, parent in parents)


def test_the_best_share_of_a_rung_goes_on(run: list[Generation]) -> None:
    for each in run:
        scores = {
            e.candidate: e.score for e in each.evaluations if e.kind == "search" and e.rung == 0 and e.score is not None
        }
        went_on = {c.id for c in each.candidates if c.rung == 1}
        assert len(went_on) == math.ceil(0.5 * len(scores))
        stayed = set(scores) - went_on
        assert min(scores[c] for c in went_on) >= max((scores[c] for c in stayed), default=-math.inf)
        assert each.record.hurdles == (min(scores[c] for c in went_on),)


def test_what_was_not_trained_on_counts_as_no_better_than_the_reference(run: list[Generation]) -> None:
    for each in run:
        for candidate in each.candidates:
            scores = [e.score for e in each.evaluations if e.candidate == candidate.id and e.score is not None]
            if candidate.fitness is not None:
                assert candidate.fitness == pytest.approx(sum(scores) / 3)


def test_candidates_and_reference_meet_on_the_same_instances(run: list[Generation]) -> None:
    for each in run:
        instances = {(e.rung, e.task, e.seed, e.loss_scale, e.parameter_scale) for e in each.evaluations}
        reference = [e for e in each.evaluations if e.kind == "reference"]
        assert {(e.rung, e.task, e.seed, e.loss_scale, e.parameter_scale) for e in reference} == instances
        assert all(e.loss is not None and len(e.learning_rates) == 3 for e in reference)
    seeds = [{e.seed for e in g.evaluations} for g in run]
    assert not set.intersection(*seeds[:2])


def test_confirmations_leave_out_the_scores_that_chose(run: list[Generation]) -> None:
    confirmations = [(g, c) for g in run for c in g.confirmations]
    assert confirmations
    fresh: dict[int, list[float]] = {}
    for generation, confirmation in confirmations:
        scores = [
            e.score
            for e in generation.evaluations
            if e.kind == "confirm" and e.candidate == confirmation.candidate and e.score is not None
        ]
        fresh.setdefault(confirmation.candidate, []).append(sum(scores) / len(scores))
        mine = fresh[confirmation.candidate]
        assert confirmation.fitness == pytest.approx(sum(mine) / len(mine))
        assert confirmation.count == len(mine) <= 3


def test_random_search_learns_nothing(space: Path, tmp_path: Path) -> None:
    searched(space, tmp_path / "random", algorithm="random", budget=Budget(candidates=20))
    candidates = [c for g in generations(tmp_path / "random") for c in g.candidates]
    assert all(c.parents == () and c.origin == "random" for c in candidates)


def test_a_candidate_that_always_fails_takes_no_other_with_it(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from discover import workers

    victims: set[int | None] = set()

    def fail_with_the_victim(self: workers.InProcess, wait: bool = True) -> workers.Done | None:
        if not wait:
            return None
        *_, key, unit = heapq.heappop(self._waiting)
        here = [entry.candidate for entry in unit.entries]
        if not victims:
            victims.add(here[1])
        return workers.Done(key, None, "timed out") if victims & set(here) else workers.Done(key, _evaluate(unit))

    searched(space, tmp_path / "whole", budget=Budget(candidates=10))
    monkeypatch.setattr(workers.InProcess, "next", fail_with_the_victim)
    searched(space, tmp_path / "out", budget=Budget(candidates=10))
    whole, out = (generations(tmp_path / name)[0] for name in ("whole", "out"))
    failed = [{c.id for c in each.candidates if c.status not in ("trained", "duplicate")} for each in (whole, out)]
    assert failed[1] - failed[0] == victims
    lost = next(c for c in out.candidates if c.id in victims)
    assert (lost.status, lost.reason, lost.fitness) == ("timed_out", "timed out", None)
    before = {(e.rung, e.task, e.candidate): e.losses for e in whole.evaluations}
    same = [e for e in out.evaluations if e.candidate not in victims and (e.rung, e.task, e.candidate) in before]
    assert len(same) > 10
    assert all(before[e.rung, e.task, e.candidate] == e.losses for e in same)


def test_a_confirmation_whose_unit_has_no_result_does_not_count(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was lost, say, on one of two tasks: it was scored as if every training had diverged."""
    from discover import workers
    from discover.generation import Key

    victims: set[int | None] = set()

    def fail_elites_once(self: workers.InProcess, wait: bool = True) -> workers.Done | None:
        if not wait:
            return None
        *_, key, unit = heapq.heappop(self._waiting)
        assert isinstance(key, Key)
        failing = False
        if key.generation == 2 and unit.instance.task == "quadratic":
            elites = {e.candidate for e in unit.entries if e.candidate is not None and e.candidate < 2 * 24}
            victims.update(elites)
            failing = bool(elites)
        return workers.Done(key, None, "worker lost") if failing else workers.Done(key, _evaluate(unit))

    monkeypatch.setattr(workers.InProcess, "next", fail_elites_once)
    searched(space, tmp_path / "out", budget=Budget(candidates=100))
    _, _, disturbed, _, again, *_ = generations(tmp_path / "out")
    assert len(victims) == 2
    confirming = [e for e in disturbed.evaluations if e.kind == "confirm"]
    assert {e.candidate for e in confirming} == victims
    assert {e.task for e in confirming if e.losses} == {"breast_cancer"}
    assert {e.score for e in confirming} == {None}
    assert disturbed.confirmations == ()
    first = {each.candidate: each for each in again.confirmations}
    assert victims & set(first)
    assert all(each.count == 1 for each in first.values())


def test_an_elite_that_fails_twice_to_be_scored_again_is_not_chosen_again(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be, every time: nothing that is absorbed changes its place among those that were not confirmed."""
    from discover import workers
    from discover.generation import Key

    def fail_elites(self: workers.InProcess, wait: bool = True) -> workers.Done | None:
        if not wait:
            return None
        *_, key, unit = heapq.heappop(self._waiting)
        assert isinstance(key, Key)
        elite = any(e.candidate is not None and e.candidate < 24 * key.generation for e in unit.entries)
        return workers.Done(key, None, "timed out") if elite else workers.Done(key, _evaluate(unit))

    monkeypatch.setattr(workers.InProcess, "next", fail_elites)
    searched(space, tmp_path / "out", budget=Budget(candidates=140))
    tried = [
        {e.candidate for e in generation.evaluations if e.kind == "confirm"}
        for generation in generations(tmp_path / "out")
    ]
    times = Counter(candidate for each in tried for candidate in each)
    assert len(times) > 2
    assert set(times.values()) == {1, 2}
    met = [each for each in tried if each]
    assert max(met[-1]) > max(met[0])  # others had their turn


def test_a_candidate_that_our_code_stumbles_over_costs_itself_alone_and_is_told(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from discover import evaluate

    train, victims = evaluate.evaluate, set[int | None]()

    def stumbles(unit: Unit) -> UnitResult:
        victims.update({unit.entries[1].candidate} if not victims else ())
        if victims & {entry.candidate for entry in unit.entries}:
            raise LookupError("unforeseen")
        return train(unit)

    searched(space, tmp_path / "whole", budget=Budget(candidates=10))
    monkeypatch.setattr(evaluate, "evaluate", stumbles)
    searched(space, tmp_path / "out", budget=Budget(candidates=10))
    whole, out = (generations(tmp_path / name)[0] for name in ("whole", "out"))
    (lost,) = [c for c in out.candidates if c.status not in ("trained", "duplicate", "diverged")]
    assert {lost.id} == victims
    assert (lost.status, lost.fitness) == ("worker_lost", None)
    assert lost.reason.startswith("fault in test_search.py, line ")
    assert lost.reason.endswith("LookupError: unforeseen")
    first = {c.id: c.fitness for c in whole.candidates if c.rung == 0 and c.id != lost.id}
    assert first.items() <= {c.id: c.fitness for c in out.candidates}.items()
    with Archive.read(tmp_path / "out" / runs.ARCHIVE) as archive:
        assert {(i.kind, i.generation) for i in archive.incidents()} == {("fault", 0)}

    def all_but_adamw(unit: Unit) -> UnitResult:
        if [entry.candidate for entry in unit.entries] == [None]:
            return train(unit)
        raise LookupError("unforeseen")

    monkeypatch.setattr(evaluate, "evaluate", all_but_adamw)
    with pytest.raises(RunError, match=r"no program could be trained: fault in .* LookupError: unforeseen"):
        searched(space, tmp_path / "none", budget=Budget(candidates=10))
    assert _stored(tmp_path / "none") == 1

    def always(unit: Unit) -> UnitResult:
        raise LookupError("unforeseen")

    monkeypatch.setattr(evaluate, "evaluate", always)
    with pytest.raises(LookupError, match="unforeseen"):
        searched(space, tmp_path / "again", budget=Budget(candidates=10))


def test_what_came_to_no_result_is_forgotten_alike_by_a_search_that_was_stopped(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of all candidates time out, and are proposed again; duplicates of them too."""
    from discover import workers

    def fail_often(self: workers.InProcess, wait: bool = True) -> workers.Done | None:
        if not wait:
            return None
        *_, key, unit = heapq.heappop(self._waiting)
        failing = any(entry.candidate is not None and entry.candidate % 3 == 0 for entry in unit.entries)
        return workers.Done(key, None, "timed out") if failing else workers.Done(key, _evaluate(unit))

    monkeypatch.setattr(workers.InProcess, "next", fail_often)
    searched(space, tmp_path / "whole", budget=Budget(candidates=150))
    found = [c for g in generations(tmp_path / "whole") for c in g.candidates]
    lost = {c.id: c.behaviour for c in found if c.status == "timed_out"}
    assert any(c.behaviour in lost.values() for c in found if c.status == "trained")
    asked = iter([False] * 160 + [True] * 1000)
    searched(space, tmp_path / "stopped", budget=Budget(candidates=150), stop=lambda: next(asked))
    assert 1 < _stored(tmp_path / "stopped") < _stored(tmp_path / "whole")
    with runs.resume(str(tmp_path / "stopped")) as run:
        _ = list(session.search(run))
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def _evaluate(unit: Unit) -> UnitResult:
    from discover.evaluate import evaluate

    return evaluate(unit)


def test_events_come_in_order(space: Path, tmp_path: Path) -> None:
    configuration = session.configure(str(space), workers=0, budget=Budget(candidates=30))
    with runs.create(configuration, out=tmp_path / "out") as run:
        events = list(session.search(run))
    numbers = [e.record.number for e in events if isinstance(e, GenerationDone)]
    assert numbers == list(range(len(numbers)))
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(e, Finished) for e in events) == 1
