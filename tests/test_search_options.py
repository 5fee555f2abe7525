"""Laws of a search's options: when it ends, what a control is, what each switch changes, and that spaces run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import dsl
from benchmarks import devices
from discover import rule_names, runs, session, space
from discover.archive import Archive
from discover.budget import UNLIMITED, Budget
from discover.errors import UserError
from discover.events import Finished
from discover.front import costs, undominated
from discover.manifest import read_manifest
from discover.plan import Plan
from discover.progress import Progress
from discover.records import Generation
from discover.space import Space
from discover.standing import expected

TINY: dict[str, Any] = {
    "operators": ["add", "sub", "mul", "div", "neg", "sign", "square", "sqrt", "lerp", "norm"],
    "max_statements": 18,
    "evolution": {"population": 8},
    "proposals_per_generation": 12,
    "tasks": {"search": ["breast_cancer", "quadratic"]},
    "learning_rates": {"points": 3, "factor": 3.0},
    "rungs": [{"tasks": ["breast_cancer"], "steps": 6, "keep": 0.5}, {"tasks": ["quadratic"], "steps": 8}],
    "confirm": {"every": 2, "top": 2, "most": 3},
    "compile": "never",
}
NOS = {"name": "nos", "options": {"depth": 2}}


def tiny(folder: Path, **changes: Any) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return str(path)


def searched(
    name: str, out: Path, *, stop: Callable[[], bool] = lambda: False, keep: Sequence[str] = (), **options: Any
) -> tuple[Finished, list[Generation]]:
    with runs.create(session.configure(name, workers=0, **options), out=out) as run:
        *_, last = session.search(run, stop)
    assert isinstance(last, Finished)
    return last, generations(out)


def generations(out: Path) -> list[Generation]:
    with Archive.read(out / "archive.sqlite") as archive:
        return list(archive.generations())


def digest(out: Path) -> str:
    with Archive.read(out / "archive.sqlite") as archive:
        return archive.digest()


# When it ends -------------------------------------------------------------------------------------------------------


def test_model_steps_end_a_search_and_no_earlier(tmp_path: Path) -> None:
    last, found = searched(tiny(tmp_path), tmp_path / "out", budget=Budget(model_steps=500, candidates=10_000))
    assert last.totals.model_steps >= 500
    assert sum(each.record.model_steps for each in found[:-2]) < 500  # what was in flight is brought to its end
    assert read_manifest(tmp_path / "out").configuration.budget == Budget(model_steps=500, candidates=10_000)


NOTHING = -1e9
"""The best before anything was confirmed."""


def best_so_far(found: list[Generation], usual: float | None = None) -> list[float]:
    """The best that fresh scores let one expect, after each generation; of a usual score, or of that of their time."""
    best, curve = NOTHING, []
    for generation in found:
        drawn_to = generation.record.usual if usual is None else usual
        for each in generation.confirmations:
            assert each.luckless is not None
            best = max(best, expected(each.luckless, each.count, drawn_to))
        curve.append(best)
    return curve


def test_a_target_ends_a_search_when_it_is_expected(tmp_path: Path) -> None:
    name = tiny(tmp_path)
    _, whole = searched(name, tmp_path / "whole", budget=Budget(candidates=30))
    curve = best_so_far(whole)
    reached = next(number for number, best in enumerate(curve) if best == curve[-1])
    _, found = searched(name, tmp_path / "out", budget=Budget(candidates=30, target=curve[-1] - 1e-9))
    assert len(found) == min(reached + 2, len(whole))  # and the one generation that was in flight beside it
    assert found == whole[: len(found)]


def test_a_plateau_ends_a_search(tmp_path: Path) -> None:
    name = tiny(tmp_path)
    _, whole = searched(name, tmp_path / "whole", budget=Budget(candidates=70))
    since, best, after = 0, NOTHING, []
    curve = best_so_far(whole, usual=0.0)  # not by what is usual going up
    for generation, now in zip(whole, curve, strict=True):
        since, best = (0, now) if now > best or now == NOTHING else (since + generation.record.trained, best)
        after.append(since)
    before = sum(each.record.trained for each, best in zip(whole, curve, strict=True) if best == NOTHING)
    assert before > 1  # so that it would end there if it counted from the start
    last = next(number for number, since in enumerate(after) if since >= before)
    _, found = searched(name, tmp_path / "out", budget=Budget(candidates=70, plateau=before))
    assert found == whole[: last + 2]  # and the one generation that was in flight beside it
    assert len(found) < len(whole)


def test_where_nothing_is_confirmed_no_plateau_ends_a_search_but_its_other_limits_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "_to_rescore", lambda *_: [])
    last, found = searched(tiny(tmp_path), tmp_path / "out", budget=Budget(candidates=30, plateau=1, target=-1.0))
    assert last.totals.trained >= 30
    assert sum(each.record.trained for each in found[:-2]) < 30
    small = {"operators": ["neg"], "max_statements": 3, "ancestor": "sgd", "mutation": {"constant": 0.0}}
    name = tiny(tmp_path, **small, proposals_per_generation=2, rungs=[{"tasks": ["quadratic"], "steps": 2}])
    last, found = searched(name, tmp_path / "exhausted", budget=Budget(plateau=1))
    assert not last.interrupted
    assert not any(generation.record.trained for generation in found[-50:])


def test_a_space_that_is_exhausted_ends_the_search(tmp_path: Path) -> None:
    """One operator, one statement: a handful of programs, and the rest are duplicates."""
    small = {"operators": ["neg"], "max_statements": 3, "ancestor": "sgd", "mutation": {"constant": 0.0}}
    name = tiny(tmp_path, **small, proposals_per_generation=2, rungs=[{"tasks": ["quadratic"], "steps": 2}])
    last, found = searched(name, tmp_path / "out", budget=Budget(candidates=1000))
    assert not any(generation.record.trained for generation in found[-50:])
    assert last.totals.trained < 10
    assert last.ended == "nothing new in 50 generations: the space is exhausted, or its gate lets none in"


@pytest.mark.parametrize("stops", [Budget(plateau=12), Budget(model_steps=1_500, target=5.0)])
def test_stops_are_in_the_manifest_and_obeyed_by_resume(stops: Budget, tmp_path: Path) -> None:
    name = tiny(tmp_path)
    searched(name, tmp_path / "whole", budget=stops)
    asked = iter([False] * 8 + [True] * 1000)
    stopped, _ = searched(name, tmp_path / "out", stop=lambda: next(asked), budget=stops)
    assert stopped.interrupted
    assert digest(tmp_path / "out") != digest(tmp_path / "whole")
    with runs.resume(str(tmp_path / "out")) as run:
        list(session.search(run))
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_a_used_budget_of_model_steps_is_said_on_resume(tmp_path: Path) -> None:
    searched(tiny(tmp_path), tmp_path / "out", budget=Budget(model_steps=500))
    with pytest.raises(UserError, match=r"out: has used its 500 model steps; 'discover resume .* --time 10m' goes on"):
        runs.resume(str(tmp_path / "out"))


def test_the_space_says_when_to_end_where_nothing_else_does(tmp_path: Path) -> None:
    name = tiny(tmp_path, budget={"model_steps": 800, "target": 3.0, "plateau": 900})
    configuration = session.configure(name, workers=0)
    assert configuration.budget == Budget(model_steps=800, target=3.0, plateau=900)
    asked = Budget(candidates=5)
    assert session.configure(name, workers=0, budget=asked).budget == asked


# Controls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", ["random", "hyperparameters", "best_of_n"])
def test_a_control_is_a_search_with_so_many_times_the_budget(control: str, tmp_path: Path) -> None:
    budget = Budget(time="1m", candidates=4, target=2.0, plateau=50)
    configuration = session.configure(tiny(tmp_path), workers=0, control=control, control_compute=2.5, budget=budget)
    assert configuration.algorithm == control
    assert configuration.budget == Budget(time="150s", candidates=10, target=2.0, plateau=50)
    with runs.create(configuration, out=tmp_path / "out") as run:
        *_, last = session.search(run)
    assert isinstance(last, Finished)
    assert last.totals.trained >= 10
    candidates = [each for generation in generations(tmp_path / "out") for each in generation.candidates]
    if control == "hyperparameters":
        ancestor = dsl.load("adamw")
        assert all(len(dsl.parse(each.text).slots) == len(ancestor.slots) for each in candidates)
        assert all(each.origin.startswith(("constant", "unchanged")) for each in candidates)
    else:
        assert not any(each.parents for each in candidates)


@pytest.mark.parametrize("asked", [{"control": "random"}, {"algorithm": "random"}])
@pytest.mark.parametrize(("space", "rule"), [("lion_like", "lion"), ("nos_templates", "signsgd"), ("matrix", "soap")])
def test_a_rule_to_start_from_is_refused_where_it_would_have_no_influence(
    space: str, rule: str, asked: dict[str, str]
) -> None:
    message = f"--warm-start {rule} has no influence on algorithm 'random', which starts from no rule; leave it out"
    with pytest.raises(UserError, match=re.escape(message)) as error:
        session.configure(space, workers=0, warm_start=[rule], **asked)  # type: ignore[arg-type]
    assert ("`warm_starts` changes for soap" in str(error.value)) == (rule == "soap")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("budget", [Budget(target=0.5), Budget(plateau=9, target=0.5), UNLIMITED])
def test_so_many_times_a_budget_without_compute_is_refused(budget: Budget, tmp_path: Path) -> None:
    name = tiny(tmp_path)
    words = " and ".join(budget.words()) or "no limit"
    message = "--control-compute 4 is so many times the time, candidates and model steps, and none of them limits this"
    with pytest.raises(UserError, match=re.escape(message)) as error:
        session.configure(name, workers=0, control="best_of_n", control_compute=4.0, budget=budget)
    assert f"({words})" in str(error.value)
    assert "\n" not in str(error.value)
    assert session.configure(name, workers=0, control="best_of_n", budget=budget).budget == budget


# Switches -----------------------------------------------------------------------------------------------------------

SWITCHES: dict[str, dict[str, Any]] = {
    "islands": {
        "algorithm": f"{devices.__file__}:Islands",
        "evolution": {"population": 8},
        "proposer": {"islands": 2, "migrate_every": 6},
    },
    "two rungs": {
        "rungs": [
            {"tasks": ["breast_cancer"], "steps": 6, "keep": 0.5},
            {"tasks": ["quadratic"], "steps": 8},
        ]
    },
    "no cache": {"cache": False},
    "objectives": {"objectives": ["fitness", "state_bytes", "operations"]},
    "lengths": {"step_scales": [0.5, 2.0]},
    "tensors, batches": {"tensor_scales": [0.1, 10.0], "batch_scales": [0.25, 4.0]},
    "optuna": {"algorithm": "optuna", "optuna": {"options": {"n_startup_trials": 6}}},
    "optuna, NSGA-II of a template": {
        "algorithm": "optuna",
        "template": {"name": "nos", "options": {"depth": 2}},
        "optuna": {"sampler": "nsga2", "options": {"population_size": 6}},
        "objectives": ["fitness", "state_bytes"],
    },
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_with_each_switch_an_interrupted_search_goes_on_to_the_same_archive(switch: str, tmp_path: Path) -> None:
    name = tiny(tmp_path, **SWITCHES[switch])
    searched(name, tmp_path / "whole", budget=Budget(candidates=24))
    asked = iter([False] * 4 + [True] * 1000)
    stopped, before = searched(name, tmp_path / "out", budget=Budget(candidates=24), stop=lambda: next(asked))
    assert stopped.interrupted
    assert before
    with runs.resume(str(tmp_path / "out")) as run:
        list(session.search(run))
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_with_all_switches_the_number_of_workers_makes_no_difference(tmp_path: Path) -> None:
    on = ("islands", "two rungs", "objectives", "lengths", "tensors, batches")
    name = tiny(tmp_path, **{key: value for switch in on for key, value in SWITCHES[switch].items()})
    searched(name, tmp_path / "none", budget=Budget(candidates=30))
    with runs.create(session.configure(name, workers=2, budget=Budget(candidates=30)), out=tmp_path / "two") as run:
        list(session.search(run))
    assert digest(tmp_path / "none") == digest(tmp_path / "two")


def test_without_cache_a_program_is_trained_again(tmp_path: Path) -> None:
    _, found = searched(tiny(tmp_path, cache=False), tmp_path / "out", budget=Budget(candidates=30))
    trained = [each for generation in found for each in generation.candidates]
    assert not any(each.status == "duplicate" for each in trained)
    assert len({each.structure for each in trained}) < len(trained)


def test_what_failed_has_no_part_of_the_luck_of_its_generation(tmp_path: Path) -> None:
    """Its score is the lower limit, for want of another."""
    name = tiny(tmp_path, rungs=SWITCHES["two rungs"]["rungs"])
    _, found = searched(name, tmp_path / "out", budget=Budget(candidates=20))
    generation = max(found, key=lambda each: each.record.trained)
    lost = next(each.id for each in generation.candidates if each.status == "trained")
    failed = tuple(replace(each, status="timed_out") if each.id == lost else each for each in generation.candidates)
    asked, owed = Space.load(name), []
    for each in (generation, replace(generation, candidates=failed)):
        progress = Progress(Plan(asked, 0, "evolution", {}, False, tuple(map(dsl.format, asked.ancestors()))))
        owed.append(progress._note_rungs(each))
    assert owed[0].keys() - owed[1].keys() == {lost}
    assert owed[1].items() <= owed[0].items()


def test_lengths_are_drawn_within_their_limits() -> None:
    own = Space.of({**TINY, "name": "tiny", "step_scales": [0.5, 2.0]}, "tiny")
    plan, fixed = (Plan(each, 0, "evolution", {}, False, ()) for each in (own, Space.of({**TINY, "name": "t"}, "t")))
    drawn = [each.steps for generation in range(40) for each in plan.instances(generation)[0]]
    assert min(drawn) >= 3
    assert max(drawn) <= 12
    assert len(set(drawn)) > 6
    assert {each.steps for generation in range(40) for each in fixed.instances(generation)[0]} == {6}


def test_what_was_drawn_for_an_instance_is_kept_and_the_reference_trained_on_it(tmp_path: Path) -> None:
    _, found = searched(tiny(tmp_path, **SWITCHES["tensors, batches"]), tmp_path / "out", budget=Budget(candidates=12))
    drawn = {}
    for generation in found:
        assert {each.kind for each in generation.evaluations} >= {"search", "reference"}
        for each in generation.evaluations:
            own = (each.seed, each.tensor_scales, each.batch_size)
            assert drawn.setdefault((each.task, generation.record.number, each.rung), own) == own
    assert len({scales for _, scales, _ in drawn.values()}) == len(drawn)
    assert all(0.0999 <= scale <= 10.01 for _, scales, _ in drawn.values() for scale in scales)
    assert len({size for _, _, size in drawn.values()}) > 1


def test_the_front_is_of_what_no_other_beats(tmp_path: Path) -> None:
    values = {1: (0.2, 8.0, 5.0), 2: (0.1, 4.0, 5.0), 3: (0.1, 4.0, 5.0), 4: (0.05, 8.0, 4.0), 5: (0.0, 8.0, 9.0)}
    assert undominated(values) == [1, 2, 4]
    last, _ = searched(
        tiny(tmp_path, ancestor=["adamw", "signum", "sgd"]), tmp_path / "out", budget=Budget(candidates=30)
    )
    confirmed = [each for each in last.front if each.confirmation] or last.front
    assert confirmed[0].rank == 1
    pairs = [costs(each) for each in confirmed]
    assert all(any(a < b for a, b in zip(later, pairs[0], strict=True)) for later in pairs[1:])


# Spaces -------------------------------------------------------------------------------------------------------------


def small(name: str, folder: Path) -> str:
    """A space with everything that is its own, on a few steps of one task that has matrices."""
    plain = Space.load(name).plain()
    plain |= {"tasks": {"search": ["digits_mlp"]}, "weights": {}, "proposals_per_generation": 16, "compile": "never"}
    plain |= {"rungs": [{"tasks": ["digits_mlp"], "steps": 5}], "confirm": {"every": plain["lag"], "top": 1}}
    plain |= {
        "learning_rates": {"points": 3, "factor": 3.0},
        "promote": Space.model_fields["promote"].default.model_dump(),
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(Space.of(plain, name).plain()))
    return str(path)


@pytest.mark.parametrize("name", space.names())
def test_each_space_runs_and_trains(name: str, tmp_path: Path) -> None:
    last, found = searched(small(name, tmp_path), tmp_path / "out", budget=Budget(candidates=6))
    assert last.totals.trained >= 6
    assert last.leaderboard
    texts = {each.text for generation in found for each in generation.candidates}
    assert len(texts) >= 6


WARM = [
    ("lion_like", "lion"),
    ("adam_like", "nadam"),
    ("matrix", "soap"),
    ("matrix", "shampoo"),
    ("stateless", "scale"),
]
WARM += [("gpu", "lion"), ("custom", "signum"), ("nos_templates", "signsgd"), ("wrappers", "lookahead(lion)")]


@pytest.mark.parametrize(("name", "rule"), WARM)
def test_each_space_can_start_from_other_rules(name: str, rule: str, tmp_path: Path) -> None:
    """Beside its own ancestors, and alone; children of it are trained."""
    assert {each for each, _ in WARM} == set(space.names())
    both = session.configure(name, workers=0, warm_start=[rule, *Space.load(name).ancestor])
    assert dsl.parse(both.ancestors[0]) == dsl.load(rule)
    assert both.space.ancestor[0] == rule
    assert len(both.ancestors) == 1 + len(Space.load(name).ancestor)
    last, found = searched(small(name, tmp_path), tmp_path / "out", warm_start=[rule], budget=Budget(candidates=4))
    assert last.totals.trained >= 4
    assert sum(each.status == "trained" for generation in found for each in generation.candidates) >= 3


def test_what_a_warm_start_changes_holds_for_that_rule_alone() -> None:
    matrix = Space.load("matrix")
    muon, soap = (matrix.starting_from(rules) for rules in (["muon"], ["soap", "muon"]))
    assert muon.plain() == matrix.plain() | {"warm_starts": {}}
    assert soap.require == matrix.require.model_copy(update={"homogeneous": False, "max_slots": 6})
    assert soap.max_statements > matrix.max_statements
    both = [matrix.starting_from(rules).plain() for rules in (["soap", "shampoo"], ["shampoo", "soap"])]
    assert both[0] | {"ancestor": []} == both[1] | {"ancestor": []} == soap.plain() | {"ancestor": []}


CHILDLESS: dict[str, tuple[dict[str, Any], str]] = {
    "shampoo": ({}, "most often: not homogeneous in the gradient"),
    "mars_adamw": ({"max_statements": 40}, "most often: too many slots"),
    "soap": ({"require": {"homogeneous": False, "max_slots": 6}}, "most often: longer than 18 statements"),
}


@pytest.mark.parametrize("rule", CHILDLESS)
def test_a_rule_that_can_have_no_child_is_refused_at_the_start(rule: str, tmp_path: Path) -> None:
    changes, reason = CHILDLESS[rule]
    name = tiny(tmp_path, **changes)
    message = f"{name}: no search can start from '{rule}': of 100 random changes of it the gate lets none in ({reason})"
    with pytest.raises(UserError, match=re.escape(message)) as error:
        session.configure(name, workers=0, warm_start=["adamw", rule])
    assert "\n" not in str(error.value)
    assert session.configure(name, workers=0, warm_start=[rule], algorithm="optuna")  # which moves its constants


def test_a_rule_that_the_gate_rejects_may_have_children_that_it_does_not(tmp_path: Path) -> None:
    name = tiny(tmp_path, require={"max_slots": 1})  # AdamW has two
    last, found = searched(name, tmp_path / "out", warm_start=["adamw"], budget=Budget(candidates=3))
    assert last.totals.trained >= 3
    assert {each.properties["slots"] for g in found for each in g.candidates if each.status == "trained"} <= {0, 1}


def test_a_search_starts_from_what_an_earlier_one_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = tiny(tmp_path)
    searched(name, tmp_path / "first", budget=Budget(candidates=10))
    reference = f"{tmp_path / 'first'}@1"
    last, _ = searched(name, tmp_path / "second", budget=Budget(candidates=10), warm_start=[reference])
    assert last.totals.trained >= 10
    manifest = read_manifest(tmp_path / "second").configuration
    assert manifest.space.ancestor == (reference,)
    assert dsl.parse(manifest.ancestors[0]).slots == rule_names.rule_of(reference).slots
