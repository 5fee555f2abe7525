"""Run folders appear whole, are found by any unambiguous name, belong to one search at a time, say what is wrong."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import dsl
from discover import registry, rule_names, runs, source
from discover.archive import Archive
from discover.budget import Budget
from discover.errors import RunError, UserError
from discover.manifest import Configuration, read_manifest
from discover.records import Candidate, Generation, GenerationRecord, Ranked
from discover.sessions import searched
from discover.space import Space
from tests.fresh import confirmed

ROOT = Path(__file__).parent.parent
TEN = Budget(candidates=10)
RULE = "def rule_7(p, g, *, lr=0.1):\n    x1 = lr * g\n    p = p - x1\n"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("DISCOVER_RUNS_DIR", raising=False)


def configuration(budget: Budget = TEN) -> Configuration:
    return Configuration(
        space=Space.load("lion_like"),
        ancestors=(dsl.format(dsl.load("adamw")),),
        algorithm="evolution",
        seed=3,
        compiled_from={"digits_mlp": 0, "bytes_mlp": None},
        native=True,
        budget=budget,
        workers=2,
    )


def made(out: str, trained: int = 0) -> Path:
    """A run of at most 10 candidates with one generation, closed."""
    with runs.create(configuration(), out=Path(out)) as run, run.archive() as archive:
        candidates = tuple(
            Candidate(id, 0, "x", (), RULE.replace("7", str(id)), f"s{id}", f"b{id}", "trained", fitness=0.1 * id)
            for id in range(trained)
        )
        record = GenerationRecord(0, trained, {}, 0, trained, (), 0, None, (), ())
        confirmations = (confirmed(1, 0, 0.25, 0.0123, 4),) if trained > 1 else ()
        archive.commit_generation(Generation(record, candidates, (), confirmations))
    return Path(out)


# Making ----------------------------------------------------------------------------------------


def test_a_manifest_says_all_that_was_asked_for() -> None:
    asked = configuration(Budget(time="60s", candidates=10, model_steps=10**9, target=0.3, plateau=7))
    with runs.create(asked, command=["discover", "search"]) as run:
        assert run.folder.parent == Path("runs")
        assert run.name.startswith("lion_like-")
        assert run.name.endswith("-s3")
    manifest = read_manifest(run.folder)
    assert manifest == run.manifest
    assert manifest.configuration == asked
    assert manifest.command == ("discover", "search")
    assert {"python", "code", "torch", "numpy", "optimizer-discovery"} <= set(manifest.versions)


def test_limits_stand_in_a_manifest_by_their_names_and_those_that_came_later_may_be_absent() -> None:
    with runs.create(configuration(Budget(time="1m30s", candidates=10, plateau=7)), out=Path("out")):
        pass
    path = Path("out/manifest.json")
    data = json.loads(path.read_text())
    limits = {"seconds": 90.0, "candidates": 10, "model_steps": None, "target": None, "plateau": 7}
    assert data["format"] == 5
    assert data["configuration"] | limits == data["configuration"]
    assert "budget" not in data["configuration"]
    for later in ("model_steps", "target", "plateau"):
        del data["configuration"][later]
    path.write_text(json.dumps(data))
    with runs.resume("out") as resumed:
        assert resumed.configuration.budget == Budget(time="90s", candidates=10)


def test_runs_made_in_one_second_have_different_folders() -> None:
    folders = []
    for _ in range(3):
        with runs.create(configuration()) as run:
            folders.append(run.folder)
    assert len(set(folders)) == 3
    assert runs.folders() == folders


def test_an_empty_folder_may_be_given_and_parents_are_made() -> None:
    Path("empty").mkdir()
    for out in ("empty", "a/b/c"):
        assert runs.find(str(made(out))) == Path(out)


def used(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


REFUSED = {
    "holds a run": (lambda p: made(str(p)), "holds a run already; 'discover resume out' goes on with it"),
    "not empty": (used, "out: exists and is not empty; name a new folder"),
    "a file": (lambda p: p.write_text(""), "out: exists and is not empty"),
}


@pytest.mark.parametrize(("prepare", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_in_use_is_refused_and_left_as_it_was(prepare, message: str) -> None:  # type: ignore[no-untyped-def]
    prepare(Path("out"))
    before = sorted(Path().rglob("*"))
    with pytest.raises(RunError, match=message):
        runs.create(configuration(), out=Path("out"))
    assert sorted(Path().rglob("*")) == before


def test_a_folder_that_cannot_be_made_leaves_nothing_behind() -> None:
    Path("file").write_text("")
    for out in ("file/x", "/dev/null/x", "/proc/x/y"):
        with pytest.raises(RunError, match=f"cannot make the run's folder '{out}'"):
            runs.create(configuration(), out=Path(out))
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_failure_halfway_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(runs, "write_whole", full)
    with pytest.raises(RunError, match="cannot make the run's folder 'a/b': the disk is full"):
        runs.create(configuration(), out=Path("a/b"))
    assert list(Path().iterdir()) == []


# Finding ----------------------------------------------------------------------------------------


def test_a_run_is_found_by_path_name_beginning_and_as_the_last() -> None:
    first, second = made("runs/alpha-1"), made("runs/beta-1")
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps({**manifest, "created": "2999-01-01"}))
    elsewhere = made("elsewhere/gamma")
    for text, folder in (
        ("alpha-1", first),
        ("al", first),
        ("runs/alpha-1", first),
        (str(first.absolute()), first.absolute()),
        ("last", second),
        ("elsewhere/gamma", elsewhere),
    ):
        assert runs.find(text) == folder
    assert [runs.handle(folder) for folder in (first, elsewhere)] == ["alpha-1", "elsewhere/gamma"]


def test_runs_that_are_not_to_be_found_are_refused() -> None:
    with pytest.raises(RunError, match="there is no run in 'runs' yet; 'discover search' makes one"):
        runs.find("last")
    made("runs/alpha-1")
    made("runs/alpha-2")
    Path("folder").mkdir()
    for text, message in (
        ("gamma", "no run 'gamma'; 'discover list runs' shows them"),
        ("", "no run ''"),
        ("alpha_1", "no run 'alpha_1'; did you mean 'alpha-1'?"),
        ("alp", "'alp' is the beginning of 2 runs: alpha-1, alpha-2"),
        ("folder", r"folder: is not a run \(it has no manifest.json\)"),
    ):
        with pytest.raises(RunError, match=message):
            runs.find(text)


DAMAGED = {
    "cut off": (lambda text: text[:100], "manifest.json: is damaged"),
    "a list": (lambda text: "[]", "manifest.json: is damaged"),
    "a key gone": (lambda text: text.replace('"compiled_from"', '"compiled_form"'), "manifest.json: is damaged: "),
    "no limit": (
        lambda text: text.replace('"candidates": 10', '"candidates": 0'),
        "manifest.json: is damaged: candidates: expected at least 1, not 0",
    ),
    "other version": (
        lambda text: text.replace('"format": 5', '"format": 9'),
        "is a run of format 9, and this version reads format 5",
    ),
    "a space of another version": (
        lambda text: text.replace('"tournament"', '"contest"'),
        "manifest.json: space: evolution: unknown key 'contest'",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_manifests_that_cannot_be_read_are_refused_in_one_line(change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = made("out") / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError) as error:
        runs.resume("out")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_that_cannot_be_read_is_listed_as_that() -> None:
    folder = made("runs/alpha")
    assert runs.describe(folder)["state"] == "stopped"
    (folder / "archive.sqlite").unlink()
    assert "cannot be read" in str(runs.describe(folder)["state"])


# Locking and resuming ----------------------------------------------------------------------------------------


def test_a_run_belongs_to_one_search_at_a_time() -> None:
    with runs.create(configuration(), out=Path("out")) as run:
        assert runs.is_running(run.folder)
        with pytest.raises(RunError, match=r"out: is in use by process \d+; wait for its search to end, or stop it"):
            runs.resume("out")
    assert not runs.is_running(run.folder)
    runs.resume("out").close()


def test_who_looks_at_a_run_does_not_stop_it_from_being_resumed() -> None:
    folder = made("out")
    with (folder / runs.LOCK).open(encoding="utf-8") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        gone = threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN))
        gone.start()
        runs.resume("out").close()
        gone.join()


def test_a_session_that_ended_is_not_said_to_hold_the_run() -> None:
    folder = made("out")
    runs.resume("out").close()
    with (folder / runs.LOCK).open(encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(RunError, match="out: is in use by another process; wait"):
            runs.resume("out")


def test_the_lock_of_a_killed_process_is_gone() -> None:
    script = """
