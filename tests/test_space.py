"""A search space is read strictly: what is wrong is said in one line, with the file, the key and what was expected."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from discover.durations import format_duration, parse_duration
from discover.errors import SpaceError, UserError
from discover.space import DIRECTORY, Rung, Space, names
from discover.yaml_reader import read_yaml
from tasks import library

ROOT = Path(__file__).parent.parent

SMALL = """\
operators: [add, sign]
tasks: {search: [a, b], select: [c], final: [d]}
rungs: [{tasks: [a]}]
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str) -> Space:
    Path("small.yaml").write_text(text)
    return Space.load("small.yaml")


# What is wrong ----------------------------------------------------------------------------------------

BAD = {
    "unknown operator": ("operators: [sgn]", "operators: unknown operator 'sgn'; did you mean 'sign'?"),
    "operator twice": ("operators: [add, add]", "operators: 'add' is listed twice"),
    "no operators": ("operators: []", "operators: expected at least 1 entries, not []"),
    "unknown key": ("opperators: [add]", "unknown key 'opperators'; did you mean 'operators'?"),
    "unknown key of a warm start": (
        "warm_starts: {soap: {require: {max_slotz: 6}}}",
        "warm_starts.soap: require: unknown key 'max_slotz'; did you mean 'max_slots'?",
    ),
    "unknown nested key": ("mutation: {inserts: 1.0}", "mutation: unknown key 'inserts'; did you mean 'insert'?"),
    "unknown key in a list": (
        "rungs: [{tasks: [a], step: 0.5}]",
        "rungs[0]: unknown key 'step'; did you mean 'steps'?",
    ),
    "text for a number": ("max_statements: many", "max_statements: expected a whole number, not 'many'"),
    "fraction for a count": ("lag: 1.5", "lag: expected a whole number, not 1.5"),
    "number for a list": ("operators: 3", "operators: expected a list, not 3"),
    "number for text": ("description: 3", "description: expected text, not 3"),
    "text for a truth": ("require: {odd: perhaps}", "require.odd: expected true or false, not 'perhaps'"),
    "list for keys": ("evolution: [200, 2]", "evolution: expected keys and values, not [200, 2]"),
    "too small": ("proposals_per_generation: 0", "proposals_per_generation: expected at least 1, not 0"),
    "not finite": ("learning_rates: {factor: .inf}", "learning_rates.factor: expected a finite number, not inf"),
    "no such choice": ("compile: maybe", "compile: expected auto, always or never, not 'maybe'"),
    "no such extent": ("slots: [diagonals(m)]", "slots: 'diagonals(m)': unknown extent 'diagonals'"),
    "a slot named as the gradient": ("slots: [m, g]", "slots: 'g' is the gradient; a slot needs a name of its own"),
    "a slot named as the step": ("slots: [rows(t)]", "slots: 't' is built into the language"),
    "a slot named as a hyperparameter": ("slots: [lr]", "slots: 'lr' is a hyperparameter of every program"),
    "a slot named as the ancestor's": ("slots: [beta1]", "slots: 'beta1' is a hyperparameter of the ancestor adamw"),
    "a slot named as an operator": ("slots: [sign]", "slots: 'sign' is an operator"),
    "a slot named as the count of steps": (
        "slots: [m, step]",
        "slots: 'step' is the count of steps in an optimizer's state; a slot needs a name of its own",
    ),
    "a slot named as generated code": ("slots: [math]", "slots: 'math' is a name that generated code uses itself"),
    "a slot named as a word": ("slots: [lambda]", "slots: 'lambda' is a word of Python"),
    "a slot named as a value in between": ("slots: [x1]", "slots: 'x1' is what a value in between is called"),
    "a slot twice": ("slots: [m, rows(m)]", "slots: 'm' is listed twice"),
    "no fitness": ("objectives: [state_bytes]", "objectives: expected fitness first, not state_bytes"),
    "interval upside down": ("loss_scales: [10.0, 1.0]", "loss_scales: expected [lowest, highest], not [10, 1]"),
    "interval of three": ("loss_scales: [1.0, 2.0, 3.0]", "loss_scales: expected at most 2 entries"),
    "duration": ("budget: {time: soon}", "budget.time: 'soon' is not a duration; write 90s, 10m, 2h or 1h30m"),
    "one step": ("rungs: [{tasks: [a], steps: 1}]", "rungs[0].steps: 1 is neither a number of steps"),
    "steps beyond the horizon": ("rungs: [{tasks: [a], steps: 1.5}]", "rungs[0].steps: 1.5 is neither"),
    "steps as text": ("rungs: [{tasks: [a], steps: all}]", "rungs[0].steps: expected a whole number of steps or"),
    "tournament": ("evolution: {population: 2, tournament: 3}", "tournament 3 is larger than the population of 2"),
    "no mutation": (
        "mutation: {insert: 0, delete: 0, argument: 0, operator: 0, constant: 0}",
        "mutation: at least one kind of change needs a weight above 0",
    ),
    "overlapping tasks": (
        "tasks: {search: [a], final: [a]}",
        "tasks: 'a' is in search and in final; the three sets must be disjoint",
    ),
    "rung on another set": ("rungs: [{tasks: [c]}]", "rungs[0].tasks: 'c' is not among tasks.search"),
    "a search task misspelt": (
        "tasks: {search: [digits_mpl]}\nrungs: [{tasks: [digits_mlp]}]",
        "tasks.search: unknown task 'digits_mpl'; did you mean 'digits_mlp'?",
    ),
    "a search task's variant misspelt": (
        "tasks: {search: [digits_mpl(horizon=9)]}\nrungs: [{tasks: [digits_mlp(horizon=9)]}]",
        "tasks.search: unknown task 'digits_mpl(horizon=9)'; did you mean 'digits_mlp(horizon=9)'?",
    ),
    "a select task misspelt": (
        "tasks: {search: [a], select: [digits_cn]}\npromote: {incumbents: {tasks: [digits_cnn]}}",
        "tasks.select: unknown task 'digits_cn'; did you mean 'digits_cnn'?",
    ),
    "a rung's task misspelt": (
        "tasks: {search: [digits_mlp]}\nrungs: [{tasks: [digits_mpl]}]",
        "rungs[0].tasks: 'digits_mpl' is not among tasks.search; did you mean 'digits_mlp'?",
    ),
    "unknown baseline": (
        "promote: {baselines: [adamw, lionn]}",
        "promote.baselines: unknown rule 'lionn'; did you mean 'lion'?",
    ),
    "unknown baseline of a rung": (
        "promote: {rungs: [{}, {baselines: [lionn]}]}",
        "promote.rungs[1].baselines: unknown rule 'lionn'; did you mean 'lion'?",
    ),
    "unknown baseline of the end": ("promote: {final: {baselines: [lionn]}}", "promote.final.baselines: unknown rule"),
    "a wrapper as a baseline": ("promote: {baselines: [clip_global]}", "takes a rule; write clip_global(adamw)"),
    "a file that is no baseline": (
        "promote: {baselines: [x.rule]}",
        "promote.baselines: cannot read rule file",
    ),
    "a baseline of unknown settings": (
        "promote: {baselines: [muon(adam_lr=1)]}",
        "promote.baselines: muon(adam_lr=1): rule 'muon' has no hyperparameter 'adam_lr'",
    ),
    "a baseline that is cut at a comma": (
        "promote: {baselines: [mine.rule(lr=1, beta=2)]}",
        "promote.baselines: 'mine.rule(lr=1' is not a rule",
    ),
    "a baseline of settings that do not match": (
        "promote: {baselines: ['mine.rule(lr=1))']}",
        "promote.baselines: 'mine.rule(lr=1))' is not a rule: its parentheses do not match",
    ),
    "a run that is no baseline": ("promote: {baselines: [x@1]}", "promote.baselines: no run 'x'"),
    "a baseline of no package": (
        "promote: {baselines: ['torhc.optim:SGD']}",
        "promote.baselines: torhc.optim:SGD: there is no module 'torhc' here; did you mean 'torch'?",
    ),
    "a baseline of no module": (
        "promote: {baselines: ['torch.optm:SGD']}",
        "there is no module 'torch.optm' here; did you mean 'optim'?",
    ),
    "no such class as a baseline": (
        "promote: {baselines: ['torch.optim:AdamWW']}",
        "promote.baselines: torch.optim:AdamWW: torch.optim has no 'AdamWW'; did you mean 'AdamW'?",
    ),
    "a baseline in no file": (
        "promote: {baselines: ['x.py:C']}",
        "promote.baselines: cannot read 'x.py'",
    ),
    "weight of another task": (
        "weights: {aa: 2.0}",
        "weights: 'aa' is not among tasks.search; did you mean 'a'?",
    ),
    "weight of a task that is not searched on": ("weights: {c: 2.0}", "weights: 'c' is not among tasks.search"),
    "never confirmed": ("confirm: {every: 0}", "confirm.every: expected at least 1, not 0"),
    "unknown ancestor": ("ancestor: adamww", "ancestor: unknown rule 'adamww'; did you mean 'adamw'?"),
    "missing ancestor file": ("ancestor: x.rule", "ancestor: cannot read rule file 'x.rule'"),
    "name that is no folder": ("name: a/b", "name: expected a letter, then letters, digits, _ or -, not 'a/b'"),
    "two mistakes": ("lag: x\nmax_statements: y", "(and 1 more)"),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line_that_names_file_and_key(line: str, message: str) -> None:
    changed = yaml.safe_load(line)
    text = yaml.safe_dump({**yaml.safe_load(SMALL), **changed})
    with pytest.raises(SpaceError) as error:
        load(text)
    assert str(error.value).startswith("small.yaml: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


FILES = {
    "empty": ("", "small.yaml: expected 'key: value' lines"),
    "a list": ("- a\n- b\n", "small.yaml: expected 'key: value' lines"),
    "missing key": ("operators: [add]\n", "small.yaml: tasks: is missing (and 1 more)"),
    "not YAML": ("operators: [add\ntasks: {", "small.yaml:2: not YAML: "),
    "a tab": ("tasks:\n\tsearch: [a]\n", "small.yaml:2: not YAML: "),
    "a key twice": (SMALL + "lag: 1\nlag: 2\n", "small.yaml:5: not YAML: the key 'lag' stands twice"),
    "a Python object": ("operators: !!python/object:os.system {}\n", "small.yaml:1: not YAML: could not determine"),
    "too deep": ("a: " + "[" * 5000, "small.yaml: not YAML: "),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_space_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SpaceError) as error:
        load(text)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_missing_files_and_names_are_refused() -> None:
    with pytest.raises(SpaceError, match=r"cannot read 'none\.yaml': No such file"):
        Space.load("none.yaml")
    with pytest.raises(SpaceError, match=r"unknown search space 'lion_lik'; did you mean 'lion_like'\?"):
        Space.load("lion_lik")
    Path("small.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpaceError, match="is not UTF-8 text"):
        Space.load("small.yaml")


TASKS = {
    "unknown": ("select: [digits_cn]", "tasks.select: unknown task 'digits_cn'; did you mean 'digits_cnn'?"),
    "option": ("final: [digits_cnn(horizn=3)]", "tasks.final: digits_cnn: unknown option 'horizn'; did you mean 'hor"),
    "value": ("select: [digits_cnn(horizon=x)]", "tasks.select: digits_cnn: horizon: expected a whole number, not 'x'"),
    "file": ("final: ['x.py:Net']", "tasks.final: x.py: no such file"),
}


@pytest.mark.parametrize(("part", "message"), TASKS.values(), ids=TASKS)
def test_tasks_of_all_sets_are_looked_at_and_none_is_made(part: str, message: str, monkeypatch: Any) -> None:
    import tasks

    monkeypatch.setattr(library, "_construct", lambda *_: pytest.fail("made"))
    text = f"operators: [add]\ntasks: {{search: [digits_mlp], {part}}}\nrungs: [{{tasks: [digits_mlp]}}]\n"
    with pytest.raises(SpaceError, match=re.escape(f"x: {message}")):
        load(text).check_tasks(tasks.check_name, "x")


def test_tasks_of_promotion_are_looked_at() -> None:
    import tasks

    text = SMALL.replace("[a]", "[digits_mlp]").replace("[a, b]", "[digits_mlp]").replace("[c]", "[digits_cnn]")
    text = text.replace("[d]", "[gpt]") + "promote: {incumbents: {tasks: [digits_cnn(horizn=3)]}}\n"
    with pytest.raises(SpaceError, match=r"x: promote\.incumbents\.tasks: digits_cnn: unknown option 'horizn'"):
        load(text).check_tasks(tasks.check_name, "x")


BASELINES = ("sgd", "clip_global(adamw)", "mine.rule", "mine.py:Mine", "star.py:Any", "torch.optim:AdamW", "torch._C:X")
BASELINES += ("muon(adam_lr_ratio=1)", "ema_nesterov(mine.rule(lr=0.2), gamma=0.9, beta=0.4)", "mine.py:Mine(lr=1)")


def test_what_may_be_a_baseline_is_not_imported_to_find_out() -> None:
    Path("mine.rule").write_text("def mine(p, g, *, lr=0.1):\n    p = p - lr * g\n")
    Path("mine.py").write_text("raise SystemExit\nclass Mine: ...\n")
    Path("star.py").write_text("raise SystemExit\nfrom somewhere import *\n")
    Path("small.yaml").write_text(SMALL + f"promote: {{baselines: {[*BASELINES]}}}\n")
    script = "import sys; from discover.space import Space; Space.load('small.yaml'); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What is right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_every_space_that_comes_with_the_engine_loads_and_knows_its_tasks(name: str) -> None:
    import tasks

    space = Space.load(name)
    assert space.name == name
    assert space.description
    space.check_tasks(tasks.check_name, name)


def missing(model: type[BaseModel], data: Any, where: str = "") -> list[str]:
    """Keys of the model that the data leave out, nested ones included; of rungs it is the first that has them all."""
    gone = []
    for key, field in model.model_fields.items():
        if key not in data:
            gone.append(f"{where}{key}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            gone += missing(field.annotation, data[key], f"{where}{key}.")
        elif key == "rungs":
            (kind, _) = get_args(field.annotation)
            gone += missing(kind, data[key][0], f"{where}rungs[0].")
    return gone


def test_lion_like_writes_every_key_out() -> None:
    assert missing(Space, read_yaml(DIRECTORY / "lion_like.yaml")) == []


def test_the_space_for_a_gpu_searches_as_lion_like_and_has_a_smaller_size_for_where_there_is_none() -> None:
    import tasks

    gpu, lion_like = Space.load("gpu"), Space.load("lion_like")
    differ = {"name", "description", "tasks", "promote"}
    assert gpu.model_dump(exclude=differ) == lion_like.model_dump(exclude=differ)
    assert (gpu.tasks.search, gpu.tasks.final) == (lion_like.tasks.search, lion_like.tasks.final)
    asking = [rung for rung in gpu.promote.rungs if dict(rung.request).get("GPU")]
    assert len(asking) == 1
    for rung in asking:
        assert rung.here is not None
        (large,), (small,) = map(tasks.load, rung.tasks), map(tasks.load, rung.here.tasks)
        steps = rung.steps_of(large.horizon), rung.here.steps_of(small.horizon)
        assert large.flops * steps[0] > 100 * small.flops * steps[1]


def test_what_no_stage_asks_for_is_not_written_so_that_older_certificates_hold() -> None:
    plain = Space.load("lion_like").plain()["promote"]
    assert not {"resources", "here"} & {*plain["incumbents"], *plain["simplify"]}
    asked = "promote: {incumbents: {resources: {GPU: 1}, here: {steps: 0.5}}, simplify: {tunings: 6}}\n"
    space = load(SMALL + asked)
    assert space.promote.incumbents.request == (("CPU", 1.0), ("GPU", 1.0))
    assert Space.of(space.plain(), "manifest.json") == space
    assert space.plain()["promote"]["incumbents"]["here"] == {"tasks": [], "steps": 0.5}


def test_a_space_survives_a_manifest() -> None:
    space = Space.load("lion_like")
    assert Space.of(space.plain(), "manifest.json") == space


def test_numbers_are_read_as_people_write_them() -> None:
    space = load(SMALL + "loss_scales: [1e-2, 1E+2]\nparameter_scales: [1, 2]\n")
    assert space.loss_scales == (0.01, 100.0)
    assert space.parameter_scales == (1.0, 2.0)


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "spaces"
    folder.mkdir()
    (folder / "mine.rule").write_text("def mine(p, g, *, lr=0.1):\n    p = p - lr * g\n")
    (folder / "mine.yaml").write_text(
        "ancestor: [mine.rule, adamw, 'cautious(mine.rule(lr=0.2), floor=0.1)']\noperators: [add]\n"
        "tasks: {search: ['own.py:Task']}\nrungs: [{tasks: ['own.py:Task']}]\n"
        "weights: {'own.py:Task': 2.0}\n"
    )
    space = Space.load("spaces/mine.yaml")
    assert [program.name for program in space.ancestors()] == ["mine", "adamw", "cautious_mine"]
    assert space.ancestor[-1] == "cautious(spaces/mine.rule(lr=0.2), floor=0.1)"
    assert space.ancestors()[-1].defaults == {"lr": 0.2, "floor": 0.1}
    assert space.tasks.search == ("spaces/own.py:Task",)
    assert space.weights == {"spaces/own.py:Task": 2.0}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("gpt(data=shards, size=100k)", "gpt(data={}/shards, size=100k)"),
        (" gpt (size=1m, data = shards )", " gpt(data={}/shards, size=1m)"),
        ("gpt(data='my (old), shards')", "gpt(data='{}/my (old), shards')"),
        ("own.py:Net(data=moons)", "{}/own.py:Net(data=moons)"),
        ("gpt(data='shards/part_*_00[1-9].bin')", "gpt(data={}/shards/part_*_00[1-9].bin)"),
        ("gpt(data=./a/../shards)", "gpt(data={}/shards)"),
        ("mnist_vit(size=base, data=cifar10:photos)", "mnist_vit(data=cifar10:{}/photos, size=base)"),
        ("gpt(data=/elsewhere)", "gpt(data=/elsewhere)"),
        ("gpt(data=~/shards)", "gpt(data=~/shards)"),
        ("gpt(data=none)", "gpt(data=none)"),
        ("gpt(size=1m)", "gpt(size=1m)"),
    ],
)
def test_data_of_a_task_are_relative_to_the_file_that_names_them(written: str, read: str, tmp_path: Path) -> None:
    """In every set, so that a promotion reads them from there too, wherever it is started."""
    sets = f"tasks: {{search: [quadratic], final: [{json.dumps(written)}]}}"
    (tmp_path / "own.yaml").write_text(f"operators: [add]\n{sets}\nrungs: [{{tasks: [quadratic]}}]\n")
    assert Space.load(str(tmp_path / "own.yaml")).tasks.final == (read.format(tmp_path),)
    assert Space.load(str(tmp_path / "own.yaml")).absolute().tasks.final == (read.format(tmp_path),)


def test_own_tasks_take_the_place_of_the_search_tasks() -> None:
    space = load(SMALL).with_tasks(["own.py:Task", "c"])
    assert space.tasks.search == ("own.py:Task", "c")
    assert space.tasks.select == ()
    assert space.tasks.final == ("d",)
    assert all(rung.tasks == space.tasks.search for rung in space.rungs)
    weighed = load(SMALL + "weights: {a: 2.0, b: 3.0}\n").with_tasks(["b", "c"])
    assert weighed.weights == {"b": 3.0}


@pytest.mark.parametrize(("steps", "expected"), [(50, 50), (0.5, 100), (1.0, 200), (0.001, 2)])
def test_steps_are_a_number_or_a_fraction_of_the_horizon(steps: float, expected: int) -> None:
    assert Rung(tasks=("a",), steps=steps).steps_of(200) == expected


# Durations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("0.5h", 1800), (" 1m30s ", 90)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10x", "-5m", "0s", "30m1h", "1 h", "1e3s", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a duration; write 90s"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9.0s", "59s", "1m30s", "1h30m"])
def test_durations_printed_are_durations_read(text: str) -> None:
    assert format_duration(parse_duration(text)) == text
