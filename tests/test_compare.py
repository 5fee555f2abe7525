"""Laws of comparing: what is shown is what the fresh runs show, chance is not called better, and nothing is lost."""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dsl
import tasks
from discover import cli, compare, pictures, tuning, verdict
from discover.built import Built
from discover.compare import Options, carry_out, judged, select
from discover.contender_names import check_name
from discover.contenders import contender, fresh, spelled
from discover.contenders import made as made_again
from discover.errors import UserError
from discover.keeper import Keeper, StoppedError
from discover.registry import register
from discover.storage import Store
from discover.studies import Tuned
from discover.verdict import Verdict, judge, percent, words
from discover.workshop import Workshop
from tests.test_runs import made as made_run
from tests.test_sequence_tasks import write as write_shard

ROOT = Path(__file__).parent.parent
POINTS = (10, 20)
HERE = Built(compiled=False, native=True, on="a CPU")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to run commands in, without a compiler."""
    before = torch.get_num_threads()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("DISCOVER_RUNS_DIR", raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    torch.set_num_threads(before)


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    code = cli.main([*line.split(), "--workers", "0"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Verdicts -----------------------------------------------------------------------------------------------------------


def made(loss: Callable[[int, int], float], *, tunings: int = 6, seeds: int = 4) -> list[Tuned]:
    """Tunings that end at given losses, by tuning and seed; at half of the steps they are twice as high."""
    found = []
    for tuning_ in range(tunings):
        ends = [loss(tuning_, seed) for seed in range(seeds)]
        found.append(
            Tuned(
                seed=tuning_,
                hypers={"lr": 0.1, "weight_decay": 0.0},
                value=0.0,
                trials=20,
                pruned=0,
                at_edge=False,
                model_steps=1,
                horizon=40,
                steps=POINTS,
                seeds=tuple(range(seeds)),
                losses=tuple(ends),
                curves=tuple((4 * end, 2 * end) if math.isfinite(end) else () for end in ends),
                untrained=(100.0,) * seeds,
                built=(HERE,),
                fresh_built=HERE,
            )
        )
    return found


def noisy(mean: float, seed: int, tuning_noise: float = 0.02, seed_noise: float = 0.05) -> Callable[[int, int], float]:
    rng = np.random.default_rng(seed)
    logs = math.log(mean) + tuning_noise * rng.normal(size=(40, 1)) + seed_noise * rng.normal(size=(40, 40))
    return lambda t, s: float(np.exp(logs[t, s]))


def verdict_of(rows: Mapping[str, Mapping[str, list[Tuned]]], resamples: int = 300) -> Verdict:
    return judge(rows, "adamw", np.random.default_rng(0), resamples=resamples)


def test_a_clear_difference_is_called_and_its_size_is_right() -> None:
    rows = {
        task: {"adamw": made(noisy(1.0, i)), "lion": made(noisy(0.8, 10 + i)), "sgd": made(noisy(1.3, 20 + i))}
        for i, task in enumerate(("one", "two", "three"))
    }
    found = verdict_of(rows)
    assert [row["lion"].call for row in found.cells.values()] == ["better"] * 3
    assert [row["sgd"].call for row in found.cells.values()] == ["worse"] * 3
    assert found.overall["lion"].call == "better"
    assert found.overall["lion"].difference.value == pytest.approx(math.log(0.8), abs=0.03)
    assert found.overall["lion"].improvement.value > 0.95
    cell = found.cells["one"]["lion"]
    assert cell.loss.value == pytest.approx(0.8, abs=0.03)
    assert cell.loss.low < cell.loss.value < cell.loss.high
    assert cell.speed_up is not None
    assert cell.speed_up.value > 1
    assert found.cells["one"]["adamw"].p is None


def test_luck_of_seeds_and_of_tuning_is_not_called_a_difference() -> None:
    calls = []
    for trial in range(60):
        rows = {
            task: {
                name: made(noisy(1.0, hash((trial, i, j)) % 2**31), seeds=2)
                for j, name in enumerate(("adamw", "a", "b"))
            }
            for i, task in enumerate(("one", "two"))
        }
        found = verdict_of(rows, resamples=2)
        calls.append(any(row[name].call != "not shown" for row in found.cells.values() for name in ("a", "b")))
    assert sum(calls) <= 8  # of 60 families at a rate of 0.05: P(more) < 0.005


def test_tunings_not_seeds_are_what_is_independent() -> None:
    few = {"one": {"adamw": made(noisy(1.0, 1)), "a": made(noisy(1.0, 2))}}
    many = {"one": {name: made(noisy(1.0, 1 + (name == "a"), 0.05, 0.0), seeds=40) for name in ("adamw", "a")}}
    assert verdict_of(many).cells["one"]["a"].p == pytest.approx(
        verdict_of({"one": {n: made(noisy(1.0, 1 + (n == "a"), 0.05, 0.0), seeds=2) for n in ("adamw", "a")}})
        .cells["one"]["a"]
        .p
    )
    assert few.keys() == many.keys()


def test_a_difference_too_small_to_matter_is_not_called_however_sure() -> None:
    exact = made(noisy(1.0, 1))
    slightly = made(lambda t, s: noisy(1.0, 1)(t, s) * (1 + 1e-4 + 1e-7 * t))
    found = verdict_of({"one": {"adamw": exact, "twin": slightly}})
    cell = found.cells["one"]["twin"]
    assert cell.p is not None
    assert cell.p < 1e-6
    assert (cell.call, found.overall["twin"].call) == ("not shown", "not shown")
    same = verdict_of({"one": {"adamw": exact, "twin": exact}})
    assert same.cells["one"]["twin"].p == 1.0
    assert same.overall["twin"].improvement.value == 0.5


def test_where_test_and_mean_point_in_different_directions_nothing_is_called_over_all_tasks() -> None:
    steady, loose = (
        np.random.default_rng(3).normal(mean, spread, size=6) for mean, spread in ((-0.006, 0.0003), (0.05, 0.06))
    )
    exact = made(noisy(1.0, 1))
    rows = {
        task: {"adamw": exact, "a": made(lambda t, s, gaps=gaps: noisy(1.0, 1)(t, s) * math.exp(gaps[t]))}
        for task, gaps in (("steady", steady), ("loose", loose))
    }
    overall = verdict_of(rows).overall["a"]
    assert overall.p < 0.05  # for lower losses, by the steady task
    assert overall.difference.value > 1e-3
    assert overall.call == "not shown"
    (sentence,) = words(verdict_of(rows))
    assert "better than adamw on 1 of 2 tasks (steady)" in sentence
    assert "no difference shown" in sentence
    assert sentence.endswith("(what is sure on some tasks is outweighed on others).")


def test_lost_runs_count_as_untrained_and_are_counted() -> None:
    lost = made(lambda t, s: math.inf if s == 0 else 1.0)
    found = verdict_of({"one": {"adamw": made(noisy(1.0, 1)), "shaky": lost}})
    cell = found.cells["one"]["shaky"]
    assert (cell.lost, cell.runs, cell.call) == (6, 24, "worse")
    assert cell.loss.value == pytest.approx(100**0.25)
    assert verdict.log_curves(lost)[0, 0].tolist() == pytest.approx([math.log(100)] * 4)


def test_one_tuning_is_judged_by_its_seeds() -> None:
    one = {"one": {"adamw": made(noisy(1.0, 1), tunings=1, seeds=20), "a": made(noisy(0.8, 2), tunings=1, seeds=20)}}
    assert verdict_of(one).cells["one"]["a"].call == "better"
    assert verdict_of(one).overall["a"].difference.high < 0


def test_a_curve_that_is_ahead_all_the_way_is_faster() -> None:
    fast = made(lambda t, s: 0.5)
    found = verdict_of({"one": {"adamw": made(lambda t, s: 1.0), "fast": fast}})
    speed = found.cells["one"]["fast"].speed_up
    assert speed is not None
    assert speed.value == pytest.approx(2.0)  # at half of the steps it is where the other ends


@pytest.mark.parametrize(
    ("target", "steps"), [(200.0, 0), (4.0, 10), (2.0, 20), (math.sqrt(2), 30), (1.0, 40), (0.9, math.inf)]
)
def test_steps_to_a_loss_are_those_of_the_mean_curve(target: float, steps: float) -> None:
    found = verdict.reach(made(lambda t, s: 1.0), target, np.random.default_rng(0))
    assert [found.steps.value, found.steps.low, found.steps.high] == pytest.approx([steps] * 3)
    assert (found.reached, found.runs) == (24 if math.isfinite(steps) else 0, 24)


def test_a_loss_that_some_tunings_do_not_reach_has_an_open_interval() -> None:
    found = verdict.reach(made(lambda t, s: 0.8 if t < 4 else 1.2), 0.95, np.random.default_rng(0))
    assert (found.reached, found.runs) == (16, 24)
    assert 20 < found.steps.low < found.steps.value < 40 < found.steps.high == math.inf
    one = verdict.reach(made(lambda t, s: 0.8 if s < 2 else 1.2, tunings=1), 0.7, np.random.default_rng(0))
    assert (one.steps.value, one.steps.low, one.reached, one.runs) == (math.inf, math.inf, 0, 4)


@pytest.mark.parametrize(
    ("difference", "text"), [(-0.0347, "-3.4 %"), (0.0, "+0.00 %"), (0.0051, "+0.51 %"), (2.0, "+639 %"), (900, "+")]
)
def test_differences_are_said_in_percent(difference: float, text: str) -> None:
    assert percent(difference).startswith(text)


def test_words_say_on_which_tasks_and_when_nothing_is_shown() -> None:
    def row(factor: float, seed: int) -> dict[str, list[Tuned]]:
        return {"adamw": made(noisy(1.0, seed)), "lion": made(noisy(factor, seed + 50)), "twin": made(noisy(1.0, seed))}

    lion, twin = words(verdict_of({"a": row(0.7, 1), "b": row(0.7, 2), "c": row(1.0, 3), "d": row(0.8, 4)}))
    assert lion.startswith(
        "lion is better than adamw on 3 of 4 tasks (a, b, d); on the other no difference is shown. Over all tasks it is"
        " better: its loss is -"
    )
    assert twin.startswith(
        "twin and adamw: no difference shown on any single task. Over all tasks: no difference shown;"
    )
    mixed, _ = words(verdict_of({"a": row(0.7, 1), "b": row(1.5, 2)}))
    assert mixed.startswith(
        "lion is better than adamw on 1 of 2 tasks (a) and worse on 1 of 2 tasks (b). Tasks disagree; over all of them"
    )
    single, nothing = words(verdict_of({"a": row(0.7, 1)}))
    assert single == "lion is better than adamw on 1 of 1 tasks (a)."
    assert nothing.startswith("twin and adamw: no difference shown; its loss is +0.00 %")


def test_a_picture_is_drawn_of_any_number_of_tasks_and_of_lost_runs() -> None:
    for count in (1, 3):
        rows = {f"task {i}": {"adamw": made(noisy(1.0, i)), "a": made(lambda t, s: math.inf)} for i in range(count)}
        assert pictures.draw(rows, verdict_of(rows)).startswith(b"\x89PNG")


# The command --------------------------------------------------------------------------------------------------------

FEW = "--trials 3 --tunings 2 --tuning-seeds 1 --seeds 4 --steps 12"


def test_a_comparison_is_shown_written_and_not_trained_again(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"compare sgd lion --task breast_cancer --task digits_mlp {FEW} --json"
    code, out, err = run(capsys, f"{line} --out first")
    assert code == 0
    data = json.loads(out)
    assert Path("first/compare.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("first/compare.json").read_text()) == {k: v for k, v in data.items() if k != "folder"}
    assert list(data["tasks"]) == ["breast_cancer", "digits_mlp"]
    assert list(data["tasks"]["digits_mlp"]["contenders"]) == ["adamw", "sgd", "lion"]
    assert data["model_steps"] <= 2 * 3 * 2 * 12 * (3 + 2)
    for row in data["tasks"].values():
        for cell in row["contenders"].values():
            assert (len(cell["tunings"]), len(cell["tunings"][0]["losses"])) == (2, 2)
            assert cell["step_seconds"] > 0
        assert [row["contenders"][name]["state_bytes"] for name in ("sgd", "lion", "adamw")] == [0, 4, 8]
    for sentence in data["words"]:
        assert sentence in err
    assert "speed-up" in err
    assert len(data["words"]) == 2
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "train", lambda *_, **__: pytest.fail("trained"))
        code, out, _ = run(capsys, f"{line} --out second")
    again = json.loads(out)
    kept = [key for key in data if key not in ("date", "seconds", "folder", "tasks", "command")]
    assert {key: again[key] for key in kept} == {key: data[key] for key in kept}
    for task, row in data["tasks"].items():
        for name, cell in row["contenders"].items():
            assert again["tasks"][task]["contenders"][name] | {"step_seconds": 0} == cell | {"step_seconds": 0}


def test_the_verdict_is_that_of_the_runs_that_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, f"compare sgd --task digits_mlp {FEW} --out o --json")
    row = json.loads(out)["tasks"]["digits_mlp"]["contenders"]
    logs = {name: np.log([list(t["losses"]) for t in cell["tunings"]]) for name, cell in row.items()}
    difference = (logs["sgd"] - logs["adamw"]).mean()
    assert row["sgd"]["difference"]["value"] == pytest.approx(difference)
    assert row["sgd"]["loss"]["value"] == pytest.approx(math.exp(logs["sgd"].mean()))


def test_steps_to_a_stated_loss_on_token_shards_are_shown_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("shards").mkdir()
    write_shard(Path("shards/x_train_000001.bin"), [i % 64 for i in range(2000)], header=True)
    write_shard(Path("shards/x_val_000000.bin"), [i % 64 for i in range(200)], header=True)
    line = (
        "compare sgd --task gpt(data=shards,vocabulary=64) --trials 2 --tunings 2 --tuning-seeds 1 --seeds 2 --steps 12"
    )
    _, out, _ = run(capsys, f"{line} --out free --json")
    (row,) = json.loads(out)["tasks"].values()
    assert "to_target" not in row["contenders"]["adamw"]
    tunings = row["contenders"]["adamw"]["tunings"]
    target = math.exp(float(np.mean([math.log(min(each["curves"][0])) for each in tunings]))) * 1.0001
    code, out, err = run(capsys, f"{line} --out o --target {target} --json")
    assert code == 0
    assert f"to {target:g}: steps to that held-out loss" in err
    (row,) = json.loads(out)["tasks"].values()
    found = row["contenders"]["adamw"]["to_target"]
    assert 0 < found["steps"]["value"] < 12
    assert (found["runs"], found["reached"] >= 1) == (2, True)
    assert f" {found['steps']['value']:.0f} (" in err
    assert json.loads(Path("o/compare.json").read_text())["options"]["target"] == target
    _, out, err = run(capsys, f"{line} --out never --target 0.001 --json")
    (row,) = json.loads(out)["tasks"].values()
    assert row["contenders"]["sgd"]["to_target"]["steps"]["value"] is None
    assert err.count("not reached") == 2


def test_another_baseline_and_a_class_of_torch_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, f"compare torch.optim:SGD --baseline sgd --task breast_cancer {FEW} --json --out o")
    assert code == 0
    data = json.loads(out)
    assert data["baseline"] == "sgd"
    assert data["overall"]["torch.optim:SGD"]["call"] == "not shown"
    assert re.match(r"torch.optim:SGD and sgd: no difference shown; its loss is [+-]0.00 %", data["words"][0])
    there = data["contenders"]
    assert dsl.parse(there["sgd"]["text"]) == dsl.load("sgd")
    assert there["sgd"]["from"] == {"built in": "sgd"}
    package = {"class": "torch.optim:SGD", "package": f"torch {metadata.version('torch')}"}
    assert there["torch.optim:SGD"] == {"text": "torch.optim:SGD", "from": package}


def test_an_optimizer_of_another_package_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, f"compare pytorch_optimizer:SOAP --task breast_cancer {FEW} --out o --json")
    assert code == 0, err
    data = json.loads(out)
    soap = data["contenders"]["pytorch_optimizer:SOAP"]["from"]
    assert soap == {
        "class": "pytorch_optimizer:SOAP",
        "package": f"pytorch_optimizer {metadata.version('pytorch-optimizer')}",
    }
    cell = data["tasks"]["breast_cancer"]["contenders"]["pytorch_optimizer:SOAP"]
    assert cell["lost"] == 0
    assert max(each["losses"][0] for each in cell["tunings"]) < cell["tunings"][0]["untrained"][0]


def test_the_model_of_the_tutorial_is_compared_on(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
    assert "discover compare last@1 adamw lion --task my_task.py:task" in page
    (text,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    Path("my_task.py").write_text(text)
    line = "compare adamw lion --task my_task.py:task --trials 2 --tunings 2 --tuning-seeds 1 --seeds 2 --steps 5"
    code, out, err = run(capsys, f"{line} --out o --json")
    assert code == 0, err
    ((name, row),) = json.loads(out)["tasks"].items()
    assert name == "my_task.py:task" or name.endswith("/my_task.py:task")
    assert {each: cell["runs"] for each, cell in row["contenders"].items()} == {"adamw": 2, "lion": 2}
    assert f"{name}, 5 steps" in err


def test_a_contender_says_where_it_comes_from(home: Path) -> None:
    made_run("runs/alpha", trained=4)
    register(dsl.load("lion"), "my_lion")
    Path("x.rule").write_text(dsl.format(dsl.load("lion")))
    for text, origin in (
        ("last@2", {"run": "alpha", "rank": 2, "candidate": 3}),
        ("x.rule", {"file": str(home / "cwd" / "x.rule")}),
        ("my_lion", {"registered": "my_lion"}),
        ("clip_global(adamw)", {"composition": "clip_global(adamw)"}),
        ("muon(adam_lr_ratio=1)", {"built in": "muon", "settings": {"adam_lr_ratio": 1}}),
        ("last@2(lr=0.2)", {"run": "alpha", "rank": 2, "candidate": 3, "settings": {"lr": 0.2}}),
        ("x.rule(beta1=0.8)", {"file": str(home / "cwd" / "x.rule"), "settings": {"beta1": 0.8}}),
        ("my_lion(beta1=0.8)(beta2=0.9)", {"registered": "my_lion", "settings": {"beta1": 0.8, "beta2": 0.9}}),
        ("clip_global(my_lion(beta1=0.8), max_norm=2)", {"composition": "clip_global(my_lion(beta1=0.8), max_norm=2)"}),
        (
            "cautious(last@2)",
            {"composition": "cautious(last@2)", "of": {"last@2": {"run": "alpha", "rank": 2, "candidate": 3}}},
        ),
    ):
        assert contender(text).origin == origin
        assert contender(contender(text).name).fingerprint == contender(text).fingerprint
    Path("own.py").write_text("import torch\nclass Mine(torch.optim.SGD): ...\n")
    origin = dict(contender("own.py:Mine").origin)
    assert origin["class"] == "own.py:Mine"
    assert origin["package"] == hashlib.sha256(Path("own.py").read_bytes()).hexdigest()


SETTINGS = {
    "muon(adam_lr_ratio=1)": "muon",
    "ema_nesterov(adamw, gamma=0.9)": "ema_nesterov(adamw)",
    "torch.optim:SGD(momentum=0.9)": "torch.optim:SGD",
    "torch.optim:AdamW(beta2=0.95)": "torch.optim:AdamW",
}


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_make_another_contender_under_the_name_that_was_given(text: str) -> None:
    """Of other results, then, and one that workers and certificates make again from what is kept of it."""
    one = contender(text)
    assert one.name == text
    assert one.fingerprint != contender(SETTINGS[text]).fingerprint
    again = made_again(text, json.loads(json.dumps(spelled(one))))
    assert (again.name, again.fingerprint, again.defaults) == (text, one.fingerprint, one.defaults)
    assert again.ranges == contender(SETTINGS[text]).ranges
    check_name(text)


def test_a_setting_that_is_the_default_already_changes_nothing() -> None:
    assert contender("adamw(beta1=0.9)").fingerprint == contender("adamw").fingerprint
    assert contender("torch.optim:SGD(momentum=0)").fingerprint == contender("torch.optim:SGD").fingerprint


def test_a_class_gets_its_settings_and_what_is_tuned_before_them() -> None:
    task = tasks.load("quadratic")
    parameters = fresh(task, task.initial(0))
    adam = contender("torch.optim:Adam(beta2=0.95, eps=1e-6)")
    assert adam.defaults["beta2"] == 0.95
    group = adam.optimizer(task, parameters, {"lr": 0.1}).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.9, 0.95), 1e-6)
    assert adam.optimizer(task, parameters, {"beta2": 0.9}).param_groups[0]["betas"] == (0.9, 0.9)
    Path("own.py").write_text(
        "import torch\nclass Mine(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=1e-3, every=5):\n"
        "        super().__init__(params, lr)\n        self.every = every\n"
    )
    mine: Any = contender("own.py:Mine(every=7)").optimizer(task, parameters, {})
    assert (mine.every, type(mine.every)) == (7, int)


def test_a_class_that_was_made_from_a_rule_takes_the_settings_of_a_rule() -> None:
    one = contender("discover.optim:Muon(adam_lr_ratio=1)")
    assert one.fingerprint == contender("muon(adam_lr_ratio=1)").fingerprint


def test_a_comparison_of_settings_tunes_them_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """What is set is where tuning starts from; another default is another tuning."""
    few = FEW.replace("--trials 3", "--trials 6")
    line = f"compare lion(beta1=0.6) --baseline lion --task breast_cancer {few} --tune-all --json --out o"
    code, out, _ = run(capsys, line)
    assert code == 0
    data = json.loads(out)
    there = data["contenders"]["lion(beta1=0.6)"]
    assert dsl.parse(there["text"]).defaults == {**dsl.load("lion").defaults, "beta1": 0.6}
    assert there["from"] == {"built in": "lion", "settings": {"beta1": 0.6}}
    cells = data["tasks"]["breast_cancer"]["contenders"]
    assert list(cells) == ["lion", "lion(beta1=0.6)"]
    tuned = [dict(each["hypers"]) for each in cells["lion(beta1=0.6)"]["tunings"]]
    assert all(0 < each.get("beta1", 0.6) < 1 for each in tuned)
    assert data["words"][0].startswith("lion(beta1=0.6) ")


def test_the_two_means_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, f"compare sgd --task breast_cancer {FEW} --out o")
    assert code == 0
    assert "vs: the loss relative to adamw's, by the same means." in out
    assert "In the sentences above: the interquartile mean" in out


def test_a_comparison_that_was_stopped_goes_on_to_the_same_verdict() -> None:
    options = Options(trials=4, seeds=4, tunings=2, tuning_seeds=1, steps=12)

    def comparison(store: Store, **hooks: Any) -> Verdict:
        asked = select(["muon"], None, ["breast_cancer"], options)
        carry_out(asked, Workshop(store, Keeper(store.folder, **hooks)), compile=False)
        return judged(asked)

    expected = comparison(Store(None))
    url = "sqlite:///studies.sqlite"
    for at in (3, 30, 60):
        store, calls = Store(url), iter(range(10**6))
        with pytest.raises(StoppedError):
            comparison(store, stop=lambda calls=calls, at=at: next(calls) == at)
        store.close()
    store = Store(url)
    assert comparison(store) == expected
    store.close()


def test_ctrl_c_ends_it_with_what_there_is_and_exit_code_0(home: Path) -> None:
    line = "compare sgd --task breast_cancer --trials 60 --tunings 20 --storage sqlite:///s.sqlite --out o --json"
    command = [sys.executable, "-m", "discover.cli", *line.split(), "--workers", "0"]
    path = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(home), "CXX": "no-such-compiler"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=path)
    began = time.monotonic()
    while not stored() and time.monotonic() - began < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out) == {"interrupted": True, "storage": "sqlite:///s.sqlite"}
    assert "the same command goes on" in err
    assert not Path("o").exists()


def stored() -> int:
    """Trials in s.sqlite so far."""
    try:
        with closing(sqlite3.connect("file:s.sqlite?mode=ro", uri=True)) as there:
            return int(there.execute("SELECT COUNT(*) FROM trials").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


MISTAKES = {
    "a seed of promotion's": ("compare lion --seed 1000000", "--seed 1000000: expected 0 to 999999"),
    "no rule": ("compare", "Missing argument 'RULE...'"),
    "unknown rule": ("compare lionn", "unknown rule 'lionn'; did you mean 'lion'?"),
    "wrapper alone": ("compare ema_nesterov", "takes a rule; write ema_nesterov(adamw)"),
    "twice": ("compare lion lion", "'lion' is given twice"),
    "baseline alone": ("compare adamw", "'adamw' is all there is to compare"),
    "unknown baseline": ("compare lion --baseline adamm", "unknown rule 'adamm'"),
    "unknown module": ("compare torch.optm:AdamW", "there is no module 'torch.optm' here"),
    "unknown class": ("compare torch.optim:AdamWW", "torch.optim has no 'AdamWW'; did you mean"),
    "needs a closure": ("compare torch.optim:LBFGS --task quadratic", "needs a closure"),
    "unknown task": ("compare lion --task digts_mlp", "unknown task 'digts_mlp'; did you mean 'digits_mlp'?"),
    "missing task file": ("compare lion --task x.py:Net", "x.py: no such file"),
    "no trials": ("compare lion --trials 0", "trials: 0, expected 1 to"),
    "too few seeds": ("compare lion --seeds 3", "--seeds 3: expected at least 6"),
    "no tuning": ("compare lion --tunings 0", "--tunings 0: expected 1 to 100"),
    "no steps": ("compare lion --steps 0", "--steps 0: expected at least 1"),
    "no target": ("compare lion --target 0", "--target 0: expected a loss above 0"),
    "unknown pruner": ("compare lion --prune best", "'best' is not one of"),
    "too few seeds for the pruner": ("compare lion --prune wilcoxon", "tuning seeds: 2, expected at least 5 for the"),
    "unknown device": ("compare lion --device gpu", "--device gpu: "),
    "text for a number": ("compare lion --trials many", "'--trials'"),
    "storage that is none": ("compare lion --task quadratic --storage nonsense", "--storage nonsense: "),
    "out below a file": ("compare lion --task quadratic --out file/x", "cannot make the folder 'file/x'"),
    "missing run": ("compare nothing@1", "no run 'nothing'"),
    "missing run with settings": ("compare nothing@1(lr=1)", "no run 'nothing'"),
    "unknown setting": ("compare muon(adam_lr=1)", "has no hyperparameter 'adam_lr'; did you mean 'adam_lr_ratio'?"),
    "setting out of range": ("compare lion --baseline muon(lr=9)", "lr=9 is outside of the range that rule 'muon'"),
    "unknown setting of a class": (
        "compare torch.optim:SGD(momentun=1)",
        "torch.optim:SGD(momentun=1): has no argument 'momentun' that is a number; did you mean 'momentum'?",
    ),
    "a setting that is no number": ("compare torch.optim:SGD(nesterov=True)", "is set to a number"),
    "a setting that a class refuses": (
        "compare torch.optim:SGD(momentum=-1) --task quadratic",
        "Invalid momentum value",
    ),
    "a rule in a class": ("compare torch.optim:SGD(adamw)", "a class takes settings, name=number, and no 'adamw'"),
    "a class in a rule": ("compare cautious(torch.optim:SGD)", "unknown rule 'torch.optim:SGD'"),
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_written(
    line: str, message: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "train", lambda *_, **__: pytest.fail("trained"))
    Path("file").write_text("mine")
    code, out, err = run(capsys, line)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("discover: ")
    assert err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_where_memory_runs_out_that_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")

    monkeypatch.setattr(tuning, "train", short)
    code, _, err = run(capsys, "compare lion --task quadratic --tunings 1 --trials 2 --steps 4")
    assert code == 2
    (line,) = err.splitlines()
    assert "quadratic, 1 tunings: out of memory (RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB)" in line
    assert "smaller batches" in line


def test_help_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "compare --help")
    defaults = Options()
    for option in ("trials", "seeds", "tunings", "tuning_seeds"):
        assert re.search(rf"--{option.replace('_', '-')} .*by default {getattr(defaults, option)}\.", out), option
    assert len(compare.TASKS) == 4
    with pytest.raises(UserError):
        Options(seeds=1, tunings=1)
