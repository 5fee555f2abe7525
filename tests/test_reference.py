"""Laws of references: AdamW's true optimum is found, tuning seeds score nothing, what is stored was run."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dsl
import tasks
from discover import cli, gradient, lanes, memory, reference
from discover.contenders import contender
from discover.errors import UserError
from discover.reference import EXTENSIONS, LEARNING_RATE_FACTOR, WEIGHT_DECAYS, GridBudget, calibrate
from discover.space import Space, names
from discover.trainers import Ground
from dsl import Program
from tasks import Batch, Parameter, Reference, Task, references

SMALL = GridBudget(trials=9, tuning_seeds=2, fresh_seeds=3)


class Known(Task):
    """AdamW's end is known: x, whose slope is -1, goes lr a step and decays; y, without slope, decays from 1.

    The held-out loss is least where x and y end as they do at `best`, and there it is 1 + seed / 1000.
    """

    name = "known"
    title = "a task with a known optimum"
    source = "made up"
    parameters = tuple(Parameter.constant(name, (1,), "vector") for name in ("x", "y", "seed"))
    batch_size = 2
    horizon = 10
    warmup = 2
    learning_rate = 0.1

    def __init__(self, learning_rate: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__((torch.zeros(4, 1),), (torch.zeros(4, 1),))
        self.seeds: list[int] = []
        self.x, self.y = 0.0, 1.0
        for t in range(1, self.horizon + 1):
            rate = learning_rate * self.lr_ratio(t)
            self.x, self.y = self.x * (1 - rate * weight_decay) + rate, self.y * (1 - rate * weight_decay)

    def initial(self, seed: int) -> Tensor:
        self.seeds.append(seed)
        return torch.tensor([0.0, 1.0, seed / 1000])

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        (zero,) = batch
        return (zero.mean(1) - parameters["x"]).squeeze(1)

    def validation_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        off = (parameters["x"] / self.x - 1).square() + (parameters["y"] - self.y).square()
        return (1 + 1e4 * off + parameters["seed"]).squeeze(1)


class Hopeless(Known):
    name = "hopeless"

    def validation_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return super().validation_loss(parameters) * math.nan


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run commands in, without a compiler, whose `package.json` stands for the package's references."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(references, "PATH", tmp_path / "package.json")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    code = cli.main(line.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def calibrated(task: Task, budget: GridBudget = SMALL) -> Reference:
    return calibrate(ground(task), budget)


def ground(task: Task) -> Ground:
    return Ground(task, compile=False, native=False)


# Tuning -----------------------------------------------------------------------------------------------------------

INSIDE = EXTENSIONS  # factors from the centre that a grid of three learning rates can reach, and see what is beyond


@pytest.mark.parametrize("decay", [*WEIGHT_DECAYS, 1.0, 10.0])
@pytest.mark.parametrize("factors", [-INSIDE, -2.5, -1, -0.5, 0, 0.5, 1, 3, INSIDE])
def test_the_true_optimum_is_found_inside_the_grid_or_beyond_its_edge(factors: float, decay: float) -> None:
    rate = 0.1 * LEARNING_RATE_FACTOR**factors
    if rate * decay >= 2:
        decay = 0.0  # decay would overshoot zero and grow: no optimum
    found = calibrated(Known(rate, decay))
    assert (found.learning_rate, found.weight_decay) == (pytest.approx(rate, rel=1e-5), decay)
    assert found.learning_rates[0] < found.learning_rate < found.learning_rates[-1]
    assert not found.at_edge
    assert found.trials == len(found.learning_rates) * len(found.weight_decays) >= 9


@pytest.mark.parametrize("factors", [-20, 20])
def test_the_grid_is_extended_so_often_and_no_further_and_says_so(factors: int) -> None:
    found = calibrated(Known(0.1 * LEARNING_RATE_FACTOR**factors, 0.0))
    assert found.at_edge
    assert len(found.learning_rates) == 3 + EXTENSIONS
    assert found.learning_rate in (found.learning_rates[0], found.learning_rates[-1])


def test_only_fresh_seeds_are_scored_and_none_of_them_tunes() -> None:
    task = Known()
    here = ground(task)
    task.seeds.clear()
    found = calibrate(here, SMALL)
    assert (len(found.tuning_seeds), len(found.fresh_seeds)) == (SMALL.tuning_seeds, SMALL.fresh_seeds)
    assert not {*found.tuning_seeds} & {*found.fresh_seeds}
    assert {*task.seeds} == {*found.tuning_seeds, *found.fresh_seeds}
    assert found.losses == pytest.approx([1 + seed / 1000 for seed in found.fresh_seeds])


def test_the_largest_number_of_tuning_seeds_stays_below_the_fresh_ones() -> None:
    most = next(count for count in range(1, 100_000) if not allowed(tuning_seeds=count + 1))
    assert most - 1 < min(calibrated(Known()).fresh_seeds)


def allowed(**numbers: int) -> bool:
    try:
        GridBudget(**numbers)
    except UserError:
        return False
    return True


def test_model_steps_are_those_told_of() -> None:
    told: list[tuple[int, int]] = []
    task = Known()
    found = calibrate(ground(task), SMALL, tell=lambda done, planned: told.append((done, planned)))
    assert found.model_steps == task.horizon * (found.trials * SMALL.tuning_seeds + SMALL.fresh_seeds)
    assert told[0][0] == 0
    assert told[-1] == (found.model_steps, found.model_steps)
    assert told == sorted(told)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", ["wine_classification", "digits_mlp(horizon=12)"])
def test_runs_that_do_not_fit_into_memory_train_in_groups_and_come_to_the_same(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, groups, train = tasks.load(name), [], lanes.train
    together = calibrated(task)

    def counted(task: Task, programs: Sequence[Program], some: Sequence[lanes.Lane], **more: Any) -> list[lanes.Trace]:
        groups.append(len(some))
        return train(task, programs, some, **more)

    monkeypatch.setattr(lanes, "train", counted)
    each = memory.of_run(contender("adamw"), task, task.horizon, ground(task).gradient.batch_bytes)
    monkeypatch.setattr(memory, "room", lambda device, among: size * each)
    assert calibrated(task) == together
    assert max(groups) == size
    assert sum(groups) == together.trials * SMALL.tuning_seeds + SMALL.fresh_seeds


def test_a_task_on_which_adamw_is_lost_has_no_reference() -> None:
    with pytest.raises(UserError, match=r"hopeless: AdamW is lost at all 9 settings, lr 0\.05 to 0\.2"):
        calibrated(Hopeless())


# What is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*tasks.names(), *tasks.variants()])
def test_every_built_in_task_states_its_reference(name: str) -> None:
    task, found = tasks.load(name), tasks.reference(name)
    assert found is not None
    assert found.steps == task.horizon
    assert found.stale == (found.data_sha256 != task.data_sha256)
    assert not {*found.tuning_seeds} & {*found.fresh_seeds}
    assert len(found.losses) == len(found.fresh_seeds) >= 12
    assert found.trials == len(found.learning_rates) * len(found.weight_decays) >= 27
    assert found.model_steps <= task.horizon * (found.trials * len(found.tuning_seeds) + len(found.fresh_seeds))
    assert found.learning_rates[0] < found.learning_rate < found.learning_rates[-1]
    assert found.weight_decay < found.weight_decays[-1]
    assert not found.at_edge
    logs = [math.log(loss) for loss in found.losses]
    assert found.loss == pytest.approx(math.exp(statistics.fmean(logs)), rel=1e-5)
    spread = statistics.stdev(logs) / math.sqrt(len(logs))
    assert found.standard_error == pytest.approx(found.loss * spread, rel=1e-4)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
    assert found.versions.keys() == {"python", "torch"}
    assert found.command.startswith(f"discover reference {shlex.quote(name)} ")


@pytest.mark.parametrize("name", names())
def test_every_task_of_a_shipped_space_has_a_reference(name: str) -> None:
    """But for those that are for a GPU alone: their rung has a smaller one for here, which must have it."""
    stored, space = references.read(references.PATH), Space.load(name)
    named = {task for split in space.tasks.sets.values() for task in split}
    named |= {task for where, task, _ in space.promote.tasks_of()}
    for_gpus = {task for rung in space.promote.rungs if rung.here and rung.here.tasks for task in rung.tasks}
    assert {task for task in named - for_gpus if tasks.load(task).spelling not in stored} == set()
    assert {tasks.load(task).size_class for task in for_gpus} <= {"medium", "large"}


def test_variants_with_a_reference_are_listed_below_their_task(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [row["task"] for row in json.loads(run(capsys, "list tasks --json")[1])]
    assert [name for name in listed if "(" in name] == [*tasks.variants()]
    for name in tasks.variants():
        before = listed[listed.index(name) - 1]
        assert before.partition("(")[0] == name.partition("(")[0]


def test_variants_with_a_small_and_with_a_large_batch_have_a_reference() -> None:
    batches = [tasks.load(name).batch_size / tasks.load(name.partition("(")[0]).batch_size for name in tasks.variants()]
    assert min(batches) <= 1 / 4
    assert max(batches) >= 4


def test_the_stored_file_is_as_the_command_writes_it() -> None:
    assert references.PATH.read_text(encoding="utf-8") == references.text(references.read(references.PATH))


@pytest.mark.parametrize("name", ["quadratic", "breast_cancer"])
def test_a_stored_loss_is_computed_again_from_its_setting_and_seed(name: str) -> None:
    task, found = tasks.load(name), tasks.reference(name)
    assert found is not None
    if found.stale:
        pytest.skip(f"{name} has other data here")
    hypers = {"lr": found.learning_rate, "weight_decay": found.weight_decay}
    some = [lanes.Lane(0, seed, hypers) for seed in found.fresh_seeds[:3]]
    built = gradient.build(task, compile=False)
    traces = lanes.train(task, [dsl.load("adamw")], some, steps=found.steps, gradient=built)
    assert [trace.loss for trace in traces] == pytest.approx(found.losses[:3], rel=1e-3)


def test_a_reference_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    one, two = calibrated(Known()), replace(calibrated(Known(0.2, 0.1)), task="dir/own task.py:Two")
    written = references.text({each.task: each for each in (one, two)})
    (tmp_path / "file.json").write_text(written, encoding="utf-8")
    assert references.read(tmp_path / "file.json") == {one.task: one, two.task: two}
    assert json.dumps(json.loads(written), sort_keys=True) == json.dumps(json.loads(written))
    assert max(written.count(f'"{field}":') for field in one.plain()) == 2


def test_other_data_or_another_horizon_make_a_reference_stale(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks.load("breast_cancer")
    fresh = replace(calibrated(Known()), data_sha256=task.data_sha256, steps=task.horizon)
    for changes in ({}, {"data_sha256": "0" * 64}, {"steps": 1}):
        references.PATH.write_text(references.text({"breast_cancer": replace(fresh, **changes)}))
        found = tasks.reference("breast_cancer")
        assert found is not None
        assert found.stale == bool(changes)
        _, out, _ = run(capsys, "list tasks")
        assert ("stale" in out) == bool(changes)
    assert tasks.reference("quadratic") is None


@pytest.mark.parametrize("loss", [0.0512345, 2.53, 123.4, 1.0])
@pytest.mark.parametrize("error", [0.0, 1.7e-4, 0.0028, 0.031, 4.0, 27.0])
def test_loss_and_error_are_printed_to_the_same_digit(loss: float, error: float) -> None:
    shown, said = references.loss_and_error(loss, error).split(" ±")
    assert float(said) == pytest.approx(error, rel=0.05)
    assert abs(float(shown) - loss) <= max(error, 1e-3 * loss) / 10
    assert not error or len(shown.partition(".")[2]) == len(said.partition(".")[2])


# The command ------------------------------------------------------------------------------------------------------

LOST = "\nfrom tests.test_reference import Hopeless\n\nclass Lost(Hopeless):\n    pass\n"
OWN = "from tests.test_reference import Known\n\nclass Mine(Known):\n    name = 'mine'\n"
FEW = "--trials 9 --tuning-seeds 1 --seeds 2"


def test_a_built_in_task_is_stored_and_the_others_keep_their_entries(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(calibrated(Known()), task="quadratic")
    references.PATH.write_text(references.text({"quadratic": other}))
    code, out, err = run(capsys, f"reference breast_cancer breast_cancer {FEW}")
    assert (code, err) == (0, "")
    assert f"stored in {references.PATH}" in out
    stored = references.read(references.PATH)
    assert stored.keys() == {"quadratic", "breast_cancer"}
    assert stored["quadratic"] == other
    assert str(stored["breast_cancer"]) in out
    assert stored["breast_cancer"].command == f"discover reference breast_cancer {FEW}"
    assert sorted(home.iterdir()) == [home / "cwd", home / "data", references.PATH]


def test_a_task_of_ones_own_is_printed_and_stored_only_where_asked(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(OWN)
    code, out, _ = run(capsys, f"reference own.py:Mine {FEW}")
    assert code == 0
    assert "not stored: own.py:Mine; --out FILE keeps it" in out
    assert not references.PATH.exists()
    code, out, _ = run(capsys, f"reference own.py:Mine breast_cancer {FEW} --out refs/mine.json")
    assert code == 0
    assert "stored in refs/mine.json" in out
    assert references.read(Path("refs/mine.json")).keys() == {"own.py:Mine", "breast_cancer"}
    assert not references.PATH.exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_done_is_stored_and_shown_whatever_becomes_of_the_next(
    as_json: bool, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(OWN + LOST)
    line = f"reference own.py:Mine breast_cancer own.py:Lost digits_mlp {FEW}{' --json' if as_json else ''}"
    code, out, err = run(capsys, line)
    assert code == 2
    assert err.splitlines()[-1].startswith("discover: own.py:Lost: AdamW is lost")
    assert references.read(references.PATH).keys() == {"breast_cancer"}
    if as_json:
        assert json.loads(out).keys() == {"own.py:Mine", "breast_cancer"}
    else:
        assert f"stored in {references.PATH}\nnot stored: own.py:Mine; --out FILE keeps it\n" in out


@pytest.mark.parametrize("trainings", [0, 1, 4])
def test_a_task_that_was_killed_goes_on_and_comes_to_the_same(
    trainings: int, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "reference quadratic --trials 9 --tuning-seeds 2 --seeds 2"
    train, calls = lanes.train, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == trainings + 1 and dying:
            raise KeyboardInterrupt  # as a kill: nothing of ours comes after it
        return train(*args, **options)

    dying = False
    monkeypatch.setattr(lanes, "train", counted)
    assert run(capsys, line)[0] == 0
    undisturbed, whole = references.PATH.read_text(), calls
    assert not list((home / "data").rglob("*.pt"))
    references.PATH.unlink()
    dying, calls = True, 0
    with suppress(KeyboardInterrupt):
        run(capsys, line)
    assert not references.PATH.exists()
    assert len(list((home / "data").rglob("*.pt"))) == trainings
    dying, calls = False, 0
    assert run(capsys, line)[0] == 0
    assert calls == whole - trainings
    assert references.PATH.read_text() == undisturbed
    assert not list((home / "data").rglob("*.pt"))


def test_it_trains_on_the_device_that_was_asked_for_and_the_command_says_so(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def here(task: Task, device: str) -> Ground:
        asked.append(device)
        return ground(task)

    monkeypatch.setattr(reference, "Ground", here)
    assert run(capsys, f"reference breast_cancer {FEW}")[0] == 0
    assert run(capsys, f"reference breast_cancer {FEW} --device cpu:0")[0] == 0
    assert asked == ["cpu", "cpu:0"]
    words = f"discover reference breast_cancer {FEW}"
    assert GridBudget(9, 1, 2).command("breast_cancer", torch.device("cpu")) == words
    assert GridBudget(9, 1, 2).command("breast_cancer", torch.device("cuda:1")) == f"{words} --device cuda:1"


@pytest.mark.parametrize("shortage", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_memory_that_runs_out_is_one_line(
    shortage: Exception, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise shortage

    monkeypatch.setattr(lanes, "train", full)
    code, _, err = run(capsys, f"reference quadratic {FEW}")
    assert (code, err.count("\n")) == (2, 1)
    assert re.match(r"discover: quadratic: out of memory \(.*Error.*\); take smaller batches", err)


def test_json_alone_stands_on_stdout(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, f"reference breast_cancer {FEW} --json")
    assert code == 0
    (entry,) = references.read(references.PATH).values()
    assert json.loads(out) == {"breast_cancer": entry.plain()}


def test_help_states_the_default_budget(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "reference --help")
    budget = GridBudget()
    for option, number in (
        ("--trials", budget.trials),
        ("--tuning-seeds", budget.tuning_seeds),
        ("--seeds", budget.fresh_seeds),
    ):
        assert re.search(rf"{option} .*by default {number}\.", out)


MISTAKES = {
    "unknown task": ("reference quadratc", "unknown task 'quadratc'; did you mean 'quadratic'?"),
    "one of two is unknown": ("reference breast_cancer none", "unknown task 'none'"),
    "missing task file": ("reference x.py:Net", "x.py: no such file"),
    "trials that make no grid": ("reference breast_cancer --trials 10", "--trials 10: expected a multiple of 3"),
    "too few trials": ("reference breast_cancer --trials 6", "at least 9"),
    "text for a number": ("reference breast_cancer --trials many", "'--trials'"),
    "no tuning seed": ("reference breast_cancer --tuning-seeds 0", "--tuning-seeds 0: expected 1 to 1000"),
    "one fresh seed": ("reference breast_cancer --seeds 1", "--seeds 1: expected at least 2"),
    "file that is not one of references": (
        "reference breast_cancer --out own.py",
        "own.py: is not a file of reference",
    ),
    "file of another version": ("reference breast_cancer --out later.json", "later.json: has format 2"),
    "folder": ("reference breast_cancer --out .", "cannot read '.': Is a directory"),
    "folder below a file": ("reference breast_cancer --out own.py/x", "cannot read 'own.py/x': Not a directory"),
    "folder that cannot be": ("reference breast_cancer --out /proc/x/y", "cannot write '/proc/x/y'"),
    "no such device": ("reference breast_cancer --device gpu", "--device gpu: Expected one of cpu"),
    "a device that is not there": ("reference breast_cancer --device xpu", "--device xpu: "),
    "task on which AdamW is lost": ("reference own.py:Lost", "own.py:Lost: AdamW is lost at all 27 settings"),
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_written(
    line: str, message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(LOST)
    Path("later.json").write_text('{"format": 2, "tasks": {}}')
    before = {path: path.read_text() for path in home.rglob("*") if path.is_file()}
    code, _, err = run(capsys, line)
    assert code == 2
    assert message in err
    assert err.startswith("discover: ")
    assert err.count("\n") == 1
    assert {path: path.read_text() for path in home.rglob("*") if path.is_file()} == before


def test_a_package_that_cannot_be_written_is_said_before_anything_is_trained(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "PATH", Path("/proc/none/references.json"))
    monkeypatch.setattr(lanes, "train", lambda *_, **__: pytest.fail("trained"))
    code, out, err = run(capsys, "reference breast_cancer")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"discover: cannot write '/proc/none/references.json': .*; --out FILE .*\n", err)


def test_damaged_references_are_said_by_the_list_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for damaged in ("", "[]", '{"format": 1}', '{"format": 1, "tasks": {"quadratic": {"loss": 1}}}'):
        references.PATH.write_text(damaged)
        for line in ("list tasks", "reference breast_cancer"):
            code, _, err = run(capsys, line)
            assert (code, err.count("\n")) == (2, 1)
            assert "package.json: is not a file of references" in err
