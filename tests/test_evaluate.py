"""Laws of scoring: the interpolated optimum, the score, and instances."""

from __future__ import annotations

import math

import numpy as np
import pytest

import dsl
import tasks
from discover.evaluate import (
    STEEPEST,
    Entry,
    Grid,
    Instance,
    Outcome,
    Unit,
    batch_sizes,
    draw_instance,
    evaluate,
    interpolated_best,
    score,
)
from dsl import properties

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


def test_what_is_off_is_not_drawn() -> None:
    plain, off, on = (
        draw_instance("digits_mlp", 10, (1e-2, 1e2), (1e-1, 1e1), np.random.default_rng(1), **more)
        for more in ({}, {"tensor_scales": (1.0, 1.0), "batch_scales": (1.0, 1.0)}, {"tensor_scales": (0.1, 10.0)})
    )
    assert plain == off
    assert (on.seed, on.loss_scale, on.parameter_scale) == (plain.seed, plain.loss_scale, plain.parameter_scale)
    assert len(on.tensor_scales) == len(tasks.load("digits_mlp").parameters)


def test_tensors_and_batches_are_drawn_within_their_limits() -> None:
    rng = np.random.default_rng(0)
    drawn = [
        draw_instance("digits_mlp", 10, (1, 1), (1, 1), rng, tensor_scales=(0.1, 10.0), batch_scales=(0.25, 4.0))
        for _ in range(200)
    ]
    logs = np.log10([each.tensor_scales for each in drawn])
    assert np.abs(logs).max() <= 1.0001
    assert logs.std() == pytest.approx(2 / math.sqrt(12), rel=0.1)
    assert np.abs(np.corrcoef(logs.T) - np.eye(logs.shape[1])).max() < 0.3
    own = tasks.load("digits_mlp").batch_size
    assert {each.batch_size for each in drawn} == {own // 4, own // 2, own, 2 * own, 4 * own}


@pytest.mark.parametrize(
    ("scales", "sizes"),
    [
        ((1, 1), (64,)),
        ((0.5, 1), (32, 64)),
        ((0.3, 3.9), (32, 64, 128)),
        ((3.0, 3.5), (64,)),
        ((2, 1e6), (128, 256, 512, 1024)),
    ],
)
def test_batch_sizes_are_powers_of_two_times_the_tasks_own_as_far_as_there_are_examples(
    scales: tuple[float, float], sizes: tuple[int, ...]
) -> None:
    task = tasks.load("digits_mlp")
    assert task.batch_size == 64
    assert batch_sizes(task, scales) == sizes


REFERENCE = properties.of(dsl.load("adamw")).scale


def outcomes(instance: Instance, *rules: str, weight_decay: float = 0.1) -> tuple[Outcome, ...]:
    entries = tuple(
        Entry(index, dsl.format(dsl.load(rule)), facts.scale / REFERENCE, facts.degree or 0.0)
        for index, rule in enumerate(rules)
        for facts in [properties.of(dsl.load(rule))]
    )
    unit = Unit(instance, entries, Grid(3, 3.0), REFERENCE, weight_decay, compiled=False, native=False)
    return evaluate(unit).outcomes


def test_one_scale_for_all_tensors_is_a_scale_of_the_parameters() -> None:
    rules = ("adamw", "sgd", "momentum")
    whole = outcomes(Instance("digits_mlp", 3, 8, 2.0, parameter_scale=0.25), *rules)
    each = outcomes(Instance("digits_mlp", 3, 8, 2.0, tensor_scales=(0.25,) * 4), *rules)
    assert each == whole
    other = outcomes(Instance("digits_mlp", 3, 8, 2.0, tensor_scales=(0.25, 1.0, 4.0, 0.1)), *rules)
    assert not {outcome.losses for outcome in other} & {outcome.losses for outcome in whole}


def test_an_instance_of_another_batch_size_is_one_of_that_variant() -> None:
    drawn = Instance("digits_mlp(horizon=50)", 3, 8, batch_size=16)
    assert drawn.variant == "digits_mlp(batch_size=16, horizon=50)"
    named = outcomes(Instance("digits_mlp(horizon=50, batch_size=16)", 3, 8), "adamw", "sgd")
    assert outcomes(drawn, "adamw", "sgd") == named
    assert outcomes(Instance("digits_mlp(horizon=50)", 3, 8), "adamw", "sgd") != named
