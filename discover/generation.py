"""One generation on its way through the rungs: which units it needs next, and what it came to when all are back.

A generation is proposed as a whole, from what had been absorbed before it. From then on everything it does is fixed by
its own outcomes: which of its candidates go on to the next rung, and in which blocks. In which order its units come
back makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from discover.evaluate import Entry, Grid, Instance, Outcome, Unit, interpolated_best, score
from discover.records import Candidate, Confirmation, Evaluation, Generation, GenerationRecord, Kind, Status
from discover.workers import Done
from dsl import Program
from dsl.properties import Properties


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
class Standing:
    """A candidate to be scored again on fresh instances, with the scores it has from earlier ones."""

    entry: Entry
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a generation is judged by, fixed when it is proposed.

    Attributes:
        instances: for each rung, what its candidates are trained on.
        hurdles: for each rung but the last, the fitness that lets a candidate go on.
        reference: AdamW, trained on every instance beside the candidates; `reference_scale` is the RMS of its step.
        weights: task -> how much its score counts in a fitness.
        unit_candidates: how many programs a unit holds at most.
        compiled: task -> whether its gradients run compiled; native: whether elementwise rules do.
    """

    instances: tuple[tuple[Instance, ...], ...]
    hurdles: tuple[float, ...]
    reference: Entry
    reference_scale: float
    grid: Grid
    weight_decay: float
    score_limits: tuple[float, float]
    weights: Mapping[str, float]
    unit_candidates: int
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
        standings: elites to be scored again.
        terms: see there.
    """

    def __init__(
        self,
        number: int,
        proposed: int,
        rejected: Mapping[str, int],
        admitted: Sequence[Admitted],
        standings: Sequence[Standing],
        terms: Terms,
    ) -> None:
        self.number, self.proposed, self.rejected = number, proposed, dict(rejected)
        self.admitted, self.standings, self.terms = tuple(admitted), tuple(standings), terms
        self.rung_of: dict[int, int] = {each.id: 0 for each in admitted if each.duplicate_of is None}
        self.fitness: dict[int, float] = {}
        self.failures: dict[int, str] = {}
        self._outcomes: dict[tuple[int, int], dict[int | None, Outcome]] = {}
        self._open: dict[Key, tuple[int, int, Unit]] = {}
        """Units that are not back: which rung, which instance of it, and the unit."""
        self._cuts = 0
        self._rung = 0
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
        yield from self._units(0, list(self._entries))
        self._pass_rungs_without_units()

    def record(self, done: Done) -> Iterator[tuple[Key, Unit]]:
        """Takes a unit's result; gives the units that it makes possible."""
        key = done.key
        assert isinstance(key, Key)
        rung, index, unit = self._open.pop(key)
        outcomes = self._outcomes.setdefault((rung, index), {})
        if done.result is None:
            for entry in unit.entries:
                if entry.candidate is not None:
                    self.failures[entry.candidate] = done.failure
        else:
            outcomes.update((outcome.candidate, outcome) for outcome in done.result.outcomes)
        if not self._open and self._rung < len(self.terms.instances):
            going_on = self._judge(self._rung)
            self._rung += 1
            if self._rung < len(self.terms.instances):
                yield from self._units(self._rung, going_on)
                self._pass_rungs_without_units()

    def _units(self, rung: int, candidates: Sequence[int]) -> Iterator[tuple[Key, Unit]]:
        """Units of a rung: reference, elites and candidates, in blocks, on each instance; none where it has nobody."""
        if not candidates and not self.standings:
            return
        elites = [standing.entry for standing in self.standings]
        entries = [self.terms.reference, *elites, *(self._entries[candidate] for candidate in candidates)]
        yield from self._cut(rung, entries)

    def _pass_rungs_without_units(self) -> None:
        if not self._open:
            self._rung = len(self.terms.instances)

    def result(self) -> Generation:
        """What it all came to, in order of proposal."""
        evaluations = [
            self._evaluation(rung, index, candidate)
            for (rung, index), outcomes in sorted(self._outcomes.items())
            for candidate in sorted(outcomes, key=lambda each: -1 if each is None else each)
        ]
        candidates = tuple(self._candidate(each) for each in self.admitted)
        confirmations = tuple(self._confirmation(standing) for standing in self.standings)
        record = GenerationRecord(
            number=self.number,
            proposed=self.proposed,
            rejected=self.rejected,
            duplicates=sum(candidate.status == "duplicate" for candidate in candidates),
            trained=len(self._entries),
            hurdles=tuple(self.terms.hurdles),
            model_steps=sum(evaluation.model_steps for evaluation in evaluations),
            best_fitness=max(self.fitness.values(), default=None),
        )
        return Generation(record, candidates, tuple(evaluations), tuple(c for c in confirmations if c is not None))

    def _cut(self, rung: int, entries: Sequence[Entry]) -> Iterator[tuple[Key, Unit]]:
        """Units of a rung: each instance with the entries in blocks, in the order in which they are given."""
        size = self.terms.unit_candidates
        for index, instance in enumerate(self.terms.instances[rung]):
            for start in range(0, len(entries), size):
                block = tuple(entries[start : start + size])
                compiled = self.terms.compiled[instance.task]
                unit = Unit(instance, block, self.terms.grid, self.terms.weight_decay, compiled, self.terms.native)
                key = Key(self.number, self._cuts)
                self._cuts += 1
                self._open[key] = (rung, index, unit)
                yield key, unit

    def _judge(self, rung: int) -> list[int]:
        """Scores a rung that is complete: the candidates that go on."""
        going_on = []
        for candidate in [c for c, reached in self.rung_of.items() if reached == rung]:
            if candidate in self.failures:
                continue
            scores = [s for r in range(rung + 1) for s in self._scores(r, candidate)]
            if not scores:
                self.failures[candidate] = "the reference was lost"
                continue
            self.fitness[candidate] = weighted_mean(scores)
            if rung + 1 < len(self.terms.instances) and self.fitness[candidate] >= self.terms.hurdles[rung]:
                self.rung_of[candidate] = rung + 1
                going_on.append(candidate)
        return going_on

    def _scores(self, rung: int, candidate: int) -> list[tuple[float, float]]:
        """Score and weight on each instance of a rung that can be scored."""
        instances = self.terms.instances[rung]
        scores = [(self._score(rung, index, candidate), instances[index].task) for index in range(len(instances))]
        return [(score, self.terms.weights[task]) for score, task in scores if score is not None]

    def _score(self, rung: int, index: int, candidate: int) -> float | None:
        """The score on one instance; None where the reference has none, and nobody can be measured by it."""
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
        )

    def _candidate(self, each: Admitted) -> Candidate:
        failure = self.failures.get(each.id, "")
        fitness = self.fitness.get(each.id)
        lost = (
            each.duplicate_of is None and not failure and fitness is not None and fitness <= self.terms.score_limits[0]
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
            reason=failure or ("every training diverged" if lost else ""),
            duplicate_of=each.duplicate_of,
            fitness=None if failure else fitness,
            rung=self.rung_of.get(each.id),
            properties={} if each.properties is None else each.properties.plain(),
        )

    def _confirmation(self, standing: Standing) -> Confirmation | None:
        candidate = standing.entry.candidate
        assert candidate is not None
        fresh = [s for rung in range(len(self.terms.instances)) for s in self._scores(rung, candidate)]
        if not fresh:
            return None
        scores = (*standing.scores, weighted_mean(fresh))
        middle = math.fsum(scores) / len(scores)
        spread = math.fsum((s - middle) ** 2 for s in scores)
        error = math.sqrt(spread / (len(scores) - 1) / len(scores)) if len(scores) > 1 else None
        return Confirmation(candidate, self.number, middle, error, len(scores))


def weighted_mean(scores: Sequence[tuple[float, float]]) -> float:
    """The mean of (score, weight), the same for every order of them."""
    return math.fsum(score * weight for score, weight in scores) / math.fsum(weight for _, weight in scores)


def _best(outcome: Outcome | None) -> tuple[float, float] | None:
    return None if outcome is None else interpolated_best(outcome.learning_rates, outcome.losses)


def _status(each: Admitted, failure: str, lost: bool) -> Status:
    if each.duplicate_of is not None:
        return "duplicate"
    if failure:
        return "timed_out" if failure == "timed out" else "worker_lost"
    return "diverged" if lost else "trained"
