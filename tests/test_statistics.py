"""Laws of statistics: against scipy and closed forms where there are any, by simulation where a rate is promised."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import integrate, stats

from discover import statistics
from discover.statistics import (
    aggregate,
    combined_test,
    evidence,
    holm,
    interquartile_mean,
    mean_interval,
    non_inferiority,
    paired_test,
    probability_of_improvement,
    score_profile,
    speed_up,
    steps_to_target,
    stratified_bootstrap,
    win_rate,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Resampling ---------------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    values = rng().permutation(np.r_[[-1e9, -1e8], np.arange(4.0), [1e8, 1e9]])
    assert interquartile_mean(values) == 1.5
    assert interquartile_mean(np.stack([values, values + 1]), axis=1).tolist() == [1.5, 2.5]


def test_a_bootstrap_of_one_task_agrees_with_scipys() -> None:
    data = rng(1).normal(size=40)
    ours = stratified_bootstrap([data], lambda drawn: drawn[0].mean(1), rng(2), resamples=20_000)
    theirs = stats.bootstrap((data,), np.mean, n_resamples=20_000, method="percentile", rng=3).confidence_interval
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.02), pytest.approx(theirs.high, abs=0.02))
    assert ours.value == pytest.approx(data.mean())


def test_resampling_never_crosses_tasks_and_keeps_rows_together() -> None:
    tasks = [np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]), np.array([[100.0, 1000.0]])]
    seen: list[list[np.ndarray]] = []
    stratified_bootstrap(tasks, lambda drawn: (seen.append(drawn), np.zeros(len(drawn[0])))[1], rng(), resamples=50)
    first, second = seen[-1]
    assert first.shape == (50, 3, 2)
    assert set(np.unique(first[..., 0])) == {1.0, 2.0, 3.0}
    assert (first[..., 1] == 10 * first[..., 0]).all()
    assert (second == tasks[1]).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator, hits = rng(5), 0
    for _ in range(200):
        data = [generator.normal(size=24), 3 + generator.normal(size=24)]
        found = stratified_bootstrap(data, lambda d: d[0].mean(1) + d[1].mean(1), generator, resamples=300)
        hits += found.low <= 3 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_same_generator_gives_the_same_interval() -> None:
    data = [rng(1).normal(size=(4, 3)), rng(2).normal(size=(5, 2))]
    assert aggregate(data, rng(7)) == aggregate(data, rng(7))
    assert aggregate(data, rng(7)) != aggregate(data, rng(8))


@pytest.mark.parametrize("strata", [[], [[]], [[1.0], []]])
def test_nothing_to_draw_from_is_refused(strata: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        aggregate(strata, rng())


def test_probability_of_improvement_is_mann_whitneys_share_averaged_over_tasks() -> None:
    a = [rng(1).integers(0, 6, size=9), rng(2).integers(0, 6, size=5)]
    b = [rng(3).integers(0, 6, size=9), rng(4).integers(2, 8, size=5)]
    found = probability_of_improvement(a, b, rng(0))
    shares = [stats.mannwhitneyu(y, x).statistic / (len(x) * len(y)) for x, y in zip(a, b, strict=True)]
    assert found.value == pytest.approx(np.mean(shares))
    assert found.low <= found.value <= found.high


def test_a_lost_run_loses_to_all_but_lost_ones() -> None:
    found = probability_of_improvement([[1.0, math.inf]], [[2.0, math.inf]], rng())
    assert found.value == (1 + 1 + 0 + 0.5) / 4
    with pytest.raises(ValueError, match="do not pair"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]], rng())


# Profiles -----------------------------------------------------------------------------------------------------------


def test_a_score_profile_is_the_distribution_function_averaged_over_tasks() -> None:
    share, low, high = score_profile([[1.0, 2.0, 3.0, 4.0], [3.0, 3.0]], [0.5, 1.0, 2.5, 3.0, 9.0], rng())
    assert share.tolist() == [0.0, 0.125, 0.25, 0.875, 1.0]
    assert (low <= share).all()
    assert (share <= high).all()


# Fixed tests --------------------------------------------------------------------------------------------------------


def test_the_paired_test_is_students() -> None:
    values = rng(3).normal(0.5, 1, size=12)
    assert paired_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize(("values", "p"), [([], 1.0), ([1.0], 1.0), ([0.0, 0.0], 1.0), ([2.0, 2.0], 0.0)])
def test_what_has_no_spread_shows_nothing_or_all(values: list[float], p: float) -> None:
    assert paired_test(values) == p


def test_combining_one_task_changes_nothing_and_agreeing_tasks_add_up() -> None:
    values = rng(4).normal(1, 1, size=6)
    assert combined_test([values]) == (pytest.approx(paired_test(values)), 1)
    assert combined_test([-values]) == (pytest.approx(paired_test(values)), -1)
    assert combined_test([values] * 4)[0] < paired_test(values)
    assert combined_test([values, -values])[0] == pytest.approx(1.0)
    assert combined_test([values, 100 * values])[0] == pytest.approx(combined_test([values, values])[0])
    assert combined_test([[0.0, 0.0], [0.0, 0.0]]) == (1.0, 0)
    assert combined_test([[1.0, 1.0], [1.0, 1.0]])[0] < 1e-100


def test_the_combined_test_rejects_a_true_null_as_often_as_it_says() -> None:
    generator = rng(6)
    scales = np.array([0.01, 1.0, 30.0])
    p = [combined_test(scales[:, None] * generator.normal(size=(3, 4)))[0] for _ in range(1000)]
    assert stats.binomtest(int(np.sum(np.array(p) <= 0.05)), 1000, 0.05).pvalue > 1e-3


def test_non_inferiority_is_a_one_sided_test_against_the_margin() -> None:
    values = rng(7).normal(0.0, 0.01, size=10)
    expected = stats.ttest_1samp(values, 0.02, alternative="less").pvalue
    assert non_inferiority(values, 0.02) == pytest.approx(expected)
    assert non_inferiority(values, 0.02) < 0.01 < 0.1 < non_inferiority(values + 0.02, 0.02)
    assert non_inferiority([*values, math.inf], 10.0) == 1.0
    with pytest.raises(ValueError, match="margin is 0"):
        non_inferiority(values, 0)


def test_non_inferiority_is_claimed_of_the_just_inferior_as_often_as_it_says() -> None:
    generator = rng(8)
    claimed = sum(non_inferiority(generator.normal(0.1, 0.3, size=8), 0.1) <= 0.05 for _ in range(1000))
    assert stats.binomtest(claimed, 1000, 0.05).pvalue > 1e-3


def test_holm_is_bonferroni_over_all_subsets() -> None:
    for p in rng(9).uniform(0, 0.2, size=(20, 5)):
        closed = [
            max(
                min(1.0, len(chosen) * min(p[list(chosen)]))
                for size in range(1, 6)
                for chosen in itertools.combinations(range(5), size)
                if i in chosen
            )
            for i in range(5)
        ]
        assert holm(p).tolist() == pytest.approx(closed)
    assert holm([]).tolist() == []


# Sequential tests -----------------------------------------------------------------------------------------------------


def test_evidence_is_the_likelihood_ratio_of_a_mixture_of_win_rates() -> None:
    wins = rng(10).integers(0, 2, size=12).astype(float)
    for n, found in enumerate(evidence(wins), start=1):
        won, lost = wins[:n].sum(), n - wins[:n].sum()
        mixture, _ = integrate.quad(lambda q, won=won, lost=lost: 2 * q**won * (1 - q) ** lost, 0.5, 1)
        assert found == pytest.approx(mixture * 2**n)


def test_ties_show_nothing_and_anything_else_is_no_pair() -> None:
    assert evidence([1, 0.5, 0.5, 1, 0]).tolist() == pytest.approx(
        [*evidence([1]), *evidence([1])[[0, 0]], *evidence([1, 1, 0])[1:]]
    )
    with pytest.raises(ValueError, match=r"won \(1\), lost \(0\)"):
        evidence([0.3])


def shown(wins: ArrayLike, alpha: float = 0.05) -> bool:
    """Whether the candidate is taken for better after any of the pairs."""
    return bool(np.any(evidence(wins) >= 1 / alpha))


def test_seven_wins_in_a_row_are_needed() -> None:
    assert not shown(np.ones(6))
    assert shown(np.ones(7))
    assert not shown([0.0] * 64)
    assert not shown([])


@pytest.mark.parametrize("rate", [0.5, 0.4])
def test_a_candidate_that_is_no_better_is_ever_taken_for_better_at_most_as_often_as_stated(rate: float) -> None:
    wins = (rng(11).uniform(size=(4000, 64)) < rate).astype(float)
    for alpha in (0.05, 0.2):
        wrong = sum(shown(each, alpha) for each in wins)
        assert stats.binomtest(wrong, 4000, alpha, alternative="greater").pvalue > 1e-3


def test_the_error_rate_holds_where_win_rates_drift_with_what_happened() -> None:
    generator, wrong = rng(12), 0
    for _ in range(2000):
        wins: list[float] = []
        for _ in range(48):  # fair after wins, hopeless after losses: never above one half
            wins.append(float(generator.uniform() < (0.5 if not wins or wins[-1] else 0.1)))
        wrong += shown(wins)
    assert wrong / 2000 <= 0.05


@pytest.mark.parametrize(("rate", "pairs", "power"), [(0.95, 16, 0.9), (0.8, 32, 0.75), (0.75, 64, 0.85)])
def test_a_better_candidate_is_found(rate: float, pairs: int, power: float) -> None:
    wins = (rng(13).uniform(size=(1000, pairs)) < rate).astype(float)
    assert np.mean([shown(each) for each in wins]) >= power


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_all_intervals_of_a_confidence_sequence_cover_at_once(rate: float) -> None:
    generator, missed = rng(14), 0
    for _ in range(150):
        sequence = win_rate((generator.uniform(size=40) < rate).astype(float))
        missed += any(not each.low <= rate <= each.high for each in sequence)
    assert stats.binomtest(missed, 150, 0.05, alternative="greater").pvalue > 1e-3
    last = sequence[-1]
    assert 0 < last.low < last.value < last.high <= 1
    assert last.high - last.low < 0.55


def test_a_confidence_sequence_ends_where_the_mixture_ratio_reaches_its_limit() -> None:
    wins = [1.0, 1, 0, 1, 1, 1, 0, 1]
    last = win_rate(wins)[-1]
    for end in (last.low, last.high):
        mixture, _ = integrate.quad(lambda q: q**6 * (1 - q) ** 2, 0, 1)
        assert mixture / (end**6 * (1 - end) ** 2) == pytest.approx(20, rel=1e-6)


# Curves ---------------------------------------------------------------------------------------------------------------


def test_steps_to_a_target_are_read_off_between_points() -> None:
    steps, losses = [0, 10, 20, 30], [4.0, 2.0, 3.0, 1.0]
    assert steps_to_target(steps, losses, 4.0) == 0
    assert steps_to_target(steps, losses, 3.0) == 5
    assert steps_to_target(steps, losses, 1.5) == 27.5
    assert steps_to_target(steps, losses, 0.5) == math.inf
    assert steps_to_target([0, 10], [math.inf, 1.0], 2.0) == 10


def test_a_speed_up_is_the_ratio_of_steps_to_what_both_reach_and_turns_round() -> None:
    steps = np.arange(0, 101, 10)
    slow, fast = 2 - steps / 100, np.maximum(2 - steps / 50, 0.5)
    assert speed_up(steps, fast, slow) == pytest.approx(2.0)
    assert speed_up(steps, slow, fast) == pytest.approx(0.5)
    assert speed_up(steps, slow, slow) == 1.0
    lost = np.full(11, math.inf)
    assert speed_up(steps, lost, slow) == 0.0
    assert speed_up(steps, slow, lost) == math.inf
    assert math.isnan(speed_up(steps, lost, lost))


def test_examples_in_the_docstrings_hold() -> None:
    import doctest

    assert doctest.testmod(statistics).failed == 0