import os
from pathlib import Path
from discover import runs
from tests.test_runs import configuration
run = runs.create(configuration(), out=Path("out"))
os._exit(9)
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == 9
    runs.resume("out").close()


def test_resuming_keeps_the_configuration_and_takes_what_is_left_of_the_time() -> None:
    with runs.create(configuration(Budget(time="60s")), out=Path("out")) as run, run.archive() as archive:
        record = GenerationRecord(0, 0, {}, 0, 0, (), 0, None, (), ())
        archive.commit_generation(Generation(record), {"idle": 15.0, "propose": 5.0, "train": 500.0})
    with runs.resume("out") as resumed:
        assert resumed.configuration.budget == Budget(time="40s")
        assert resumed.configuration.space == run.configuration.space
        assert resumed.notes == ()
    with runs.resume("out", budget=Budget(candidates=50), workers=0) as resumed:
        assert resumed.configuration.budget == Budget(candidates=50)
        assert resumed.configuration.workers == 0


def test_a_run_whose_budget_is_used_says_how_to_go_on() -> None:
    made("out", trained=10)
    with pytest.raises(RunError, match="has trained its 10 candidates; 'discover resume out --time 10m' goes on"):
        runs.resume("out")
    assert not runs.is_running(Path("out"))
    runs.resume("out", budget=Budget(time="5s")).close()


