"""What is asked of a workshop: tunings of a contender on a task; and how workers are given them, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from discover.contenders import Contender, spelled
from discover.errors import UserError
from discover.own_files import absolute
from discover.pieces import CORE, Advanced, Paused, Piece, Refusal, Site
from discover.studies import Study, Tuned, TuningBudget
from discover.workers import Request
from tasks import Task

if TYPE_CHECKING:
    from discover.workshop import Workshop


@dataclass(frozen=True, slots=True)
class Ask:
    """Tunings of one contender on one task that are wanted.

    Attributes:
        contender, task: what is tuned, and on what.
        steps: of a training.
        budget, seeds, curve: see `tuning.tune`.
        device, compile, native: see `trainers.Ground`.
        request: what a worker must have to train it.
    """

    contender: Contender
    task: Task
    steps: int
    budget: TuningBudget
    seeds: Sequence[int]
    curve: tuple[int, ...] = ()
    device: str = "cpu"
    compile: bool = True
    request: Request = CORE
    native: bool = True

    def __str__(self) -> str:
        return f"{self.contender.name} on {self.task.spelling}, {len(self.seeds)} tunings"

    @property
    def site(self) -> Site:
        return Site(absolute(self.task.spelling), self.steps, self.compile, self.device, self.native)


def evenly(steps: int, points: int) -> tuple[int, ...]:
    """When held-out losses are taken, besides the end: at so many points in all, as far apart as they can be."""
    return tuple(sorted({round(steps * point / points) for point in range(1, points)} - {0, steps}))


@dataclass(frozen=True, slots=True)
class Answer:
    """What tunings came to, or why they cannot be; and how many seconds of whoever trained it took."""

    ask: Ask
    found: list[Tuned]
    refusal: UserError | None
    seconds: float

    @property
    def tunings(self) -> list[Tuned]:
        """Raises UserError where there are none."""
        if self.refusal is not None:
            raise self.refusal
        return self.found


class Job:
    """An ask at workers: its tunings in blocks, each as many as fill a tile of the gradient, since fewer would take as
    long. No result depends on how they are cut."""

    def __init__(self, ask: Ask, workshop: Workshop) -> None:
        self.ask, self.workshop = ask, workshop
        self.seconds = 0.0
        self.refusal: UserError | None = None
        ground = workshop.ground(ask)
        size = max(1, ground.gradient.tile // (ask.budget.batch * ask.budget.seeds))
        studies = [
            Study(ask.contender, ground, ask.budget, seed, workshop.store, device=ask.device) for seed in ask.seeds
        ]
        self.blocks = [studies[start : start + size] for start in range(0, len(studies), size)]
        self.found: dict[int, list[Tuned]] = {}

    @property
    def over(self) -> bool:
        return self.refusal is not None or len(self.found) == len(self.blocks)

    def start(self) -> Iterator[tuple[int, Piece]]:
        for number, studies in enumerate(self.blocks):
            self.workshop.count(sum(len(study.trials) for study in studies) * self.ask.budget.seeds)
            for piece in self._left(number):
                yield number, piece

    def record(self, block: int, result: Advanced | Paused | Refusal) -> Iterator[Piece]:
        """Keeps what a piece came to, and gives the next one if there is one."""
        keeper, piece = self.workshop.keeper, self._piece(block)
        if not isinstance(result, Paused):
            keeper.forget(piece.key)
        if isinstance(result, Refusal):
            self.refusal = self.refusal or result.error
            return
        self.seconds += result.seconds
        self.workshop.met(result.by)
        if isinstance(result, Paused):
            keeper.keep(piece.key, lambda: result.kept)
            if self.refusal is None:
                yield replace(piece, kept=result.kept)
            return
        budget = self.ask.budget
        for study, notes in zip(self.blocks[block], result.notes, strict=True):
            before = len(study.trials)
            study.take(notes)
            self.workshop.count((len(study.trials) - before) * budget.seeds)
        self.workshop.once(result.note)
        yield from self._left(block)

    def answer(self) -> Answer:
        found = [tuned for _, block in sorted(self.found.items()) for tuned in block]
        return Answer(self.ask, [] if self.refusal else found, self.refusal, self.seconds)

    def _left(self, block: int) -> Iterator[Piece]:
        """What comes next in a block, with what is kept of it if it was paused when this driver's forerunner ended;
        nothing once it is done, and found."""
        studies, curve = self.blocks[block], self.ask.curve
        if all(study.is_done(curve) for study in studies):
            self.workshop.count(len(studies) * self.ask.budget.fresh)
            self.found[block] = [study.result(curve) for study in studies]
        elif self.refusal is None:
            piece = self._piece(block)
            kept = self.workshop.keeper.load(piece.key)
            yield replace(piece, kept=kept) if kept else piece

    def _piece(self, block: int) -> Piece:
        ask, studies = self.ask, self.blocks[block]
        spelling = spelled(ask.contender)
        if "class" in spelling:
            spelling["class"] = absolute(spelling["class"])
        return Piece(
            name=ask.contender.name,
            spelled=spelling,
            site=ask.site,
            budget=ask.budget,
            curve=ask.curve,
            seeds=tuple(study.seed for study in studies),
            notes=tuple(study.notes for study in studies),
            marker=self.workshop.marker(),
            request=ask.request,
        )

    def __str__(self) -> str:
        return str(self.ask)
