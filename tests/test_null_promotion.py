"""Laws of the null test: its disguises are AdamW and promotion knows none of them for it, all of them are promoted as
any run's candidates are, and one that is left out is no result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import dsl
from benchmarks import null_promotion
from discover import cli
from discover.manifest import read_json
from discover.promotion import program_of
from dsl.behaviour import behaviour_hash
from dsl.canonical import shape_hash
from tests.home import home
from tests.test_promote import adam
from tests.test_verify import few_resamples

__all__ = ["few_resamples", "home"]

SMALL = ["--steps", "6", "--trials", "4", "--fresh", "2", "--most", "9", "--out", "null"]


def test_every_disguise_is_adamw_and_promotion_knows_none_for_it_or_for_another() -> None:
    adamw, rng = dsl.load("adamw"), np.random.default_rng(0)
    shapes = [shape_hash(adamw)]
    for place in range(len(null_promotion.FORMS)):
        program = program_of(place, null_promotion.disguise("d", place, rng))
        assert set(program.defaults) == {"lr", "weight_decay", "rate1", "rate2", "eps1"}
        of_v, of_m = sorted(program.defaults[name] for name in ("rate1", "rate2"))
        same = adamw.with_defaults({"beta1": 1 - of_m, "beta2": 1 - of_v, "eps": program.defaults["eps1"]})
        assert behaviour_hash(program) == behaviour_hash(same), dsl.format(program)
        shapes.append(shape_hash(program))
    assert len(set(shapes)) == len(shapes)


def test_disguises_are_promoted_and_what_is_said_of_them_is_what_the_certificate_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    null_promotion.main(["--candidates", "3", *SMALL])
    said, certificate = json.loads(capsys.readouterr().out), read_json(Path("null/certificate.json"))
    assert (said["candidates"], certificate["left_out"]) == (3, [])
    assert certificate["asked"]["top"] == 3
    rung = certificate["statistics"][1]
    versus = [row["adamw"] for row in rung["versus"].values()]
    assert len(versus) == 3
    assert said["promoted"] == len(rung["passed"])
    assert (said["promoted"] == 0) == (said["outcome"] == "nothing passed")
    assert said["smallest_p"] == min(rung["p"].values())
    assert said["tunings"] == [min(row["tunings"] for row in versus), max(row["tunings"] for row in versus)]
    points = sum(row["won"] + 0.5 * (row["tunings"] - row["won"] - row["lost"]) for row in versus)
    assert math.isclose(said["tunings_won"], points / sum(row["tunings"] for row in versus), abs_tol=1e-3)
    assert any(row["won"] + row["lost"] for row in versus)  # else no tuning differs, and nothing is tested
    assert cli.main(["verify", "null", "--sample", "2", "--tune", "0", "--workers", "0"]) == 0


def test_a_disguise_that_promotion_knows_is_no_null_test(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = null_promotion.disguises
    monkeypatch.setattr(null_promotion, "disguises", lambda count, rng: [adam(), *drawn(count - 1, rng)])
    with pytest.raises(SystemExit, match=r"1 of 2 disguises took part: candidate 0 .* is adamw but for constants"):
        null_promotion.main(["--candidates", "2", *SMALL])
