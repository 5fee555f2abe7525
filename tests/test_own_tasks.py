"""Laws of a user's own tasks in a run: no task is in two sets, under whatever name, and a run means the same from every
folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tasks
from discover import certificate, cli, own_files, promote, session, sets
from discover.contest import Contest, ContestTerms, hold
from discover.errors import SpaceError, UserError
from discover.keeper import StoppedError
from discover.promotion_keys import base_of
from discover.space import Space

PAGE = Path(__file__).parent.parent / "docs" / "own_model.md"
TUTORIAL = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
CRIPPLED = "def crippled(p, g, *, lr=0.1):\n    p = p - lr * mean(g)\n"
SPACE = """\
operators: [add, sign]
tasks: {search: SEARCH, select: SELECT, final: [diabetes_regression]}
rungs: [{tasks: SEARCH, steps: 5}]
proposals_per_generation: 4
learning_rates: {points: 3}
compile: never
promote:
  top: 1
  baselines: [crippled.rule]
  own: false
  checkpoints: 1
  incumbents: {steps: 8, trials: 2, tunings: 2, fresh: 1}
  rungs: [{steps: 12, trials: 3, fresh: 1, tunings: [2, 3], error_rate: 0.5}]
  simplify: {steps: 4, trials: 1, fresh: 1, tunings: 2, margin: 0.3}
  final: {steps: 12, trials: 3, fresh: 1, tunings: [2, 3], error_rate: 0.5}
"""
OTHER = """\
from tasks.wine_classification import WineClassification

