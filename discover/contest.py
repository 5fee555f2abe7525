"""A contest: candidates against baselines, all tuned alike, and looked at after every tuning until it is decided.

A *tuning* of a contender is a study of `discover.tuning` on each of the contest's tasks, all with the same study seed;
contenders have the same study seeds. A candidate *wins* a tuning against a baseline if it *leads* there: its
differences of log loss on the fresh seeds, mean over seeds, are below 0 in the mean over tasks, each in units of how
large that task's differences have been so far. In nats the noisiest task would decide alone: over seeds AdamW's log
loss varies by 1.6 on burgers_pinn, and by 0.004 on digits_diffusion. What is smaller than `verdict.SMALLEST` counts as
none, and what is larger than `LIMIT` as that. Tunings are independent; where both are alike they may change places in
each, with all that came before and all sizes as they are, so each is lost as often as it is won, whatever the
distribution of losses. So `statistics.evidence` over tunings may be looked at after each of them, and one over the
largest evidence so far is a p-value that holds whenever one stops. The fresh seeds of one tuning are *not* taken as
independent: they share its luck (docs/comparing.md).

A candidate passes if it is better than *every* baseline: its p is the largest of its p against each, which is valid
whichever baseline is the best, without choosing one by its results. Holm's correction over the candidates bounds the
probability that any passes that should not by `error_rate`. And it must lead each in the mean over all tunings: one
that wins often by little and loses seldom by much is no better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from discover import named_tasks, plain, statistics
from discover.asks import Ask, evenly
from discover.built import Built
from discover.contenders import Contender
from discover.pieces import CORE
from discover.pruners import Pruner
from discover.studies import Tuned, TuningBudget
from discover.verdict import SMALLEST, log_losses
from discover.workers import Request
from discover.workshop import Workshop

LIMIT = 1.0
"""Nats that a task's difference may count for."""

POINTS = 10
"""Of a curve, at even distances, the end left out."""

