"""How sure a comparison is: pure functions on arrays of losses. Smaller is better everywhere.

Several tasks are *strata*: a sequence of arrays, one for each task, whose first axis counts what was drawn anew each
time (seeds, or tunings with their seeds). Resampling draws along that axis within each task, never across tasks, which
are as they are.

Sources: Agarwal et al. 2021, arXiv:2108.13264 (interquartile mean, stratified bootstrap, probability of improvement,
score distributions; their package is rliable); Holm 1979; Waudby-Smith and Ramdas 2023, arXiv:2010.09686, and Robbins
1970 (tests and intervals that may be looked at after every seed).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]
Strata = Sequence[ArrayLike]

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with an interval that holds the true one with probability `level`, about."""

    value: float
    low: float
    high: float
    level: float = LEVEL


# Resampling ---------------------------------------------------------------------------------------------------------


def interquartile_mean(values: ArrayLike, axis: int | None = None) -> Any:
    """The mean of the middle half: as robust as a median, and nearly as precise as a mean.

    >>> float(interquartile_mean([1, 2, 3, 1000]))
    2.5
    """
    return stats.trim_mean(np.asarray(values, np.float64), 0.25, axis=axis)


def stratified_bootstrap(
    strata: Strata,
    statistic: Callable[[list[Array]], Array],
    rng: Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """A statistic of several tasks with its percentile bootstrap interval.

    Args:
        strata: arrays [n_t, ...]; n_t may differ between tasks. What belongs together (a pair, the seeds of a tuning)
            lies in one row and is drawn together.
        statistic: takes arrays [R, n_t, ...] and gives [R].
        rng: draws the resamples.

    Raises:
        ValueError: no task, or a task without rows.
    """
    arrays = [np.asarray(each, np.float64) for each in strata]
    if not arrays or not all(len(each) for each in arrays):
        raise ValueError("expected at least one task, and at least one row of each")
    value = float(statistic([each[None] for each in arrays])[0])
    drawn = [each[rng.integers(len(each), size=(resamples, len(each)))] for each in arrays]
    low, high = _percentiles(statistic(drawn), level)
    return Estimate(value, low, high, level)


def aggregate(strata: Strata, rng: Generator, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
    """The interquartile mean of all numbers of all tasks, with its interval."""

    def statistic(drawn: list[Array]) -> Array:
        together = np.concatenate([each.reshape(len(each), -1) for each in drawn], axis=1)
        return np.asarray(interquartile_mean(together, axis=1))

    return stratified_bootstrap(strata, statistic, rng, resamples=resamples, level=level)


def probability_of_improvement(
    losses: Strata,
    baseline: Strata,
    rng: Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """How probable it is that a run of the one ends below a run of the other, on a task drawn at random.

    The Mann-Whitney form: every run is compared with every run of the baseline on its task, a tie counts half, and
    tasks count alike. Row i of both was trained on the same seeds, so rows are drawn as pairs.

    Args:
        losses, baseline: for each task arrays [n_t, ...] of one shape; inf for a lost run.

    Raises:
        ValueError: arrays that do not pair.
    """
    pairs = []
    for mine, theirs in zip(losses, baseline, strict=True):
        a, b = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
        if a.shape != b.shape:
            raise ValueError(f"losses of shape {a.shape} do not pair with a baseline of shape {b.shape}")
        pairs.append(np.stack([a.reshape(len(a), -1), b.reshape(len(b), -1)], axis=1))

    def statistic(drawn: list[Array]) -> Array:
        return np.asarray(np.mean([_mann_whitney(each) for each in drawn], axis=0))

    return stratified_bootstrap(pairs, statistic, rng, resamples=resamples, level=level)


def _mann_whitney(pairs: Array) -> Array:
    """[R, n, 2, k] -> [R]: the share of pairs of runs in which the first is smaller, ties by half."""
    flat = np.moveaxis(pairs, 2, 1).reshape(len(pairs), 2, -1)
    count = flat.shape[2]
    theirs = np.sort(flat[:, 1], axis=1)
    shares = [
        (2 * count - np.searchsorted(b, a, "right") - np.searchsorted(b, a, "left")).sum()
        for a, b in zip(flat[:, 0], theirs, strict=True)
    ]
    return np.asarray(np.array(shares, np.float64) / (2 * count * count))


def _percentiles(values: Array, level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    with np.errstate(invalid="ignore"):
        low, high = np.nanpercentile(values, [tail, 100 - tail], method="median_unbiased")
    return float(low), float(high)


# Profiles -----------------------------------------------------------------------------------------------------------


def score_profile(
    strata: Strata, limits: ArrayLike, rng: Generator, *, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[Array, Array, Array]:
    """Which share of runs ends at or below each limit, averaged over tasks, and a band around it.

    Args:
        strata: for each task [n_t, ...], on one scale (losses over a baseline's, say).
        limits: [L].

    Returns:
        Share, lower and upper end of the band, each [L].
    """
    bounds = np.asarray(limits, np.float64)

    def shares(drawn: list[Array]) -> Array:
        flat = [np.sort(each.reshape(len(each), -1), axis=1) for each in drawn]
        found = [[np.searchsorted(row, bounds, "right") / each.shape[1] for row in each] for each in flat]
        return np.asarray(np.mean(found, axis=0))

    arrays = [np.asarray(each, np.float64) for each in strata]
    drawn = [each[rng.integers(len(each), size=(resamples, len(each)))] for each in arrays]
    tail = 50 * (1 - level)
    low, high = np.percentile(shares(drawn), [tail, 100 - tail], axis=0)
    return shares([each[None] for each in arrays])[0], low, high


# Tests with a fixed number of seeds -----------------------------------------------------------------------------------


def paired_test(differences: ArrayLike) -> float:
    """Two-sided p of "the mean difference is 0": Student's t over independent differences.

    With four to ten of them no rank test can reach a small p (2 / 2^4 = 0.125), and means of log losses are near enough
    to normal. Less than two differences show nothing: 1.
    """
    p_less, p_greater = _one_sided(differences)
    return min(1.0, 2 * min(p_less, p_greater))


def combined_test(strata: Strata) -> tuple[float, int]:
    """Of "no difference on any of these tasks": the tasks' one-sided t-tests, combined by Stouffer.

    Each task counts alike, whatever the size of its differences. Differences of both signs on different tasks cancel.

    Returns:
        The two-sided p, and the sign of the differences that it speaks for: -1, 1, or 0 for neither. What is sure on
        one task can outweigh what is large on another, so that a mean of the differences may have the other sign.
    """
    sides = np.array([_one_sided(each) for each in strata]).clip(1e-300, 1 - 1e-16)
    less, greater = (float(stats.combine_pvalues(side, method="stouffer").pvalue) for side in sides.T)
    return min(1.0, 2 * min(less, greater)), (greater < less) - (less < greater)


def non_inferiority(differences: ArrayLike, margin: float) -> float:
    """One-sided p of "worse by the margin or more": a small one shows that a candidate is not inferior.

    Args:
        differences: candidate's minus baseline's, of log losses say; not finite where the candidate was lost, which
            shows that it is not fit: 1.
        margin: how much worse is still as good, more than 0.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}, expected more than 0")
    values = np.asarray(differences, np.float64)
    return _one_sided(values - margin)[0] if np.isfinite(values).all() else 1.0


def mean_interval(differences: ArrayLike, level: float = LEVEL) -> Estimate:
    """The mean of independent numbers with Student's interval; without bounds for fewer than two."""
    values = np.asarray(differences, np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf, level)
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half, level)


def _one_sided(differences: ArrayLike) -> tuple[float, float]:
    """p of the alternatives "the mean is less than 0" and "is greater"."""
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return 1.0, 1.0
    if not np.ptp(values):  # no spread, no t: all equal is either nothing or everything
        sign = np.sign(values[0])
        return (0.5, 0.5) if sign == 0 else ((0.0, 1.0) if sign < 0 else (1.0, 0.0))
    less, greater = (stats.ttest_1samp(values, 0.0, alternative=side).pvalue for side in ("less", "greater"))
    return float(less), float(greater)


def holm(p_values: ArrayLike) -> Array:
    """Adjusted p-values: those at or below alpha may be rejected together, with probability alpha of any mistake.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


# Tests that may be looked at after every seed -------------------------------------------------------------------------


def evidence(wins: ArrayLike) -> Array:
    """Evidence after each paired seed that the candidate wins more often than it loses: an e-process.

    Start with 1 and bet on each pair that the candidate wins it; this is the wealth of a mixture over all win rates q,
    uniform from 1/2 to 1. If the candidate wins no more than half of the pairs, whatever happened before, the wealth is
    a supermartingale and exceeds 1 / alpha *ever* with probability alpha at most (Ville). So it may be looked at after
    every seed, and training stopped whenever one likes: reject at `evidence >= 1 / alpha`.

    Bets are on wins, not on differences, because a difference of losses has no bounds (a lost run is inf) and its
    distribution is not known, while a win is a win: the error rate needs no assumption beyond pairing. The price is
    some power: alpha = 0.05 takes seven wins in a row, and 32 pairs find a win rate of 0.8 three times in four.

    Args:
        wins: for each pair 1 (the candidate is better), 0 (the baseline is) or 1/2 (a tie, which shows nothing).

    Returns:
        Wealth after each pair, as long as `wins`.
    """
    won, lost = _tally(wins)
    upper = special.betaincc(won + 1, lost + 1, 0.5)
    with np.errstate(divide="ignore"):
        logs = (won + lost + 1) * math.log(2) + special.betaln(won + 1, lost + 1) + np.log(upper)
    return np.asarray(np.exp(logs))


def win_rate(wins: ArrayLike, level: float = LEVEL) -> list[Estimate]:
    """The share of pairs won after each pair, with a confidence sequence: intervals that *all* hold the true share with
    probability `level`, however often one looks. Robbins 1970: the mixture over all rates, uniform, against each rate.
    """
    won, lost = _tally(wins)
    found = []
    for s, f in zip(won.tolist(), lost.tolist(), strict=True):
        share = s / (s + f) if s + f else 0.5
        limit = float(special.betaln(s + 1, f + 1)) + math.log(1 - level)

        def covered(rate: float, s: float = s, f: float = f, limit: float = limit) -> bool:
            return float(special.xlogy(s, rate) + special.xlog1py(f, -rate)) > limit

        found.append(Estimate(share, _edge(share, 0.0, covered), _edge(share, 1.0, covered), level))
    return found


def _edge(inside: float, outside: float, covered: Callable[[float], bool]) -> float:
    """Where `covered`, true at the one, ends on the way to the other."""
    if covered(outside):
        return outside
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if covered(middle) else (inside, middle)
    return outside


def _tally(wins: ArrayLike) -> tuple[Array, Array]:
    values = np.asarray(wins, np.float64)
    if not np.isin(values, (0.0, 0.5, 1.0)).all():
        raise ValueError("a pair is won (1), lost (0) or tied (1/2)")
    return np.cumsum(values == 1.0, dtype=np.float64), np.cumsum(values == 0.0, dtype=np.float64)


# Curves ---------------------------------------------------------------------------------------------------------------


def steps_to_target(steps: ArrayLike, losses: ArrayLike, target: float) -> float:
    """After how many steps a curve first reaches a loss, linear between its points; inf if it never does.

    >>> steps_to_target([0, 10, 20], [3.0, 2.0, 1.0], 1.5)
    15.0
    """
    t, loss = np.asarray(steps, np.float64), np.asarray(losses, np.float64)
    reached = np.flatnonzero(loss <= target)
    if not len(reached):
        return math.inf
    at = int(reached[0])
    if at == 0 or not math.isfinite(loss[at - 1]):
        return float(t[at])
    part = (loss[at - 1] - target) / (loss[at - 1] - loss[at])
    return float(t[at - 1] + part * (t[at] - t[at - 1]))


def speed_up(steps: ArrayLike, losses: ArrayLike, baseline: ArrayLike) -> float:
    """How many times fewer steps a curve needs than the baseline's to reach what both reach: the worse of their ends.

    2 where the candidate is where the baseline ends after half of the steps; 1/2 where it is the other way round. With
    a schedule that ends at `steps[-1]` for both it is a lower bound of what a shorter schedule would give.
    """
    mine, theirs = np.asarray(losses, np.float64), np.asarray(baseline, np.float64)
    target = max(mine[-1], theirs[-1])
    if not math.isfinite(target):
        return math.nan if mine[-1] == theirs[-1] else (0.0 if mine[-1] > theirs[-1] else math.inf)
    needed = steps_to_target(steps, mine, target)
    return steps_to_target(steps, theirs, target) / needed if needed > 0 else math.inf
