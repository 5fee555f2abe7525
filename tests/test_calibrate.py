"""Laws of calibrating: what is known of the scores is found again, nothing is shown of noise, and nothing is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from discover import calibrate, calibration, cli, fidelity, trainers, workshop
from discover.calibrate import Options, carry_out, data_of, judged, prepare
from discover.errors import UnwritableError, UserError
from discover.keeper import Keeper, StoppedError
from discover.space import Space
from discover.storage import Store
from discover.workshop import Workshop
from tests.home import home

__all__ = ["home"]

RULES, UNITS = 24, 4


def table(truth: Any, noise: float, seed: int, units: int = UNITS) -> Any:
    """Scores [rules, units] with a true score for each rule."""
    return np.asarray(truth)[:, None] + noise * np.random.default_rng(seed).normal(size=(len(truth), units))


def truth(seed: int = 0, rules: int = RULES) -> Any:
    return np.random.default_rng([7, seed]).normal(size=rules)


def judge(proxies: dict[str, Any], select: list[Any], resamples: int = 400, **weights: float) -> fidelity.Fidelity:
    rng = np.random.default_rng(0)
    return fidelity.judge(proxies, select, dict.fromkeys(proxies, 1.0) | weights, rng, resamples=resamples)


# Correlations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_correlations_of_many_are_those_of_each(kind: str) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 9)).round(), rng.normal(size=(20, 9)).round()  # rounded: with ties
    found = getattr(fidelity, kind)(x, y)
    for one, other, value in zip(x, y, found, strict=True):
        expected = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}[kind](one, other).statistic
        assert value == pytest.approx(expected)
    assert np.isnan(getattr(fidelity, kind)(np.zeros((1, 5)), y[:1, :5])[0])


def test_the_same_order_agrees_wholly_and_the_opposite_not_at_all() -> None:
    t = truth()
    found = judge({"same": table(t, 0.0, 0), "opposite": table(-t, 0.0, 0)}, [table(np.exp(t), 0.0, 0)])
    same, opposite = found.proxies["same"], found.proxies["opposite"]
    assert (same.spearman.value, same.kendall.value) == (pytest.approx(1), pytest.approx(1))
    assert (opposite.spearman.value, opposite.kendall.value) == (pytest.approx(-1), pytest.approx(-1))
    assert found.subsets[0].proxies == ("same",)
    assert len(found.subsets) == 3


def test_what_carries_the_signal_and_what_harms_is_told_from_what_does_neither() -> None:
    t = truth(rules=40)
    proxies = {"good": table(t, 0.3, 1), "bad": table(-t, 0.3, 2), "idle": table(0.01 * truth(1, 40), 0.001, 3)}
    found = judge(proxies, [table(t, 0.2, 4)], good=2.0)
    assert {name: part.call for name, part in found.proxies.items()} == {
        "good": "carries",
        "bad": "harms",
        "idle": "not shown",
    }
    gain = found.proxies["good"].gain
    assert gain is not None
    without = next(one for one in found.subsets if set(one.proxies) == {"bad", "idle"})
    assert gain.value == pytest.approx(found.all.spearman.value - without.spearman.value)


def test_noise_is_not_taken_for_agreement() -> None:
    holds_zero = []
    for trial in range(40):
        found = judge({"p": table(truth(trial), 0.3, trial)}, [table(truth(1000 + trial), 0.3, 50 + trial)], 100)
        holds_zero.append(found.all.spearman.low <= 0 <= found.all.spearman.high)
    assert sum(holds_zero) >= 32  # of 40 at 0.95: P(fewer) < 0.001


def test_weights_say_how_much_a_proxy_counts() -> None:
    t = truth()
    proxies, select = {"a": table(t, 0, 1), "b": table(-t, 0, 2)}, [table(t, 0, 3)]
    assert judge(proxies, select, a=3.0).all.spearman.value == pytest.approx(1)
    assert judge(proxies, select, b=3.0).all.spearman.value == pytest.approx(-1)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_the_ceiling_is_what_a_second_measurement_of_all_units_agrees_by(noise: float) -> None:
    t = truth(rules=400)
    first, second = table(t, noise, 1), table(t, noise, 2)
    found = judge({"p": first}, [first], 20).ceiling.value
    again = float(fidelity.spearman(first.mean(axis=1)[None], second.mean(axis=1)[None])[0])
    assert found == pytest.approx(again, abs=0.06)


def test_one_unit_has_no_ceiling_and_few_rules_are_refused() -> None:
    assert math.isnan(judge({"p": table(truth(), 1, 1, 1)}, [table(truth(), 1, 2, 1)], 20).ceiling.value)
    with pytest.raises(ValueError, match="4 or more rules"):
        judge({"p": table(truth(rules=3), 1, 1)}, [table(truth(rules=3), 1, 2)])
    with pytest.raises(ValueError, match="the same 4 or more rules"):
        judge({"p": table(truth(), 1, 1)}, [table(truth(rules=5), 1, 2)])
    with pytest.raises(ValueError, match="at least one proxy"):
        judge({}, [table(truth(), 1, 1)])


def test_more_proxies_than_subsets_can_be_counted_are_chosen_greedily() -> None:
    t = truth()
    proxies = {f"p{i}": table(t if i % 2 else -t, 0.5, i) for i in range(10)}
    found = judge(proxies, [table(t, 0.1, 99)], 20)
    assert len(found.subsets) < 2**10 - 1
    assert found.subsets[0].spearman.value >= max(part.spearman.value for part in found.proxies.values())
    assert sum(one.best for one in found.subsets) == pytest.approx(1)


def test_the_best_of_many_sets_by_luck_is_seen_through_on_other_rules() -> None:
    luck = judge({f"p{i}": table(truth(i, 24), 0.1, i) for i in range(6)}, [table(truth(99, 24), 0.1, 99)], 1)
    assert luck.subsets[0].spearman.value > luck.chosen.value + 0.2
    t = truth(rules=24)
    real = judge({"good": table(t, 0.2, 1), "noise": table(truth(1, 24), 0.1, 2)}, [table(t, 0.2, 3)], 1)
    assert real.chosen.value > 0.85
    assert math.isnan(judge({"p": table(truth(rules=7), 0, 1)}, [table(truth(rules=7), 0, 2)], 1).chosen.value)


def test_scores_are_those_of_the_search_within_its_limits() -> None:
    logs = np.array([[[0.0, 0.0], [0.0, 0.0]], [[-0.1, -0.3], [5.0, 0.2]]])
    found = fidelity.scores(logs, 0, (-1.0, 0.5))
    assert found.tolist() == [[0.0, 0.0], [pytest.approx(0.2), pytest.approx(-0.6)]]
    assert fidelity.scores(logs[:, :1], 0, (-1.0, 0.5))[1].tolist() == [0.1, 0.3]


# Spaces -----------------------------------------------------------------------------------------------------------


SMALL = """\
operators: [add]
tasks: {search: [quadratic, breast_cancer], select: [wine_classification]}
weights: {quadratic: 2.0}
rungs:
  - {tasks: [quadratic], steps: 10}
  - {tasks: [quadratic, breast_cancer], steps: 20, seeds: 2}
