"""Laws of promoting: luck and fitting the search's tasks promote nothing, what is better passes, and nothing is drawn
again; and of certificates: what was changed does not hold."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import dsl
import tasks
from discover import ablate, calibrate, certificate, cli, compare, incumbents, promote, runs, statistics, verify
from discover.archive import Archive
from discover.budget import Budget
from discover.contenders import RuleContender
from discover.contest import Contest, ContestTerms, anytime_p, hold, wins
from discover.errors import RunError, SpaceError, UserError
from discover.keeper import Keeper, StoppedError
from discover.promotion_keys import Promote, least_tunings
from discover.ranges import dimensions
from discover.records import Candidate
from discover.space import Space
from discover.storage import Store
from discover.studies import Tuned, fresh_seeds
from discover.trainers import Ground
from discover.verdict import percent
from discover.workshop import Workshop
from dsl import properties
from dsl.behaviour import behaviour_hash
from dsl.flatten import flatten, with_literals
from dsl.lift import lift
from dsl.program import Range
from tests.fresh import confirmed
from tests.home import home
from tests.searched import generation, run_of
from tests.stored import scored, stored
from tests.test_compare import made

__all__ = ["home"]

ROOT = Path(__file__).parent.parent
CRIPPLED = "def crippled(p, g, *, lr=0.1):\n    p = p - lr * mean(g)\n"
ASCENT = "def ascent(p, g, *, lr=0.1):\n    p = p + lr * g\n"
FITTED = """\
def fitted(p, g, m: zeros, *, lr=0.001):
    m = lerp(m, g, 0.1)
    p = p - lr * where(t < 9.5, debias(m, 0.9), -100 * g)
"""
"""Momentum for as long as its search trained, which was 9 steps, and what nobody saw there afterwards."""

SHAPED = """\
def shaped(p, g, m: zeros, *, lr=0.001):
    if role('head'):
        p = p + lr * g
    else:
        m = lerp(m, g, 0.1)
        p = p - lr * debias(m, 0.9)
"""
"""Momentum for all that its search's task has, and ascent for what every network has beside that."""

SPACE = """\
ancestor: sgd
operators: [add, sign]
tasks: {search: [quadratic], select: [breast_cancer], final: [diabetes_regression]}
rungs: [{tasks: [quadratic]}]
compile: never
promote:
  top: 2
  baselines: [BASELINE]
  beside: []
  own: false
  incumbents: {steps: 8, trials: 3, tunings: 2, fresh: 1}
  rungs: [{steps: 12, trials: 4, fresh: 1, tunings: [7, 8]}]
  simplify: {steps: 12, trials: 3, fresh: 2, tunings: 4, margin: 0.3}
  final: {steps: 12, trials: 4, fresh: 1, tunings: [7, 8]}
"""


def adam() -> str:
    return dsl.format(with_literals(dsl.load("adamw")))


def a_run(rules: Sequence[str], baseline: str = "crippled.rule", change: Callable[[str], str] = lambda s: s) -> Path:
    """A run whose leaderboard is these rules, the first first, in one generation each, the last rule first."""
    Path("crippled.rule").write_text(CRIPPLED)
    Path("tiny.yaml").write_text(change(SPACE.replace("BASELINE", baseline)))
    candidates = (
        Candidate(n, n, "made", (n - 1,) if n else (), text, f"s{n}", f"b{n}", "trained", fitness=0.1 * n)
        for n, text in enumerate(reversed(rules))
    )
    return run_of(Space.load("tiny.yaml"), (generation(each.id, [each]) for each in candidates), Path("found"))


