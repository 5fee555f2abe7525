"""How far the order of rules on proxies is their order on larger tasks: rank correlations with intervals.

A *score* is what the search computes: log(loss of the reference / loss), within the space's limits, higher is better.
Pure functions on arrays of scores; what trains is `discover.calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from discover.statistics import LEVEL, RESAMPLES, Estimate

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

MOST_SUBSETS = 8
"""Up to so many proxies every subset is looked at; of more, those that a greedy choice goes through."""

SPLITS = 16
"""Ways to halve units that the ceiling is averaged over."""

HALVINGS = 200
"""Ways to halve the rules that choosing is tried on."""

FEWEST = 4
"""Rules, without which there is no order worth a correlation."""

Call = Literal["carries", "harms", "not shown"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a set of proxies orders rules, against the select tasks together.

    Attributes:
        best: in which share of the resamples this set has the highest Spearman of all that were looked at.
    """

    proxies: tuple[str, ...]
    spearman: Estimate
    kendall: Estimate
    best: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """A proxy: alone, and what the others lose without it.

    Attributes:
        spearman, kendall: of this proxy alone.
        ceiling: Spearman of the proxy with itself, see `Fidelity.ceiling`.
        gain: Spearman of all proxies less that of all but this one; None for the only proxy.
        call: whether the interval of `gain` lies above 0 ("carries") or below ("harms").
    """

    spearman: Estimate
    kendall: Estimate
    ceiling: Estimate
    gain: Estimate | None
    call: Call


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What a calibration shows.

    Attributes:
        all: of all proxies, weighted as the search weights them.
        proxies: each one.
        subsets: sets of proxies, the highest Spearman first. The first is the best of many, and so looks better than
            it is.
        ceiling: Spearman of the select tasks with themselves on other seeds, tuned anew: more than that, but for luck,
            no proxy can reach. From halves of the tunings, stepped up to all of them (Spearman and Brown 1910).
        proxy_ceiling: the same of all proxies together.
        chosen: what choosing is worth: the set with the highest Spearman on half of the rules, judged on the other
            half; mean over ways to halve, and between which values 95 % of them lie. Nothing of fewer than 8 rules.
    """

    all: Agreement
    proxies: Mapping[str, Contribution]
    subsets: tuple[Agreement, ...]
    ceiling: Estimate
    proxy_ceiling: Estimate
    chosen: Estimate


def scores(logs: Array, reference: int, limits: tuple[float, float]) -> Array:
    """Log losses [rules, tunings, seeds] to scores [rules, units], a unit being what is independent: a tuning, or a
    seed where there is one tuning. Run against run on the same seed, then the mean."""
    gains = np.clip(logs[reference] - logs, *limits)
    return np.asarray(gains.mean(axis=2) if logs.shape[1] > 1 else gains[:, 0])


def judge(
    proxies: Mapping[str, Array],
    select: Sequence[Array],
    weights: Mapping[str, float],
    rng: Generator,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Fidelity:
    """Correlates the order of rules on proxies with that on select tasks.

    Intervals are of a bootstrap over rules and, within each task, over units, the same ones for all rules. Resampled
    units add noise to what is noisy already, so intervals err to the low side.

    Args:
        proxies: name -> scores [rules, units].
        select: for each task scores [rules, units], the same rules in the same order; tasks count alike.
        weights: of the proxies.
        rng: draws the resamples.

    Raises:
        ValueError: no proxy or select task; fewer than `FEWEST` rules, or not the same number everywhere.
    """
    tables = [*proxies.values(), *select]
    if not proxies or not select:
        raise ValueError("expected at least one proxy and one select task")
    counts = {len(table) for table in tables}
    if len(counts) != 1 or min(counts) < FEWEST:
        raise ValueError(f"expected scores of the same {FEWEST} or more rules everywhere, not of {sorted(counts)}")
    drawn = rng.integers(min(counts), size=(resamples, min(counts)))
    means = {name: _resampled(table, drawn, rng) for name, table in proxies.items()}
    targets = [_resampled(table, drawn, rng) for table in select]
    target = np.mean(targets, axis=0)

    def together(names: Sequence[str]) -> Array:
        return np.asarray(sum(weights[name] * means[name] for name in names))

    found: dict[tuple[str, ...], Array] = {}
    for names in _sets(list(proxies), lambda names: _value(spearman(together(names)[:1], target[:1]))):
        found[names] = spearman(together(names), target)
    table = np.where(np.isnan(np.array(list(found.values()))), -2.0, list(found.values()))
    firsts = np.bincount(table[:, 1:].argmax(axis=0), minlength=len(found)) / max(resamples, 1)
    agreements = {
        names: Agreement(names, _estimate(own, level), _estimate(kendall(together(names), target), level), float(first))
        for (names, own), first in zip(found.items(), firsts, strict=True)
    }
    everything = tuple(proxies)
    parts = {}
    for name in proxies:
        others = tuple(other for other in everything if other != name)
        gain = _estimate(found[everything] - found[others], level) if others else None
        alone = agreements[(name,)]
        ceiling = _reliability([proxies[name]], [1.0], drawn, level)
        parts[name] = Contribution(alone.spearman, alone.kendall, ceiling, gain, _call(gain))
    return Fidelity(
        agreements[everything],
        parts,
        tuple(sorted(agreements.values(), key=lambda one: (-_number(one.spearman.value), len(one.proxies)))),
        _reliability(select, [1.0] * len(select), drawn, level),
        _reliability(list(proxies.values()), [weights[name] for name in proxies], drawn, level),
        _choosing(np.array([together(names)[0] for names in found]), target[0], level),
    )


# Correlations, many at once -------------------------------------------------------------------------------------------


def spearman(x: ArrayLike, y: ArrayLike) -> Array:
    """[B, n], [B, n] -> [B]: the correlation of ranks, ties by their mean rank; nan where one side has no order."""
    a, b = (stats.rankdata(each, axis=1) for each in (x, y))
    a, b = (each - each.mean(axis=1, keepdims=True) for each in (a, b))
    return _ratio((a * b).sum(axis=1), (a * a).sum(axis=1) * (b * b).sum(axis=1))


def kendall(x: ArrayLike, y: ArrayLike) -> Array:
    """[B, n], [B, n] -> [B]: Kendall's tau-b, of pairs in the same order less those in the other; nan as above."""
    a, b = (_orders(np.asarray(each, np.float64)) for each in (x, y))
    return _ratio(
        (a * b).sum(axis=1, dtype=np.float64),
        (a * a).sum(axis=1, dtype=np.float64) * (b * b).sum(axis=1, dtype=np.float64),
    )


