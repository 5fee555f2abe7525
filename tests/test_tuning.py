"""Laws of tuning: one budget for all, optima are found wherever they lie, and a kill changes no result."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import optuna_dashboard
import pytest
import torch

import tasks
from discover import memory, pruning, tuning
from discover.asks import Ask, Job, evenly
from discover.contenders import Contender, contender
from discover.errors import UserError
from discover.keeper import Keeper, StoppedError
from discover.lanes import Trace
from discover.ledger import Notes
from discover.ranges import dimensions
from discover.storage import Store, as_typed, default_url, public_url
from discover.studies import Study, Tuned, TuningBudget
from discover.trainers import Ground
from discover.tuning import advance, tune
from discover.workshop import Staff, Workshop
from tasks import Task
from tests.stored import dying
from tests.test_reference import Known

ROOT = Path(__file__).parent.parent
SMALL = TuningBudget(trials=6, seeds=1, fresh=2)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path / "data"))
    yield
    torch.set_num_threads(before)


@cache
def ground(task: str = "breast_cancer", steps: int = 10) -> Ground:
    return Ground(tasks.load(task), steps=steps, compile=False)


@cache
def named(name: str) -> Contender:
    return contender(name)


def tuned(
    name: str, budget: TuningBudget = SMALL, seeds: tuple[int, ...] = (0,), url: str | None = None, **options: Any
) -> list[Tuned]:
    store = Store(url)
    try:
        return tune(named(name), options.pop("ground", None) or ground(), budget, seeds, store, **options)
    finally:
        store.close()


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'studies.sqlite'}"


def trials(where: str) -> dict[str, list[optuna.trial.FrozenTrial]]:
    return {
        name: optuna.load_study(study_name=name, storage=where).trials for name in optuna.get_all_study_names(where)
    }


# What is found ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octaves", [-6.0, -3.5, -0.4, 0.0, 2.3, 5.5])
def test_the_best_learning_rate_is_found_inside_the_range_or_beyond_it(octaves: float) -> None:
    best = 0.1 * 2**octaves
    here = Ground(Known(best), compile=False)
    found = tuned("adamw", TuningBudget(trials=36, seeds=1, fresh=2), (0, 1, 2), ground=here)
    for each in found:
        assert abs(math.log2(each.hypers["lr"] / best)) < 0.5
        assert not each.at_edge


EDGES: dict[str, tuple[float, TuningBudget, bool]] = {
    "beyond": (14.0, TuningBudget(20, 1, 1), True),
    "beyond, the last batch cut short": (14.0, TuningBudget(13, 1, 1), True),
    "beyond, one trial in the middle": (14.0, TuningBudget(1, 1, 1), False),
    "below": (-14.0, TuningBudget(20, 1, 1), True),
    "inside": (0.0, TuningBudget(20, 1, 1), False),
    "in what it was extended to": (6.0, TuningBudget(36, 1, 1), False),
    "beyond, pruned": (14.0, TuningBudget(18, 2, 1, pruner="median"), True),
    "inside, pruned": (0.0, TuningBudget(18, 2, 1, pruner="median"), False),
}
"""Where the best is, in octaves from the middle; trials; whether the best of them lies at the edge."""


@pytest.mark.parametrize(("octaves", "budget", "edge"), EDGES.values(), ids=EDGES)
def test_a_best_learning_rate_at_the_end_of_what_the_last_trials_were_offered_is_at_the_edge(
    octaves: float, budget: TuningBudget, edge: bool, tmp_path: Path
) -> None:
    here = Ground(Known(0.1 * 2**octaves), compile=False)
    (found,) = tuned("adamw", budget, ground=here, url=url(tmp_path))
    ((_, stored),) = trials(url(tmp_path)).items()
    offered: Any = stored[-1].distributions["lr"]
    place = math.log(found.hypers["lr"] / offered.low) / math.log(offered.high / offered.low)
    assert found.at_edge == edge == (not 0.1 <= place <= 0.9)
    for count in range(0, len(stored), 5):  # whole batches, and parts of one
        study = Study(named("adamw"), here, budget, 0, Notes(stored[:count], {}))
        while advance([study]):
            pass
        assert study.result() == found


def test_weight_decay_and_none_are_both_found() -> None:
    with_decay = tuned(
        "adamw", TuningBudget(trials=36, seeds=1, fresh=2), (0, 1), ground=Ground(Known(0.1, 0.3), compile=False)
    )
    without = tuned(
        "adamw", TuningBudget(trials=36, seeds=1, fresh=2), (0, 1), ground=Ground(Known(0.1, 0.0), compile=False)
    )
    assert all(0.05 < each.hypers["weight_decay"] < 1 for each in with_decay)
    assert all(each.hypers["weight_decay"] < 0.05 for each in without)


def test_fresh_seeds_have_no_say_in_tuning_and_no_study_shares_a_seed() -> None:
    task = Known()
    here = Ground(task, compile=False)
    found = tuned("adamw", SMALL, (0, 1, 7), ground=here)
    fresh = [seed for each in found for seed in each.seeds]
    tuning_seeds = {study * 1000 + i for study in (0, 1, 7) for i in range(SMALL.seeds)}
    assert len(set(fresh)) == 3 * SMALL.fresh
    assert not tuning_seeds & set(fresh)
    assert {seed for seed in task.seeds if seed >= 500 or seed in tuning_seeds} == tuning_seeds | set(fresh)
    for each in found:
        assert each.losses == pytest.approx(
            [1 + s / 1000 + (each.losses[0] - 1 - each.seeds[0] / 1000) for s in each.seeds], rel=1e-4
        )


# One budget for all -------------------------------------------------------------------------------------------------


def test_all_have_the_same_number_of_trials_and_of_model_steps(tmp_path: Path) -> None:
    names = ("adamw", "sgd", "muon", "torch.optim:AdamW", "torch.optim:Adagrad")
    budget = TuningBudget(trials=7, seeds=2, fresh=3)
    found = {name: tuned(name, budget, (0, 1), url=url(tmp_path)) for name in names}
    planned = ground().steps * budget.planned
    stored = trials(url(tmp_path))
    assert [len(each) for each in stored.values()] == [7] * 2 * len(names)
    lost = {name: any(t.user_attrs["run"]["lost"] for t in each) for name, each in stored.items()}
    for name, both in found.items():
        assert [each.trials for each in both] == [7, 7]
        if not any(lost[study] for study in lost if study.startswith(f"{name} on")):
            assert [each.model_steps for each in both] == [planned, planned]
    assert sum(each.model_steps == planned for both in found.values() for each in both) >= 4


def test_ranges_are_the_same_for_all_in_units_of_their_steps() -> None:
    here = ground("digits_mlp")
    reference = dimensions(named("adamw"), here, own=False)
    for name in ("sgd", "lion", "muon", "torch.optim:AdamW", "pytorch_optimizer:SOAP"):
        stride = here.stride(named(name))
        for mine, theirs in zip(dimensions(named(name), here, own=False), reference, strict=True):
            unit = 1 / stride if mine.name == "lr" else stride
            assert (mine.low, mine.high) == (
                pytest.approx(theirs.low * unit, rel=1e-5),
                pytest.approx(theirs.high * unit, rel=1e-5),
            )
    assert reference[0].low * reference[0].high == pytest.approx(here.task.learning_rate**2)


def test_two_implementations_of_a_rule_are_offered_the_same_settings(tmp_path: Path) -> None:
    for name in ("adamw", "torch.optim:AdamW"):
        tuned(name, SMALL, (3,), url=url(tmp_path))
    ours, theirs = ([trial.params for trial in each] for each in trials(url(tmp_path)).values())
    assert ours == theirs


def test_own_hyperparameters_are_tuned_in_the_second_half_if_asked(tmp_path: Path) -> None:
    dims = {each.name: each for each in dimensions(named("adamw"), ground(), own=True)}
    assert list(dims) == ["lr", "weight_decay", "beta1", "beta2", "eps"]
    assert (dims["beta2"].label, dims["beta2"].low, dims["beta2"].high) == ("1 - beta2", 1e-4, 1e-2)
    assert (dims["eps"].low, dims["eps"].high) == (pytest.approx(1e-11), pytest.approx(1e-5))
    assert [each.name for each in dimensions(named("muon"), ground(), own=True)] == [
        "lr",
        "weight_decay",
        "momentum",
        "adam_lr_ratio",
        "beta1",
        "beta2",
        "eps",
    ]
    (found,) = tuned("adamw", TuningBudget(trials=12, seeds=1, fresh=2, own=True), url=url(tmp_path))
    ((_, stored),) = trials(url(tmp_path)).items()
    assert ["1 - beta1" in trial.params for trial in stored] == [False] * 6 + [True] * 6
    assert all(0 < trial.user_attrs["run"]["hypers"]["beta2"] < 1 for trial in stored[6:])
    assert set(found.hypers) == set(dims)
    assert {tuple(trial.user_attrs["run"]["hypers"]) for trial in stored} == {tuple(dims)}  # whoever is beside it


def test_a_trial_moves_three_own_hyperparameters_at_once_and_leaves_the_others_as_in_the_best(tmp_path: Path) -> None:
    budget = TuningBudget(trials=24, seeds=1, fresh=2, own=True)
    tuned("muon", budget, url=url(tmp_path))
    ((_, stored),) = trials(url(tmp_path)).items()
    own = [each.label for each in dimensions(named("muon"), ground(), own=True)[2:]]
    assert len(own) == 5
    moved = set()
    for place in range(12, 24):
        before = stored[: place - place % budget.batch]
        best = min(before, key=lambda trial: trial.value).params
        mine = {label: value for label, value in stored[place].params.items() if label in own}
        changed = {label for label in mine if mine[label] != best.get(label)}
        assert len(changed) == 3
        assert mine.keys() == changed | (best.keys() & set(own))
        moved |= changed
    assert moved == set(own)


def test_optuna_dashboard_shows_the_studies(tmp_path: Path) -> None:
    tuned("adamw", url=url(tmp_path))
    app = optuna_dashboard.wsgi(url(tmp_path))

    def asked(path: str) -> Any:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        status: list[str] = []
        body = b"".join(app(environ | {"PATH_INFO": path}, lambda line, *_: status.append(line)))
        assert status == ["200 OK"]
        return json.loads(body)

    (summary,) = asked("/api/studies")["study_summaries"]
    assert summary["study_name"].startswith("adamw on breast_cancer, 10 steps, 6 trials x 1, tuning 0")
    shown = asked(f"/api/studies/{summary['study_id']}")["trials"]
    (stored,) = trials(url(tmp_path)).values()
    assert [each["values"] for each in shown] == [[trial.value] for trial in stored]


# Determinism, reuse, kills ------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    one, two = tuned("adamw", seeds=(0, 1))
    assert [one, two] == tuned("adamw", seeds=(0, 1))
    assert [two] == tuned("adamw", seeds=(1,))
    assert one.hypers != two.hypers


def test_what_was_tuned_before_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuned("adamw", url=url(tmp_path), curve=[5])
    monkeypatch.setattr(tuning, "train", lambda *_, **__: pytest.fail("trained"))
    assert tuned("adamw", url=url(tmp_path), curve=[5]) == first
    fewer = TuningBudget(SMALL.trials, SMALL.seeds, fresh=1)
    assert tuned("adamw", fewer, url=url(tmp_path), curve=[5])[0].losses == first[0].losses[:1]


@pytest.mark.parametrize("name", ["adamw", "schedule_free_adamw", "torch.optim:AdamW"])
def test_fresh_seeds_are_trained_once_however_few_of_the_points_of_their_curve_are_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = (evenly(10, 20), (), evenly(10, 5), (7,))
    alone = [tuned(name, seeds=(0, 1), curve=curve) for curve in curves]
    assert [each.steps for each, _ in alone] == list(curves)
    assert tuned(name, seeds=(0, 1), url=url(tmp_path), curve=curves[0]) == alone[0]
    monkeypatch.setattr(tuning, "train", lambda *_, **__: pytest.fail("trained"))
    for curve, expected in zip(curves, alone, strict=True):
        assert tuned(name, seeds=(0, 1), url=url(tmp_path), curve=curve) == expected


def test_nothing_that_is_stored_of_fresh_seeds_makes_way_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(replace(SMALL, fresh=4), ()), (SMALL, (3, 6)), (SMALL, (5,)), (replace(SMALL, fresh=1), (2, 3, 6))]
    found = [tuned("adamw", budget, url=url(tmp_path), curve=curve) for budget, curve in asked]
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "train", lambda *_, **__: pytest.fail("trained"))
        for (budget, curve), expected in zip(asked, found, strict=True):
            (again,) = tuned("adamw", budget, url=url(tmp_path), curve=curve)
            assert (again.losses, again.curves) == (expected[0].losses, expected[0].curves)
    everything = replace(SMALL, fresh=4), (2, 3, 5, 6)
    assert tuned("adamw", everything[0], url=url(tmp_path), curve=everything[1]) == tuned(
        "adamw", everything[0], curve=everything[1]
    )
    store = Store(url(tmp_path))
    assert Study(named("adamw"), ground(), SMALL, 0, store).attributes["fresh"]["others"] == []
    store.close()


def test_the_curve_of_a_run_that_was_lost_goes_as_far_as_it_came_whichever_points_are_asked_for() -> None:
    study = Study(named("adamw"), ground(), SMALL, 0, Store(None))
    while advance([study]):
        pass
    study.store_fresh(
        [Trace(math.inf, 5, "rising", (3.0, 2.0)), Trace(0.2, 10, "", (4.0, 3.0, 2.0, 1.0))], (2, 4, 6, 8)
    )
    assert study.result((4, 8)).curves == ((2.0,), (3.0, 1.0))
    assert study.result((2,)).curves == ((3.0,), (4.0,))
    assert study.result((6,)).curves == ((), (2.0,))


def by_workers(seeds: tuple[int, ...], curve: tuple[int, ...], where: str) -> tuple[list[Tuned], int]:
    """As workers tune, and how many pieces of work it took."""
    store, pieces = Store(where), 0
    workshop = Workshop(store, Keeper(store.folder), staff=Staff(1))
    job = Job(Ask(named("adamw"), ground().task, 10, SMALL, seeds, curve, compile=False), workshop)
    waiting = list(job.start())
    while waiting:
        block, piece = waiting.pop()
        waiting += [(block, each) for each in job.record(block, piece.carry_out())]
        pieces += 1
    workshop.close()
    store.close()
    return job.answer().tunings, pieces


def test_workers_use_again_what_is_stored_of_fresh_seeds(tmp_path: Path) -> None:
    whole, several = evenly(10, 20), (0, 1)
    first, _ = by_workers((0,), whole, url(tmp_path))
    assert first == tuned("adamw", curve=whole)
    assert by_workers((0,), (5,), url(tmp_path)) == (tuned("adamw", curve=(5,)), 0)
    mixed, _ = by_workers(several, (5,), url(tmp_path))  # side by side: of one it is stored, of the other not
    assert mixed == tuned("adamw", seeds=several, curve=(5,))
    assert by_workers((0,), whole, url(tmp_path)) == (first, 0)
    assert by_workers(several, (), url(tmp_path)) == (tuned("adamw", seeds=several), 0)


def built(**changes: bool) -> Ground:
    """As a machine trains that has a compiler, and as one that has none."""
    here = Ground(ground().task, steps=10, compile=False)
    here.built = replace(here.built, **{"native": True, "compiled": False} | changes)
    return here


CHANGES = {
    "steps": {"ground": lambda: ground(steps=11)},
    "task": {"ground": lambda: ground("quadratic")},
    "variant": {"ground": lambda: ground("breast_cancer(batch_size=16)")},
    "optimizer": {"name": "adam"},
    "trials": {"budget": TuningBudget(5, 1, 2)},
    "tuning seeds": {"budget": TuningBudget(6, 2, 2)},
    "median": {"budget": TuningBudget(6, 1, 2, pruner="median")},
    "hyperband": {"budget": TuningBudget(6, 1, 2, pruner="hyperband")},
    "seed": {"seed": 1},
    "more is tuned": {"budget": TuningBudget(6, 1, 2, own=True)},
    "generated rules": {"ground": lambda: built(native=False)},
    "compiled gradients": {"ground": lambda: built(compiled=True)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_results_depend_on_makes_another_study(change: dict[str, Any]) -> None:
    options = {"name": "adamw", "budget": SMALL, "seed": 0, **change}
    here = options.pop("ground", built)()
    study = Study(named("adamw"), built(), SMALL, 0, Store(None))
    other = Study(named(options["name"]), here, options["budget"], options["seed"], Store(None))
    again = Study(contender("adamw"), built(), SMALL, 0, Store(None))
    assert study.name == again.name != other.name
    assert study.name.partition("[")[2] != other.name.partition("[")[2]


def test_a_store_of_an_older_format_opens_and_its_studies_are_left_alone(tmp_path: Path) -> None:
    store = Store(url(tmp_path))
    store.study("adamw on breast_cancer, 10 steps [0123456789ab]", {"format": 3})
    store.add("adamw on breast_cancer, 10 steps [0123456789ab]", optuna.trial.create_trial(value=0.1))
    store.close()
    assert tuned("adamw", url=url(tmp_path)) == tuned("adamw")
    assert sorted(len(each) for each in trials(url(tmp_path)).values()) == [1, SMALL.trials]


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("sqlite:///studies.sqlite", f"sqlite:///{Path.cwd() / 'studies.sqlite'}"),
        ("postgresql://me:secret@there/studies", "postgresql://me:***@there/studies"),
        ("postgresql://me@there/studies", "postgresql://me@there/studies"),
        ("mysql://there/studies", "mysql://there/studies"),
        ("sqlite+pysqlite:///studies.sqlite", f"sqlite:///{Path.cwd() / 'studies.sqlite'}"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("redis://:secret@there:6379", "redis://:***@there:6379"),
        ("postgresql://me:se@cret@there/db", "postgresql://me:***@there/db"),
        ("postgresql://me:secret@there:port/db", "postgresql://me:***@there:port/db"),
        ("postgres//me:secret@there/db", "postgres//me:***@there/db"),
        ("postgresql:///db?user=me&password=secret", "postgresql:///db?user=me&password=***"),
        ("postgresql://me:se/cret@there/db", "postgresql://me:***@there/db"),
        ("postgresql://me:se?cr@et@there/db?x=a@b", "postgresql://me:***@there/db?x=a@b"),
        ("postgresql://there:5432/db?x=a@b", "postgresql://there:***@b"),  # a password, as SQLAlchemy reads it
        ("postgresql://there:5432/db?x=a", "postgresql://there:5432/db?x=a"),
        ("mysql:///db?ssl_key_password=secret&x=1&PWD=secret", "mysql:///db?ssl_key_password=***&x=1&PWD=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
    ],
)
def test_a_storage_is_written_down_as_it_is_found_from_anywhere_and_without_its_password(url: str, public: str) -> None:
    assert public_url(url) == public


@pytest.mark.parametrize("given", [["--storage", "{}"], ["--storage={}"]])
def test_a_command_is_kept_without_the_password_of_its_storage(given: list[str]) -> None:
    typed = [
        "discover",
        "compare",
        "lion(lr=1e-4)",
        *(word.format("postgresql://me:secret@there/db") for word in given),
    ]
    kept = shlex.split(as_typed(typed))
    assert kept[:3] == typed[:3]
    assert [word.replace("***", "secret") for word in kept] == typed
    assert "secret" not in as_typed(typed)


def test_a_storage_that_cannot_be_opened_is_named_without_its_password() -> None:
    for address in ("127.0.0.1:1", "there:port"):
        with pytest.raises(UserError, match=rf"--storage postgresql://me:\*\*\*@{address}/db: ") as raised:
            Store(f"postgresql://me:secret@{address}/db")
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("after", [1, 5, 8])
def test_a_tuning_that_was_cut_short_anywhere_ends_as_if_it_had_not_been(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = TuningBudget(trials=6, seeds=2, fresh=2)
    (tmp_path / "whole").mkdir()
    expected = tuned("adamw", budget, (0, 1), url=url(tmp_path / "whole"), curve=[5])
    with monkeypatch.context() as patched:
        patched.setattr(Store, "add", dying(after))
        with pytest.raises(KeyboardInterrupt):
            tuned("adamw", budget, (0, 1), url=url(tmp_path), curve=[5])
    assert tuned("adamw", budget, (0, 1), url=url(tmp_path), curve=[5]) == expected
    ours, theirs = trials(url(tmp_path)), trials(url(tmp_path / "whole"))
    assert ours.keys() == theirs.keys()
    for name, some in ours.items():
        assert [trial.number for trial in some] == list(range(6))
        for mine, other in zip(some, theirs[name], strict=True):
            assert (mine.params, mine.value, mine.user_attrs) == (other.params, other.value, other.user_attrs)


KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
import tasks
from discover.contenders import contender
from discover.trainers import Ground
from discover.storage import Store
from discover.studies import TuningBudget
from discover.tuning import tune

add, count = Store.add, iter(range(100))

def dies(self, name, trial):
    add(self, name, trial)
    if next(count) == 6:
        os.kill(os.getpid(), signal.SIGKILL)

Store.add = dies
ground = Ground(tasks.load("breast_cancer"), steps=10, compile=False)
tune(contender("adamw"), ground, TuningBudget(trials=12, seeds=1, fresh=2), (0,), Store(sys.argv[1]))
"""