"""


def small(text: str = SMALL) -> Space:
    Path("small.yaml").write_text(text)
    return Space.load("small.yaml")


def test_proxies_are_tasks_at_the_lengths_at_which_the_search_trains_them() -> None:
    asked = prepare(small(), Options(), ["sgd", "lion"])
    assert [(p.name, p.steps, p.trainings, p.weight) for p in asked.proxies] == [
        ("quadratic, 10 steps", 10, 1, 2.0),
        ("quadratic, 20 steps", 20, 2, 4.0),
        ("breast_cancer", 20, 2, 2.0),
    ]
    assert [(p.name, p.steps) for p in asked.select] == [("wine_classification", 40)]
    assert [one.name for one in asked.contenders] == ["adamw", "sgd", "lion"]


def test_every_rule_that_is_compared_can_train_every_proxy_of_the_space_of_lion() -> None:
    asked = prepare(Space.load("lion_like"), Options())
    assert len(asked.contenders) >= 15
    assert len(calibrate.RULES) >= 8


def test_a_calibration_stops_and_goes_on_to_the_same_end() -> None:
    rules, options = ["sgd", "signum", "rmsprop"], Options(trials=2, seeds=4, tuning_seeds=1)

    def made(store: Store, limit: float) -> dict[str, Any]:
        asked, told = prepare(small(), options, rules), [0]

        def tell(done: int) -> None:
            told[0] += done

        keeper = Keeper(store.folder, stop=lambda: told[0] >= limit)
        carry_out(asked, Workshop(store, keeper, count=tell), compile=False)
        asked.step_seconds = dict.fromkeys(asked.step_seconds, 1e-3)
        return data_of(asked, judged(asked, resamples=50), ["discover"], 0.0) | {"date": ""}

    whole = made(Store(None), math.inf)
    store = Store(None)
    with pytest.raises(StoppedError):
        made(store, 40)
    assert made(store, math.inf) == whole
    assert whole["rules"]["adamw"]["scores"] == dict.fromkeys(whole["rules"]["adamw"]["scores"], 0.0)
    assert whole["cost"]["proxies"]["model_steps"] == 10 + 40 + 40
    assert whole["cost"]["select"]["model_steps"] == 40
    assert whole["proxies"]["breast_cancer"]["gain"] is not None


def test_a_rule_that_brings_a_loss_below_nothing_is_left_out_and_anything_else_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = prepare(small(), Options(), ["sgd"])
    with pytest.raises(UserError, match="a held-out loss is -1") as refused:
        trainers.capped_log(-1.0, 1.0)

    def tune(one: Any, ground: Any, *rest: Any, **more: Any) -> list[Any]:
        if one.name == "sgd" and ground.task.name == "breast_cancer":
            raise refused.value
        return []

    monkeypatch.setattr(workshop, "tune", tune)
    carry_out(asked, Workshop(Store(None), Keeper(None)), compile=False)
    assert list(asked.left_out) == ["sgd"]
    assert [list(row) for row in asked.results.values()] == [["adamw"]] * 4
    with pytest.raises(UserError, match="adamw on quadratic"):
        asked.leave_out("adamw", asked.proxies[0], refused.value)
    with pytest.raises(UserError, match="a held-out loss is in words alone"):
        asked.leave_out("sgd", asked.proxies[0], UserError("a held-out loss is in words alone"))
    with pytest.raises(UserError, match="--storage"):
        asked.leave_out("sgd", asked.proxies[0], UserError("--storage x: disk full"))


# The command ------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    code = cli.main([*line.split(), *(["--workers", "0"] if "--workers" not in line else [])])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_keeps_what_it_found_beside_the_space(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"few": ("sgd", "momentum", "lion", "adagrad")}
    monkeypatch.setattr(calibrate, "RULES", few)
    space = small()
    code, out, err = run(capsys, "calibrate --space small.yaml --trials 2 --seeds 4 --json")
    assert code == 0
    data = json.loads(out)
    kept = calibration.read(Path("small.calibration.json"))
    assert kept is not None
    assert kept | {"file": "small.calibration.json"} == data | {"format": calibration.FORMAT}
    assert set(data["rules"]) == {"adamw", "sgd", "momentum", "lion", "adagrad"}
    for part in ("proxies agree with select tasks", "noise ceiling", "breast_cancer", "in FLOPs"):
        assert part in err
    line = calibration.line("small.yaml", space)
    assert line.startswith(f"proxies agree with select tasks: Spearman {data['all']['spearman']['value']:.2f} [")
    assert calibration.brief("small.yaml", space).endswith(f"] at {calibration.cost(data)}")
    other = small(SMALL.replace("quadratic: 2.0", "quadratic: 1.0"))
    assert "calibrated with other tasks or weights" in calibration.line("small.yaml", other)
    assert calibration.brief("small.yaml", other) == "of other tasks"


def test_what_cannot_be_kept_beside_the_space_is_refused_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "DIRECTORY", Path("/dev/null/spaces"))
    monkeypatch.setattr(calibrate, "carry_out", lambda *_, **__: pytest.fail("trained"))
    assert run(capsys, "calibrate --space lion_like") == (
        2,
        "",
        "discover: cannot write '/dev/null/spaces/lion_like.calibration.json': Not a directory; copy the space's YAML"
        " file elsewhere, and calibrate the copy\n",
    )


def test_what_was_found_is_shown_though_it_cannot_be_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: Any) -> None:
        raise UnwritableError(f"cannot write '{path}': No space left on device")

    monkeypatch.setattr(calibrate, "RULES", {"few": ("sgd", "momentum", "lion")})
    monkeypatch.setattr(calibration, "write", full)
    small()
    code, out, err = run(capsys, "calibrate --space small.yaml --trials 1 --seeds 4")
    assert (code, err) == (2, "discover: cannot write 'small.calibration.json': No space left on device\n")
    assert "proxies agree with select tasks" in out
    assert "written to" not in out
    code, out, err = run(capsys, "calibrate --space small.yaml --trials 1 --seeds 4 --json")
    assert code == 2
    assert "proxies agree with select tasks" in err
    assert len(json.loads(out)["rules"]) == 4


@pytest.mark.parametrize("as_json", [False, True])
def test_a_search_says_it_when_it_starts(
    as_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discover.watch.watch", lambda run, as_json: None)
    space = small()
    spearman = {"value": 0.62, "low": 0.21, "high": 0.84, "level": 0.95}
    cost = {"proxies": {"flops": 1.0}, "select": {"flops": 23.0}}
    chosen = {"value": 0.55, "low": 0.1, "high": 0.8, "level": 0.95}
    data = {"digest": calibration.digest(space), "all": {"spearman": spearman}, "cost": cost, "chosen": chosen}
    calibration.write(Path("small.calibration.json"), data)
    options = " --json" if as_json else ""
    code, out, err = run(capsys, f"search --space small.yaml --candidates 1 --workers 0{options}")
    assert code == 0
    said = (
        "proxies agree with select tasks: Spearman 0.62 [0.21, 0.84], 0.55 on rules it was not chosen by; cost 1/23 of"
        " the FLOPs\n"
    )
    assert (out, err) == (("", said) if as_json else (said, ""))


def test_a_space_without_a_calibration_says_nothing_and_a_damaged_one_is_refused() -> None:
    space = small()
    assert calibration.line("small.yaml", space) == ""
    assert calibration.brief("small.yaml", space) == "not calibrated"
    Path("small.calibration.json").write_text("{")
    with pytest.raises(UserError, match="is damaged or of another version"):
        calibration.line("small.yaml", space)


def test_the_proxies_of_lion_like_agree_as_they_must_at_a_fiftieth_of_the_cost_and_are_those_that_were_measured() -> (
    None
):
    """What `discover calibrate --space lion_like` must come to: another space of that name is to be measured anew."""
    data, space = calibration.read(calibration.path_of("lion_like")), Space.load("lion_like")
    assert data is not None
    assert data["digest"] == calibration.digest(space)
    assert sorted(data["all"]["proxies"]) == sorted(space.tasks.search)
    assert data["all"]["spearman"]["value"] >= 0.8
    assert data["cost"]["proxies"]["flops"] <= data["cost"]["select"]["flops"] / 50
    assert len(data["rules"]) >= 15


def test_a_space_with_the_tasks_of_a_calibrated_one_has_its_calibration() -> None:
    space = Space.load("lion_like")
    same = Space.of({**space.plain(), "name": "mine", "slots": ["m"]}, "mine")
    assert calibration.line("mine.yaml", same) == calibration.line("lion_like", space) != ""
    other = Space.of({**space.plain(), "score_limits": [-2.0, 2.0]}, "mine")
    assert calibration.line("mine.yaml", other) == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("calibrate --space lion_lik", "did you mean 'lion_like'?"),
        ("calibrate --space small.yaml --seeds 3", "--seeds 3: expected 4"),
        ("calibrate --space small.yaml --trials 0", "--trials 0: expected at least 1"),
        ("calibrate --space none.yaml", "tasks.select is empty"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    small()
    Path("none.yaml").write_text(SMALL.replace(", select: [wine_classification]", ""))
    code, out, err = run(capsys, line)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err


def test_cost_reads_as_a_part_or_a_multiple() -> None:
    data = {"cost": {"proxies": {"flops": 2.0, "seconds": 10.0}, "select": {"flops": 46.0, "seconds": 4.0}}}
    assert calibration.cost(data) == "1/23"
    assert calibration.cost(data, "seconds") == "2.5x"
