"""One generation on its way through the rungs: which units it needs next, and what it came to when all are back.

A generation is proposed as a whole, from what had been absorbed before it. From then on everything it does is fixed by
its own outcomes: which of its candidates go on to the next rung, and in which blocks. In which order its units come
back makes no difference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import tasks
from discover.costs import Pace, blocks, seconds, unit_size
from discover.evaluate import FAULT, Entry, Grid, Instance, Outcome, Unit, interpolated_best, score
from discover.records import (
    REFERENCE_LOST,
    Candidate,
    Confirmation,
    Evaluation,
    Generation,
    GenerationRecord,
    Kind,
    Status,
)
from discover.workers import TIMED_OUT, Done, Request
from dsl import Program
from dsl.properties import Properties

COMPANY = 5
"""Of about how many candidates the median varies as much by which they are as by AdamW's luck on instances. On the
three rungs of `lion_like` it is 7 to 12, 3 to 6 and 1 to 6 (docs/log.md)."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A proposal that passed the gate: a new candidate, or a duplicate of an earlier one."""

    id: int
    program: Program
    text: str
    parents: tuple[int, ...]
    origin: str
    structure: str
    behaviour: str
    properties: Properties | None = None
    duplicate_of: int | None = None


@dataclass(frozen=True, slots=True)
class Rescored:
    """A candidate to be scored again on fresh instances, with the scores that it has from earlier ones, and their mean
    without the luck of their generations, 0 for none."""

    entry: Entry
    scores: tuple[float, ...]
    luckless: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What a generation is judged by, fixed when it is proposed.

    Attributes:
        instances: for each rung, what its candidates are trained on.
        keep: for each rung but the last, the share of its candidates that goes on.
        reference: AdamW, trained on every instance beside the candidates; `reference_scale` is the RMS of its step.
        weights: task -> how much its score counts in a fitness.
        unit: about how many seconds of work a unit is, and how many programs it holds at most.
        requests: for each rung, what kind of worker its units want.
        compiled: task -> whether its gradients run compiled; native: whether elementwise rules do.
    """

    instances: tuple[tuple[Instance, ...], ...]
    keep: tuple[float, ...]
    reference: Entry
    reference_scale: float
    grid: Grid
    weight_decay: float
    score_limits: tuple[float, float]
    weights: Mapping[str, float]
    unit: tuple[float, int]
    requests: tuple[Request, ...]
    compiled: Mapping[str, bool]
    native: bool


@dataclass(frozen=True, slots=True)
class Key:
    """A unit's name: the generation, and the number of the unit in it."""

    generation: int
    number: int