def test_a_killed_tuning_goes_on_to_the_same_end_and_counts_nothing_twice(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, url(tmp_path)], check=False, cwd=ROOT, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    ((_, before),) = trials(url(tmp_path)).items()
    assert len(before) == 7  # in the middle of a batch of two
    budget = TuningBudget(trials=12, seeds=1, fresh=2)
    assert tuned("adamw", budget, url=url(tmp_path)) == tuned("adamw", budget)
    ((_, after),) = trials(url(tmp_path)).items()
    assert [trial.number for trial in after] == list(range(12))
    assert [trial.params for trial in after[:7]] == [trial.params for trial in before]
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in after)


def test_a_tuning_that_is_asked_to_stop_stops_within_a_step_and_goes_on(tmp_path: Path) -> None:
    expected = tuned("muon", seeds=(0, 1))
    calls = iter(range(10**6))
    store = Store(url(tmp_path))
    keeper = Keeper(store.folder, stop=lambda: next(calls) == 25)
    with pytest.raises(StoppedError):
        tune(named("muon"), ground(), SMALL, (0, 1), store, keeper=keeper)
    assert next(calls) == 26
    assert tune(named("muon"), ground(), SMALL, (0, 1), store, keeper=Keeper(store.folder)) == expected
    store.close()
    assert store.folder is not None
    assert list(store.folder.iterdir()) == []