class Wines(WineClassification):
    name = "wines"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the tutorial's file and a space that names files beside it, and no compiler."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path / "home"
    (folder / "below").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("DISCOVER_RUNS_DIR", raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("COLUMNS", "200")
    assert TUTORIAL is not None
    Path("my_task.py").write_text(TUTORIAL[1])
    Path("crippled.rule").write_text(CRIPPLED)
    yield folder
    torch.set_num_threads(before)


def a_space(select: str, search: str = "[quadratic]") -> str:
    Path("tiny.yaml").write_text(SPACE.replace("SEARCH", search).replace("SELECT", select))
    return "tiny.yaml"


def command(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, str, str]:
    code = cli.main([*line, "--workers", "0"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def searched(capsys: pytest.CaptureFixture[str], select: str, *more: str) -> str:
    line = ("search", "--space", a_space(select), "--candidates", "2", "--out", "run", *more)
    code, out, err = command(capsys, *line)
    assert code == 0, err
    return out


def read(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


# No task is in two sets -----------------------------------------------------------------------------------------------

SAME_FILE = (
    "my_task.py:task(horizon=8)",
    "{home}/my_task.py:task",
    "below/../my_task.py:task",
    "link.py:task",
    "{home}/my(2)/my_task.py:task(horizon=8)",
)


@pytest.mark.parametrize("name", SAME_FILE)
def test_one_file_is_one_task_however_its_path_is_written(name: str, home: Path) -> None:
    Path("link.py").symlink_to("my_task.py")
    Path("my(2)").symlink_to(home)
    path = a_space(f"['{name.format(home=home)}']", "[my_task.py:task]")
    with pytest.raises(SpaceError, match=r"is in search and in select.*; the three sets must be disjoint$") as error:
        Space.load(path)
    assert "\n" not in str(error.value)
    assert base_of(name.format(home=home)) == f"{home}/my_task.py:task"


def test_a_task_given_on_the_command_line_leaves_the_other_sets_and_that_is_said(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    Path("own.py").write_text(OTHER)
    out = searched(capsys, "['own.py:Wines(horizon=8)', breast_cancer]", "--task", "own.py:Wines(horizon=5)")
    assert "own.py:Wines(horizon=8) is searched on now, under some options, and left out of tasks.select\n" in out
    assert read("run/manifest.json")["configuration"]["space"]["tasks"] == {
        "search": [f"{home}/own.py:Wines(horizon=5)"],
        "select": ["breast_cancer"],
        "final": ["diabetes_regression"],
    }


COPIES = {
    "a copy": ("copy.py", "{text}", "task"),
    "a copy with other words and options": (
        "copy.py",
        "# mine\n{text}\ntask.horizon, task.batch_size = 7, 16\n",
        "task",
    ),
    "another name in it": ("my_task.py", "{text}\nother = task\n", "other"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_task_under_another_name_is_one_line_before_anything_is_trained(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, text, name = COPIES[kind]
    Path(file).write_text(text.format(text=Path("my_task.py").read_text()))
    space = a_space(f"['{file}:{name}']")
    code, _, err = command(capsys, "search", "--space", space, "--task", "my_task.py:task", "--out", "run")
    assert code == 2
    assert "are the same network, loss and data under two names; the sets must be disjoint" in err
    assert err.count("\n") == 1
    assert not Path("run").exists()


def test_a_built_in_task_in_a_users_class_is_that_task() -> None:
    Path("own.py").write_text(OTHER)
    with pytest.raises(UserError, match="'wine_classification' in select are the same network, loss and data"):
        session.configure(a_space("[wine_classification]"), own_tasks=["own.py:Wines"], workers=0)


CHANGES = {
    "another network": ("nn.Linear(144, 10)", "nn.Linear(144, 12)"),
    "another loss": ("nn.CrossEntropyLoss()", "nn.CrossEntropyLoss(label_smoothing=0.1)"),
    "other data": ("images.float()", "(images + 1).float()"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_task_is_another(change: tuple[str, str]) -> None:
    text = Path("my_task.py").read_text()
    assert change[0] in text
    Path("other.py").write_text(text.replace(*change))
    one, other = tasks.load("my_task.py:task"), tasks.load("other.py:task")
    assert sets.is_same(one, one)
    assert not sets.is_same(one, other)
    configuration = session.configure(a_space("[other.py:task]"), own_tasks=["my_task.py:task"], workers=0)
    assert len(configuration.space.tasks.select) == 1


def test_built_in_sets_are_not_made_to_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets.tasks, "load", lambda name: pytest.fail(f"made {name}"))
    sets.refuse_overlap(Space.load("lion_like").tasks.sets, "lion_like")


ONE_TASK = {
    "sizes": ("gpt", "gpt(size=360k)"),
    "the built-in data said": ("gpt(data=none)", "gpt(size=1m)"),
    "another reading of the text": ("gpt", "gpt(tokens=bpe)"),
    "sizes on other data": ("gpt(size=1m, data=shards)", "gpt(size=124m, data='shards')"),
    "an absolute path": ("gpt(data=shards)", "gpt(data={home}/shards)"),
    "a home": ("gpt(data=shards)", "gpt(data=~/shards)"),
    "steps back": ("gpt(data=shards)", "gpt(data=below/../shards)"),
    "a link": ("gpt(data=shards)", "gpt(data=linked)"),
    "a folder and what is in it": ("gpt(data=shards)", "gpt(data='linked/*.bin')"),
    "two groups of shards with the same held out": ("gpt(data='shards/*[1-3].bin')", "gpt(data=shards/train.bin)"),
    "a link to images": ("mnist_vit(data=cifar10:shards)", "mnist_vit(size=base, data=cifar10:linked)"),
    "images of another size": ("mnist_resnet(data=shards)", "mnist_resnet(data=shards, pixels=64)"),
    "a class of one's own": ("own.py:Net(data=shards)", "own.py:Net(data=below)"),
}
TWO_TASKS = {
    "the text and other data": ("gpt(size=1m)", "gpt(size=124m, data=shards)"),
    "two folders": ("gpt(data=shards)", "gpt(data=below)"),
    "MNIST and CIFAR-10": ("mnist_vit", "mnist_vit(data=cifar10:shards)"),
    "two networks on the same data": ("mnist_vit(data=shards)", "mnist_resnet(data=shards)"),
}


@pytest.fixture
def shards(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name, and a link to it."""
    Path("shards").mkdir()
    Path("linked").symlink_to("shards")
    monkeypatch.setenv("HOME", str(home))


def judged_on(one: str, other: str) -> Space:
    """A space that selects on one task, and ends with another."""
    split = {"search": ["quadratic"], "select": [one], "final": [other]}
    return Space.of({"name": "x", "operators": ["add"], "tasks": split, "rungs": [{"tasks": ["quadratic"]}]}, "x")


@pytest.mark.usefixtures("shards")
@pytest.mark.parametrize(("one", "other"), ONE_TASK.values(), ids=ONE_TASK)
def test_variants_that_read_the_same_data_are_one_task_however_that_is_written(
    one: str, other: str, home: Path
) -> None:
    other = other.format(home=home)
    with pytest.raises(SpaceError, match="is in select and in final"):
        judged_on(one, other)
    with pytest.raises(UserError, match="are variants of one task; the sets must be disjoint"):
        sets.refuse_overlap({"select": [one], "final": [other]}, "x")


@pytest.mark.usefixtures("shards")
@pytest.mark.parametrize(("one", "other"), TWO_TASKS.values(), ids=TWO_TASKS)
def test_variants_that_read_other_data_are_two_tasks(one: str, other: str) -> None:
    space = judged_on(one, other)
    sets.refuse_overlap(space.tasks.sets, "x")
    searched = space.with_tasks([one]).tasks
    assert (searched.select, searched.final) == ((), (other,))


@pytest.mark.usefixtures("shards")
def test_a_stage_trains_on_no_data_that_its_set_does_not_list() -> None:
    space = judged_on("gpt(size=1m, data=shards)", "gpt")
    assert space.changed({"promote": {"incumbents": {"tasks": ["gpt(data=linked)"]}}}).tasks == space.tasks
    with pytest.raises(SpaceError, match=r"promote\.incumbents\.tasks: 'gpt' is not among tasks\.select"):
        space.changed({"promote": {"incumbents": {"tasks": ["gpt"]}}})


# What a certificate may claim -----------------------------------------------------------------------------------------


def test_shared_data_are_named_with_how_the_networks_differ() -> None:
    names = ("digits_mlp", "digits_cnn", "digits_spikes", "diabetes_regression")
    facts = sets.facts_of(names)
    assert sets.shared(["diabetes_regression"], names[:3], *facts) == ""
    assert (
        sets.shared(["digits_cnn", "digits_spikes"], ["digits_mlp", "diabetes_regression"], *facts)
        == "same data, other network: digits_cnn with digits_mlp;"
        " same data, network of the same shapes: digits_spikes with digits_mlp"
    )


def test_data_that_lie_in_two_places_are_named_where_they_are_equal() -> None:
    for folder, last in (("shards", 9), ("copied", 9), ("others", 8)):
        Path(folder).mkdir()
        for part in ("train", "val"):
            np.array([1, 2, 3] * 100 + [last], dtype="<u2").tofile(f"{folder}/{part}.bin")
    shards, copied, others = (f"gpt(data={folder}, vocabulary=16)" for folder in ("shards", "copied", "others"))
    larger = "gpt(size=360k, data=copied, vocabulary=16)"
    facts = sets.facts_of(("gpt", shards, copied, larger, others))
    assert sets.shared([shards], ["gpt", others], *facts) == ""
    assert sets.shared([shards], ["gpt", larger], *facts) == f"same data, other network: {shards} with {larger}"
    assert sets.shared([shards], [copied], *facts) == f"same data, network of the same shapes: {shards} with {copied}"


# From every folder ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_own_tasks_is_promoted_and_verified_from_another_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """A task and a baseline are named in the YAML, and one task on the command line; then a file changes."""
    Path("own.py").write_text(OTHER)
    a_space("[own.py:Wines]")
    monkeypatch.chdir("below")
    code, _, err = command(capsys, "search", "--space", "../tiny.yaml", "--candidates", "2", "--out", "../run")
    assert code == 0, err
    manifest = read("../run/manifest.json")
    assert manifest["configuration"]["space"]["tasks"]["select"] == [f"{home}/own.py:Wines"]
    assert set(manifest["files"]) == {f"{home}/own.py", f"{home}/crippled.rule"}

    elsewhere = home / "else" / "where"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)

    def stopped(terms: ContestTerms, *rest: Any) -> Contest:
        if terms.name == "rung 1":
            raise StoppedError
        return hold(terms, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(promote, "hold", stopped)
        code, out, err = command(capsys, "promote", "../../run", "--task", "../../my_task.py:task")
        assert (code, "interrupted" in out) == (0, True), err
    code, out, err = command(capsys, "promote", "../../run")
    assert code == 0, err
    data = read("../../run/certificate.json")
    own = f"{home}/my_task.py:task"
    assert [each["terms"]["name"] for each in data["contests"]] == ["incumbents", "rung 1", "rung 2", "final"]
    assert list(data["contests"][2]["terms"]["tasks"]) == [own]
    assert {key: data["contests"][1]["terms"][key] for key in ("trials", "least", "most")} == {
        key: data["contests"][2]["terms"][key] for key in ("trials", "least", "most")
    }
    assert own in data["seen"]
    assert data["commands"][1].endswith(f"--top 1 --task {own} --workers 0")
    code, out, err = command(capsys, "verify", "../../run", "--sample", "4")
    assert code == 0, out
    assert "has changed" not in out

    changed = home / "my_task.py"
    changed.write_text(changed.read_text() + "# another line\n")
    code, out, err = command(capsys, "verify", "../../run", "--sample", "1")
    assert code == 0, err
    assert f"{changed}: has changed since the promotion" in out
    selected = home / "own.py"
    selected.write_text(OTHER + "# another line\n")
    code, out, err = command(capsys, "resume", "../../run", "--candidates", "3")
    assert code == 0, err
    assert f"{selected}: has changed since the run was made" in out + err
    Path("../../run/certificate.json").unlink()
    code, out, err = command(capsys, "promote", "../../run", "--task", "breast_cancer")
    assert code == 0, err
    assert f"{changed}: has changed since its promotion began" in out
    assert f"{selected}: has changed since the run was made" in out
    assert f"an earlier promotion of this run had as --task {own}; it stays so" in out


def test_a_further_rung_is_on_no_task_of_the_search_and_no_final_one(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text("from tasks.diabetes_regression import DiabetesRegression as Mine\n")
    searched(capsys, "[breast_cancer]", "--task", "my_task.py:task(horizon=5)")
    shutil.copy("my_task.py", "copy.py")
    for name, words in (
        ("quadratic(horizon=x)", "expected a whole number"),
        ("nothing.py:task", "no such file"),
        ("my_task.py:task", "in tasks.search are variants of one task"),
        ("copy.py:task", "in tasks.search are the same network, loss and data under two names"),
        ("diabetes_regression(horizon=9)", "in tasks.final are variants of one task"),
        ("own.py:Mine", "in tasks.final are the same network, loss and data under two names"),
    ):
        code, _, err = command(capsys, "promote", "run", "--task", name)
        assert (code, err.count("\n")) == (2, 1), err
        assert words in err, name
    assert not Path("run/promotion.json").exists()


# Files ----------------------------------------------------------------------------------------------------------------


def test_paths_are_anchored_and_prose_is_not() -> None:
    data = {"description": "see x.py: it", "a": ["b.rule", "adamw", {"c.py:D(e=1)": 2}], "text": "a.py:b\nc.rule"}
    assert own_files.anchored(data, Path("/x")) == {
        "description": "see x.py: it",
        "a": ["/x/b.rule", "adamw", {"/x/c.py:D(e=1)": 2}],
        "text": "a.py:b\nc.rule",
    }
    assert own_files.anchored(own_files.anchored(data, Path("/x")), Path("/y")) == own_files.anchored(data, Path("/x"))
    assert list(own_files.named(data)) == ["b.rule", "c.py"]


def test_a_run_whose_task_is_gone_is_resumed_by_no_traceback(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    Path("own.py").write_text(OTHER)
    searched(capsys, "[breast_cancer]", "--task", "own.py:Wines")
    Path("own.py").unlink()
    code, _, err = command(capsys, "resume", "run", "--candidates", "3")
    assert code == 2
    assert err.splitlines()[-1] == f"discover: cannot read '{home}/own.py': No such file or directory"


def test_a_file_that_is_gone_is_said_and_one_that_stayed_is_not() -> None:
    then = own_files.digests(["my_task.py", "crippled.rule", "never.py"])
    assert len(then) == 2
    Path("crippled.rule").unlink()
    (line,) = own_files.changed(then, "the run was made")
    assert line.endswith("crippled.rule: cannot be read any more; it was there when the run was made")


def test_a_statement_names_shared_data(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text("from tasks.digits_mlp import DigitsMLP\n\nclass Mine(DigitsMLP):\n    name = 'mine'\n")
    text = a_space("[breast_cancer]")
    Path(text).write_text(Path(text).read_text().replace("[diabetes_regression]", "[digits_autoencoder]"))
    line = ("search", "--space", text, "--candidates", "2", "--out", "run", "--task", "own.py:Mine")
    assert command(capsys, *line)[0] == 0
    code, out, err = command(capsys, "promote", "run")
    assert code == 0, err
    data = read("run/certificate.json")
    words = f"same data, other network: digits_autoencoder with {Path('own.py').absolute()}:Mine"
    assert f"final tasks: {words}" in out
    assert f"on 1 task that neither search nor selection saw ({words})" in data["statement"]
    assert certificate.statement(data) == data["statement"]
    older = {key: value for key, value in data.items() if key not in ("seen", "networks")}
    assert "same data" not in certificate.statement(older)
