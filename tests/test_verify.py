"""Laws of `discover verify`: what does not follow from the rest of a certificate is named in a line, however well it is
sealed; and what follows, but was never trained so, is found by training it again."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dsl
from discover import ablate, archive, built, certificate, certify, cli, pieces, rehearsal, trainers, verdict, verify
from discover.contenders import RuleContender
from discover.contest import Contest, plain_tuned
from discover.keeper import Keeper
from discover.manifest import FORMAT, host, read_manifest
from discover.pieces import Site, Trained, TrainRuns
from discover.promotion import PROMOTION, program_of
from discover.records import Generation, GenerationRecord
from discover.storage import Store
from discover.trainers import Run
from discover.workshop import Workshop
from tests.home import home
from tests.test_promote import ASCENT, CRIPPLED, SPACE, a_run, adam, command, read, terms

__all__ = ["home"]

Data = dict[str, Any]
Forgery = Callable[[Data], None]

ONE_RUNG = "  rungs: [{steps: 12, trials: 4, fresh: 1, tunings: [7, 8]}]\n"
TWO_RUNGS = (
    "  rungs: [{steps: 12, trials: 4, fresh: 1, tunings: [7, 8]}, {steps: 9, trials: 3, fresh: 1, tunings: [7, 8]}]\n"
)
assert ONE_RUNG in SPACE
RESUMED = "discover resume /there/found"


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Bands of fewer resamples, so that each test is fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "RESAMPLES", 40)
        patch.setattr(verdict, "CURVE_RESAMPLES", 40)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was promoted, by two rungs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("promoted")
        patch.chdir(folder)
        patch.setenv("DISCOVER_DATA_DIR", str(folder / "data"))
        patch.setenv("CXX", "no-such-compiler")
        torch.set_num_threads(1)
        went_on(a_run([adam(), ASCENT], change=lambda text: text.replace(ONE_RUNG, TWO_RUNGS)))
        assert cli.main(["promote", "found", "--workers", "0"]) == 0
        return folder / "found"


def went_on(folder: Path) -> None:
    """As if a second session had searched, and found nothing."""
    host = {"cpu": "another", "cpus": 4}
    session = {"command": RESUMED.split(), "versions": {"torch": "2.0"}, "host": host}
    with archive.Archive.open(folder / "archive.sqlite") as further:
        further.begin_session(session)
        record = GenerationRecord(further.totals().generations, 7, {"not odd": 7}, 0, 0, (), 1234, None, (), ())
        further.commit_generation(Generation(record), {"idle": 60.0, "store": 5.4, "train": 100.0})


@pytest.fixture
def data(run: Path) -> Data:
    return read(run)


def refit(data: Data) -> None:
    """Statistics and words as they follow from the runs: what a forger recomputes who knows the file alone."""
    contests = [Contest.of(each) for each in data["contests"]]
    data["statistics"] = json.loads(json.dumps([certificate.statistics_of(each) for each in contests]))
    data["outcome"] = certificate.outcome(contests)
    data["statement"] = certificate.statement(data)
    names = {each.terms.name for each in contests} | {"simplify"}
    for key, own in data["spent"].items():
        if key != "seconds":
            data["spent"][key] = {name: value for name, value in own.items() if name in names}
    data["spent"]["seconds"] = sum(data["spent"]["by_stage"].values())


def fit_all(data: Data) -> Data:
    """All that follows from the tunings: what a forger recomputes who knows this program too."""
    stages = rehearsal.stages_of(data)
    return certificate.seal({**data, **rehearsal.rehearsed(data, None, rehearsal.Recorded(stages))})


def checked(data: Data, folder: Path | None = None, **asked: Any) -> verify.Report:
    return verify.verify(certificate.seal(data), **{"sample": 1, "folder": folder, **asked})


def stage(data: Data, name: str) -> Data:
    found: Data = next(each for each in rehearsal.stages_of(data) if each["terms"]["name"] == name)  # type: ignore[assignment]
    return found


# What does not follow -------------------------------------------------------------------------------------------------


def _rung_deleted(data: Data) -> None:
    data["contests"].remove(stage(data, "rung 2"))
    refit(data)


def _first_rung_deleted(data: Data) -> None:
    data["contests"].remove(stage(data, "rung 1"))
    refit(data)


def _candidate_of_a_rung_dropped(data: Data) -> None:
    rung = stage(data, "rung 1")
    rung["candidates"].remove("candidate_0")
    for part in (rung["rules"], rung["tuned"], *rung["results"].values()):
        del part["candidate_0"]
    refit(data)


def _candidate_not_counted(data: Data) -> None:
    stage(data, "rung 1")["candidates"].remove("candidate_0")
    refit(data)


def _candidate_dropped_everywhere(data: Data) -> None:
    _candidate_of_a_rung_dropped(data)
    data["candidates"].pop()
    data["standing"]["looked_at"].pop()


def _candidate_added_to_the_final(data: Data) -> None:
    final, other = stage(data, "final"), stage(data, "rung 1")
    final["candidates"].append("candidate_0")
    final["rules"]["candidate_0"] = other["rules"]["candidate_0"]
    final["tuned"]["candidate_0"] = 1
    for row in final["results"].values():
        row["candidate_0"] = copy.deepcopy(row["candidate_1"])
    final["candidates"].sort(reverse=True)


def _curve(data: Data) -> None:
    data["curve"][0]["score"] += 0.5


def _checkpoint(data: Data) -> None:
    data["checkpoint"] = copy.deepcopy(next(each for each in data["curve"] if each != data["checkpoint"]))


def _identity(data: Data) -> None:
    data["rule"]["identity"] = "new; nearest is sgd (similarity 0.100), 3% of operations shared"


def _simplification_emptied(data: Data) -> None:
    data["simplification"] = []


def _ablation_left_out(data: Data) -> None:
    data["simplification"], data["ablation"] = [], None
    for part in ("model_steps", "by_stage"):
        del data["spent"][part]["simplify"]


def _ablation_says_otherwise(data: Data) -> None:
    trial = next(each for each in data["simplification"] if each["difference"] is not None)
    trial["p"] /= 10


def _state_bytes(data: Data) -> None:
    data["footprints"]["diabetes_regression"]["candidate_1"]["state_bytes"] = 0.0


def _commands(data: Data) -> None:
    data["commands"][2] = "discover promote another --top 2"


def _session_not_told(data: Data) -> None:
    del data["commands"][1]


def _spent_emptied(data: Data) -> None:
    data["spent"]["model_steps"] = {}


def _spent_less(data: Data) -> None:
    data["spent"]["model_steps"]["rung 1"] //= 2


def _dimensions(data: Data) -> None:
    stage(data, "rung 1")["tuned"]["candidate_1"] = 1


def _dimensions_of_a_variant(data: Data) -> None:
    stage(data, "simplify")["tuned"]["variant 1"] = 1


def _error_rate(data: Data) -> None:
    stage(data, "final")["terms"]["error_rate"] = 0.2
    refit(data)


def _fewer_trials(data: Data) -> None:
    final = stage(data, "final")
    final["terms"]["trials"] = 2
    for row in final["results"].values():
        for tunings in row.values():
            for tuned in tunings:
                tuned["trials"] = 2


def _more_tuned_than_asked(data: Data) -> None:
    for each in data["contests"]:
        each["terms"]["own"] = True


def _another_seed(data: Data) -> None:
    stage(data, "rung 2")["terms"]["first"] = 700_000_000


def _another_task(data: Data) -> None:
    final = stage(data, "final")
    final["terms"]["tasks"] = {"quadratic": 12}
    final["results"] = {"quadratic": final["results"]["diabetes_regression"]}
    data["footprints"] = {"quadratic": data["footprints"]["diabetes_regression"]}
    refit(data)


def _tuning_dropped(data: Data) -> None:
    for row in stage(data, "rung 1")["results"].values():
        row["candidate_1"].pop()
    refit(data)


def _another_baseline(data: Data) -> None:
    easier = "def crippled(p, g, *, lr=0.1):\n    p = p - lr * mean(abs(g))\n"
    stage(data, "final")["rules"]["crippled.rule"]["text"] = easier


def _a_baseline_less(data: Data) -> None:
    for each in data["contests"]:
        each["baselines"] = []


def _candidate_text(data: Data) -> None:
    data["candidates"][0]["text"] = data["candidates"][1]["text"]


def _bad_rate(data: Data) -> None:
    row = stage(data, "final")["results"]["diabetes_regression"]["crippled.rule"]
    row[0]["hypers"]["lr"] = 1e-12


def _made_up_hyperparameter(data: Data) -> None:
    row = stage(data, "final")["results"]["diabetes_regression"]["candidate_1"]
    row[0]["hypers"]["rate1"] = 0.2


def _no_rate(data: Data) -> None:
    row = stage(data, "rung 1")["results"]["breast_cancer"]["crippled.rule"]
    row[0]["hypers"] = {}


def _pruned(data: Data) -> None:
    stage(data, "final")["results"]["diabetes_regression"]["crippled.rule"][0]["pruned"] = 3


def _place(data: Data) -> None:
    stage(data, "rung 1")["place"] = "on a GPU"


def _data_digest(data: Data) -> None:
    data["data"]["breast_cancer"] = "0" * 64


def _kept_space(data: Data) -> None:
    data["provenance"]["space"]["promote"]["rungs"][0]["trials"] = 5


def _beside_left_out(data: Data) -> None:
    final = stage(data, "final")
    final["beside"] = []
    for part in (final["rules"], final["tuned"], *final["results"].values(), *data["footprints"].values()):
        del part["sgd"]
    refit(data)


def _seen_by_nobody(data: Data) -> None:
    data["seen"] = []


def _another_rung_asked_for(data: Data) -> None:
    data["asked"]["tasks"] = ["quadratic"]
    data["commands"][2] = data["commands"][2].replace(" --workers", " --task quadratic --workers")


FORGERIES: dict[Forgery, str] = {
    _beside_left_out: "final: 7 tunings of sgd on diabetes_regression are needed",
    _seen_by_nobody: "seen is []",
    _another_rung_asked_for: "rung 3: the space asks for it, and it is not in the certificate",
    _rung_deleted: "rung 2: the space asks for it, and it is not in the certificate",
    _first_rung_deleted: "rung 1: the space asks for it, and it is not in the certificate",
    _candidate_of_a_rung_dropped: "rung 1: 7 tunings of candidate_0 on breast_cancer are needed, from study seed 40000",
    _candidate_not_counted: "contests: rung 1.candidates is",
    _candidate_dropped_everywhere: "candidates: 1 of 2 that were asked for, and 1 of 2 places looked at",
    _candidate_added_to_the_final: "contests: final.candidates is",
    _curve: "curve.0.score is",
    _checkpoint: "checkpoint.generation is 0, and 1 follows",
    _identity: 'rule.identity is "new; nearest is sgd',
    _simplification_emptied: "simplification is []",
    _ablation_left_out: "simplify: the space asks for it, and it is not in the certificate",
    _ablation_says_otherwise: "simplification.",
    _state_bytes: "footprints.diabetes_regression.candidate_1.state_bytes is 0.0",
    _session_not_told: "commands is a list of 3, and a list of 4 follows",
    _commands: 'commands.2 is "discover promote another --top 2", and "discover promote /',
    _spent_emptied: "spent.model_steps (keys) is []",
    _spent_less: "spent.model_steps.rung 1 is",
    _dimensions: "contests: rung 1.tuned.candidate_1 is 1, and 2 follows",
    _dimensions_of_a_variant: "ablation.tuned.variant 1 is 1, and 2 follows",
    _error_rate: "contests: final.terms.error_rate is 0.2, and 0.05 follows",
    _fewer_trials: "contests: final.terms.trials is 2, and 4 follows",
    _more_tuned_than_asked: "contests: incumbents.terms.own is true, and false follows",
    _another_seed: "7 tunings of crippled.rule on breast_cancer are needed, from study seed 500000000 on, and 0",
    _another_task: "final: 7 tunings of crippled.rule on diabetes_regression are needed",
    _tuning_dropped: "tunings of candidate_1 on breast_cancer are needed, from study seed 400000000 on",
    _another_baseline: "final: 7 tunings of crippled.rule on diabetes_regression are needed",
    _a_baseline_less: "contests: incumbents.baselines is []",
    _candidate_text: "candidates.0.text is",
    _bad_rate: "final: crippled.rule on diabetes_regression, tuning 300000000: lr is 1e-12, and no study proposes it",
    _made_up_hyperparameter: "final: candidate_1 on diabetes_regression, tuning 300000000: rate1 is not tuned there",
    _no_rate: "rung 1: crippled.rule on breast_cancer, tuning 400000000: lr has no value",
    _pruned: "final: crippled.rule on diabetes_regression: seeds, trials, steps or curves are not those",
    _place: 'contests: rung 1.place is "on a GPU"',
    _data_digest: "breast_cancer: its data here are not those of the certificate",
    _kept_space: "contests: rung 1.terms.trials is 4, and 5 follows",
}


@pytest.mark.parametrize("key", ["versions", "hardware", "sessions", "statement", "contests"])
def test_a_certificate_that_was_cut_does_not_hold(key: str, data: Data) -> None:
    del data[key]
    report = checked(data)
    assert not report.holds
    assert report.problems == (f"its data do not fit together: KeyError({key!r})",)


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda each: each.__name__.strip("_"))
def test_what_does_not_follow_does_not_hold_and_is_named(forgery: Forgery, data: Data) -> None:
    forgery(data)
    report = checked(data)
    assert not report.holds
    assert any(FORGERIES[forgery] in line for line in report.problems), report.problems
    assert not any("\n" in line or "do not fit together" in line for line in report.problems)


def test_a_certificate_of_before_tunings_named_their_code_holds_to_a_tolerance(data: Data) -> None:
    for each in rehearsal.stages_of(data):
        for row in each["results"].values():
            for tuned in (tuned for own in row.values() for tuned in own):
                for way in (*tuned["built"], tuned["fresh_built"]):
                    del way["code"]
    report = checked(data, sample=2, tune=1)
    assert (report.problems, report.loose, report.tunings_loose) == ((), 2, 1)
    assert report.why_not.startswith("it was trained by code that it does not say, and this is ")


def test_a_key_that_is_gone_since_is_no_matter_where_the_run_is_not_at_hand(data: Data, run: Path) -> None:
    data["provenance"]["space"]["evolution"] |= {"islands": 1, "tune": 0.0}
    assert checked(data).problems == ()
    assert any("provenance.space.evolution" in line for line in checked(data, run).problems)
    data["provenance"]["space"]["promote"]["islands"] = 1
    assert checked(data).problems == ("provenance.space: promote: unknown key 'islands'",)


# With the run at hand -------------------------------------------------------------------------------------------------


def _archive(data: Data) -> None:
    data["provenance"]["archive"] = "0" * 64


def _lineage(data: Data) -> None:
    data["provenance"]["lineage"] = data["provenance"]["lineage"][1:]


def _space(data: Data) -> None:
    """A rung less, in the space too."""
    del data["provenance"]["space"]["promote"]["rungs"][1]
    _rung_deleted(data)


def _fewer_asked_for(data: Data) -> None:
    """As if `--top 1` had been asked for, and no other had stood there."""
    _candidate_dropped_everywhere(data)
    data["standing"]["places"] = 1
    data["asked"]["top"] = 1
    data["commands"][2] = data["commands"][2].replace("--top 2", "--top 1")


def _leader_dropped(data: Data) -> None:
    held = stage(data, "incumbents")
    data["curve"].pop(0)
    held["candidates"].remove("candidate_0")
    for part in (held["rules"], held["tuned"], *held["results"].values()):
        del part["candidate_0"]
    refit(data)


def _believed(data: Data) -> None:
    data["curve"][1]["fitness"] = data["checkpoint"]["fitness"] = 0.9


def _of_another_run(data: Data) -> None:
    data["provenance"]["run"] = "another"


def _searched_by_another_command(data: Data) -> None:
    data["provenance"]["sessions"][1]["command"] = data["commands"][1] = "discover resume /there/found --time 10h"


def _session_left_out(data: Data) -> None:
    del data["provenance"]["sessions"][1], data["commands"][1]


def _searched_on_other_hardware(data: Data) -> None:
    data["provenance"]["sessions"][1]["hardware"]["cpus"] = 1


def _made_on_other_hardware(data: Data) -> None:
    data["provenance"]["sessions"][0]["hardware"]["cpu"] = "the one that was promised"


def _searched_with_other_versions(data: Data) -> None:
    data["provenance"]["sessions"][1]["versions"]["torch"] = "2.1"


def _searched_for_less(data: Data) -> None:
    data["provenance"]["spent"]["seconds"] = 6.54


def _proposed_less(data: Data) -> None:
    data["provenance"]["spent"]["proposed"] = 2


def _began_elsewhere(data: Data) -> None:
    """Where the search began is shown beside the winner: another start, another rule to be shown beside."""
    data["provenance"]["ancestors"] = []
    _beside_left_out(data)


AT_HAND: dict[Forgery, str] = {
    _began_elsewhere: "final: 7 tunings of sgd on diabetes_regression are needed",
    _archive: "provenance.archive is",
    _lineage: "provenance.lineage is",
    _space: "rung 2: the space asks for it",
    _fewer_asked_for: "standing.places is 1, and 2 follows",
    _leader_dropped: "incumbents: 2 tunings of candidate_0 on breast_cancer are needed",
    _believed: "curve.1.fitness is 0.9, and 0.1 follows",
    _searched_by_another_command: 'provenance.sessions.1.command is "discover resume /there/found --time 10h", and',
    _session_left_out: "provenance.sessions is a list of 1, and a list of 2 follows",
    _searched_on_other_hardware: "provenance.sessions.1.hardware.cpus is 1, and 4 follows",
    _made_on_other_hardware: 'provenance.sessions.0.hardware.cpu is "the one that was promised"',
    _searched_with_other_versions: 'provenance.sessions.1.versions.torch is "2.1", and "2.0" follows',
    _searched_for_less: "provenance.spent.seconds is 6.54, and 65.4 follows",
    _proposed_less: "provenance.spent.proposed is 2, and 9 follows",
    _of_another_run: 'provenance.run is "another", and "found" follows',
}


@pytest.mark.parametrize("forgery", AT_HAND, ids=lambda each: each.__name__.strip("_"))
def test_what_is_not_the_runs_does_not_hold_where_it_is_at_hand(forgery: Forgery, data: Data, run: Path) -> None:
    forgery(data)
    report = checked(data, run)
    assert any(AT_HAND[forgery] in line for line in report.problems), report.problems


def test_what_was_not_checked_is_said(data: Data, run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = checked(data, run)
    assert there.holds
    assert [line for line in there.unchecked if "folder" in line] == []
    (home / "alone.json").write_text(json.dumps(data))
    code, out, err = command(capsys, "verify alone.json --sample 1 --tune 1")
    assert code == 0, err
    parts = "space, sessions, spend, archive, standing, leaders and lineage"
    assert f"not checked: the run's {parts}, since its folder is elsewhere" in out
    assert "not checked: whether 'crippled.rule' was the baseline that was meant" in out
    assert f"1 of {there.tunings} tunings done again, with all their trials" in out


def test_a_certificate_holds_after_its_run_was_searched_further(data: Data, run: Path, home: Path) -> None:
    shutil.copytree(run, home / "further")
    further = archive.Archive.open(home / "further" / "archive.sqlite")
    with further:
        number, first = further.totals().generations, next(further.generations())
        further.begin_session({"command": ["discover", "resume", "further"]})
        further.commit_generation(
            replace(
                first,
                record=replace(first.record, number=number),
                candidates=(replace(first.candidates[0], id=9, generation=number, fitness=0.7),),
            )
        )
        assert further.digest(number) == data["provenance"]["archive"] != further.digest()
    assert checked(data, home / "further").problems == ()


# What follows, but was not trained so ---------------------------------------------------------------------------------


def test_a_forger_who_makes_all_of_it_follow_is_found_by_training_again(data: Data) -> None:
    """By another rule all through, with every number computed anew by this program."""
    text = json.dumps(data)
    for before, after in (
        ("lerp(m, g, 0.1)", "lerp(m, g, 0.3)"),
        ("debias(m, 0.9)", "debias(m, 0.7)"),
        ("log(0.01, 0.9) = 0.1", "log(0.03, 0.9) = 0.3"),
    ):
        assert before in text
        text = text.replace(before, after)
    report = verify.verify(fit_all(json.loads(text)), sample=None)
    again = [line for line in report.problems if "trained again it ends at" in line]
    assert len(again) > 30
    assert all("no study proposes it" in line for line in {*report.problems} - {*again})  # it steps another way
    losses = stage(data, "final")["results"]["diabetes_regression"]["candidate_1"][0]["losses"]
    losses[0] *= 0.9
    (line,) = verify.verify(fit_all(data), sample=None).problems
    assert line.startswith("final: candidate_1 on diabetes_regression, seed 300000000500: trained again it ends at")


def badly_tuned(data: Data, name: str, contender: str, factor: float) -> None:
    """A setting that its study would not have chosen, in all tunings; with the losses that it does end at."""
    held = stage(data, name)
    contest = Contest.of(held)
    for task, steps in contest.terms.tasks.items():
        for index, tuned in enumerate(contest.results[task][contender]):
            hypers = {**tuned.hypers, "lr": tuned.hypers["lr"] * factor}
            runs = tuple(Run(hypers, seed) for seed in tuned.seeds)
            site = Site(task, steps, compile=False)
            done = TrainRuns(contender, held["rules"][contender], site, runs, tuned.steps).carry_out()
            assert isinstance(done, Trained)
            losses, curves = (tuple(getattr(each, part) for each in done.traces) for part in ("loss", "curve"))
            changed = replace(tuned, hypers=hypers, losses=losses, curves=tuple(map(tuple, curves)))
            held["results"][task][contender][index] = plain_tuned(changed)


def test_a_badly_tuned_baseline_is_found_by_tuning_again(data: Data) -> None:
    badly_tuned(data, "final", "crippled.rule", 0.05)
    forged = fit_all(data)
    assert verify.verify(forged, sample=None).holds  # no run is false
    report = verify.verify(forged, sample=1, tune=10**6)
    contests = [Contest.of(each) for each in rehearsal.stages_of(data)]
    every = [tuned for contest in contests for row in contest.results.values() for own in row.values() for tuned in own]
    assert report.retuned == report.tunings == len(every)
    assert len(report.problems) == 7
    assert all(
        line.startswith("final: crippled.rule on diabetes_regression, tuning 3")
        and ": tuned again its best is " in line
        and " nats apart on fresh seeds" in line
        for line in report.problems
    )


def test_tunings_of_another_version_are_held_to_a_tolerance(data: Data) -> None:
    data["versions"]["optuna"] = "1.0"
    report = checked(data, tune=10**6)
    assert report.holds
    assert report.exact  # of runs
    badly_tuned(data, "final", "crippled.rule", 0.05)
    data["versions"]["optuna"] = "1.0"
    assert any("tuned again" in line for line in verify.verify(fit_all(data), sample=1, tune=10**6).problems)


def test_all_sessions_and_workers_count_for_what_can_be_equal_to_the_bit(data: Data) -> None:
    for who, machine in (("session", data["sessions"][0]), ("worker", copy.deepcopy(data["sessions"][0]))):
        changed = copy.deepcopy(data)
        if who == "worker":
            changed["sessions"][0]["workers"] = [machine]
        else:
            machine = changed["sessions"][0]
        machine["versions"]["numpy"] = "1.0"
        report = checked(changed)
        assert (report.holds, report.exact) == (True, False)
        assert report.why_not.startswith("numpy is ")
        assert f"a {who} of it was of 1.0" in report.why_not


def test_runs_of_the_ablation_are_trained_again_too(data: Data) -> None:
    stage(data, "simplify")["results"]["breast_cancer"]["variant 1"][0]["losses"][0] *= 1 + 1e-8
    report = verify.verify(fit_all(data), sample=None)
    (line,) = report.problems
    assert line.startswith("simplify: variant 1 on ")
    assert ": 1e-08 nats apart (hypers {" in line  # six digits of both are the same


# Trained in several ways ----------------------------------------------------------------------------------------------


KINDS = {"plain": False, "quick": True}


@pytest.fixture
def no_ground_kept() -> Iterator[None]:
    pieces.ground_of.cache_clear()
    yield
    pieces.ground_of.cache_clear()


def _promoted_where(name: str, monkeypatch: pytest.MonkeyPatch, *, native: bool = False, on: str | None = None) -> Data:
    """The certificate of a run as a machine makes it that steps rules so, on such a CPU, all with one store."""
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "available", lambda: native)
        if on is not None:
            patch.setattr(trainers, "machine", lambda device: on)
        a_run([adam()]).rename(name)
        assert cli.main(["promote", name, "--workers", "0"]) == 0
    return read(Path(name))


def _ways(data: Data) -> set[str]:
    contests = [Contest.of(each) for each in rehearsal.stages_of(data)]
    rows = [row for contest in contests for row in contest.results.values()]
    return {str(way) for row in rows for own in row.values() for tuned in own for way in tuned.all_built}


@pytest.mark.usefixtures("no_ground_kept")
def test_a_study_that_was_trained_otherwise_is_not_taken_and_both_certificates_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (_promoted_where(name, monkeypatch, native=native) for name, native in KINDS.items())
    assert _ways(first) == {f"eager gradients, generated rules, on {built.cpu()}"}
    assert _ways(second) == {f"eager gradients, native rules, on {built.cpu()}"}
    monkeypatch.setattr(trainers, "available", lambda: True)
    for data in (first, second):  # what was trained without is trained again without
        report = verify.verify(data, sample=20, tune=2)
        assert (report.problems, report.exact, report.loose, report.tunings_loose) == ((), True, 0, 0)
    pieces.ground_of.cache_clear()
    monkeypatch.setattr(trainers, "available", lambda: False)
    report = verify.verify(second, sample=20, tune=2)
    assert report.holds
    assert (report.exact, report.loose, report.tunings_loose) == (False, 20, 2)
    assert "native rules, on" in report.why_not
    assert "and here that came to eager gradients, generated rules" in report.why_not


@pytest.mark.usefixtures("no_ground_kept")
def test_what_another_kind_of_cpu_trained_is_used_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _promoted_where("there", monkeypatch, on="x86_64 AVX2 00000000")
    here = _promoted_where("here", monkeypatch)  # by the studies of the other
    assert _ways(here) == {"eager gradients, generated rules, on x86_64 AVX2 00000000"}
    monkeypatch.setattr(trainers, "available", lambda: False)
    capsys.readouterr()
    code, out, _ = command(capsys, "verify here --sample 5 --tune 1")
    assert code == 0
    assert (
        f"(within 0.05 nats was asked, since it was trained on x86_64 AVX2 00000000, and this is {built.cpu()})" in out
    )
    assert "with all their trials; 1 of them held to 0.25 nats" in out


def test_a_tuning_by_workers_of_two_kinds_is_held_to_a_tolerance_and_the_rest_to_the_bit(data: Data) -> None:
    final = stage(data, "final")["results"]["diabetes_regression"]["candidate_1"]
    other = {**final[0]["fresh_built"], "on": "another kind"}
    final[0]["built"].append(other)
    final[1]["fresh_built"] = other
    report = verify.verify(fit_all(data), sample=None, tune=10**6)
    assert (report.problems, report.exact) == ((), False)
    assert (report.loose, report.tunings_loose) == (1, 2)
    assert report.why_not == f"it was trained on another kind, and this is {built.cpu()}"


def test_on_another_kind_of_cpu_a_rule_may_have_stepped_some_times_as_far(data: Data) -> None:
    tuned = stage(data, "final")["results"]["diabetes_regression"]["candidate_1"][0]

    def outside(rate: float) -> list[str]:
        tuned["hypers"]["lr"] = rate
        problems = verify.verify(fit_all(data), sample=1, tune=0).problems
        return [line for line in problems if "no study proposes it" in line]

    (line,) = outside(1e9)
    highest = float(line.rpartition(" to ")[2])
    assert outside(5 * highest)
    other = {**tuned["fresh_built"], "on": "another kind"}
    tuned["built"], tuned["fresh_built"] = [other], other
    assert not outside(5 * highest)
    assert outside(20 * highest)


# What a certificate has -----------------------------------------------------------------------------------------------


def test_a_built_in_baseline_is_the_one_of_that_name() -> None:
    as_it_is = {"text": dsl.format(dsl.load("lion"))}
    assert rehearsal._baselines({"contenders": {"lion": as_it_is}}) == ([], [])
    wrong, _ = rehearsal._baselines({"contenders": {"lion": {"text": CRIPPLED}}})
    assert wrong == ["contenders: 'lion' is not the built-in rule of that name"]


def test_who_searched_and_at_what_cost_is_written_down(data: Data, run: Path) -> None:
    (first, second), manifest = data["provenance"]["sessions"], read_manifest(run)
    assert [first[key] for key in ("began", "versions", "hardware")] == [manifest.created, manifest.versions, host()]
    assert data["commands"][:2] == [first["command"], second["command"]] == ["discover search", RESUMED]
    assert data["provenance"]["spent"] == {"proposed": 9, "trained": 2, "model_steps": 1234, "seconds": 65.4}
    text, python = (run / "certificate.md").read_text(), manifest.versions["python"]
    assert f"- searched from {manifest.created} by `discover search` with python {python}, " in text
    assert f"- searched from {second['began']} by `{RESUMED}` with torch 2.0; on cpu another, cpus 4\n" in text
    assert "- spent by the search: 9 proposed, 2 trained, 1,234 model steps, 65 s\n" in text


def test_a_session_without_a_command_is_said_to_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([ASCENT], "adamw")
    with archive.Archive.open(folder / "archive.sqlite") as further:
        for facts in (None, None, {"command": [], "versions": {"torch": "2.0"}, "host": {"cpus": 4}}):
            further.begin_session(facts)
        further.commit_generation(Generation(GenerationRecord(1, 0, {}, 0, 0, (), 0, None, (), ())))
    assert command(capsys, "promote found")[0] == 0
    certified = read(folder)
    _, old, program = certified["provenance"]["sessions"]
    assert (old["versions"], old["hardware"]) == ({}, {})
    assert certified["commands"][:3] == [
        "discover search",
        *(f"# the session of {each['began']} left no command" for each in (old, program)),
    ]
    text = (folder / "certificate.md").read_text()
    assert f"- searched from {old['began']}\n" in text
    assert f"- searched from {program['began']} with torch 2.0; on cpus 4\n" in text
    assert command(capsys, "verify found --sample 1 --tune 0")[0] == 0


def test_versions_hardware_and_a_rule_of_few_digits_are_written_down(data: Data) -> None:
    assert {"torch", "numpy", "optuna", "scipy", "scikit-learn"} <= set(data["versions"])
    assert certify.packages({"torch.optim:SGD": {"class": "torch.optim:SGD"}}) == {
        "torch.optim:SGD": f"torch {data['versions']['torch']}"
    }
    assert {"cpu", "memory_gb", "cpus"} <= set(data["hardware"])
    assert host()["memory_gb"] == data["hardware"]["memory_gb"]
    defaults = dsl.parse(data["rule"]["text"]).defaults
    assert "weight_decay" in defaults
    assert all(float(f"{value:.6g}") == value for value in defaults.values())


def test_the_record_of_an_ablation_is_what_its_trials_follow_from() -> None:
    store = Store(None)
    workshop = Workshop(store, Keeper(None))
    winner = dsl.parse("def w(p, g, *, lr=0.1, c1=1.3):\n    u = sign(g) * c1 + 1e-6 * tanh(g)\n    p = p - lr * u\n")
    found = ablate.simplify(winner, terms(least=4, most=4), 0.05, workshop)
    trained = [trial for trial in found.trials if trial.difference is not None]
    assert len(found.contest.candidates) == len(trained) == len(found.contenders) - 1 > 0
    assert found.contest.model_steps == sum(
        each.model_steps for row in found.contest.results.values() for own in row.values() for each in own
    )
    assert isinstance(found.contenders[0], RuleContender)
    store.close()


def test_a_promotion_of_another_format_is_refused(run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, home / "old")
    (home / "old" / PROMOTION).write_text(json.dumps({**read(run, PROMOTION), "format": 1}))
    code, _, err = command(capsys, "promote old")
    assert code == 2
    assert "is of format 1, and this version reads format 4; what was begun with another version goes on" in err


def test_what_was_trained_elsewhere_than_asked_pruned_and_by_a_class_of_torch_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = "  rungs: [{resources: {GPU: 1}, here: {steps: 9}, trials: 4, fresh: 1, tunings: [7, 8]}]\n"

    def change(text: str) -> str:
        return text.replace(ONE_RUNG, asked).replace("own: false", "own: true\n  pruner: hyperband")

    folder = a_run([adam(), ASCENT], "torch.optim:Adagrad", change)
    assert command(capsys, "promote found --top 1")[0] == 0
    certified = read(folder)
    assert stage(certified, "rung 1")["terms"]["pruner"] == "hyperband"
    assert certified["versions"]["torch.optim:Adagrad"] == f"torch {certified['versions']['torch']}"
    code, out, _ = command(capsys, "verify found --sample 5 --tune 5 --json")
    assert (code, json.loads(out)["unchecked"]) == (0, [])
    stage(certified, "rung 1")["place"] = ""
    assert any('contests: rung 1.place is ""' in line for line in checked(certified, folder).problems)


def test_a_run_of_another_version_is_not_read_and_the_certificate_holds_without_it(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "found"
    shutil.copytree(run, folder)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 2', 1))
    report = checked(read(folder), folder)
    assert not report.problems
    (line,) = [line for line in report.unchecked if line.startswith("the run's space")]
    assert f"is a run of format 2, and this version reads format {FORMAT}" in line


def test_without_the_run_leaders_are_read_as_they_were_lifted(data: Data) -> None:
    """To lift a rule that was lifted may tidy it again: its tunings would not be found under what comes of that."""
    rules = stage(data, "incumbents")["rules"]
    for point in data["curve"]:
        spelling = rules[f"candidate_{point['candidate']}"]
        head, *body = spelling["text"].splitlines()
        spelling["text"] = "\n".join([head, "    x1 = 1 - lr", "    x2 = x1 * g", "    g = x2 / x1", *body]) + "\n"
        assert dsl.format(program_of(point["candidate"], spelling["text"])) != spelling["text"]
    led = rehearsal.Rehearsal(data, None).led()
    assert [dsl.format(program) for *_, program in led] == [
        rules[f"candidate_{leader.candidate}"]["text"] for leader, *_ in led
    ]


def test_what_another_space_and_a_further_rung_asked_for_holds(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run([adam()])
    theirs = Path("tiny.yaml").read_text().replace("steps: 12, trials: 4", "steps: 10, trials: 3")
    Path("theirs.yaml").write_text(theirs)
    assert command(capsys, "promote found --space theirs.yaml --task breast_cancer(batch_size=16)")[0] == 0
    certified = read(folder)
    assert stage(certified, "rung 2")["terms"]["tasks"] == {"breast_cancer(batch_size=16)": 10}
    (home / "alone.json").write_text(json.dumps(certified))
    for where in ("found", "alone.json"):
        code, out, err = command(capsys, f"verify {where} --sample 3 --tune 1")
        assert code == 0, out + err
    certified["asked"]["by"]["promote"]["rungs"][0]["trials"] = 5
    assert any("rung 1.terms.trials is 3, and 5 follows" in line for line in checked(certified, folder).problems)