# Pruning ------------------------------------------------------------------------------------------------------------


PRUNED: dict[str, TuningBudget] = {
    "median": TuningBudget(trials=18, seeds=2, fresh=2, pruner="median"),
    "hyperband": TuningBudget(trials=18, seeds=2, fresh=2, pruner="hyperband"),
    "wilcoxon": TuningBudget(trials=18, seeds=6, fresh=2, pruner="wilcoxon"),
}


@pytest.mark.parametrize("name", ["adamw", "torch.optim:AdamW"])
@pytest.mark.parametrize("pruner", PRUNED)
def test_pruned_trials_are_dropped_counted_and_never_the_best(pruner: str, name: str, tmp_path: Path) -> None:
    budget = PRUNED[pruner]
    (found,) = tuned(name, budget, url=url(tmp_path))
    ((_, stored),) = trials(url(tmp_path)).items()
    pruned = [trial for trial in stored if trial.state == optuna.trial.TrialState.PRUNED]
    assert 0 < len(pruned) == found.pruned < 18
    assert all(trial.user_attrs["run"]["model_steps"] < budget.seeds * ground().steps for trial in pruned)
    assert found.model_steps < ground().steps * budget.planned
    best = min((t for t in stored if t not in pruned), key=lambda trial: trial.value or 0.0)
    assert found.hypers == best.user_attrs["run"]["hypers"]
    assert found.value == optuna.load_study(study_name=None, storage=url(tmp_path)).best_value


