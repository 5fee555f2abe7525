"""Laws of judging by workers: it comes to what it comes to in one process, whoever trains, in whatever order, and
whatever befalls them; nothing is lost, and what cannot be is said in one line."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dsl
import tasks
from discover import again, artefact, calibrate, cli, cli_options, compare, gradient, pieces, pruning, workers
from discover import workshop as workshop_module
from discover.actor import Actor
from discover.asks import Answer, Ask, Job
from discover.cluster import RayWorkers
from discover.contenders import RuleContender, contender
from discover.contest import Contest, ContestTerms, ask_of, hold
from discover.errors import ClusterError, NoLogarithmError, UserError
from discover.keeper import Keeper, Luggage, StoppedError
from discover.own_files import absolute, contents
from discover.pieces import CORE, Paused, Piece, Site, Trained, TrainRuns
from discover.promote import fitted
from discover.promotion_keys import PromotionRung
from discover.records import Incident
from discover.sessions import this_machine
from discover.space import Space
from discover.storage import Store
from discover.studies import Study, TuningBudget
from discover.trainers import Ground, Run
from discover.workers import Crew, Done, Request, Work
from discover.workshop import Place, Staff, Workshop
from tasks import Task
from tests.home import home
from tests.stored import dying, stored
from tests.test_promote import ASCENT, a_run, adam, read

__all__ = ["home"]

ROOT = Path(__file__).parent.parent
BUDGET = TuningBudget(trials=4, seeds=2, fresh=2)
NAMES = ("adamw", "lion", "torch.optim:Adagrad")
CRIPPLED = "def crippled(p, g, *, lr=0.1):\n    p = p - lr * mean(g)\n"


# Workers that stand in for Ray's ------------------------------------------------------------------------------------


class Hands:
    """Workers in this process: what they are given and give back is copied as on a wire, and comes back in whatever
    order, of those that are in work at a time.

    Args:
        crew: what was asked for.
        seed: of the order.
        fails: is asked of each piece of work; what it says is why there is no result.
    """

    room_for: Callable[[Request], int] = staticmethod(lambda request: 1)

    def __init__(self, crew: Crew, seed: int = 0, fails: Callable[[Work], str] = lambda work: "") -> None:
        self.crew, self.fails, self.rng = crew, fails, np.random.default_rng(seed)
        self.notes: deque[str] = deque()
        self.incidents: deque[Any] = deque()
        self.room = {request: self.room_for(request) for request in crew.requests}
        self.actor = Actor(dict(crew.files or {}), crew.memory)
        self.waiting: list[tuple[int, int, Hashable, bytes]] = []
        self.submitted, self.closed = 0, False

    def submit(self, key: Hashable, unit: Work, order: int = 0) -> None:
        assert unit.request in self.crew.requests
        self.submitted += 1
        heapq.heappush(self.waiting, (order, self.submitted, key, pickle.dumps(unit)))

    def next(self, wait: bool = True) -> Done | None:
        if not self.waiting or (not wait and self.rng.random() < 0.5):
            return None
        in_work = heapq.nsmallest(self.crew.count or 4, self.waiting)
        chosen = in_work[int(self.rng.integers(len(in_work)))]
        self.waiting.remove(chosen)
        heapq.heapify(self.waiting)
        work = pickle.loads(chosen[3])
        if failure := self.fails(work):
            return Done(chosen[2], None, failure)
        return Done(chosen[2], pickle.loads(pickle.dumps(self.actor.evaluate(work))))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> list[Hands]:
    """All crews that were started, in order; they are stand-ins."""
    crews: list[Hands] = []

    def start(crew: Crew) -> Hands:
        crews.append(Hands(crew, seed=len(crews)))
        return crews[-1]

    monkeypatch.setattr(workers, "start", start)
    return crews


named = cache(contender)


def asks(names: Sequence[str] = NAMES, **changes: Any) -> list[Ask]:
    options: dict[str, Any] = {"steps": 8, "budget": BUDGET, "seeds": (0, 7), "curve": (4,), "compile": False}
    options |= changes
    return [Ask(named(name), tasks.load(task), **options) for task in ("breast_cancer", "quadratic") for name in names]


def url(folder: Path, name: str = "studies") -> str:
    return f"sqlite:///{folder / name}.sqlite"


def answers(staff: int | None, asked: Sequence[Ask], where: str | None = None, **options: Any) -> list[Answer]:
    store = Store(where)
    workshop = Workshop(store, Keeper(store.folder, **options), staff=Staff(staff))
    try:
        return list(workshop.tuned(asked))
    finally:
        workshop.close()
        store.close()


def found(given: Sequence[Answer]) -> list[Any]:
    return [(answer.ask.task.spelling, answer.ask.contender.name, answer.tunings) for answer in given]


@cache
def expected() -> list[Any]:
    """What this process comes to for all that `asks` asks."""
    return found(answers(0, asks()))


@pytest.mark.parametrize("count", [1, 3, None])
def test_any_number_of_workers_in_any_order_come_to_what_this_process_comes_to(
    count: int | None, hands: list[Hands], tmp_path: Path
) -> None:
    given = answers(count, asks(), url(tmp_path))
    assert found(given) == expected()
    (crew,) = hands
    assert crew.closed
    assert crew.submitted > 0
    assert found(answers(3, asks(), url(tmp_path))) == expected()  # nothing is trained again
    assert hands[-1].submitted == 0


def test_workers_and_this_process_leave_the_same_store_and_use_each_others(hands: list[Hands], tmp_path: Path) -> None:
    asked = asks(("adamw", "torch.optim:Adagrad"), seeds=(3,))
    here = answers(0, asked, url(tmp_path, "here"))
    assert found(answers(2, asked, url(tmp_path, "there"))) == found(here)
    assert stored(url(tmp_path, "there")) == stored(url(tmp_path, "here"))
    assert found(answers(2, asked, url(tmp_path, "here"))) == found(here)
    assert hands[-1].submitted == 0


@pytest.mark.parametrize("pruner", ["median", "hyperband", "wilcoxon"])
def test_pruned_tunings_are_the_same_by_workers(pruner: Any, hands: list[Hands], tmp_path: Path) -> None:
    asked = asks(("adamw", "torch.optim:Adagrad"), budget=TuningBudget(10, 6, 1, pruner=pruner), seeds=(0,), steps=9)[
        :2
    ]
    here = answers(0, asked, url(tmp_path, "here"))
    assert found(answers(2, asked, url(tmp_path, "there"))) == found(here)
    assert stored(url(tmp_path, "there")) == stored(url(tmp_path, "here"))


@pytest.mark.parametrize("after", [0, 3, 10])
def test_a_judgement_that_was_killed_goes_on_by_other_workers_to_the_same_end(
    after: int, hands: list[Hands], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asks()
    next_, left = Hands.next, iter(range(after))

    def dies(self: Hands, wait: bool = True) -> Done | None:
        done = next_(self, wait)
        if done is not None and next(left, None) is None:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Hands, "next", dies)
        with pytest.raises(KeyboardInterrupt):
            answers(3, asked, url(tmp_path))
    assert hands[0].closed
    kept = stored(url(tmp_path))
    assert found(answers(2, asked, url(tmp_path))) == expected()
    ended = stored(url(tmp_path))
    for name, trials in kept.items():
        assert ended[name][: len(trials)] == trials  # what was kept is not trained again
    assert all([trial[0] for trial in trials] == list(range(BUDGET.trials)) for trials in ended.values())


def test_what_one_process_began_in_the_middle_of_a_batch_workers_bring_to_the_same_end(
    hands: list[Hands], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asks(budget=TuningBudget(trials=12, seeds=1, fresh=1))[:1]
    whole = found(answers(0, asked))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", dying(7))
        with pytest.raises(KeyboardInterrupt):
            answers(0, asked, url(tmp_path))
    assert found(answers(2, asked, url(tmp_path))) == whole
    assert all([trial[0] for trial in each] == list(range(12)) for each in stored(url(tmp_path)).values())


def test_one_that_is_asked_to_stop_keeps_what_has_come_in(hands: list[Hands], tmp_path: Path) -> None:
    calls = iter(range(10**6))
    with pytest.raises(StoppedError):
        answers(3, asks(), url(tmp_path), stop=lambda: next(calls) == 12)
    assert any(stored(url(tmp_path)).values())
    assert found(answers(3, asks(), url(tmp_path))) == expected()


def test_work_that_costs_worker_after_worker_ends_it_in_one_line_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(work: Work) -> str:
        return "worker lost" if "lion on quadratic" in str(work) else ""

    monkeypatch.setattr(workers, "start", lambda crew: Hands(crew, fails=fails))
    with pytest.raises(ClusterError) as error:
        answers(1, asks(), url(tmp_path))
    assert str(error.value).startswith("lion on quadratic, 2 tunings: worker lost, on one worker after the other; what")
    assert len(stored(url(tmp_path))) >= 4


def test_nodes_that_come_and_go_are_said_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = iter(
        [("node removed", "node a"), ("worker lost", "process 1"), ("node added", "node a"), ("node removed", "node a")]
    )

    class Shaken(Hands):
        def next(self, wait: bool = True) -> Done | None:
            self.incidents += [Incident(*each) for each in itertools.islice(happened, 1)]  # type: ignore[arg-type]
            return super().next(wait)

    monkeypatch.setattr(workers, "start", Shaken)
    lines: list[str] = []
    workshop = Workshop(Store(None), Keeper(None), say=lines.append, staff=Staff(2))
    assert found(list(workshop.tuned(asks()))) == expected()
    workshop.close()
    gone = "a node left the cluster (node a); what its workers had in hand goes to others"
    assert lines == [gone, "a node joined the cluster (node a)", gone]


def test_a_refusal_is_the_askers_alone_and_comes_in_its_turn(hands: list[Hands]) -> None:
    Path("own.py").write_text(NEGATIVE)
    asked = asks(("adamw",))
    wrong = replace(asked[0], task=tasks.load("own.py:Negative"))
    for staff in (0, 2):
        first, refused, last = answers(staff, [asked[0], wrong, asked[1]])
        assert first.tunings
        assert last.tunings
        with pytest.raises(NoLogarithmError, match="ratios of losses above 0"):
            _ = refused.tunings


def test_what_is_late_of_a_call_that_ended_early_is_not_taken_for_another_calls(hands: list[Hands]) -> None:
    Path("own.py").write_text(NEGATIVE)
    wrong = replace(asks(("adamw",), seeds=tuple(range(40)))[0], task=tasks.load("own.py:Negative"))
    workshop = Workshop(Store(None), Keeper(None), staff=Staff(1))
    (refused,) = workshop.tuned([wrong])
    assert refused.refusal
    assert hands[0].waiting  # the other block of its tunings
    with_files = [replace(each, seeds=(0, 7)) for each in asks()]
    assert found(list(workshop.tuned(with_files))) == expected()
    assert len(hands) == 1


NEGATIVE = """
import torch
from tasks import Parameter, Task

