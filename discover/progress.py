"""What a search knows: grown by absorbing generations in order, live ones and those of an archive alike."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import dsl
from discover.costs import Pace
from discover.evaluate import FAULT, Entry
from discover.front import undominated
from discover.gate import Duplicate, Gate, New, Rejected
from discover.generation import Admitted, Live, Rescored, Terms, weighted_mean
from discover.plan import Plan
from discover.probes import runner
from discover.proposers import Attentive, Context, Proposal, Told
from discover.proposers import load as load_proposer
from discover.records import Candidate, Generation
from discover.standing import Standing, expected
from dsl import properties

Timed = Callable[[str], AbstractContextManager[None]]

DRIFT = 0.1
"""How fast the level of a generation's scores is taken to change. What changes faster is the luck of its instances."""

TOGETHER = 64
"""Proposals that the gate looks at in one pass, few enough to stay in cache."""

PATIENCE = 2
"""After so many failures in a row an elite is not scored again: each may have cost a time limit."""


class Progress:
    """The state of a search. It changes in `absorb` and nowhere else, so that replaying an archive rebuilds it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.next_generation = 0
        self.trained = 0
        self.model_steps = 0
        self.barren = 0
        """Generations in a row that had nothing new to train."""
        self.fault = ""
        """What our code stumbled over in every program so far; empty before the first, and once another had an end."""
        self._sound = False
        """Whether there was one that it did not stumble over."""
        self.best: float | None = None
        """The best fitness so far that fresh scores let one expect; None before anything was confirmed."""
        self.trained_at_best = 0
        """How many had been trained when what fresh scores show was last bettered."""
        self._height = -math.inf
        space = plan.space
        self._gate = Gate(space.require, space.probes, runner(plan.native), space.weight_decay)
        self._fitness = Standing({-1 - index: 0.0 for index in range(len(plan.ancestors))})
        self._pace = Pace()
        self._levels: list[float | None] = [None for _ in space.rungs]
        """For each rung, what the middle of a generation has lately come to there."""
        self._elite: dict[int, str] = {}
        self._fresh: defaultdict[int, list[float]] = defaultdict(list)
        self._luckless: dict[int, float] = {}
        """The mean of these scores without what they owe to the luck of their generations."""
        self._programs: dict[int, dsl.Program] = {}
        """Of proposals in flight: reading them again from their text would give the same."""
        self._scored_now: set[int] = set()
        """Elites that a generation in flight scores again: another one would not know of its scores."""
        self._failures: Counter[int] = Counter()
        """How often in a row an elite timed out or took its workers along when it was scored again."""
        self._costs: dict[int, tuple[float, ...]] = {}
        """Of elites: what the objectives beside fitness come to."""
        context = Context(plan.space, plan.ancestors, plan.grammar, self._fitness, self._fresh, self._elite)
        self._proposer = load_proposer(plan.algorithm)(context)

    @property
    def levels(self) -> tuple[float | None, ...]:
        """For each rung, where the middle of a generation has lately been; None before the first."""
        return tuple(self._levels)

    # Proposing ----------------------------------------------------------------------------------------------------

    def propose(
        self, number: int, clock: Timed = lambda phase: nullcontext(), between: Callable[[], None] = lambda: None
    ) -> Live:
        """Proposes a generation from what has been absorbed; ones in flight have no influence but as duplicates.

        Args:
            clock: gives a context that measures a phase: "gate", the part of this that judges proposals.
            between: is called time and again, so that workers need not wait for a large generation.
        """
        per_generation = self.plan.space.proposals_per_generation
        rejected: Counter[str] = Counter()
        admitted = []
        numbers = range(number * per_generation, (number + 1) * per_generation)
        for first in range(0, per_generation, TOGETHER):
            between()
            proposals = [
                (proposal, self._proposer.propose(self.plan.proposal_rng(proposal)))
                for proposal in numbers[first : first + TOGETHER]
            ]
            with clock("gate"):
                self._gate.look_at([proposed.program for _, proposed in proposals], between)
            for proposal, proposed in proposals:
                with clock("gate"):
                    verdict = self._gate.examine(proposed.program)
                if isinstance(verdict, Rejected):
                    rejected[verdict.reason] += 1
                else:
                    admitted.append(self._admit(proposal, proposed, verdict))
        rescored = self._to_rescore(number)
        return Live(number, per_generation, rejected, admitted, rescored, self._terms(number), self._pace)

    def _admit(self, proposal: int, proposed: Proposal, verdict: New | Duplicate) -> Admitted:
        """Remembers a program that the gate let in."""
        program = verdict.program.renamed(f"rule_{proposal}")
        of = verdict.of if isinstance(verdict, Duplicate) else None
        if self.plan.space.cache:
            self._gate.remember(proposal if of is None else of, verdict.structure, verdict.behaviour)
        self._programs[proposal] = program
        return Admitted(
            id=proposal,
            program=program,
            text=dsl.format(program),
            parents=proposed.parents,
            origin=proposed.origin,
            structure=verdict.structure,
            behaviour=verdict.behaviour,
            properties=verdict.properties if isinstance(verdict, New) else None,
            duplicate_of=of,
        )

    def _terms(self, number: int) -> Terms:
        plan, space = self.plan, self.plan.space
        return Terms(
            instances=plan.instances(number),
            keep=tuple(rung.keep for rung in space.rungs[:-1]),
            reference=plan.reference,
            reference_scale=plan.reference_scale,
            grid=plan.grid,
            weight_decay=space.weight_decay,
            score_limits=space.score_limits,
            weights=plan.weights,
            unit=(space.unit.seconds, space.unit.candidates),
            requests=tuple(rung.request for rung in space.rungs),
            compiled={name: plan.compiled(name, number) for name in plan.task_names},
            native=plan.native,
        )

    def _to_rescore(self, number: int) -> list[Rescored]:
        """Elites to be scored again: half of them the best of those that were before, until each has been scored often
        enough, half the best of those that were not. The fitness of the latter chose them, and flatters them."""
        best = [] if number % self.plan.space.confirm.every else self._to_confirm()
        self._scored_now.update(best)
        return [Rescored(self._entry(id), tuple(self._fresh.get(id, ())), self._luckless.get(id, 0.0)) for id in best]

    def _to_confirm(self) -> list[int]:
        confirm = self.plan.space.confirm
        ranked = sorted(self._elite, key=lambda candidate: (-self._fitness[candidate], candidate))
        if self._costs:
            front = set(undominated({each: (self._fitness[each], *self._costs[each]) for each in ranked}))
            ranked.sort(key=lambda candidate: candidate not in front)
        free = [candidate for candidate in ranked if self._may_be_scored(candidate)]
        again = [candidate for candidate in free if candidate in self._fresh]
        anew = [candidate for candidate in free if candidate not in self._fresh]
        half = min(len(again), confirm.top // 2)
        return (again[:half] + anew[: confirm.top - half] + again[half:])[: confirm.top]

    def _may_be_scored(self, elite: int) -> bool:
        if elite in self._scored_now or self._failures[elite] >= PATIENCE:
            return False
        return len(self._fresh.get(elite, ())) < self.plan.space.confirm.most

    def _entry(self, candidate: int) -> Entry:
        text = self._elite[candidate]
        facts = properties.of(dsl.parse(text))
        return Entry(candidate, text, facts.scale / self.plan.reference_scale, facts.degree or 0.0)

    def remember(self, generation: Generation) -> None:
        """Makes later proposals that do as an archived one does duplicates, in place of proposing the generation."""
        for candidate in generation.candidates if self.plan.space.cache else ():
            original = candidate.id if candidate.duplicate_of is None else candidate.duplicate_of
            self._gate.remember(original, candidate.structure, candidate.behaviour)
        self._scored_now |= _scored_again(generation)

    # Absorbing ----------------------------------------------------------------------------------------------------

    def absorb(self, generation: Generation) -> None:
        """Learns what a generation came to."""
        if generation.record.number != self.next_generation:
            raise ValueError(f"generation {generation.record.number} cannot follow {self.next_generation - 1}")
        self.next_generation += 1
        self.trained += generation.record.trained
        self.model_steps += generation.record.model_steps
        self.barren = 0 if generation.record.trained else self.barren + 1
        luck = self._note_rungs(generation)
        for candidate in generation.candidates:
            self._absorb_candidate(candidate, luck.get(candidate.id, 0.0))
        self._absorb_confirmations(generation)

    def _note_rungs(self, generation: Generation) -> dict[int, float]:
        """Keeps the level of scores on each rung. Gives what of each candidate's fitness is the luck of its generation,
        but for those that failed."""
        judged = {each.id for each in generation.candidates if each.status in ("trained", "diverged")}
        met: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        for each in generation.evaluations:
            if each.kind == "search" and each.candidate in judged and each.score is not None:
                met[each.candidate].append((each.rung, self.plan.weights[each.task]))
        for rung, here in enumerate(generation.record.middles):
            if here is None:
                continue
            level = self._levels[rung]
            self._levels[rung] = here if level is None else level + DRIFT * (here - level)
        self._fitness.usual = self._levels[-1] or 0.0
        luck, whole = generation.record.luck, self.plan.weight
        return {
            id: luck[max(rung for rung, _ in mine)] * math.fsum(weight for _, weight in mine) / whole
            for id, mine in met.items()
        }

    def _absorb_confirmations(self, generation: Generation) -> None:
        fresh: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        failed = set()
        for each in generation.evaluations:
            if each.kind == "confirm" and each.candidate is not None:
                if each.score is not None:
                    fresh[each.candidate].append((each.score, self.plan.weights[each.task]))
                elif not each.learning_rates:
                    failed.add(each.candidate)
        self._failures.update(failed)
        self._scored_now -= _scored_again(generation)
        for id, values in fresh.items():
            self._fresh[id].append(weighted_mean(values))
            self._failures.pop(id, None)
        for now in generation.confirmations:
            if now.luckless is not None:
                self._luckless[now.candidate] = now.luckless
                self._fitness.note(now.candidate, now.luckless, now.count)
                hoped = expected(now.luckless, now.count, generation.record.usual)
                self.best = hoped if self.best is None else max(self.best, hoped)
                height = expected(now.luckless, now.count, usual=0.0)  # not today's, which goes up by itself
                if height > self._height:
                    self._height, self.trained_at_best = height, self.trained
        if fresh and isinstance(self._proposer, Attentive):
            self._proposer.confirm(sorted(fresh))

    def _absorb_candidate(self, candidate: Candidate, luck: float) -> None:
        program = self._programs.pop(candidate.id, None)
        faulty = candidate.reason.startswith(FAULT)
        if candidate.status in ("timed_out", "worker_lost") and not faulty:
            self._gate.forget(candidate.id)
        if candidate.status != "duplicate":
            self._sound = self._sound or not faulty
            self.fault = "" if self._sound else candidate.reason
        original = candidate.id if candidate.duplicate_of is None else candidate.duplicate_of
        if candidate.status == "trained" and candidate.fitness is not None:
            self._fitness.note(candidate.id, candidate.fitness - luck, 1)
            if candidate.rung == len(self.plan.space.rungs) - 1:
                self._elite[candidate.id] = candidate.text
                if others := self.plan.space.objectives[1:]:
                    self._costs[candidate.id] = tuple(float(candidate.properties[name] or 0.0) for name in others)
        program = dsl.parse(candidate.text) if program is None else program
        self._proposer.tell(
            Told(candidate.id, original, program, candidate.parents, candidate.origin, candidate.properties)
        )


def _scored_again(generation: Generation) -> set[int]:
    return {each.candidate for each in generation.evaluations if each.kind == "confirm" and each.candidate is not None}