def test_an_edit_of_any_package_is_another_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in source.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source, "_folder", lambda package: tmp_path / package)
    before = source.code.__wrapped__()
    assert before == source.code()
    for edited in ("dsl/rules/lion.rule", "tasks/layers.py", "discover/native.cpp"):
        with (tmp_path / edited).open("a") as file:
            file.write("\n")
        assert source.code.__wrapped__() != before
        before = source.code.__wrapped__()
    (tmp_path / "tasks" / "references.json").write_text("{}")
    (tmp_path / "dsl" / ".#ops.py").symlink_to("nobody@nowhere")  # a lock of Emacs
    (tmp_path / "dsl" / ".checkpoints").mkdir()
    (tmp_path / "dsl" / ".checkpoints" / "ops.py").touch()
    assert source.code.__wrapped__() == before


def test_other_versions_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    made("out")
    monkeypatch.setattr(runs, "versions", lambda: {"torch": "1.0", "ray": "1.0"})  # no result depends on Ray
    with runs.resume("out") as run:
        (note,) = run.notes
    assert "and is 1.0 now: results may differ in their last bits" in note


RESUMED = {"command": ["discover", "resume", "a b"], "versions": {"torch": "2.0"}, "host": {"cpus": 4}}
BEGAN = {
    "none, before archives kept them": ([], [""]),
    "the first": ([None], [""]),
    "resumed": ([None, RESUMED], ["", "discover resume 'a b'"]),
    "resumed by an older version, and by this one": ([None, None, RESUMED], ["", "", "discover resume 'a b'"]),
    "resumed, by whom made it never begun": ([RESUMED], ["", "discover resume 'a b'"]),
}


@pytest.mark.parametrize(("noted", "commands"), BEGAN.values(), ids=BEGAN)
def test_sessions_of_a_search_are_the_manifest_s_and_those_that_resumed(
    noted: list[dict[str, object] | None], commands: list[str]
) -> None:
    with runs.create(configuration(), out=Path("out")) as run, run.archive() as archive:
        for facts in noted:
            archive.begin_session(facts)
        archive.commit_generation(Generation(GenerationRecord(0, 0, {}, 0, 0, (), 0, None, (), ())))
        found = searched(run.manifest, archive, 1)
    manifest = run.manifest
    assert [each["command"] for each in found] == commands
    assert [found[0][key] for key in ("began", "versions", "hardware")] == [
        *(manifest.created, manifest.versions, manifest.host)
    ]
    for each in found[1:]:
        known = RESUMED if each["command"] else {"versions": {}, "host": {}}
        assert (each["versions"], each["hardware"]) == (known["versions"], known["host"])