class Live:
    """A generation in flight.

    Args:
        number: which generation.
        proposed, rejected: the funnel's counts.
        admitted: candidates and duplicates in order of proposal.
        rescored: elites to be scored again.
        terms: see there.
        pace: what units of each kind take, and is told what they took.
    """

    def __init__(
        self,
        number: int,
        proposed: int,
        rejected: Mapping[str, int],
        admitted: Sequence[Admitted],
        rescored: Sequence[Rescored],
        terms: Terms,
        pace: Pace,
    ) -> None:
        self.number, self.proposed, self.rejected = number, proposed, dict(rejected)
        self.admitted, self.rescored, self.terms, self.pace = tuple(admitted), tuple(rescored), terms, pace
        self.rung_of: dict[int, int] = {each.id: 0 for each in admitted if each.duplicate_of is None}
        self.fitness: dict[int, float] = {}
        self.failures: dict[int, str] = {}
        self._outcomes: dict[tuple[int, int], dict[int | None, Outcome]] = {}
        self._open: dict[Key, tuple[int, int, Unit]] = {}
        """Units that are not back: which rung, which instance of it, and the unit."""
        self._cuts = 0
        self._rung = -1
        """The rung that is open; as many as there are rungs when all is done."""
        self._least: list[float | None] = []
        self._reached: list[dict[int, float]] = [{} for _ in terms.instances]
        """For each rung, what those came to that were scored there."""
        self._entries = {
            each.id: Entry(
                each.id, each.text, each.properties.scale / terms.reference_scale, each.properties.degree or 0.0
            )
            for each in admitted
            if each.properties is not None
        }

    @property
    def done(self) -> bool:
        return not self._open and self._rung == len(self.terms.instances)

    def start(self) -> Iterator[tuple[Key, Unit]]:
        """The first rung's units."""
        yield from self._go_on()

    def record(self, done: Done) -> Iterator[tuple[Key, Unit]]:
        """Takes a unit's result; gives the units that it makes possible. A unit that failed is cut up, so that only
        what is at fault fails: into its entries, or, where failing costs neither time nor workers, in halves."""
        key = done.key
        assert isinstance(key, Key)
        rung, index, unit = self._open.pop(key)
        outcomes = self._outcomes.setdefault((rung, index), {})
        if done.result is not None:
            outcomes.update((outcome.candidate, outcome) for outcome in done.result.outcomes)
            lane = seconds(tasks.load(unit.instance.task), unit.instance.steps, unit.instance.batch_size)
            estimated = len(unit.entries) * unit.grid.points * lane
            self.pace.note(self._kind(rung, index), estimated, done.result.seconds)
        elif len(unit.entries) > 1:
            size = math.ceil(len(unit.entries) / 2) if done.failure.startswith(FAULT) else 1
            for block in blocks(unit.entries, size):
                yield self._opened(rung, index, block)
        elif (candidate := unit.entries[0].candidate) is not None:
            outcomes[candidate] = Outcome(candidate, (), (), 0)
            self.failures[candidate] = done.failure
        yield from self._go_on()

    def _go_on(self) -> Iterator[tuple[Key, Unit]]:
        """The next rung's units, when nothing is open; a rung that has nobody to train is passed."""
        while not self._open and not self.done:
            candidates = self._judge(self._rung) if self._rung >= 0 else list(self._entries)
            self._rung += 1
            if not self.done and (candidates or self.rescored):
                yield from self._cut(self._rung, candidates)

    def result(self, levels: Sequence[float | None]) -> Generation:
        """What it all came to, in order of proposal.

        Args:
            levels: for each rung, where the middle of a generation has lately been, when all before this one have been
                absorbed; None before the first.
        """
        evaluations = [
            self._evaluation(rung, index, candidate)
            for (rung, index), outcomes in sorted(self._outcomes.items())
            for candidate in sorted(outcomes, key=lambda each: -1 if each is None else each)
        ]
        candidates = tuple(self._candidate(each) for each in self.admitted)
        record = GenerationRecord(
            number=self.number,
            proposed=self.proposed,
            rejected=self.rejected,
            duplicates=sum(candidate.status == "duplicate" for candidate in candidates),
            trained=len(self._entries),
            hurdles=tuple(self._least),
            model_steps=sum(evaluation.model_steps for evaluation in evaluations),
            best_fitness=max((f for c, f in self.fitness.items() if c not in self.failures), default=None),
            levels=tuple(levels),
            middles=tuple(self._middle(rung, level) for rung, level in enumerate(levels)),
        )
        confirmations = (self._confirmation(again, record.luck[-1]) for again in self.rescored)
        return Generation(record, candidates, tuple(evaluations), tuple(c for c in confirmations if c is not None))

    def _cut(self, rung: int, candidates: Sequence[int]) -> Iterator[tuple[Key, Unit]]:
        """Units of a rung: reference, elites and candidates, in blocks, on each of its instances."""
        elites = [again.entry for again in self.rescored]
        entries = [self.terms.reference, *elites, *(self._entries[candidate] for candidate in candidates)]
        for index in range(len(self.terms.instances[rung])):
            instance, pace = self.terms.instances[rung][index], self.pace.of(self._kind(rung, index))
            task, steps, points = tasks.load(instance.task), instance.steps, self.terms.grid.points
            size = unit_size(task, steps, points, *self.terms.unit, batch_size=instance.batch_size, pace=pace)
            for block in blocks(entries, size):
                yield self._opened(rung, index, block)

    def _kind(self, rung: int, index: int) -> tuple[object, ...]:
        """What takes about the same for each lane and step."""
        task = self.terms.instances[rung][index].task
        return rung, task, self.terms.compiled[task]

    def _opened(self, rung: int, index: int, entries: tuple[Entry, ...]) -> tuple[Key, Unit]:
        terms, instance = self.terms, self.terms.instances[rung][index]
        unit = Unit(
            instance,
            entries,
            terms.grid,
            terms.reference_scale,
            terms.weight_decay,
            terms.compiled[instance.task],
            terms.native,
            terms.requests[rung],
        )
        key = Key(self.number, self._cuts)
        self._cuts += 1
        self._open[key] = (rung, index, unit)
        return key, unit

    def _judge(self, rung: int) -> list[int]:
        """Scores a rung that is complete: the candidates that go on, the best share of this generation's own. Those of
        another met other instances and another luck of the reference."""
        scored: dict[int, float] = {}
        for candidate in [c for c, reached in self.rung_of.items() if reached == rung and c not in self.failures]:
            here = self._scores(rung, candidate)
            scores = [s for r in range(rung) for s in self._scores(r, candidate)] + here
            if not scores:
                self.failures[candidate] = REFERENCE_LOST
                continue
            scored[candidate] = weighted_mean(scores)
            if here:
                self._reached[rung][candidate] = scored[candidate]
            self.fitness[candidate] = math.fsum(score * weight for score, weight in scores) / self._weight
        if rung + 1 == len(self.terms.instances):
            return []
        count = math.ceil(self.terms.keep[rung] * len(scored))
        going_on = sorted(sorted(scored, key=lambda candidate: (-scored[candidate], candidate))[:count])
        self._least.append(min((scored[candidate] for candidate in going_on), default=None))
        self.rung_of |= dict.fromkeys(going_on, rung + 1)
        return going_on

    def _middle(self, rung: int, level: float | None) -> float | None:
        came_to = [mean for candidate, mean in self._reached[rung].items() if candidate not in self.failures]
        return middle(came_to, level) if came_to else None

    @property
    def _weight(self) -> float:
        """Of all instances of all rungs. What a candidate was not trained on counts as a score of 0: its few scores are
        noisier than those of one that went on, and must not outdo them by that."""
        return math.fsum(self.terms.weights[instance.task] for rung in self.terms.instances for instance in rung)

    def _scores(self, rung: int, candidate: int) -> list[tuple[float, float]]:
        """Score and weight on each instance of a rung that can be scored."""
        instances = self.terms.instances[rung]
        scores = [(self._score(rung, index, candidate), instances[index].task) for index in range(len(instances))]
        return [(score, self.terms.weights[task]) for score, task in scores if score is not None]

    def _score(self, rung: int, index: int, candidate: int) -> float | None:
        """The score on one instance; None where the reference has none, and nobody can be measured by it.
        A confirmation that lacks a unit's result says nothing of the rule, and is left out whole."""
        if candidate in self.failures and candidate not in self._entries:
            return None
        outcomes = self._outcomes.get((rung, index), {})
        reference = _best(outcomes.get(None))
        if reference is None or candidate not in outcomes:
            return None
        best = _best(outcomes[candidate])
        return score(best[1], reference[1], self.terms.score_limits) if best else self.terms.score_limits[0]

    def _evaluation(self, rung: int, index: int, candidate: int | None) -> Evaluation:
        instance = self.terms.instances[rung][index]
        outcomes = self._outcomes[rung, index]
        outcome, reference = outcomes[candidate], _best(outcomes.get(None))
        best = _best(outcome)
        kind: Kind = "reference" if candidate is None else "search" if candidate in self._entries else "confirm"
        return Evaluation(
            candidate=candidate,
            generation=self.number,
            kind=kind,
            rung=rung,
            task=instance.task,
            seed=instance.seed,
            loss_scale=instance.loss_scale,
            parameter_scale=instance.parameter_scale,
            learning_rates=outcome.learning_rates,
            losses=tuple((loss if math.isfinite(loss) else None,) for loss in outcome.losses),
            best_lr=best[0] if best else None,
            loss=best[1] if best else None,
            reference_loss=reference[1] if reference else None,
            score=None if candidate is None else self._score(rung, index, candidate),
            model_steps=outcome.model_steps,
            tensor_scales=instance.tensor_scales,
            batch_size=instance.batch_size,
        )

    def _candidate(self, each: Admitted) -> Candidate:
        failure = self.failures.get(each.id, "")
        fitness = self.fitness.get(each.id)
        lost = each.id in self._entries and not any(
            math.isfinite(loss)
            for outcomes in self._outcomes.values()
            if each.id in outcomes
            for loss in outcomes[each.id].losses
        )
        return Candidate(
            id=each.id,
            generation=self.number,
            origin=each.origin,
            parents=each.parents,
            text=each.text,
            structure=each.structure,
            behaviour=each.behaviour,
            status=_status(each, failure, lost),
            reason=failure or ("every training was lost" if lost else ""),
            duplicate_of=each.duplicate_of,
            fitness=None if failure else fitness,
            rung=self.rung_of.get(each.id),
            properties={} if each.properties is None else each.properties.plain(),
        )

    def _confirmation(self, again: Rescored, luck: float) -> Confirmation | None:
        candidate = again.entry.candidate
        assert candidate is not None
        fresh = [s for rung in range(len(self.terms.instances)) for s in self._scores(rung, candidate)]
        if not fresh:
            return None
        scores = (*again.scores, weighted_mean(fresh))
        mean, count = math.fsum(scores) / len(scores), len(scores)
        luckless = again.luckless + (scores[-1] - luck - again.luckless) / count
        spread = math.fsum((s - mean) ** 2 for s in scores)
        error = math.sqrt(spread / (count - 1) / count) if count > 1 else None
        return Confirmation(candidate, self.number, mean, error, count, luckless)


def weighted_mean(scores: Sequence[tuple[float, float]]) -> float:
    """The mean of (score, weight), the same for every order of them."""
    return math.fsum(score * weight for score, weight in scores) / math.fsum(weight for _, weight in scores)


def middle(scores: Sequence[float], level: float | None) -> float:
    """Where the median of a generation's scores would be if it had many: the median of few says mostly which they are,
    and is drawn towards the level of earlier generations (None: there are none)."""
    median, count = statistics.median(scores), len(scores)
    return median if level is None else level + (median - level) * count / (count + COMPANY)


@lru_cache(maxsize=4096)
def _best(outcome: Outcome | None) -> tuple[float, float] | None:
    return None if outcome is None else interpolated_best(outcome.learning_rates, outcome.losses)


def _status(each: Admitted, failure: str, lost: bool) -> Status:
    if each.duplicate_of is not None:
        return "duplicate"
    if failure:
        return "timed_out" if failure == TIMED_OUT else "worker_lost"
    return "diverged" if lost else "trained"