class Own(Task):
    name, title, source = "own", "a quadratic", "a test"
    parameters = (Parameter.normal("w", (4,), "vector", 1.0),)
    batch_size, horizon, warmup, learning_rate = 2, 8, 1, 0.1

    def __init__(self):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        super().__init__((x,), (x,))

    def loss(self, parameters, batch):
        return (parameters["w"].unsqueeze(1) - batch[0]).square().mean((1, 2))

class Negative(Own):
    name = "negative"

    def validation_loss(self, parameters):  # above 0 at the start, as a loss must be, and no longer when trained
        return super().validation_loss(parameters) - 2

class Slow(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=0.5 * lr)
"""


def test_own_files_of_tasks_and_classes_travel(hands: list[Hands], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own.py").write_text(NEGATIVE)
    asked = [replace(asks(("adamw",))[0], task=tasks.load("own.py:Own"), contender=contender("own.py:Slow"))]
    here = found(answers(0, asked))
    files = contents(map(absolute, ["own.py:Own", "own.py:Slow", "torch.optim:SGD", "adamw"]))
    assert files == {str(Path("own.py").absolute()): NEGATIVE.encode()}
    at_hand = []

    class Elsewhere(Hands):
        def __init__(self, crew: Crew) -> None:
            Path("own.py").unlink()  # read by the driver; this machine has it no more
            super().__init__(crew)
            at_hand.extend(self.actor.here.values())

    pieces.ground_of.cache_clear()
    monkeypatch.setattr(workers, "start", Elsewhere)
    assert found(answers(2, asked)) == here
    assert at_hand != [Path("own.py").absolute()]


def test_long_trainings_are_kept_where_the_folder_is_and_else_travel(tmp_path: Path) -> None:
    marker = tmp_path / "x.trainings" / "driver-1"
    piece = pieces.Piece("adamw", {}, Site("quadratic", 8), BUDGET, (), (0,), (), str(marker))
    assert isinstance(piece._keeper(), Luggage)  # a folder of that name, perhaps, but without the driver's file
    marker.parent.mkdir()
    assert isinstance(piece._keeper(), Luggage)
    marker.touch()
    assert (type(piece._keeper()), piece._keeper().folder) == (Keeper, marker.parent)
    luggage = Luggage({})
    luggage.keep("training", lambda: {"done": 3})
    luggage.forget("another")
    assert replace(piece, kept=luggage.packed)._keeper().load("training") == {"done": 3}  # it came from elsewhere
    assert piece._keeper().load("training") == {"done": 3}
    assert type(replace(piece, marker=None)._keeper()) is Keeper
    assert replace(piece, marker=None)._keeper().folder is None


class Far(Hands):
    """Workers on a machine without the driver's folder, whose every step is a leg of the way."""

    paused = 0

    def submit(self, key: Hashable, work: Any, order: int = 0) -> None:
        super().submit(key, replace(work, marker="/nowhere/at/all") if isinstance(work, Piece) else work, order)

    def next(self, wait: bool = True) -> Done | None:
        done = super().next(wait)
        if done is not None and isinstance(done.result, Paused):
            Far.paused += 1
        return done


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> type[Far]:
    monkeypatch.setattr(workers, "start", Far)
    monkeypatch.setattr(Luggage, "_is_over", lambda self: True)
    monkeypatch.setattr(Far, "paused", 0)
    return Far