# Found rules ----------------------------------------------------------------------------------------


def test_a_rank_is_a_program_that_says_where_it_comes_from() -> None:
    made("runs/alpha", trained=4)
    program = rule_names.rule_of("alpha@1")
    assert dsl.format(program) == (
        "def rule_1(p, g, *, lr=0.1):\n"
        '    """Found by discover: run alpha, rank 1, fitness +0.250 +- 0.012 (4 fresh evaluations)."""\n'
        "    p = p - lr * g\n"
    )
    assert rule_names.rule_of("last@2").name == "rule_3"
    assert "not confirmed" in rule_names.rule_of("last@2").doc


def test_a_rank_takes_settings_and_is_wrapped() -> None:
    made("runs/alpha", trained=4)
    program = rule_names.rule_of("alpha@1")
    assert rule_names.rule_of("runs/alpha@1(lr=0.2)") == program.with_defaults({"lr": 0.2})
    wrapped = rule_names.rule_of("clip_global(alpha@1(lr=0.2), max_norm=2)")
    assert wrapped.defaults == {"lr": 0.2, "max_norm": 2}
    assert wrapped.name == "clip_global_rule_1"


def test_places_that_are_not_there_are_refused() -> None:
    made("runs/alpha", trained=2)
    made("runs/beta")
    for text, message in (
        ("alpha@3", "has no rank 3; its leaderboard has 2 places"),
        ("beta@1", "has no rank 1; it has trained nothing yet"),
        ("alpha@0", r"'alpha@0' is not RUN@K"),
        ("alpha@x", r"'alpha@x' is not RUN@K"),
        ("@1", r"'@1' is not RUN@K"),
        ("gamma@1", "no run 'gamma'"),
    ):
        with pytest.raises(RunError, match=message):
            rule_names.rule_of(text)


def test_the_best_rule_is_a_rule_file() -> None:
    with runs.create(configuration(), out=Path("out")) as run:
        candidate = Candidate(7, 0, "x", (), RULE, "s", "b", "trained", fitness=0.1)
        run.write_best(Ranked(1, candidate, None))
    assert dsl.load("out/best.rule").name == "rule_7"


def test_a_registered_rule_is_found_by_its_name_in_any_process() -> None:
    path = registry.register(dsl.parse(RULE), "my_rule")
    assert path.read_text().startswith("def my_rule(p, g, *, lr=0.1):")
    assert dsl.load("my_rule").body == dsl.parse(RULE).body
    with pytest.raises(UserError, match="'my_rule' is registered already"):
        registry.register(dsl.parse(RULE), "my_rule")
    registry.register(dsl.load("lion"), "my_rule", force=True)
    assert dsl.load("my_rule").body == dsl.load("lion").body


@pytest.mark.parametrize("name", ["lion", "My", "my-rule", "1st", "", "_x", "lambda", "a/b", "../x"])
def test_names_that_are_taken_or_no_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a built-in rule|is not a name for a rule"):
        registry.register(dsl.parse(RULE), name)
    assert not (tmp_path / "data").exists()


def test_a_rule_that_is_not_well_formed_is_not_registered(tmp_path: Path) -> None:
    with pytest.raises(dsl.RuleError, match="gradient"):
        registry.register(dsl.parse("def x(p, g):\n    p = p * 2\n"), "bad")
    with pytest.raises(dsl.RuleError, match="takes a rule"):
        registry.register(dsl.load("clip_global"), "bad")
    assert not (tmp_path / "data").exists()


def test_an_archive_written_by_a_run_has_its_seed(tmp_path: Path) -> None:
    with Archive.read(made("out") / "archive.sqlite") as archive:
        assert archive.meta() == {"format": "3", "seed": "3", "space": "lion_like"}