Results = dict[str, dict[str, list[Tuned]]]
"""Task -> contender -> its tunings."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ContestTerms:
    """What a contest was asked to be.

    Attributes:
        name: of the stage, such as "rung 1".
        tasks: spelling -> steps of a training.
        trials, tuning_seeds, fresh: of each tuning, on each task.
        least, most: tunings.
        error_rate: that any candidate passes which is not better than every baseline.
        own: also tune hyperparameters other than lr and weight_decay.
        first: the first study seed; studies of seed s train on seeds 1000 s and up.
        device: where to train.
        compile: whether gradients are compiled where there is a compiler.
        pruner: of the tunings, see `discover.pruning`.
        request: what a worker has to have that trains it.
    """

    name: str
    tasks: Mapping[str, int]
    trials: int
    tuning_seeds: int
    fresh: int
    least: int
    most: int
    error_rate: float
    own: bool
    first: int
    device: str = "cpu"
    compile: bool = True
    pruner: Pruner = "none"
    request: Request = CORE

    @property
    def budget(self) -> TuningBudget:
        return TuningBudget(self.trials, self.tuning_seeds, self.fresh, self.own, self.pruner)

    def studies(self, count: int) -> range:
        return range(self.first, self.first + count)


@dataclass(slots=True)
class Contest:
    """A contest, as far as it is.

    Attributes:
        candidates, baselines: names.
        beside: names of others that are tuned alike and shown, but need not be beaten.
        results: candidates that are decided early have fewer tunings than the others.
    """

    terms: ContestTerms
    candidates: tuple[str, ...]
    baselines: tuple[str, ...]
    beside: tuple[str, ...] = ()
    results: Results = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        """All that candidates are compared with."""
        return (*self.baselines, *self.beside)

    @property
    def p(self) -> dict[str, float]:
        """Of "not better than some baseline", before Holm's correction."""
        return {name: max(self.p_against(name, each) for each in self.baselines) for name in self.candidates}

    def p_against(self, name: str, baseline: str) -> float:
        return anytime_p(wins(self.results, name, baseline))

    @property
    def adjusted(self) -> dict[str, float]:
        """`p` after Holm's correction."""
        p = self.p
        return dict(zip(p, statistics.holm(list(p.values())).tolist(), strict=True))

    @property
    def passed(self) -> tuple[str, ...]:
        """Who is better than every baseline, the surest first."""
        adjusted, p = self.adjusted, self.p
        surely = [name for name in self.candidates if adjusted[name] <= self.terms.error_rate]
        leads = {name: lead(self.results, name, self.hardest(name)) for name in surely}
        return tuple(sorted((name for name in surely if leads[name] < 0), key=lambda name: (p[name], leads[name])))

    def hardest(self, name: str) -> str:
        """The baseline that it leads least."""
        return max(self.baselines, key=lambda each: lead(self.results, name, each))

    @property
    def model_steps(self) -> int:
        return sum(each.model_steps for row in self.results.values() for own in row.values() for each in own)

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        rows = {
            task: {name: [plain_tuned(each) for each in own] for name, own in row.items()}
            for task, row in self.results.items()
        }
        return {
            "terms": {**asdict(self.terms), "tasks": dict(self.terms.tasks)},
            "candidates": list(self.candidates),
            "baselines": list(self.baselines),
            "beside": list(self.beside),
            "results": rows,
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Contest:
        """From what `plain` gave."""
        rows = {
            task: {name: [tuned_of(each) for each in own] for name, own in row.items()}
            for task, row in data["results"].items()
        }
        request = tuple((name, quantity) for name, quantity in data["terms"].get("request", CORE))
        terms = ContestTerms(**{**data["terms"], "request": request})
        candidates, baselines, beside = (tuple(data.get(key, ())) for key in ("candidates", "baselines", "beside"))
        return cls(terms, candidates, baselines, beside, rows)


def hold(
    terms: ContestTerms,
    candidates: Sequence[Contender],
    baselines: Sequence[Contender],
    workshop: Workshop,
    beside: Sequence[Contender] = (),
) -> Contest:
    """Holds a contest to its end: every candidate has passed or can no longer pass, or `terms.most` tunings are done.
    Those beside it are tuned as often, and decide nothing.

    Raises:
        StoppedError: asked to stop; what was trained is in the store, and the same call goes on.
        UserError: losses that cannot be compared; ClusterError: the workers' cluster is gone.
    """
    contest = Contest(terms, _names(candidates), _names(baselines), _names(beside))
    count, playing = terms.least, list(candidates)
    while True:
        _tune(contest, [*baselines, *beside, *playing], count, workshop)
        playing = [one for one in playing if _open(contest, one.name)]
        if not playing or count >= terms.most:
            return contest
        count = min(terms.most, count + max(1, terms.least // 4))


def _names(contenders: Sequence[Contender]) -> tuple[str, ...]:
    return tuple(one.name for one in contenders)


def _tune(contest: Contest, contenders: Sequence[Contender], count: int, workshop: Workshop) -> None:
    """Brings all of them to so many tunings on every task: all that is known to be needed, wherever it is trained."""
    asks = list(_asks(contest.terms, contenders, count))
    for answer in workshop.tuned(asks):
        task, name = answer.ask.task.spelling, answer.ask.contender.name
        contest.results.setdefault(task, {})[name] = answer.tunings


def _asks(terms: ContestTerms, contenders: Sequence[Contender], count: int) -> Iterator[Ask]:
    for task, steps in terms.tasks.items():
        loaded = named_tasks.load(task)
        for one in contenders:
            yield Ask(
                contender=one,
                task=loaded,
                steps=steps,
                budget=terms.budget,
                seeds=terms.studies(count),
                curve=curve_of(steps),
                device=terms.device,
                compile=terms.compile,
                request=terms.request,
            )


def ask_of(terms: ContestTerms, one: Contender, task: str) -> Ask:
    """What a contest asks first of a contender on a task."""
    return next(ask for ask in _asks(terms, [one], 1) if ask.task.spelling == task)


def curve_of(steps: int) -> tuple[int, ...]:
    """When held-out losses of fresh runs are taken, besides the end."""
    return evenly(steps, POINTS)


def _open(contest: Contest, name: str) -> bool:
    """Whether more tunings can change that a candidate passes or not."""
    terms = contest.terms
    if name in contest.passed:
        return False
    for baseline in contest.baselines:
        won = wins(contest.results, name, baseline)
        if anytime_p([*won, *[1.0] * (terms.most - len(won))]) > terms.error_rate:  # the last of Holm's limits
            return False
    return True


def differences(results: Mapping[str, Mapping[str, Sequence[Tuned]]], name: str, baseline: str) -> Array:
    """[tunings]: log loss relative to a baseline's, mean over fresh seeds and tasks, as far as both were tuned."""
    return np.asarray(_gaps(results, name, baseline).mean(axis=0))


def log_gaps(results: Mapping[str, Mapping[str, Sequence[Tuned]]], name: str, baseline: str) -> list[Array]:
    """For each task [tunings, fresh seeds]: log loss relative to a baseline's, as far as both were tuned."""
    rows = ((row[name], row[baseline]) for row in results.values())
    return [log_losses(one[: len(other)]) - log_losses(other[: len(one)]) for one, other in rows]


def interquartile_difference(results: Mapping[str, Mapping[str, Sequence[Tuned]]], name: str, baseline: str) -> float:
    """Log loss relative to a baseline's, interquartile mean over tasks, tunings and fresh seeds, as far as both were
    tuned: what certificates and a promotion's lines show. It decides nothing."""
    return float(statistics.interquartile_mean(np.concatenate(log_gaps(results, name, baseline), axis=None)))


def wins(results: Mapping[str, Mapping[str, Sequence[Tuned]]], name: str, baseline: str) -> list[float]:
    """For each tuning 1 (it leads the baseline), 0 (the baseline leads) or 1/2 (neither)."""
    gaps = _telling(results, name, baseline)
    so_far = np.sqrt(np.cumsum(gaps**2, axis=1) / np.arange(1, gaps.shape[1] + 1))
    behind: list[float] = np.sign(_in_units(gaps, so_far).mean(axis=0)).tolist()
    return [0.5 - 0.5 * each for each in behind]


def lead(results: Mapping[str, Mapping[str, Sequence[Tuned]]], name: str, baseline: str) -> float:
    """How far it is behind a baseline, below 0: ahead, in units of how large a task's differences are; mean over
    tunings and tasks, between -1 and 1."""
    gaps = _telling(results, name, baseline)
    return float(_in_units(gaps, np.sqrt(np.mean(gaps**2, axis=1, keepdims=True))).mean())


def _gaps(results: Mapping[str, Mapping[str, Sequence[Tuned]]], name: str, baseline: str) -> Array:
    """[tasks, tunings]: log loss relative to a baseline's, mean over fresh seeds, as far as both were tuned."""
    return np.array([gaps.mean(axis=1).clip(-LIMIT, LIMIT) for gaps in log_gaps(results, name, baseline)])


def _telling(results: Mapping[str, Mapping[str, Sequence[Tuned]]], name: str, baseline: str) -> Array:
    """The gaps; 0 for what is too small to be called a difference."""
    gaps = _gaps(results, name, baseline)
    return np.where(np.abs(gaps) > SMALLEST, gaps, 0.0)


def _in_units(gaps: Array, sizes: Array) -> Array:
    return np.divide(gaps, sizes, out=np.zeros_like(gaps), where=sizes > 0)


def anytime_p(won: Sequence[float]) -> float:
    """One over the largest evidence so far: of "wins no more than half", valid however many tunings there were."""
    return min(1.0, 1.0 / max(1.0, float(statistics.evidence(won).max()))) if len(won) else 1.0


# Kept as JSON ---------------------------------------------------------------------------------------------------------


def plain_tuned(tuned: Tuned) -> dict[str, Any]:
    """A tuning as JSON takes it: a lost run is null."""
    data = asdict(tuned)
    data["value"] = plain.finite(tuned.value)
    data["losses"] = [plain.finite(loss) for loss in tuned.losses]
    data["curves"] = [[plain.finite(loss) for loss in curve] for curve in tuned.curves]
    data["untrained"] = [plain.finite(loss) for loss in tuned.untrained]
    return data


def tuned_of(data: Mapping[str, Any]) -> Tuned:
    """From what `plain_tuned` gave."""
    changed: dict[str, Any] = {key: tuple(data[key]) for key in ("steps", "seeds")}
    changed |= {key: tuple(map(plain.loss, data[key])) for key in ("losses", "untrained")}
    changed["curves"] = tuple(tuple(map(plain.loss, curve)) for curve in data["curves"])
    changed |= {"built": tuple(map(Built.of, data["built"])), "fresh_built": Built.of(data["fresh_built"])}
    return Tuned(**{**data, **changed, "value": plain.loss(data["value"])})