@pytest.mark.parametrize("pruner", PRUNED)
def test_the_same_trials_are_pruned_side_by_side_and_alone_and_after_a_stop(pruner: str, tmp_path: Path) -> None:
    budget = PRUNED[pruner]
    (tmp_path / "whole").mkdir()
    whole = tuned("adamw", budget, (0, 1), url=url(tmp_path / "whole"))
    calls = iter(range(10**6))
    store = Store(url(tmp_path))
    stopping = Keeper(store.folder, stop=lambda: next(calls) == 25)
    with pytest.raises(StoppedError):
        tune(named("adamw"), ground(), budget, (0,), store, keeper=stopping)
    store.close()
    assert tuned("adamw", budget, (0,), url=url(tmp_path)) == whole[:1]
    alone, both = trials(url(tmp_path)), trials(url(tmp_path / "whole"))
    for name, some in alone.items():
        assert [(t.state, t.params, t.value) for t in some] == [(t.state, t.params, t.value) for t in both[name]]


@pytest.mark.parametrize("name", ["adamw", "torch.optim:AdamW"])
@pytest.mark.parametrize("pruner", PRUNED)
def test_a_tuning_is_the_same_however_few_of_its_runs_fit_into_memory(
    pruner: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    side_by_side = tuned(name, PRUNED[pruner], (0, 1))
    monkeypatch.setattr(memory, "of_run", lambda *_: 10)
    for count in (1, 8):
        monkeypatch.setattr(memory, "room", lambda *_, count=count: 10 * count)
        assert (
            tuned(name, PRUNED[pruner], (0, 1), ground=Ground(ground().task, steps=10, compile=False)) == side_by_side
        )


def test_hyperband_looks_at_a_ninth_and_a_third_and_lets_a_third_go_on(tmp_path: Path) -> None:
    assert pruning.looks("hyperband", 90) == [10, 30]
    assert pruning.looks("hyperband", 10) == [1, 3]
    assert pruning.looks("hyperband", 2) == [1]
    (found,) = tuned("adamw", TuningBudget(trials=60, seeds=1, fresh=1, pruner="hyperband"), url=url(tmp_path))
    ((_, stored),) = trials(url(tmp_path)).items()
    lengths = [trial.user_attrs["run"]["model_steps"] for trial in stored]
    assert {1, 3, 10} == set(lengths)  # lost ones end elsewhere; of these none is
    assert lengths.count(1) > lengths.count(3) > 0
    at_first = [trial for trial in stored if "completed_rung_0" in trial.system_attrs]
    assert len(at_first) > 30
    assert found.pruned == len(stored) - lengths.count(10)


def test_wilcoxon_drops_what_is_worse_on_each_of_four_seeds_and_no_sooner(tmp_path: Path) -> None:
    task = Known()
    budget = TuningBudget(trials=12, seeds=7, fresh=1, pruner="wilcoxon")
    (found,) = tuned("adamw", budget, ground=Ground(task, compile=False), url=url(tmp_path))
    ((_, stored),) = trials(url(tmp_path)).items()
    seen = [len(trial.intermediate_values) for trial in stored]
    assert seen[: budget.batch] == [7] * budget.batch  # nothing to be worse than
    assert set(seen) == {4, 7}  # on this task seeds only shift the loss: what is worse is worse on all
    for number, (trial, count) in enumerate(zip(stored, seen, strict=True)):
        before = stored[: number - number % budget.batch]
        assert (count == 4) == (first_four(trial) > best_of(before))
    assert found.pruned == seen.count(4)


def first_four(trial: optuna.trial.FrozenTrial) -> float:
    return float(np.mean(list(trial.intermediate_values.values())[:4]))


def best_of(some: list[Any]) -> float:
    """What the best of some trials came to on its first four seeds."""
    done = [trial for trial in some if trial.state == optuna.trial.TrialState.COMPLETE]
    return first_four(min(done, key=lambda trial: trial.value)) if done else math.inf


def test_a_pruner_that_could_save_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="tuning seeds: 4, expected at least 5 for the pruner wilcoxon, which compares"):
        TuningBudget(seeds=4, pruner="wilcoxon")