def _orders(values: Array) -> NDArray[np.float32]:
    """[B, n] -> [B, pairs]: which of each pair is larger."""
    one, other = np.triu_indices(values.shape[1], 1)
    return np.sign(values[:, one] - values[:, other]).astype(np.float32)


def _ratio(covariance: Array, variances: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(variances > 0, covariance / np.sqrt(variances), np.nan))


# Inside -------------------------------------------------------------------------------------------------------------


def _resampled(table: Array, drawn: Indices, rng: Generator) -> Array:
    """Mean scores [1 + B, rules]: as they are in row 0, then of drawn units and rules."""
    units = rng.integers(table.shape[1], size=(len(drawn), table.shape[1]))
    means = table[:, units].mean(axis=2).T
    return np.concatenate([table.mean(axis=1)[None], np.take_along_axis(means, drawn, axis=1)])


def _sets(names: list[str], value: Callable[[tuple[str, ...]], float]) -> Iterator[tuple[str, ...]]:
    """The sets to look at: all of them, or singles, what a greedy choice takes up in turn, all, and all but one."""
    if len(names) <= MOST_SUBSETS:
        for size in range(1, len(names) + 1):
            yield from combinations(names, size)
        return
    seen = [*((name,) for name in names), tuple(names), *combinations(names, len(names) - 1)]
    yield from seen
    taken: tuple[str, ...] = ()
    while len(taken) < len(names) - 2:
        grown = [tuple(n for n in names if n in taken or n == new) for new in names if new not in taken]
        taken = max(grown, key=value)
        if taken not in seen:
            yield taken


def _reliability(tables: Sequence[Array], weights: Sequence[float], drawn: Indices, level: float) -> Estimate:
    """Spearman of one half of the units with the other, averaged over ways to halve, stepped up to all units."""
    least = min(table.shape[1] for table in tables)
    if least < 2:
        return Estimate(np.nan, np.nan, np.nan, level)
    rows = np.concatenate([np.arange(drawn.shape[1])[None], drawn])
    halves = []
    for number in range(SPLITS):
        rng = np.random.default_rng(number)
        one, other = np.zeros(rows.shape), np.zeros(rows.shape)
        for table, weight in zip(tables, weights, strict=True):
            order = rng.permutation(table.shape[1])
            middle = table.shape[1] // 2
            for half, units in ((one, order[:middle]), (other, order[middle : 2 * middle])):
                half += weight * table[:, units].mean(axis=1)[rows]
        halves.append(spearman(one, other))
    half = np.mean(halves, axis=0)
    return _estimate(2 * half / (1 + np.maximum(half, -0.5)), level)


def _choosing(sets: Array, target: Array, level: float) -> Estimate:
    """[sets, rules], [rules]: the best set on half of the rules, its Spearman on the other half."""
    if len(target) < 2 * FEWEST:
        return Estimate(np.nan, np.nan, np.nan, level)
    judged = []
    for number in range(HALVINGS):
        order = np.random.default_rng(number).permutation(len(target))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        on_one, on_other = (spearman(sets[:, half], np.tile(target[half], (len(sets), 1))) for half in (one, other))
        judged.append(on_other[np.where(np.isnan(on_one), -2.0, on_one).argmax()])
    return _estimate(np.array([np.nanmean(judged), *judged]), level)


def _estimate(values: Array, level: float) -> Estimate:
    """The first value, with the interval of the others."""
    tail = 50 * (1 - level)
    rest = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(rest):
        return Estimate(float(values[0]), np.nan, np.nan, level)
    low, high = np.percentile(rest, [tail, 100 - tail], method="median_unbiased")
    return Estimate(float(values[0]), float(low), float(high), level)


def _call(gain: Estimate | None) -> Call:
    if gain is None or not (gain.low > 0 or gain.high < 0):
        return "not shown"
    return "carries" if gain.low > 0 else "harms"


def _value(correlations: Array) -> float:
    return _number(float(correlations[0]))


def _number(value: float) -> float:
    """For an order: no correlation at all comes last."""
    return -2.0 if np.isnan(value) else value