@pytest.mark.parametrize("name", ["adamw", "torch.optim:SGD"])
@pytest.mark.parametrize("pruner", ["none", "wilcoxon"])
def test_a_worker_without_the_folder_hands_over_what_it_has(name: str, pruner: Any, far: type[Far]) -> None:
    seeds = pruning.FEWEST_PAIRS + 2 if pruner == "wilcoxon" else BUDGET.seeds
    budget = replace(BUDGET, seeds=seeds, pruner=pruner)
    asked = asks((name,), budget=budget, seeds=(0,))[:1]
    assert found(answers(2, asked, url(Path.cwd()))) == found(answers(0, asked))
    batches = -(-budget.trials // budget.batch)
    trainings = batches * len(pruning.seed_waves(pruner, seeds)) + 1  # of trials, and the fresh seeds
    # a leg for each step, and no step twice, of however many waves of seeds a batch has; fewer where all are pruned
    assert far.paused == 8 * trainings or (pruner == "wilcoxon" and 8 * batches < far.paused < 8 * trainings)
    assert not list(Path.cwd().glob("*.trainings"))  # neither what was handed over, nor the driver's mark


def test_a_driver_that_was_killed_goes_on_with_what_workers_had_handed_over(
    far: type[Far], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asks(("adamw",))[:1]
    expected = found(answers(0, asked))
    record, left = Job.record, iter(range(3))

    def killed(self: Job, block: int, result: Any) -> Iterator[Piece]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return record(self, block, result)

    monkeypatch.setattr(Job, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        answers(2, asked, url(Path.cwd()))
    monkeypatch.setattr(Job, "record", record)
    (kept,) = Path.cwd().glob("*.trainings/piece-*.pt")
    before, far.paused = far.paused, 0
    assert found(answers(2, asked, url(Path.cwd()))) == expected
    assert not kept.exists()
    whole, far.paused = far.paused, 0
    Path(url(Path.cwd()).removeprefix("sqlite:///")).unlink()
    assert found(answers(2, asked, url(Path.cwd()))) == expected
    assert whole == far.paused - (before - 1)  # the leg that was not taken in is trained again, and no other


def test_a_piece_travels_with_what_it_has() -> None:
    piece = pieces.Piece("adamw", {}, Site("quadratic", 8), BUDGET, (), (0,), (), "/nowhere/x", kept={"a": b"1234"})
    again = pickle.loads(pickle.dumps(piece))
    assert (again.kept, again.key) == ({"a": b"1234"}, replace(piece, kept={}).key)
    assert "1234" not in repr(piece)


def test_a_device_other_than_the_cpu_makes_another_study_and_the_cpu_the_same_as_ever() -> None:
    ask = asks(("adamw",))[0]
    ground = Workshop(Store(None), Keeper(None)).ground(ask)
    made = [Study(ask.contender, ground, BUDGET, 0, Store(None), device=each) for each in (None, "cpu", "cuda")]
    assert made[0].name == made[1].name != made[2].name
    facts = made[0]._identity()[1]
    parts = {"format", "task", "ground", "steps", "optimizer", "budget", "seed", "versions", "digest"}
    assert set(facts) == parts | {"built"}
    assert set(made[2]._identity()[1]) == parts | {"device"}
    assert facts["built"] == {"compiled": False, "native": ground.built.native}
    assert facts["budget"] == {"trials": 4, "tuning_seeds": 2, "own": False, "pruner": "none"}


def test_a_tuning_says_how_whoever_trained_it_did(hands: list[Hands], monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = itertools.cycle(["one kind", "another kind"])

    def ground_of(site: Site) -> Ground:
        ground = Ground(tasks.load(site.task), steps=site.steps, compile=site.compile)
        ground.built = replace(ground.built, on=next(kinds))
        return ground

    monkeypatch.setattr(pieces, "ground_of", ground_of)
    (answer,) = answers(2, asks(("adamw",), seeds=(0,))[:1], url(Path.cwd()))
    (tuned,) = answer.tunings
    assert {way.on for way in tuned.built} == {"one kind", "another kind"} == {way.on for way in tuned.all_built}
    assert tuned.fresh_built.on in ("one kind", "another kind")
    (stored_,) = answers(0, asks(("adamw",), seeds=(0,))[:1], url(Path.cwd()))
    assert stored_.tunings == [tuned]


# Contests, comparisons, calibrations, certificates ------------------------------------------------------------------


def contest(staff: int) -> Contest:
    texts = {"good": dsl.format(dsl.load("adam")), "bad": CRIPPLED.replace("- lr", "+ lr")}
    candidates = [RuleContender(name, dsl.parse(text)) for name, text in texts.items()]
    terms = ContestTerms(
        *("rung 1", {"breast_cancer": 8, "quadratic": 6}),
        **{"trials": 2, "tuning_seeds": 1, "fresh": 1, "least": 2, "most": 7, "error_rate": 0.05, "own": False},
        first=0,
        compile=False,
    )
    workshop = Workshop(Store(None), Keeper(None), staff=Staff(staff))
    return hold(terms, candidates, [RuleContender("crippled", dsl.parse(CRIPPLED))], workshop)


def test_a_contest_by_workers_tunes_what_one_in_this_process_does_and_no_more(hands: list[Hands]) -> None:
    here = contest(0)
    row = here.results["breast_cancer"]
    assert len(row["bad"]) < len(row["good"])  # decided early
    assert contest(3).plain() == here.plain()
    assert len(hands) == 1
    json.dumps(here.plain(), allow_nan=False)


@pytest.mark.slow
def test_a_promotion_by_workers_certifies_what_one_in_this_process_does(
    hands: list[Hands], capsys: pytest.CaptureFixture[str]
) -> None:
    """And a certificate that workers made holds in this process."""
    pruned = "promote:\n  pruner: hyperband"
    folder = a_run([adam(), ASCENT], change=lambda text: text.replace("promote:", pruned))
    found_ = []
    for count in ("0", "3"):
        for name in ("promotion.json", "certificate.json"):
            (folder / name).unlink(missing_ok=True)
        line = f"promote found --workers {count} --storage {url(Path(), count)}"
        assert cli.main(line.split()) == 0, capsys.readouterr().err
        found_.append(read(folder))
    for part in ("outcome", "candidates", "contests", "statistics", "simplification", "curve", "statement"):
        assert found_[0][part] == found_[1][part]
    assert {each["terms"]["pruner"] for each in found_[0]["contests"]} == {"hyperband"}
    assert len(hands) == 1
    sessions = [each["sessions"] for each in found_]
    assert [[len(session["workers"]) for session in each] for each in sessions] == [[0], [1]]  # all of one kind
    assert sessions[1][0]["workers"][0] == {key: sessions[0][0][key] for key in ("versions", "hardware")}
    assert found_[1]["commands"][1].endswith(f"--storage {url(Path.cwd(), '3')} --workers 3")
    assert cli.main(["verify", "found", "--workers", "0", "--sample", "9"]) == 0
    assert cli.main(["verify", "found", "--workers", "2", "--sample", "9"]) == 0
    assert len(hands) == 2
    assert cli.main(["promote", "found", "--prune", "median", "--workers", "0"]) == 0
    assert "was pruned by 'hyperband'; it stays so" in capsys.readouterr().out


def test_a_contest_that_is_kept_as_json_has_its_request_and_pruner_again() -> None:
    made = ContestTerms("x", {"quadratic": 2}, 3, 5, 1, 2, 2, 0.1, False, 0, pruner="wilcoxon", request=(("GPU", 0.5),))
    kept = Contest.of(json.loads(json.dumps(Contest(made, ("a",), ("b",)).plain())))
    assert kept.terms == made
    older = Contest(made, ("a",), ("b",)).plain()
    del older["terms"]["request"], older["terms"]["pruner"]
    assert Contest.of(older).terms == replace(made, request=CORE, pruner="none")
    assert ask_of(made, contender("adamw"), "quadratic").request == (("GPU", 0.5),)


def test_comparisons_and_calibrations_by_workers_are_those_of_this_process(hands: list[Hands]) -> None:
    options = compare.Options(trials=4, seeds=4, tunings=2, tuning_seeds=1, steps=10)
    Path("small.yaml").write_text(
        "operators: [add]\ntasks: {search: [quadratic], select: [breast_cancer]}\n"
        "rungs: [{tasks: [quadratic], steps: 10}, {tasks: [quadratic], steps: 12}]\n"
    )
    judged, calibrated = [], []
    for staff in (0, 3):
        shop = Workshop(Store(None), Keeper(None), staff=Staff(staff))
        asked = compare.select(["muon", "torch.optim:SGD"], None, ["breast_cancer", "quadratic"], options)
        compare.carry_out(asked, shop, compile=False)
        judged.append((compare.judged(asked), asked.strides))
        small = calibrate.Options(trials=2, seeds=4, tuning_seeds=1)
        found_ = calibrate.prepare(Space.load("small.yaml"), small, ["sgd", "lion", "adagrad"])
        calibrate.carry_out(found_, shop, compile=False)
        calibrated.append(found_.results)
    assert judged[0] == judged[1]
    assert calibrated[0] == calibrated[1]
    assert list(calibrated[0]) == ["quadratic, 10 steps", "quadratic, 12 steps", "breast_cancer"]


def test_runs_are_trained_again_by_workers_as_here(hands: list[Hands]) -> None:
    runs = tuple(Run({"lr": 0.01 * (1 + i)}, i) for i in range(5))
    works = [
        TrainRuns(name, {"text": dsl.format(dsl.load(name))}, Site(task, 6, compile=False), runs, (3,))
        for name in ("adamw", "lion")
        for task in ("quadratic", "breast_cancer")
    ]
    here, there = (list(Workshop(Store(None), Keeper(None), staff=Staff(staff)).done(works)) for staff in (0, 2))
    assert here == there
    assert all(isinstance(each, Trained) and len(each.traces) == 5 for each in here)
    lost = replace(works[0], site=Site("nothing", 6))
    for staff in (0, 2):
        with pytest.raises(UserError, match="unknown task 'nothing'"):
            list(Workshop(Store(None), Keeper(None), staff=Staff(staff)).done([lost]))


def test_verify_by_workers_finds_what_verify_in_this_process_finds(
    hands: list[Hands], monkeypatch: pytest.MonkeyPatch
) -> None:
    found_ = contest(0)
    workshop = Workshop(Store(None), Keeper(None), staff=Staff(2))
    names = [(0, task, name) for task, row in found_.results.items() for name in row]
    places = [again.Place(*each, 0, 0) for each in names]
    rules = {"good": dsl.format(dsl.load("adam")), "bad": CRIPPLED.replace("- lr", "+ lr"), "crippled": CRIPPLED}
    data = {
        "contests": [{"rules": {name: {"text": text} for name, text in rules.items()}}],
        "data": {task: tasks.load(task).data_sha256 for task in found_.results},
    }
    assert again.retrain(data, [found_], places, "", workshop) == again.Again()
    changed = found_.results["quadratic"]["good"]
    changed[0] = replace(changed[0], losses=(0.9 * changed[0].losses[0],))
    other = again.retrain(data, [found_], places, "", workshop)
    assert other.largest == pytest.approx(-math.log(0.9))
    assert (len(other.problems), other.loose) == (1, 0)
    changed[0] = replace(changed[0], losses=(0.99 * changed[0].losses[0] / 0.9,))
    elsewhere = {"versions": {**this_machine()["versions"], "numpy": "1.0"}, "hardware": {}}
    monkeypatch.setattr("discover.pieces.this_machine", lambda: elsewhere)
    strange = again.retrain(data, [found_], places, "", workshop)
    assert (strange.problems, strange.loose) == ([], len(places))
    assert [reason.endswith("and 1.0 on a worker") for reason in strange.reasons] == [True]


# Where a rung is trained --------------------------------------------------------------------------------------------

GPU: Request = (("CPU", 1.0), ("GPU", 1.0))
RUNG = PromotionRung(steps=1.0, resources={"GPU": 1.0}, here={"steps": 9})  # type: ignore[arg-type]


def placed(staff: Staff, rung: PromotionRung = RUNG) -> tuple[Place, Any, str]:
    workshop = Workshop(Store(None), Keeper(None), staff=staff)
    try:
        place = workshop.place(rung.request)
        return place, *fitted(rung, place)
    finally:
        workshop.close()


@pytest.mark.parametrize("staff", [Staff(0), Staff(2)])
def test_a_machine_without_a_gpu_trains_at_the_size_given_for_it_and_says_so(
    staff: Staff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    place, sizes, line = placed(staff)
    assert (place.request, place.device, sizes.steps) == (CORE, "cpu", 9)
    assert line == "no GPU on this machine: trained on the CPU, at the size given for it (`here`)"
    *_, line = placed(staff, RUNG.model_copy(update={"here": None}))
    assert line == "no GPU on this machine: trained on the CPU, at full size (it has no `here`)"


def test_a_cluster_whose_torch_sees_its_gpu_trains_on_it(hands: list[Hands], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces.Look, "carry_out", lambda self: ("NVIDIA H100",))
    place, sizes, line = placed(Staff(None, "head:6379"))
    assert (place.request, place.device, sizes.steps, line) == (GPU, "cuda", 1.0, "on NVIDIA H100")
    assert [crew.crew.requests for crew in hands] == [(GPU,)]


def test_a_worker_that_has_no_gpu_refuses_what_shall_be_trained_on_one(hands: list[Hands]) -> None:
    for staff in (0, 1):
        shop = Workshop(Store(None), Keeper(None), staff=Staff(staff))
        work = TrainRuns("a", {"text": CRIPPLED}, Site("quadratic", 4, device="cuda"), (Run({}, 0),), ())
        with pytest.raises(UserError, match="quadratic: shall be trained on cuda, and torch sees no GPU on "):
            list(shop.done([work]))


@pytest.mark.parametrize("compiler", [True, False])
def test_what_is_compiled_is_said_before_it_is_and_once(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    cached: set[str] = set()

    def make(task: Task, **options: Any) -> Any:
        lines.append(f"made {task.spelling}")
        cached.add(task.spelling)
        return SimpleNamespace(gradient=SimpleNamespace(note=""))

    monkeypatch.setattr(artefact, "have_compiler", lambda: compiler)
    monkeypatch.setattr(gradient, "is_cached", lambda task, device: task.spelling in cached)
    monkeypatch.setattr(workshop_module, "Ground", make)
    shop = Workshop(Store(None), Keeper(None), say=lines.append)
    one = replace(asks(("adamw",))[0], task=tasks.load("breast_cancer"), compile=True)
    for ask in (one, replace(one, steps=7), replace(one, task=tasks.load("quadratic"), compile=False)):
        shop.ground(ask)
    said = ["compiling the gradient of breast_cancer, once, 5 to 40 s"] if compiler else []
    assert lines == [*said, "made breast_cancer", "made breast_cancer", "made quadratic"]


# On Ray ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> list[RayWorkers]:
    """The crews of Ray workers that a test starts."""
    crews: list[RayWorkers] = []

    def start(crew: Crew) -> RayWorkers:
        crews.append(RayWorkers(crew))
        return crews[-1]

    monkeypatch.setattr(workers, "start", start)
    return crews


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_ray_workers_come_to_what_this_process_comes_to_though_one_is_killed(
    count: int, crews: list[RayWorkers], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asks()
    killed: list[int] = []
    come_in = Workshop._come_in

    def kill(self: Workshop, crew: RayWorkers, *rest: Any) -> Any:
        busy = [each for pool in crew._pools.values() for each in pool.workers if each.jobs]
        if busy and not killed:
            killed.append(busy[0].process)
            os.kill(busy[0].process, signal.SIGKILL)
        return come_in(self, crew, *rest)

    monkeypatch.setattr(Workshop, "_come_in", kill)
    lines: list[str] = []
    workshop = Workshop(Store(None), Keeper(None), say=lines.append, staff=Staff(count))
    given = list(workshop.tuned(asked))
    workshop.close()
    assert found(given) == expected()
    assert any(line.startswith("a worker was lost") for line in lines)


@pytest.mark.slow
def test_a_comparison_whose_driver_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    line = "compare sgd --task breast_cancer --task quadratic --trials 20 --tunings 4 --steps 60 --seeds 4 --json"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment |= {"CXX": "no-such-compiler"}

    def start(where: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "discover.cli", *line.split(), "--storage", url(tmp_path, where), *more]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    process = start("one", "--workers", "2", "--out", "o1")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not made(tmp_path / "one.sqlite"):
        time.sleep(0.05)
    while time.monotonic() < deadline and sum(map(len, stored(url(tmp_path, "one")).values())) < 20:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = stored(url(tmp_path, "one"))
    assert sum(map(len, before.values())) >= 20
    results = []
    for where, count in (("one", "2"), ("two", "0")):
        out, err = start(where, "--workers", count, "--out", f"o-{where}").communicate(timeout=240)
        data = json.loads(out or pytest.fail(err))
        rows = {task: {n: c["tunings"] for n, c in row["contenders"].items()} for task, row in data["tasks"].items()}
        results.append((rows, data["words"]))
    assert results[0] == results[1]
    after = stored(url(tmp_path, "one"))
    assert all(after[name][: len(trials)] == trials for name, trials in before.items())
    assert after == stored(url(tmp_path, "two"))


def made(path: Path) -> bool:
    """Whether a store has its tables, and the row that is written last: Optuna makes what is missing, also for who only
    reads."""
    if not path.exists():
        return False
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        try:
            return bool(file.execute("select 1 from alembic_version").fetchall())
        except sqlite3.OperationalError:  # no such table yet
            return False


@pytest.mark.slow
def test_on_a_cluster_rungs_get_what_is_there_and_say_what_is_not(
    crews: list[RayWorkers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        Path("/tmp/ray/ray_current_cluster").unlink(missing_ok=True)  # no other Ray of this machine shall join it
        cluster.add_node(num_cpus=1, num_gpus=1, resources={"fast": 1}, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        staff = Staff(None, cluster.address)
        place, sizes, line = placed(staff)  # Ray counts a GPU; torch sees none
        assert (place.request, place.device, sizes.steps) == (CORE, "cpu", 9)
        assert line.startswith(
            "no GPU that torch sees on the nodes that have one: trained on the CPU, at the size given"
        )
        assert crews[0].room == {GPU: 1}
        held: list[float] = []
        done = Workshop.done

        def watched(self: Workshop, works: Any) -> Any:
            """How much of the GPU is free while a worker that asked for it is there."""
            found = list(done(self, works))
            deadline = time.monotonic() + 20
            while (free := crews[-1]._ray.available_resources().get("GPU", 0.0)) and time.monotonic() < deadline:
                time.sleep(0.1)
            held.append(free)
            return iter(found)

        with monkeypatch.context() as patched:
            patched.setattr(Workshop, "done", watched)
            place, sizes, line = placed(staff, Space.load("gpu").promote.rungs[-1])
        assert (place.request, sizes.tasks, held) == (CORE, ("gpt",), [0.0])
        assert "at the size given for it (`here`)" in line
        place, _, line = placed(staff, RUNG.model_copy(update={"resources": {"TPU": 4.0}}))
        assert (place.request, line) == (
            CORE,
            "no node of the cluster has TPU: trained on the CPU, at the size given for it (`here`)",
        )
        fast = RUNG.model_copy(update={"resources": {"fast": 1.0}})
        place, sizes, line = placed(staff, fast)
        assert (place.request, sizes.steps, line) == (fast.request, 1.0, "")
        workshop = Workshop(Store(None), Keeper(None), staff=staff)
        asked = [replace(each, request=place.request) for each in asks(("adamw",))]
        assert found(list(workshop.tuned(asked))) == found(answers(0, asked))
        workshop.close()
        assert crews[-1].crew.requests == (fast.request,)
    finally:
        cluster.shutdown()


# The command line -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "compare lion --task quadratic --ray-address localhost:1",
            "--ray-address localhost:1: no Ray cluster answers",
        ),
        ("compare lion --task quadratic --runtime-env x.yaml", "--runtime-env is for the workers of a cluster"),
        ("compare lion --task quadratic --workers -1", "'--workers'"),
        (
            "calibrate --space lion_like --prune wilcoxon",
            "tuning seeds: 2, expected at least 5 for the pruner wilcoxon",
        ),
        ("promote last --prune best", "'best' is not one of"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_left(
    line: str, message: str, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    code = cli.main(line.split())
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(home.rglob("compare-*"))


def test_without_options_workers_are_those_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert cli_options.staff_of(None, None, None) == Staff(3)
    assert cli_options.staff_of(0, None, None) == Staff(0)
    assert cli_options.staff_of(None, "head:1", None) == Staff(None, "head:1")
