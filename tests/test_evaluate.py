"""Laws of scoring: the interpolated optimum, the score, and instances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from discover.evaluate import STEEPEST, Grid, draw_instance, interpolated_best, score

RATES = tuple(0.001 * 3.0**k for k in range(5))


@pytest.mark.parametrize("optimum", [0.003, 0.0085, 0.009, 0.0123, 0.025])
def test_the_optimum_of_a_parabola_is_found_between_the_points(optimum: float) -> None:
    losses = [math.exp(0.1 * math.log(rate / optimum) ** 2 - 1.0) for rate in RATES]
    rate, loss = interpolated_best(RATES, losses) or (0, 0)
    assert rate == pytest.approx(optimum, rel=1e-9)
    assert loss == pytest.approx(math.exp(-1.0), rel=1e-9)


@pytest.mark.parametrize(
    "losses", [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, math.inf, 1, math.inf, 3], [2, 1, math.inf, 4, 4]]
)
def test_nothing_is_extrapolated_at_the_edge_or_beside_a_lost_lane(losses: list[float]) -> None:
    best = int(np.argmin(losses))
    assert interpolated_best(RATES, losses) == (RATES[best], losses[best])


def test_no_finite_loss_has_no_optimum() -> None:
    assert interpolated_best(RATES, [math.inf, math.nan, math.inf, math.inf, math.inf]) is None


def test_the_interpolated_loss_is_little_below_the_best_point_whatever_is_beside_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        losses = np.exp(rng.normal(size=5) * rng.choice([0.01, 1.0, 10.0]))
        rate, loss = interpolated_best(RATES, losses.tolist()) or (0, 0)
        assert losses.min() * math.exp(-STEEPEST / 8) * (1 - 1e-12) <= loss <= losses.min() * (1 + 1e-12)
        assert RATES[0] <= rate <= RATES[-1]
    assert (interpolated_best(RATES, [0.08, 0.055, 0.05, 3.0, 4.0]) or (0, 0))[1] > 0.046


def test_the_score_is_antisymmetric_within_its_limits() -> None:
    assert score(1.0, 1.0, (-2, 2)) == 0
    assert score(0.5, 1.0, (-2, 2)) == pytest.approx(-score(1.0, 0.5, (-2, 2)))
    assert score(1e-9, 1.0, (-2, 0.5)) == 0.5
    assert score(math.inf, 1.0, (-2, 0.5)) == -2


def test_a_grid_is_geometric_around_one() -> None:
    multipliers = Grid(5, 3.0).multipliers()
    assert multipliers == pytest.approx((1 / 9, 1 / 3, 1, 3, 9))


def test_instances_are_fresh_and_within_the_scales() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_instance("t", 10, (1e-2, 1e2), (1e-1, 1e1), rng) for _ in range(300)]
    assert len({each.seed for each in drawn}) == 300
    assert min(each.loss_scale for each in drawn) >= 0.0099
    assert max(each.loss_scale for each in drawn) <= 100.1
    logs = np.log10([each.loss_scale for each in drawn])
    assert abs(logs.mean()) < 0.2
    assert np.log10([each.parameter_scale for each in drawn]).std() == pytest.approx(2 / math.sqrt(12), rel=0.15)