def command(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    code = cli.main([*line.split(), "--workers", "0"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def read(folder: Path, name: str = "certificate.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


# What is promoted -----------------------------------------------------------------------------------------------------


def test_a_better_rule_is_promoted_simplified_and_certified(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([adam(), ASCENT])
    code, out, err = command(capsys, "promote found")
    assert code == 0, err
    data = read(folder)
    assert data["outcome"] == "better"
    assert "candidate_1 is better than crippled" in out
    assert "meta-overfitting" in out
    assert data["checkpoint"]["candidate"] == 1
    final = Contest.of(data["contests"][-1])
    assert final.terms.tasks == {"diabetes_regression": 12}
    assert final.passed == ("candidate_1",)
    assert final.known == ("crippled.rule", "sgd")  # where the search began
    assert dsl.parse(data["rule"]["text"]) == dsl.load(str(folder / "certified.rule"))
    assert "certified.rule --name my_rule" in out
    assert len(data["simplification"]) > 3
    text = (folder / "certificate.md").read_text()
    said = ("probability of improvement", "speed-up", "lineage", "Digest", "error rate 0.05", "discover verify")
    for part in (*said, "Steps were timed on cpu"):
        assert part in text
    first, second = "300000000: 300000000000 / 300000000500", "300000001: 300000001000 / 300000001500"
    assert f"- seeds of final (tuning: tuning seeds / fresh seeds): {first}; {second};" in text
    assert f"- final was trained with {final.results['diabetes_regression']['candidate_1'][0].fresh_built} (21" in text
    assert re.search(r"\| candidate_1 \| \d+ \(\d+ to \d+\) \|", text)  # the profile, with its bands
    (session,) = data["sessions"]
    assert (session["versions"], session["workers"]) == (data["versions"], [])
    assert f"- session of {session['began']} with python {session['versions']['python']}" in text


def test_another_seed_draws_other_tunings_and_fresh_seeds_of_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([adam(), ASCENT], change=lambda text: text.replace("  top: 2", "  top: 2\n  seed: 7"))
    code, _, err = command(capsys, "promote found")
    assert code == 0, err
    data = read(folder)
    contests = [Contest.of(each) for each in data["contests"]]
    assert [each.terms.first for each in contests] == [100_000_700, 400_000_700, 300_000_700]
    seeds = {
        seed for each in contests for row in each.results.values() for own in row.values() for seed in own[0].seeds
    }
    assert min(seeds) >= 100_000_700_000
    code, out, err = command(capsys, "verify found --sample 4 --tune 1")
    assert (code, "holds" in out) == (0, True), err


def test_no_study_is_of_two_stages_or_seeds_or_of_a_comparison() -> None:
    last = Promote.model_json_schema()["properties"]["seed"]["exclusiveMaximum"] - 1
    rungs = range(promote.RUNGS, promote.RUNGS + 200 * promote.STAGE, promote.STAGE)
    stages = (promote.INCUMBENTS, promote.SIMPLIFY, promote.FINAL, *rungs)
    firsts = sorted(stage + promote.APART * seed for stage in stages for seed in (0, 1, last))
    assert all(later - first >= 100 for first, later in pairwise(firsts))  # as many tunings as a stage may have
    compared = compare.Options(seed=last, tunings=100, seeds=100).studies
    assert max(*compared, *range(calibrate.Options().tunings)) < firsts[0]
    assert fresh_seeds(firsts[-1] + 100, 500)[-1] < 2**53


def test_what_a_winner_is_shown_beside_need_not_be_beaten_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([adam()], change=lambda text: text.replace("beside: []", "beside: [nadam, crippled.rule]"))
    code, out, err = command(capsys, "promote found")
    assert code == 0, err
    data = read(folder)
    final = Contest.of(data["contests"][-1])
    assert (final.baselines, final.beside) == (("crippled.rule",), ("sgd", "nadam"))  # and no baseline twice
    assert final.p_against("candidate_0", "nadam") > 0.05
    assert final.passed == ("candidate_0",)
    assert "Beside them: " in data["statement"]
    assert "against nadam" in out
    rows = [row for row in (folder / "certificate.md").read_text().splitlines() if row.startswith("| final |")]
    assert [row.rstrip(" |").endswith("not asked") for row in rows] == [False, True, True]


def test_another_space_says_what_is_asked_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([adam()])
    theirs = yaml.safe_load(Path("tiny.yaml").read_text())
    theirs["tasks"] = {"search": ["digits_mlp"], "select": ["diabetes_regression"], "final": ["breast_cancer"]}
    theirs["rungs"] = [{"tasks": ["digits_mlp"]}]
    theirs["promote"]["rungs"][0]["steps"] = 14
    Path("theirs.yaml").write_text(yaml.safe_dump(theirs))
    code, _, err = command(capsys, "promote found --space theirs.yaml")
    assert code == 0, err
    data = read(folder)
    assert [list(each["terms"]["tasks"].items()) for each in data["contests"][1:]] == [
        [("diabetes_regression", 14)],
        [("breast_cancer", 12)],
    ]
    assert data["provenance"]["space"]["tasks"]["search"] == ["quadratic"]
    there = Path("theirs.yaml").absolute()
    assert data["commands"][1].endswith(f"--top 2 --space {there} --workers 0")
    _, out, _ = command(capsys, "promote found --space tiny.yaml")
    assert f"an earlier promotion of this run went by {there}; it stays so" in out


def test_a_space_that_asks_for_a_searched_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    a_run([adam()])
    theirs = yaml.safe_load(Path("tiny.yaml").read_text())
    theirs["tasks"] = {"search": ["digits_mlp"], "select": ["quadratic"], "final": ["breast_cancer"]}
    theirs["rungs"] = [{"tasks": ["digits_mlp"]}]
    Path("theirs.yaml").write_text(yaml.safe_dump(theirs))
    code, _, err = command(capsys, "promote found --space theirs.yaml")
    assert code == 2
    assert f"promoted by {Path('theirs.yaml').absolute()}: tasks: 'quadratic' is in search and in select" in err


def test_a_second_promotion_gives_the_same_certificate_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_run([adam()])
    assert command(capsys, "promote found")[0] == 0
    before = (folder / "certificate.json").read_bytes()
    monkeypatch.setattr(promote, "hold", lambda *_: pytest.fail("trains again"))
    code, out, _ = command(capsys, "promote found --top 1 --json")
    assert code == 0
    assert json.loads(out)["outcome"] == "better"
    assert (folder / "certificate.json").read_bytes() == before
    _, out, _ = command(capsys, "promote found --top 1")
    assert "the final tasks are not touched again" in out
    assert "it stays so: nothing is drawn again" in out


def test_a_rule_that_is_worse_is_not_promoted(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([ASCENT], "adamw")
    assert command(capsys, "promote found")[0] == 0
    data = read(folder)
    assert data["outcome"] == "nothing passed"
    assert data["rule"] is None
    assert "This is what was tried" in data["statement"]
    assert "final" not in read(folder, "promotion.json")["stages"]
    assert command(capsys, "verify found")[0] == 0


def test_baselines_with_settings_are_what_the_certificate_says(capsys: pytest.CaptureFixture[str]) -> None:
    baselines = ["clip_global(crippled.rule(lr=0.2), max_norm=2)", "torch.optim:SGD(momentum=0.9)"]
    a_run([ASCENT], ", ".join(f"'{name}'" for name in baselines))
    code, _, err = command(capsys, "promote found")
    assert code == 0, err
    data = read(Path("found"))
    assert data["contests"][-1]["baselines"] == baselines
    rules = data["contests"][-1]["rules"]
    assert dsl.parse(rules[baselines[0]]["text"]).defaults == {"lr": 0.2, "max_norm": 2}
    assert rules[baselines[1]] == {"class": baselines[1]}
    for name in baselines:
        assert f"| {name} |" in Path("found/certificate.md").read_text()
    code, out, _ = command(capsys, "verify found --json")
    assert (code, json.loads(out)["exact"]) == (0, True)


@pytest.mark.parametrize(("text", "steps"), [(FITTED, 9), (SHAPED, 12)], ids=["by its length", "by its shapes"])
def test_a_rule_that_wins_on_the_search_task_alone_is_not_promoted(
    text: str, steps: int, capsys: pytest.CaptureFixture[str], workshop: Workshop
) -> None:
    fitted, crippled = (RuleContender(*each) for each in (("fitted", dsl.parse(text)), ("b", dsl.parse(CRIPPLED))))
    assert hold(terms(tasks={"quadratic": steps}, fresh=2), [fitted], [crippled], workshop).passed == ("fitted",)
    folder = a_run([text])
    assert command(capsys, "promote found")[0] == 0
    assert read(folder)["outcome"] == "nothing passed"


def test_what_is_a_baseline_but_for_tuned_constants_takes_no_part(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([adam().replace("0.1)", "0.2)")], "adamw", lambda text: text.replace("own: false", "own: true"))
    assert command(capsys, "promote found")[0] == 0
    data = read(folder)
    assert data["candidates"] == []
    assert data["left_out"] == ["candidate 0 (place 1) is adamw but for constants, which are tuned"]
    assert data["outcome"] == "nothing passed"
    assert command(capsys, "verify found")[0] == 0


def test_the_final_tasks_see_the_recorded_rule_and_are_recorded_before_they_are_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_run([adam()])

    def stopped(terms: ContestTerms, *rest: Any) -> Contest:
        if terms.name == "final":
            assert read(folder, "promotion.json")["final"]["text"]
            raise StoppedError
        return hold(terms, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(promote, "hold", stopped)
        _, out, _ = command(capsys, "promote found")
    assert "interrupted" in out
    state = read(folder, "promotion.json")
    state["final"]["text"] = CRIPPLED.replace("crippled", "candidate_0").replace("mean(g)", "sign(g)")
    (folder / "promotion.json").write_text(json.dumps(state))
    command(capsys, "promote found")
    assert "sign(g)" in read(folder)["contests"][-1]["rules"]["candidate_0"]["text"]


@pytest.mark.slow
def test_a_promotion_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    a_run([adam()])
    line = [sys.executable, "-m", "discover.cli", "promote", "found", "--workers", "0"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CXX": "no-such-compiler"}

    def start(data: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(line, env={**environment, "DISCOVER_DATA_DIR": str(tmp_path / data)})

    killed = start("one")
    deadline = time.monotonic() + 60
    while not Path("found/promotion.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -9
    assert not Path("found/certificate.json").exists()
    assert start("one").wait() == 0
    first = read(Path("found"))
    for name in ("promotion.json", "certificate.json"):
        Path("found", name).unlink()
    assert cli.main(["promote", "found", "--workers", "0", "--storage", f"sqlite:///{tmp_path / 'two.sqlite'}"]) == 0
    second = read(Path("found"))
    assert [len(each["sessions"]) for each in (first, second)] == [2, 1]
    assert second["commands"][1].endswith(f"--storage sqlite:///{tmp_path / 'two.sqlite'} --workers 0")
    for part in ("contests", "statistics", "rule", "simplification", "statement", "curve"):
        if part == "rule":
            first[part].pop("recorded"), second[part].pop("recorded")
        assert first[part] == second[part]


DYING = """
import json, os, signal, sys
from pathlib import Path
from discover import cli, lanes, storage, trainers, tuning
from discover.keeper import Keeper

log, point, count = open(sys.argv[1], "w"), sys.argv[2], int(sys.argv[3])
train, run, reached = tuning.train, lanes.Training.run, 0

def at(this, key=""):
    global reached
    state = Path("found/promotion.json")
    if this == point and state.exists() and list(json.loads(state.read_text())["stages"]) == ["incumbents"]:
        reached += 1
        if reached == count:
            os.kill(os.getpid(), signal.SIGKILL)

def then(owner, name, point):
    method = getattr(owner, name)
    def changed(*args, **options):
        found = method(*args, **options)
        at(point)
        return found
    setattr(owner, name, changed)

def told(contender, ground, runs, **options):
    found = train(contender, ground, runs, **options)
    rows = [[contender.name, each.seed, sorted(each.hypers.items())] for each in runs]
    print(json.dumps({"done": began.pop(), "rows": rows}), file=log, flush=True)
    return found

def resumed(self, pulse=None):
    began.append(self.done)
    return run(self, pulse)

began = []
tuning.train, lanes.Training.run = told, resumed
Keeper.pulse = Keeper.keep if point == "a step" else Keeper.pulse
then(storage.Store, "add", "a trial")
then(storage.Store, "set", "the fresh seeds")
then(Keeper, "pulse", "a step")
sys.exit(cli.main(["promote", "found", "--workers", "0"]))
"""
"""Promotes, writes down what is trained and from which step on, and kills itself when so much of rung 1 is stored."""

POINTS = {
    "in a batch of a baseline's trials": ("a trial", 3),
    "in a batch of a candidate's": ("a trial", 38),
    "among fresh seeds": ("the fresh seeds", 9),
    "in a training": ("a step", 17),
}
"""Of rung 1: 7 tunings each of a baseline and a candidate, side by side, of 4 batches of a trial of 12 steps."""


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_promotion_that_is_killed_within_a_rung_trains_nothing_again_and_ends_as_one_that_was_not(
    point: str, promoted: dict[str, Any], tmp_path: Path
) -> None:
    folder, data = a_run([adam()]), tmp_path / "data"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CXX": "no-such-compiler"}

    def promotes(log: str, *until: str) -> int:
        line = [sys.executable, "-c", DYING, log, *until]
        return subprocess.run(line, env={**environment, "DISCOVER_DATA_DIR": str(data)}, check=False).returncode

    def trained(log: str) -> tuple[list[int], list[Any]]:
        lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
        return [line["done"] for line in lines], [row for line in lines for row in line["rows"]]

    def of(study: str) -> tuple[str, int]:
        return study.partition(" on ")[0], int(study.rpartition("tuning ")[2].split()[0])

    (name, count), url = POINTS[point], f"sqlite:///{data / 'studies.sqlite'}"
    assert promotes("before", name, str(count)) == -9
    before, fresh, kept = stored(url), scored(url), list(data.rglob("*.pt"))
    assert list(read(folder, "promotion.json")["stages"]) == ["incumbents"]
    assert any(seed >= promote.RUNGS for _, seed in map(of, before))
    assert promotes("after", "nowhere", "0") == 0
    (began, runs), after = trained("after"), stored(url)
    assert all(after[study][: len(trials)] == trials for study, trials in before.items())
    settled = {
        (who, 1000 * seed, str(sorted(map(list, trial[-1]["run"]["hypers"].items()))))
        for study, trials in before.items()
        for trial in trials
        for who, seed in [of(study)]
    }
    assert not settled & {(who, seed, str(hypers)) for who, seed, hypers in runs}
    assert not {(who, 1000 * seed + 500) for who, seed in map(of, fresh)} & {(who, seed) for who, seed, _ in runs}
    assert (bool(kept), began[0], {*began[1:]}) == ((True, 5, {0}) if name == "a step" else (False, 0, {0}))
    assert not list(data.rglob("*.pt"))
    assert lasting(read(folder)) == lasting(promoted)
    assert [len(each["sessions"]) for each in (read(folder), promoted)] == [2, 1]


def lasting(data: dict[str, Any]) -> dict[str, Any]:
    """What of a certificate says neither when nor where it was made."""
    there = {key: data[key] for key in data.keys() - {"date", "sessions", "sha256", "asked", "commands", "files"}}
    there["spent"] = data["spent"]["model_steps"]
    there["rule"] = {key: value for key, value in data["rule"].items() if key != "recorded"}
    costs = data["footprints"].items()
    there["footprints"] = {task: {name: each["state_bytes"] for name, each in row.items()} for task, row in costs}
    there["provenance"] = {key: data["provenance"][key] for key in ("space", "candidate", "lineage", "archive")}
    return there


# The contest ----------------------------------------------------------------------------------------------------------


def terms(**changes: Any) -> ContestTerms:
    values: dict[str, Any] = {"name": "rung 1", "tasks": {"breast_cancer": 10}, "trials": 3, "tuning_seeds": 1}
    values |= {"fresh": 1, "least": 7, "most": 8, "error_rate": 0.05, "own": False, "first": 0, "compile": False}
    return ContestTerms(**{**values, **changes})


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    store = Store(None)
    yield Workshop(store, Keeper(None))
    store.close()


def test_the_p_of_a_contest_holds_whenever_one_stops() -> None:
    rng, stopped = np.random.default_rng(0), 0
    for _ in range(2000):
        won = rng.integers(0, 2, size=40).astype(float).tolist()
        stopped += any(anytime_p(won[:n]) <= 0.05 for n in (7, 8, 10, 15, 25, 40))
    assert stopped / 2000 <= 0.05


@pytest.mark.parametrize("candidates", [1, 4, 40])
@pytest.mark.parametrize("rate", [0.2, 0.05, 0.01])
def test_the_least_number_of_tunings_is_that_of_the_evidence(candidates: int, rate: float) -> None:
    least = least_tunings(rate, candidates)
    enough = statistics.evidence([1.0] * least) >= candidates / rate
    assert enough.tolist() == [False] * (least - 1) + [True]


def test_a_candidate_that_can_no_longer_pass_is_not_tuned_further(workshop: Workshop) -> None:
    good, bad, baseline = (
        RuleContender(name, dsl.parse(text)) for name, text in (("a", adam()), ("b", ASCENT), ("c", CRIPPLED))
    )
    contest = hold(terms(least=2, most=9), [good, bad], [baseline], workshop)
    row = contest.results["breast_cancer"]
    assert contest.passed == ("a",)
    assert len(row["b"]) < len(row["a"])
    assert Contest.of(json.loads(json.dumps(contest.plain()))).adjusted == contest.adjusted


def test_a_candidate_must_beat_every_baseline(workshop: Workshop) -> None:
    texts = (("a", adam()), ("crippled", CRIPPLED), ("same", adam()))
    good, crippled, same = (RuleContender(name, dsl.parse(text)) for name, text in texts)
    contest = hold(terms(), [good], [crippled, same], workshop)
    assert contest.p_against("a", "crippled") <= 0.05
    assert contest.p_against("a", "same") == 1.0
    assert contest.passed == ()


def test_who_wins_often_by_little_and_loses_once_by_much_is_no_better() -> None:
    def contest(loss: float) -> Contest:
        ends = [math.exp(-0.002)] * 12 + [loss]
        rows = {"a": made(lambda t, s: ends[t], tunings=13), "b": made(lambda t, s: 1.0, tunings=13)}
        return Contest(terms(most=16), ("a",), ("b",), results={"one": rows})

    assert contest(math.e).adjusted == contest(1.01).adjusted
    assert contest(math.e).adjusted["a"] <= 0.05
    assert contest(1.01).passed == ("a",)
    assert contest(math.e).passed == ()


NOISE = {"loud": 1.6, "quiet": 0.004, "between": 0.02}
"""Standard deviations of a run's log loss."""


def noisy(rng: np.random.Generator, tunings: int, **better: float) -> Contest:
    """A contest of a and b, where a's log loss is so much better on each task."""

    def row(noise: float, gain: float) -> dict[str, list[Tuned]]:
        logs = noise * rng.standard_normal((2, tunings, 2))
        ends = {"a": logs[0] - gain, "b": logs[1]}
        return {
            name: made(lambda t, s, own=own: math.exp(own[t, s]), tunings=tunings, seeds=2)
            for name, own in ends.items()
        }

    results = {task: row(noise, better.get(task, 0.0)) for task, noise in NOISE.items()}
    return Contest(terms(most=tunings), ("a",), ("b",), results=results)


def test_the_noisiest_task_does_not_decide() -> None:
    """As burgers_pinn would, whose noise is hundreds of times that of the others."""
    rng = np.random.default_rng(0)
    assert all(noisy(rng, 12, quiet=0.1, between=0.1).passed for _ in range(20))
    assert not any(noisy(rng, 12, loud=2.0, quiet=-0.1, between=-0.1).passed for _ in range(20))


def test_who_is_alike_on_tasks_of_any_noise_passes_as_often_as_stated() -> None:
    rng, passed, won, lost = np.random.default_rng(1), 0, 0, 0
    for _ in range(400):
        contest = noisy(rng, 12)
        of_each = wins(contest.results, "a", "b")
        passed += bool(contest.passed)
        won, lost = won + of_each.count(1.0), lost + of_each.count(0.0)
        assert [1.0 - each for each in of_each] == wins(contest.results, "b", "a")
        assert of_each[:5] == wins(
            {t: {k: v[:5] for k, v in row.items()} for t, row in contest.results.items()}, "a", "b"
        )
    assert passed / 400 <= 0.05
    assert abs(won - lost) < 3 * math.sqrt(400 * 12)


def test_two_tasks_that_say_the_opposite_decide_nothing() -> None:
    rows = {"a": [made(lambda t, s: math.exp(0.5), tunings=1)], "b": [made(lambda t, s: 1.0, tunings=1)]}
    ahead, behind = ({"a": rows[x][0], "b": rows[y][0]} for x, y in (("b", "a"), ("a", "b")))
    assert wins({"one": ahead, "two": behind}, "a", "b") == [0.5]
    assert wins({"one": ahead, "two": ahead, "three": behind}, "a", "b") == [1.0]


# Incumbents -----------------------------------------------------------------------------------------------------------


def test_the_last_standing_is_the_leaderboard_and_leaders_are_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with Archive.create(tmp_path / "archive.sqlite") as archive:
        for number in range(6):
            ids = range(5 * number, 5 * number + 5)
            made = tuple(
                Candidate(i, number, "x", (), ASCENT, f"s{i}", f"b{i}", "trained", fitness=float(rng.normal()))
                for i in ids
            )
            old = sorted(rng.choice(5 * number, size=min(3, 5 * number), replace=False).tolist()) if number else []
            fresh = tuple(
                confirmed(i, number, None if rng.random() < 0.2 else float(rng.normal()), 0.1, number) for i in old
            )
            archive.commit_generation(generation(number, made, fresh))
        board = [each.candidate.id for each in archive.leaderboard(30)]
        assert [each.id for each in incumbents.checkpoint(archive, None)] == board
        led = incumbents.leaders(archive)
    assert [each.generation for each, _ in led] == sorted(each.generation for each, _ in led)
    assert board[0] in [each.candidate for each, _ in led]
    assert incumbents.thinned(led, 2)[-1] == led[-1]


def test_the_checkpoint_is_the_last_leader_unless_the_curve_has_surely_fallen() -> None:
    def points(*pairs: tuple[float, float]) -> list[incumbents.Point]:
        return [incumbents.Point(n, n, 0.0, score, 1.0, apart) for n, (score, apart) in enumerate(pairs)]

    fallen = points((0.0, 0.01), (0.10, 0.02), (0.11, 0.0), (0.05, 0.01))
    assert incumbents.choose(fallen).generation == 2
    assert incumbents.choose([*fallen[:3], points((0.05, 0.04))[0]]).generation == 0
    assert incumbents.choose(points((0.12, 0.0), (0.0, 0.1), (0.1, 0.011))).generation == 2


# Lifting and simplifying ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "lion", "rmsprop", "nadam", "adagrad", "adabelief"])
def test_lifting_keeps_what_a_rule_does_and_leaves_no_constant(name: str) -> None:
    literal = flatten(with_literals(dsl.load(name)))
    lifted = dsl.check(lift(literal))
    assert behaviour_hash(lifted) == behaviour_hash(literal)
    assert dsl.parse(dsl.format(lifted)) == lifted
    assert lift(lifted) == lifted
    for hyper in lifted.hypers:
        assert hyper.range is None or hyper.name == "weight_decay" or hyper.range.low <= hyper.default
        assert hyper.range is not None or hyper.name in ("lr", "weight_decay")


def test_what_must_be_known_before_training_is_neither_lifted_nor_tuned() -> None:
    text = "def f(p, g, m: zeros, *, lr=0.1):\n    if matrix(p):\n        m = lerp(m, g, 0.1)\n"
    text += "        p = p - lr * newton_schulz(m * 1.7, 5)\n    else:\n        p = p - lr * g\n"
    found = lift(dsl.parse(text))
    assert found.defaults == {"lr": 0.1, "rate1": 0.1, "c1": 1.7}
    assert "newton_schulz(m * c1, 5)" in dsl.format(found)
    text = text.replace("lr=0.1", "lr=0.1, steps=4.5, more=0.5, other=0.3").replace("m * 1.7, 5", "m * other, n")
    steps = dsl.parse(text.replace("    if matrix", "    n = steps + more\n    if matrix"))
    ground = Ground(tasks.load("digits_mlp"), steps=4, compile=False)
    assert [each.name for each in dimensions(RuleContender("f", steps), ground, own=True)] == ["lr", "other"]
    shaped = dimensions(RuleContender("f", dsl.load("apollo(rank=1)")), ground, own=True)
    assert "rank" not in [each.name for each in shaped]


def test_an_average_and_its_correction_are_lifted_together() -> None:
    assert list(lift(dsl.parse(adam())).defaults) == ["lr", "weight_decay", "rate1", "rate2", "eps1"]


AVERAGES = {
    "lerp(m, g, 0.1)": "lerp(m, g, rate1)",
    "lerp(g, m, 0.9)": "lerp(g, m, 1 - rate1)",
    "lerp(g, -m, 0.9)": "lerp(g, -m, 1 - rate1)",
    "lerp(abs(m), g, 0.1)": "lerp(abs(m), g, rate1)",
    "lerp(abs(m), m, 0.1)": "lerp(abs(m), m, rate1)",
    "lerp(g, square(g), 0.1)": "lerp(g, square(g), rate1)",
}


@pytest.mark.parametrize("average", AVERAGES)
def test_where_only_the_second_is_state_the_weight_is_what_stays(average: str) -> None:
    literal = dsl.parse(f"def f(p, g, m: zeros, *, lr=1):\n    m = {average}\n    p = p - lr * (m + g)\n")
    lifted = lift(literal)
    assert AVERAGES[average] in dsl.format(lifted)
    (rate,) = (each for each in lifted.hypers if each.name == "rate1")
    assert (rate.default, rate.range) == (0.1, Range(0.01, 0.9, True))
    assert behaviour_hash(lifted) == behaviour_hash(literal)


def test_a_weight_that_one_less_it_would_swallow_stays_a_rate() -> None:
    literal = dsl.parse("def f(p, g, m: ones, *, lr=1):\n    m = lerp(g, m, 1e-10)\n    p = p - lr * m\n")
    assert "lerp(g, m, rate1)" in dsl.format(lift(literal))
    assert behaviour_hash(lift(literal)) == behaviour_hash(literal)


def test_what_does_nothing_goes_and_what_matters_stays(workshop: Workshop) -> None:
    winner = dsl.parse(
        "def w(p, g, m: zeros, *, lr=0.1, c1=1.00317, rate1=0.10449):\n"
        "    m = lerp(m, g, rate1)\n    u = sign(m) * c1 + 1e-6 * tanh(g)\n    p = p - lr * u\n"
    )
    found = ablate.simplify(winner, terms(least=5, most=5, fresh=2, trials=4), 0.05, workshop)
    assert "tanh" not in dsl.format(found.program)
    assert found.program.defaults.get("rate1", 0.1) == 0.1
    twice = dsl.parse("def w(p, g, *, lr=0.1):\n    p = p - lr * neg(neg(g))\n")  # each one is needed, for the other
    assert ablate.simplify(twice, terms(least=5, most=5, fresh=2, trials=4), 0.05, workshop).program == twice


def test_simplifying_keeps_what_short_trainings_do_not_show(workshop: Workshop) -> None:
    found = ablate.simplify(
        lift(dsl.parse(adam())), terms(least=4, most=4), 10.0, workshop
    )  # nothing is worse by so much
    assert properties.of(found.program).finite_at_zero
    assert any("not finite at zero gradient then" in trial.change for trial in found.trials)
    assert not any(trial.kept for trial in found.trials if " then" in trial.change)


def test_state_that_never_leaves_its_start_goes_without_training() -> None:
    program = dsl.parse(
        "def w(p, g, m: zeros, v: zeros, *, lr=0.1, c=0.3):\n"
        "    if matrix(p):\n        x = m\n        m = newton_schulz(m, 4)\n"
        "        p = p - lr * (c + x) * newton_schulz(lerp(g, v, 0.6), 5)\n"
        "    else:\n        m = lerp(m, g, 0.1)\n        v = lerp(v, square(g), 0.01)\n"
        "        p = p - lr * m / (sqrt(v) + 1e-8)\n"
    )
    current, words = program, []
    while found := next(((w, each) for w, each in ablate.removals(current) if "stays at" in w), None):
        words.append(found[0])
        current = found[1]
    assert words == ["matrix(p): m stays at 0", "matrix(p): v stays at 0"]
    branch = "    if matrix(p):\n        p = p - lr * c * newton_schulz((1 - 0.6) * g, 5)\n    else:\n"
    assert branch in dsl.format(current)
    assert behaviour_hash(current) == behaviour_hash(program)
    assert "x_" not in dsl.format(current)


@pytest.mark.parametrize(
    "line",
    [
        "d = d + 1; u = g + max(d - 20, 0) * g",
        "d = d + max(abs(g) - 5, 0); u = g / (1 + d)",
        "d = d + 1e-9 * g; u = g + d",
        "d = lerp(d, weight_decay * p, 0.1); u = g + d",
        "d = polar(d); u = g + d",
    ],
)
def test_state_that_only_seems_to_stay_is_no_state_at_rest(line: str) -> None:
    body = "".join(f"        {each}\n" for each in line.split("; "))
    program = dsl.parse(
        "def w(p, g, d: zeros, *, lr=0.1, weight_decay=0.0):\n    if matrix(p):\n"
        f"{body}        p = p - lr * u\n    else:\n        p = p - lr * g\n"
    )
    assert not [words for words, _ in ablate.removals(program) if "stays at" in words]


@pytest.mark.parametrize(
    "value", ["amax(abs(d))", "floor(d)", "col_std(d)", "mean(d) / (g + 2)", "diagonal(d @ transpose(d))"]
)
def test_whatever_operator_makes_nothing_of_nothing_leaves_a_state_at_rest(value: str) -> None:
    program = dsl.parse(
        "def w(p, g, d: zeros, *, lr=0.1):\n    if matrix(p):\n"
        f"        d = d + sum({value}) * g\n        p = p - lr * (g + d)\n    else:\n        p = p - lr * g\n"
    )
    assert [words for words, _ in ablate.removals(program) if "stays at" in words] == ["matrix(p): d stays at 0"]


def test_temporaries_apart_are_no_states() -> None:
    program = dsl.parse(
        "def w(p, g, x_1: zeros, *, lr=0.1):\n    if matrix(p):\n        x = g * g\n        p = p - lr * x * g\n"
        "    else:\n        x = square(g)\n        x_1 = lerp(x_1, x, 0.1)\n        p = p - lr * x_1 * g\n"
    )
    assert all("x_1 = lerp(x_1," in dsl.format(each) for words, each in ablate.removals(program) if words[0] == "m")


def test_a_rule_whose_weight_decay_is_tuned_to_nothing_keeps_its_range() -> None:
    program = dsl.parse(
        "def w(p, g, *, lr=0.1, weight_decay: log(1e-4, 1) = 0, c1: log(0.01, 1) = 0.123):\n"
        "    p = p - lr * (c1 * g + weight_decay * p)\n"
    )
    assert dsl.parse(dsl.format(ablate.rounded(program, 1))).defaults == {"lr": 0.1, "weight_decay": 0, "c1": 0.1}


def test_removals_are_rules_that_use_the_gradient_and_keep_step_and_decay() -> None:
    program = dsl.load("adamw")
    found = dict(ablate.removals(program))
    assert len(found) >= 6
    for variant in found.values():
        assert behaviour_hash(variant) != behaviour_hash(program)
        assert {"lr", "weight_decay"} <= set(dsl.check(variant).defaults)


def test_each_straight_line_of_a_rule_with_static_ifs_is_simplified() -> None:
    program = dsl.parse(
        "def w(p, g, m: zeros, v: zeros, *, lr=0.1):\n"
        "    if matrix(p):\n        m = lerp(m, g, 0.1)\n        u = newton_schulz(m, 5)\n"
        "    else:\n        v = lerp(v, square(g), 0.01)\n        u = g / (sqrt(v) + 1e-8)\n    p = p - lr * u\n"
    )
    found = dict(ablate.removals(program))
    assert set(found) >= {
        "matrix(p): lerp(m, g, 0.1) -> g",
        "matrix(p): newton_schulz(m, 5) -> m",
        "not (matrix(p)): g / (sqrt(v) + 1e-8) -> g",
    }
    assert len({behaviour_hash(each) for each in found.values()} | {behaviour_hash(program)}) == len(found) + 1
    (without,) = [each for words, each in found.items() if words.endswith("+ 1e-8) -> g")]
    assert [slot.name for slot in without.slots] == ["m"]
    branch = "    if matrix(p):\n        m = lerp(m, g, 0.1)\n        p = p - lr * newton_schulz(m, 5)\n"
    assert branch in dsl.format(without)


# The space ------------------------------------------------------------------------------------------------------------

BAD = {
    "another set": ("promote: {rungs: [{tasks: [quadratic]}]}", "promote.rungs[0].tasks: 'quadratic' is not among"),
    "a final task": ("promote: {final: {tasks: [breast_cancer]}}", "promote.final.tasks: 'breast_cancer' is not among"),
    "elsewhere": ("promote: {rungs: [{here: {tasks: [quadratic]}}]}", "promote.rungs[0].here.tasks: 'quadratic'"),
    "too few tunings": (
        "promote: {top: 4, rungs: [{tunings: [4, 8]}]}",
        "promote: rungs[0].tunings: 8 cannot show that one of 4 candidates is better at error rate 0.05; at least 9",
    ),
    "unknown key": (
        "promote: {rungs: [{trails: 3}]}",
        "rungs[0]: unknown key 'trails'; did you mean 'trials'?",
    ),
    "a pruner that is none": (
        "promote: {pruner: best}",
        "promote.pruner: expected none, median, hyperband",
    ),
    "too few seeds for the pruner": (
        "promote: {pruner: wilcoxon}",
        "promote: incumbents.tuning_seeds: 1, expected at least 5 for the pruner wilcoxon, which compares settings",
    ),
    "no baselines": ("promote: {baselines: []}", "promote.baselines: expected at least 1 entries"),
    "variants": (
        "tasks: {search: [quadratic], select: ['quadratic(horizon=7)'], final: [digits_mlp]}",
        "tasks: 'quadratic' is in search and in select (as 'quadratic(horizon=7)', a variant of the same task)",
    ),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_a_mistake_in_the_space_is_one_line(line: str, message: str) -> None:
    data = {**yaml.safe_load(SPACE), **yaml.safe_load(line)}
    Path("tiny.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SpaceError) as error:
        Space.load("tiny.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_own_task_leaves_the_sets_that_hold_a_variant_of_it() -> None:
    Path("tiny.yaml").write_text(SPACE.replace("BASELINE", "adamw"))
    space = Space.load("tiny.yaml").with_tasks(["breast_cancer(horizon=9)"])
    assert space.tasks.select == ()


def test_a_rung_that_asks_for_a_gpu_is_trained_here_at_the_size_given_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = "rungs: [{steps: 1.0, resources: {GPU: 1}, here: {steps: 9}, trials: 4, fresh: 1, tunings: [7, 8]}]"
    folder = a_run([adam()], change=lambda text: text.replace(text.split("\n")[11].strip(), asked))
    code, out, err = command(capsys, "promote found")
    assert code == 0, err
    assert "rung 1: no GPU on this machine: trained on the CPU, at the size given for it (`here`)" in out
    stage = read(folder)["contests"][1]
    assert stage["terms"]["tasks"] == {"breast_cancer": 9}
    assert "no GPU on this machine" in (folder / "certificate.md").read_text()


@pytest.mark.slow
def test_the_shipped_space_for_a_gpu_promotes_on_this_cpu_at_the_size_given_and_says_so_of_every_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = a_run([adam()])
    shipped = Space.load("gpu").plain()
    asked = shipped["promote"]
    assert [bool(rung["resources"]) for rung in asked["rungs"]] == [False, True]
    asked |= {"top": 1, "baselines": ["crippled.rule"], "beside": []}
    few = {"trials": 3, "fresh": 1, "tuning_seeds": 1}
    small, resources = {"steps": 6}, {"GPU": 1.0}
    asked["rungs"] = [{**rung, **few, "tunings": [6, 8], "steps": 8} for rung in asked["rungs"]]
    asked["rungs"][1] |= {"steps": 1.0, "here": {**asked["rungs"][1]["here"], "steps": 8}}
    asked["incumbents"] |= few | {"tunings": 2, "steps": 1.0, "resources": resources, "here": small}
    asked["simplify"] |= few | {"tunings": 3, "steps": 1.0, "margin": 0.5, "resources": resources, "here": small}
    asked["final"] |= few | {"tunings": [6, 8], "steps": 6}
    Path("gpu.yaml").write_text(yaml.safe_dump(shipped))
    code, out, err = command(capsys, "promote found --space gpu.yaml")
    assert code == 0, err
    places = {each["terms"]["name"]: each["place"] for each in read(folder)["contests"]}
    instead = "no GPU on this machine: trained on the CPU, at the size given for it (`here`)"
    stages = read(folder)["contests"]
    assert {each["terms"]["name"]: each["terms"]["tasks"] for each in stages if each["place"]} == {
        "incumbents": {"photo_coordinates": 6, "bytes_transformer": 6},
        "rung 2": {"gpt": 8},
    }
    assert {name for name, place in places.items() if place} == {"incumbents", "rung 2"}
    for stage in ("incumbents", "rung 2", "simplify"):
        assert f"{stage}: {instead}" in out
    assert (folder / "certificate.md").read_text().count("no GPU on this machine") >= 2
    code, out, err = command(capsys, "verify found --sample 2 --tune 0")
    assert code == 0, out + err


def test_mistakes_on_the_command_line_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([adam()])
    for line, words in (
        ("promote nowhere", "no run 'nowhere'"),
        ("promote found --top 9", "--top 9: 8 tunings of rungs[0] cannot tell"),
        ("verify found", "cannot read 'found/certificate.json': No such file or directory; 'discover promote found'"),
        ("verify fuond", "no run 'fuond'"),
        ("verify none.json", "cannot read 'none.json': No such file or directory; expected a run, or its certificate"),
        ("verify found/manifest.json", "is not a certificate"),
    ):
        code, _, err = command(capsys, line)
        assert code == 2
        assert words in err
        assert err.count("\n") == 1
    with pytest.raises(RunError, match="is being searched"), runs.resume(str(folder), budget=Budget(candidates=20)):
        promote.begin("found", None)


# Certificates ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A certificate, made once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("promoted")
        patch.chdir(folder)
        patch.setenv("DISCOVER_DATA_DIR", str(folder / "data"))
        patch.setenv("CXX", "no-such-compiler")
        assert a_run([adam()])
        assert cli.main(["promote", "found", "--workers", "0"]) == 0
        return read(folder / "found")


@pytest.mark.parametrize("named", ["last", "fou", "found", "runs/found", "runs/found/certificate.json", "copy"])
def test_a_certificate_is_found_by_its_run_its_file_or_its_folder(
    named: str, promoted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(promoted["asked"]["folder"], "runs/found")
    Path("copy").mkdir()
    Path("copy/certificate.json").write_text(json.dumps(promoted))
    code, out, err = command(capsys, f"verify {named} --sample 1 --json")
    assert code == 0, err
    assert json.loads(out)["holds"]


def test_a_certificate_holds_all_of_it_and_a_sample(
    promoted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.json").write_text(json.dumps(promoted))
    code, out, _ = command(capsys, "verify c.json --json")
    found = json.loads(out)
    assert code == 0, found
    assert (found["holds"], found["exact"], found["largest"]) == (True, True, 0.0)
    assert found["retrained"] == found["runs"] > 30
    code, out, _ = command(capsys, "verify c.json --sample 5 --seed 1 --json")
    assert (code, json.loads(out)["retrained"]) == (0, 5)


def test_a_contests_line_on_the_screen_gives_the_differences_that_its_certificate_gives(
    promoted: dict[str, Any],
) -> None:
    means = []
    for stage, found in zip(promoted["contests"], promoted["statistics"], strict=True):
        contest = Contest.of(stage)
        for name, line in zip(contest.candidates, promote._contest_lines(contest), strict=True):
            against = contest.hardest(name)
            own = found["versus"][name][against]
            size = percent(own["overall"]["difference"]["value"])
            assert f" loss {size} (interquartile mean), p = " in line
            row = f"| {name} | {against} | {own['won']} of {own['tunings']} | {size} |"
            assert row in certificate.markdown(promoted)
            means.append((percent(own["difference"]), size))
    assert any(mean != size for mean, size in means)  # which would be another number


def test_a_certificate_names_learning_rates_at_the_edge_and_far_apart(promoted: dict[str, Any]) -> None:
    data = copy.deepcopy(promoted)
    final, simplify = data["contests"][-1], data["ablation"]
    for stage in (*data["contests"], simplify):
        for row in stage["results"].values():
            for each in (each for own in row.values() for each in own):
                each["at_edge"], each["hypers"]["lr"] = False, 0.01
    words = "lies at the edge of what was tried", "times apart"
    assert not any(word in certificate.markdown(data) for word in words)
    tunings = final["results"]["diabetes_regression"]["candidate_0"]
    tunings[0]["at_edge"] = tunings[2]["at_edge"] = True
    tunings[1]["hypers"]["lr"] = 0.2
    for each in simplify["results"]["breast_cancer"]["winner"]:
        each["at_edge"] = True
    text, count = certificate.markdown(data), len(tunings)
    there = "candidate_0 on diabetes_regression"
    assert f"- final: the best learning rate {words[0]}: {there} in 2 of {count} tunings;" in text
    assert f"lie more than 10 times apart: {there} (20 times, 0.01 to 0.2);" in text
    in_all = sum(len(own) for own in simplify["results"]["breast_cancer"].values())
    assert f"- simplify: the best learning rate {words[0]}: in 4 of {in_all} tunings;" in text
    assert text.count(words[0]) == 2


def test_the_certificate_in_the_documentation_reads_as_certificates_do_now() -> None:
    for path in (ROOT / "docs" / "certificates").glob("*.json"):
        data = json.loads(path.read_text())
        assert certificate.digest(data) == data["sha256"]
        assert certificate.markdown(data) == path.with_suffix(".md").read_text()


@pytest.mark.slow
def test_the_certificate_in_the_documentation_holds_as_far_as_it_does_without_training() -> None:
    for path in (ROOT / "docs" / "certificates").glob("*.json"):
        assert verify.verify(verify.read(path), sample=0).problems == ()


def _loss(data: dict[str, Any]) -> None:
    data["contests"][-1]["results"]["diabetes_regression"]["candidate_0"][0]["losses"][0] *= 0.9


def _rule(data: dict[str, Any]) -> None:
    data["rule"]["text"] = data["rule"]["text"].replace("lr *", "lr * 2 *")


def _trained_rule(data: dict[str, Any]) -> None:
    _rule(data)
    data["contests"][-1]["rules"]["candidate_0"]["text"] = data["rule"]["text"]


def _statistic(data: dict[str, Any]) -> None:
    data["statistics"][-1]["adjusted"]["candidate_0"] /= 2


def _outcome(data: dict[str, Any]) -> None:
    data["outcome"] = "not shown"


def _seeds(data: dict[str, Any]) -> None:
    row = data["contests"][-1]["results"]["diabetes_regression"]["candidate_0"]
    row[1] = {**copy.deepcopy(row[0])}


TAMPER: tuple[Callable[[dict[str, Any]], None], ...] = (_loss, _rule, _trained_rule, _statistic, _outcome, _seeds)


@pytest.mark.parametrize("tamper", TAMPER)
def test_what_was_changed_does_not_hold(
    tamper: Callable[[dict[str, Any]], None], promoted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy.deepcopy(promoted)
    tamper(data)
    Path("c.json").write_text(json.dumps(data))
    code, out, _ = command(capsys, "verify c.json --sample 1")
    assert code == 1
    assert "the seal is broken" in out
    assert "does not hold" in out
    sealed = certificate.seal(data)  # by one who knows how it is sealed
    assert not verify.verify(sealed, sample=1).holds


def test_another_version_is_held_to_a_tolerance_and_says_so(promoted: dict[str, Any]) -> None:
    data = copy.deepcopy(promoted)
    data["versions"]["torch"] = "1.0"
    report = verify.verify(certificate.seal(data), sample=3)
    assert report.holds
    assert not report.exact
    assert report.why_not.startswith("torch is ")
    _loss(data)
    assert not verify.verify(certificate.seal(data), sample=None).holds


def test_a_certificate_of_another_format_is_refused(promoted: dict[str, Any]) -> None:
    Path("c.json").write_text(json.dumps({**promoted, "format": 99}))
    with pytest.raises(UserError, match="is of format 99"):
        verify.read(Path("c.json"))