# The store ----------------------------------------------------------------------------------------------------------


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    store = Store(url(tmp_path))
    with pytest.raises(UserError, match="another process writes there"):
        Store(url(tmp_path))
    store.close()
    Store(url(tmp_path)).close()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("sqlite:////proc/none/x.sqlite", "--storage sqlite:////proc/none/x.sqlite: cannot be written"),
        ("nonsense", "--storage nonsense: "),
        ("sqlite:///{folder}/text.sqlite", "file is not a database"),
    ],
)
def test_a_storage_that_cannot_be_is_one_line(where: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("not a database, and long enough to be looked at" * 30)
    with pytest.raises(UserError) as found:
        tuned("adamw", url=where.format(folder=tmp_path))
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_numbers_of_a_budget_are_checked() -> None:
    for numbers in ({"trials": 0}, {"seeds": 0}, {"seeds": 501}, {"fresh": 501}, {"fresh": 0}):
        with pytest.raises(UserError, match=r"expected 1 to"):
            TuningBudget(**numbers)


def test_the_user_has_one_file_for_studies(tmp_path: Path) -> None:
    assert default_url() == f"sqlite:///{tmp_path / 'data' / 'studies.sqlite'}"


def test_a_task_whose_losses_have_no_logarithm_is_refused() -> None:
    class Negative(Known):
        name = "negative"

        def validation_loss(self, parameters: Any) -> torch.Tensor:
            return super().validation_loss(parameters) * 0 - 1

    task: Task = Negative()
    with pytest.raises(UserError, match="ratios of losses above 0"):
        tuned("adamw", ground=Ground(task, compile=False))
