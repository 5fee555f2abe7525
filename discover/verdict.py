"""What a comparison shows, in numbers and in words: from losses on fresh seeds to "better", "worse", "not shown".

Losses are compared by their logarithm, run against run on the same seeds. What varies between two comparisons is the
seeds *and* the tuning, so where there are several tunings the unit that is tested is the mean difference of a tuning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from discover import statistics
from discover.statistics import Estimate
from discover.studies import Tuned
from discover.trainers import capped_log

ALPHA = 0.05
SMALLEST = 1e-3
"""Nats of loss, about 0.1 %: a smaller difference is not called one, however sure it is."""

CURVE_RESAMPLES = 300

Call = Literal["better", "worse", "not shown"]
Array = NDArray[np.float64]
Results = Mapping[str, Mapping[str, Sequence[Tuned]]]
"""Task -> contender -> its tunings."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A contender on a task.

    Attributes:
        loss: at the end, geometric mean over fresh seeds, with its interval over tunings.
        lost: fresh runs that were lost, of `runs`.
        learning_rate, weight_decay: of the tunings' best settings, the geometric mean of the one and the median of the
            other (None where there is none).
        at_edge: how many tunings ended at the edge of their range of learning rates.
        difference: of log loss to the baseline's, with its interval; None for the baseline itself.
        p: of "no difference", corrected by Holm over all contenders and tasks; None for the baseline.
        speed_up: how many times fewer steps it takes to what both reach; None for the baseline.
        call: what is shown here, None for the baseline.
    """

    loss: Estimate
    lost: int
    runs: int
    learning_rate: float
    weight_decay: float | None
    at_edge: int
    difference: Estimate | None = None
    p: float | None = None
    speed_up: Estimate | None = None
    call: Call | None = None


@dataclass(frozen=True, slots=True)
class Overall:
    """A contender against the baseline over all tasks.

    Attributes:
        difference: interquartile mean of the differences of log loss.
        improvement: how probable it is that a run of it ends below a run of the baseline.
        p: of "no difference on any task", corrected by Holm over the contenders.
        call: what is shown; "better" and "worse" only where test and mean say the same.
    """

    difference: Estimate
    improvement: Estimate
    p: float
    call: Call


@dataclass(frozen=True, slots=True)
class Reach:
    """How soon a contender reaches a stated loss on a task.

    Attributes:
        steps: on the mean curve over the fresh runs, linear between its points; inf where it never does. Its interval
            is over tunings, and has inf for an end that does not reach the loss.
        reached: fresh runs that do, each on its own curve, of `runs`.
    """

    steps: Estimate
    reached: int
    runs: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """All of it: task -> contender -> cell, and contender -> overall (without the baseline)."""

    baseline: str
    cells: Mapping[str, Mapping[str, Cell]]
    overall: Mapping[str, Overall]


def judge(results: Results, baseline: str, rng: Generator, *, resamples: int = statistics.RESAMPLES) -> Verdict:
    """Statistics of a comparison.

    Args:
        results: for each task the same contenders, the baseline among them; tunings in the same order, with the same
            number of fresh seeds.
        baseline: what the others are compared with.
        rng, resamples: for the bootstrap.
    """
    names = [name for name in next(iter(results.values())) if name != baseline]
    logs = {task: {name: log_losses(tuned) for name, tuned in row.items()} for task, row in results.items()}
    differences = {task: {name: row[name] - row[baseline] for name in names} for task, row in logs.items()}
    pairs = [(task, name) for task in results for name in names]
    p = statistics.holm([statistics.paired_test(units(differences[task][name])) for task, name in pairs])
    corrected = dict(zip(pairs, p.tolist(), strict=True))
    cells: dict[str, dict[str, Cell]] = {}
    for task, row in results.items():
        cells[task] = {}
        for name, tuned in row.items():
            facts = _facts(tuned, logs[task][name])
            if name == baseline:
                cells[task][name] = Cell(**facts)
                continue
            difference, own = statistics.mean_interval(units(differences[task][name])), corrected[task, name]
            speed = _speed_up(tuned, row[baseline], rng, min(resamples, CURVE_RESAMPLES))
            cells[task][name] = Cell(
                **facts, difference=difference, p=own, speed_up=speed, call=_call(difference.value, own)
            )
    return Verdict(baseline, cells, _overall(results, logs, differences, baseline, names, rng, resamples))


def _overall(
    results: Results,
    logs: Mapping[str, Mapping[str, Array]],
    differences: Mapping[str, Mapping[str, Array]],
    baseline: str,
    names: Sequence[str],
    rng: Generator,
    resamples: int,
) -> dict[str, Overall]:
    together = [statistics.combined_test([units(differences[task][name]) for task in results]) for name in names]
    corrected = statistics.holm([p for p, _ in together]).tolist()
    found = {}
    for name, (_, sign), p in zip(names, together, corrected, strict=True):
        strata = [_rows(differences[task][name]) for task in results]
        difference = statistics.aggregate(strata, rng, resamples=resamples)
        mine, theirs = ([_rows(logs[task][which]) for task in results] for which in (name, baseline))
        improvement = statistics.probability_of_improvement(mine, theirs, rng, resamples=resamples)
        call = _call(difference.value, p) if sign * difference.value > 0 else "not shown"
        found[name] = Overall(difference, improvement, p, call)
    return found


def log_losses(tuned: Sequence[Tuned]) -> Array:
    """[tunings, seeds]; lost runs count as untrained."""
    return np.array([[capped_log(*each) for each in zip(t.losses, t.untrained, strict=True)] for t in tuned])


def units(values: Array) -> Array:
    """What is independent of [tunings, seeds]: means of tunings; the seeds, where there is one tuning."""
    return np.asarray(values.mean(axis=1) if len(values) > 1 else values[0])


def log_curves(tuned: Sequence[Tuned]) -> Array:
    """[tunings, seeds, points]: log losses from the start (step 0) to the end; lost runs count as untrained."""
    rows = []
    for each in tuned:
        row = []
        for curve, end, start in zip(each.curves, each.losses, each.untrained, strict=True):
            missing = [math.inf] * (len(each.steps) - len(curve))
            row.append([capped_log(loss, start) for loss in (start, *curve, *missing, end)])
        rows.append(row)
    return np.array(rows)


def curve_steps(tuned: Sequence[Tuned]) -> list[int]:
    """The steps of `log_curves`."""
    return [0, *tuned[0].steps, tuned[0].horizon]


def reach(tuned: Sequence[Tuned], target: float, rng: Generator, *, resamples: int = CURVE_RESAMPLES) -> Reach:
    """How many steps a contender needs to a held-out loss above 0; the interval is by bootstrap over tunings, over
    seeds where there is one tuning. A schedule is that of the whole training: a shorter one may get there sooner."""
    logs, places = log_curves(tuned), curve_steps(tuned)
    never = 2.0 * places[-1]  # what a percentile may lie between and stay a number

    def needed(curve: Array) -> float:
        return min(statistics.steps_to_target(places, curve, math.log(target)), never)

    def statistic(drawn: list[Array]) -> Array:
        return np.array([needed(mean) for mean in drawn[0].mean(axis=(1, 2))])

    found = statistics.stratified_bootstrap([_rows(logs)], statistic, rng, resamples=resamples)
    value, low, high = (x if x <= places[-1] else math.inf for x in (found.value, found.low, found.high))
    runs = logs.reshape(-1, logs.shape[-1])
    return Reach(Estimate(value, low, high, found.level), sum(needed(run) < never for run in runs), len(runs))


def _rows(values: Array) -> Array:
    """What is resampled: tunings with their seeds, or the seeds of a single tuning."""
    return values if len(values) > 1 else np.moveaxis(values, 0, 1)


def _speed_up(tuned: Sequence[Tuned], baseline: Sequence[Tuned], rng: Generator, resamples: int) -> Estimate:
    """Of the mean curves."""
    both = np.stack([log_curves(tuned), log_curves(baseline)], axis=2)  # [tunings, seeds, 2, points]
    if len(both) == 1:
        both = np.moveaxis(both, 0, 1)
    places = curve_steps(tuned)

    def statistic(drawn: list[Array]) -> Array:
        means = drawn[0].mean(axis=(1, 2))
        return np.array([statistics.speed_up(places, one, other) for one, other in means])

    return statistics.stratified_bootstrap([both], statistic, rng, resamples=resamples)


def _facts(tuned: Sequence[Tuned], logs: Array) -> dict[str, Any]:
    mean = statistics.mean_interval(units(logs))
    decays = [each.hypers["weight_decay"] for each in tuned if "weight_decay" in each.hypers]
    return {
        "loss": Estimate(_exp(mean.value), _exp(mean.low), _exp(mean.high), mean.level),
        "lost": sum(not math.isfinite(loss) for each in tuned for loss in each.losses),
        "runs": logs.size,
        "learning_rate": math.exp(float(np.mean([math.log(each.hypers["lr"]) for each in tuned]))),
        "weight_decay": float(np.median(decays)) if decays else None,
        "at_edge": sum(each.at_edge for each in tuned),
    }


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))


def _call(difference: float, p: float) -> Call:
    if p > ALPHA or abs(difference) < SMALLEST:
        return "not shown"
    return "better" if difference < 0 else "worse"


# In words -------------------------------------------------------------------------------------------------------------


def words(verdict: Verdict) -> Iterator[str]:
    """A sentence or two for each contender."""
    for name, overall in verdict.overall.items():
        tasks = {task: row[name].call for task, row in verdict.cells.items()}
        yield _sentence(name, verdict.baseline, tasks, overall)


def _sentence(name: str, baseline: str, calls: Mapping[str, Call | None], overall: Overall) -> str:
    better, worse = ([task for task, call in calls.items() if call == kind] for kind in ("better", "worse"))
    count = len(calls)
    if better or worse:
        parts = [
            f"{kind} than {baseline} on {len(tasks)} of {count} tasks ({', '.join(tasks)})"
            for kind, tasks in (("better", better), ("worse", worse))
            if tasks
        ]
        parts[1:] = [part.replace(f" than {baseline}", "") for part in parts[1:]]
        rest = count - len(better) - len(worse)
        on = f"; on {'the others' if rest > 1 else 'the other'} no difference is shown" if rest else ""
        first = f"{name} is {' and '.join(parts)}{on}."
    else:
        first = f"{name} and {baseline}: no difference shown on any single task." if count > 1 else ""
    if count == 1:
        return first or f"{name} and {baseline}: no difference shown; {_size(overall)}."
    if better and worse:
        return f"{first} Tasks disagree; over all of them {_size(overall)}."
    if overall.call == "not shown":
        against = overall.p <= ALPHA and abs(overall.difference.value) >= SMALLEST
        aside = " (what is sure on some tasks is outweighed on others)" if against else ""
        return f"{first} Over all tasks: no difference shown; {_size(overall)}{aside}."
    return f"{first} Over all tasks it is {overall.call}: {_size(overall)}."


def _size(overall: Overall) -> str:
    low, high = (percent(x) for x in (overall.difference.low, overall.difference.high))
    return (
        f"its loss is {percent(overall.difference.value)} ({low} to {high}), its runs end below in"
        f" {100 * overall.improvement.value:.0f} % of pairs, p = {overall.p:.2g}"
    )


def percent(difference: float) -> str:
    """A difference of log losses: "-3.4 %"."""
    value = 100 * math.expm1(min(difference, 700.0))
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 100 else 0
    return f"{value:+.{digits}f} %"
