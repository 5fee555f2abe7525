"""What a search remembers, as data: the rows of the archive and the generation that brings them together.

Everything here is a result: the same seed gives the same records on any number of workers. How long it took is kept
apart (the `seconds` of `Archive.commit_generation`). A number that is not finite is stored and read back as None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Status = Literal["trained", "duplicate", "diverged", "timed_out", "worker_lost"]
"""What became of a proposal that passed the gate. A duplicate was not trained: its fitness is another candidate's."""

REFERENCE_LOST: Final = "the reference was lost"
"""The reason of a candidate whose instances scored nobody. Its status is `worker_lost`, by no fault of a worker's."""

IncidentKind = Literal[
    "worker lost",
    "unit retried",
    "unit given up",
    "timed out",
    "out of memory",
    "fault",
    "node added",
    "node removed",
    "node failed",
    "no room",
    "cluster lost",
    "driver gone",
    "not stored",
]

Kind = Literal["search", "confirm", "reference"]
"""Why something was trained: as a new candidate, again on fresh instances, or as the tuned AdamW it is measured by."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed program with its history; one row, never changed afterwards.

    Attributes:
        id: the proposal's number, from 0, counted over all proposals (rejected ones have numbers too, but no row).
        generation: in which it was proposed.
        origin: how it came about, in words: "ancestor 1, sgd", "insert u = sign(g)".
        parents: the ids of the candidates it was made from.
        text: the program as a rule file.
        structure: hash of its canonical form.
        behaviour: hash of what it does on fixed inputs, as the gate takes it: at the space's weight decay and learning
            rates in units of its step.
        status: what became of it.
        reason: one line for a status other than "trained".
        duplicate_of: the id of the earlier candidate that does the same, for a duplicate.
        fitness: higher is better, 0 is as good as tuned AdamW on the same instances; None if it has none.
        rung: the highest rung it was trained on, from 0; None if it was not trained.
        properties: facts found by analysis: `state_bytes` a parameter, `operations`, `degree`, ...
    """

    id: int
    generation: int
    origin: str
    parents: tuple[int, ...]
    text: str
    structure: str
    behaviour: str
    status: Status
    reason: str = ""
    duplicate_of: int | None = None
    fitness: float | None = None
    rung: int | None = None
    properties: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One program trained on one task instance, over a grid of learning rates.

    Attributes:
        candidate: whose program; None for the reference.
        generation: in which the result was absorbed.
        task, seed, loss_scale, parameter_scale, tensor_scales, batch_size: the instance; no tensor scales, and None for
            a batch size, where the task's own parameters and batches are trained on.
        learning_rates: the grid, [points].
        losses: validation loss at the end, [points][seeds]; None where a lane was not finite or was dropped.
        best_lr, loss: the optimum, interpolated between grid points; None if there is none.
        reference_loss: the same for the reference on this instance.
        score: what enters the fitness; higher is better.
        model_steps: training steps of one model, summed over lanes.
    """

    candidate: int | None
    generation: int
    kind: Kind
    rung: int
    task: str
    seed: int
    loss_scale: float
    parameter_scale: float
    learning_rates: tuple[float, ...]
    losses: tuple[tuple[float | None, ...], ...]
    best_lr: float | None
    loss: float | None
    reference_loss: float | None
    score: float | None
    model_steps: int
    tensor_scales: tuple[float, ...] = ()
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How a candidate stands on fresh instances, all of its confirmations so far together.

    Attributes:
        fitness: the mean score over fresh instances; the scores that got it chosen are not among them.
        error: the standard error of that mean; None with fewer than two.
        count: how many fresh evaluations.
        luckless: the mean without the luck of the generations that the scores are of, see `GenerationRecord.luck`.
    """

    candidate: int
    generation: int
    fitness: float | None
    error: float | None
    count: int
    luckless: float | None


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """A generation's counts.

    Attributes:
        number: from 0, without gaps.
        proposed: how many programs were proposed: rejected + duplicates + trained (whatever became of them).
        rejected: reason -> how many the gate turned away.
        duplicates: how many were seen before, by structure or by behaviour.
        trained: how many were trained.
        hurdles: for each rung but the last, the least score with which a candidate went on; None where nobody did.
        model_steps: training steps of one model, references and confirmations included.
        best_fitness: the best fitness of this generation's own candidates, as the search scored them (not confirmed);
            None for none.
        levels: for each rung, where the middles of the generations before this one had lately been; None before the
            first.
        middles: for each rung, where the middle of this one was (`discover.generation.middle`); None where nobody was
            scored there.
    """

    number: int
    proposed: int
    rejected: Mapping[str, int]
    duplicates: int
    trained: int
    hurdles: tuple[float | None, ...]
    model_steps: int
    best_fitness: float | None
    levels: tuple[float | None, ...]
    middles: tuple[float | None, ...]

    @property
    def luck(self) -> tuple[float, ...]:
        """Of a score up to each rung, what all that were there have in common beyond the level of those before: how
        AdamW did on these instances. On a rung where nobody was scored, as on the one before it."""
        found = [0.0]
        for middle, level in zip(self.middles, self.levels, strict=True):
            found.append(found[-1] if middle is None else 0.0 if level is None else middle - level)
        return tuple(found[1:])

    @property
    def usual(self) -> float:
        """What a candidate that is trained on all rungs usually comes to."""
        return (self.levels[-1] if self.levels else None) or 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """All that a step of the search absorbed: what one transaction writes, and what a resumed search replays."""

    record: GenerationRecord
    candidates: tuple[Candidate, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    confirmations: tuple[Confirmation, ...] = ()


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that befell the workers, or the driver. No result depends on it, unless it is a unit given up.

    Attributes:
        kind: what.
        text: more of it, in one line.
        generation: of the unit that it befell; None where there was none.
        at: when, UTC, as the archive noted it.
    """

    kind: IncidentKind
    text: str
    generation: int | None = None
    at: str = ""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A place on the leaderboard, from 1: confirmed candidates by what their confirmations let one expect, then the
    others by their own fitness.

    Attributes:
        expected: of the confirmed, their expected fitness (`discover.standing.expected`).
    """

    rank: int
    candidate: Candidate
    confirmation: Confirmation | None
    expected: float | None = None

    @property
    def fitness(self) -> float | None:
        """The confirmed fitness, or the search's own where there is none."""
        return self.confirmation.fitness if self.confirmation else self.candidate.fitness


OF_WORKERS = ("train", "load", "present")
"""Phases of workers: training; making or loading what training needs; and all the time that they were there, ready."""


@dataclass(frozen=True, slots=True)
class Totals:
    """A run's counts, all generations together.

    Attributes:
        distinct: different behaviours among the trained.
        seconds: where the time went, phase -> seconds. Those of the driver add up to the time that went by; those in
            `OF_WORKERS` are the workers', several at once.
    """

    generations: int
    proposed: int
    rejected: Mapping[str, int]
    duplicates: int
    trained: int
    distinct: int
    model_steps: int
    seconds: Mapping[str, float]

    @property
    def time(self) -> dict[str, dict[str, float]]:
        """Where the time went, in seconds: the driver's phases, and of the workers, summed over them, "train", "load",
        "idle" (what is left of the time that they were there) and "share", the part of it that is training."""
        driver = {phase: s for phase, s in self.seconds.items() if phase not in OF_WORKERS}
        train, load, present = (self.seconds.get(phase, 0.0) for phase in OF_WORKERS)
        workers = {"train": train, "load": load, "idle": max(present - train - load, 0.0)}
        return {"driver": driver, "workers": workers | ({"share": train / present} if present else {})}

    @property
    def elapsed(self) -> float:
        """Seconds of searching, all sessions together."""
        return sum(seconds for phase, seconds in self.seconds.items() if phase not in OF_WORKERS)
