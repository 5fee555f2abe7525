"""What a worker is given when contenders are judged: plain data, which train themselves where they arrive.

A `Piece` of some tunings is what comes next in them, a batch of trials or the fresh seeds. It keeps long trainings in a
folder that the worker shares with the driver. Where there is none it comes back after a minute, *paused*, with all that
it has, and the driver keeps that and sends it on: a worker that dies costs a minute.

All of it comes to the same wherever it is carried out (kinds of CPU differ in the last bits, and say so).
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch

from discover import named_tasks
from discover.built import Built
from discover.contenders import made
from discover.errors import UserError
from discover.keeper import Keeper, Luggage, StoppedError
from discover.lanes import Trace
from discover.ledger import Notes
from discover.memory import shortage_said
from discover.sessions import Machine, this_machine
from discover.studies import Study, TuningBudget
from discover.trainers import Ground, Run, train
from discover.tuning import advance
from discover.workers import Request

CORE: Request = (("CPU", 1.0),)
"""What a worker has unless something else is asked for."""

ONE_GPU: Request = (("CPU", 1.0), ("GPU", 1.0))

Here = Callable[[str], str]
"""Spells "FILE.py:NAME" as this machine does."""


@dataclass(frozen=True, slots=True)
class Site:
    """A task at a length, and how it is trained, by name: what a worker makes a `trainers.Ground` of."""

    task: str
    steps: int
    compile: bool = True
    device: str = "cpu"
    native: bool = True

    def moved(self, here: Here) -> Site:
        return replace(self, task=here(self.task))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something cannot be done at all: the user's mistake, or a loss without a logarithm."""

    error: UserError


@dataclass(frozen=True, slots=True)
class Advanced:
    """What a piece came to.

    Attributes:
        notes: for each study what was added to it.
        note: what the gradient's maker had to say.
        seconds: that it took.
        by: the machine that did it.
    """

    notes: tuple[Notes, ...]
    note: str
    seconds: float
    by: Machine


@dataclass(frozen=True, slots=True)
class Paused:
    """A piece that has not come to its end: trainings as they are, by key; how long this leg took, and by whom."""

    kept: Mapping[str, bytes] = field(repr=False)
    seconds: float
    by: Machine


@dataclass(frozen=True, slots=True)
class Piece:
    """What comes next in some tunings of one contender.

    Attributes:
        name, spelled: the contender, see `contenders.made`.
        site: where.
        budget, curve: of the tunings, see `tuning.tune`.
        seeds: of the studies; `notes` are what is known of each.
        marker: a file that the driver has put where long trainings are kept: who sees it shares that folder, and keeps
            them there too. None keeps none.
        request: what the worker is to have.
        kept: what it comes with from where it was paused.
    """

    name: str
    spelled: Mapping[str, str]
    site: Site
    budget: TuningBudget
    curve: tuple[int, ...]
    seeds: tuple[int, ...]
    notes: tuple[Notes, ...]
    marker: str | None = None
    request: Request = CORE
    kept: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    twice: ClassVar[bool] = False  # a second worker could hand over half of what the first has done

    @property
    def key(self) -> str:
        """What the driver keeps it by while it is paused: the same piece, the same key."""
        known = [len(notes.trials) for notes in self.notes]
        parts = (self.name, sorted(self.spelled.items()), self.site, self.budget, self.curve, self.seeds, known)
        return f"piece-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"

    def moved(self, here: Here) -> Piece:
        return replace(self, site=self.site.moved(here), spelled=_moved(self.spelled, here))

    def carry_out(self) -> Advanced | Paused | Refusal:
        began = time.perf_counter()
        keeper = self._keeper()
        try:
            with shortage_said(self):
                ground, one = ground_of(self.site), made(self.name, self.spelled)
                studies = [
                    Study(one, ground, self.budget, seed, notes)
                    for seed, notes in zip(self.seeds, self.notes, strict=True)
                ]
                advance(studies, keeper=keeper, curve=self.curve)
        except StoppedError:
            assert isinstance(keeper, Luggage)
            return Paused(keeper.packed, time.perf_counter() - began, this_machine())
        except UserError as error:
            return Refusal(error)
        added = tuple(Notes([], {}, each.added, each.fresh) for each in self.notes)
        return Advanced(added, ground.gradient.note, time.perf_counter() - began, this_machine())

    def _keeper(self) -> Keeper:
        if self.marker is None:
            return Keeper(None)
        marker = Path(self.marker)
        if not marker.exists():
            return Luggage(self.kept)
        keeper = Keeper(marker.parent)
        keeper.take_in(self.kept)
        return keeper

    def __str__(self) -> str:
        first, *more = self.seeds
        which = f"tunings {first} to {more[-1]}" if more else f"tuning {first}"
        return f"{which} of {self.name} on {self.site.task}"


@dataclass(frozen=True, slots=True)
class Trained:
    """What runs came to: a trace of each, the loss before the first step, how they were trained and by whom."""

    traces: tuple[Trace, ...]
    untrained: tuple[float, ...]
    built: Built
    by: Machine


@dataclass(frozen=True, slots=True)
class TrainRuns:
    """Runs of one contender to train.

    Attributes:
        runs: hyperparameters and seeds.
        curve: steps after which held-out losses are taken, besides the end.
    """

    name: str
    spelled: Mapping[str, str]
    site: Site
    runs: tuple[Run, ...]
    curve: tuple[int, ...]
    request: Request = CORE
    twice: ClassVar[bool] = True

    def moved(self, here: Here) -> TrainRuns:
        return replace(self, site=self.site.moved(here), spelled=_moved(self.spelled, here))

    def carry_out(self) -> Trained | Refusal:
        try:
            with shortage_said(self):
                ground = ground_of(self.site)
                traces = train(made(self.name, self.spelled), ground, self.runs, curve=self.curve)
        except UserError as error:
            return Refusal(error)
        untrained = tuple(ground.untrained(run.seed) for run in self.runs)
        return Trained(tuple(traces), untrained, ground.built, this_machine())

    def __str__(self) -> str:
        return f"{len(self.runs)} runs of {self.name} on {self.site.task}"


@dataclass(frozen=True, slots=True)
class Look:
    """Asks a worker which GPU its torch sees."""

    request: Request
    twice: ClassVar[bool] = True

    def moved(self, here: Here) -> Look:
        return self

    def carry_out(self) -> tuple[str]:
        """Its name; empty where there is none."""
        return (torch.cuda.get_device_name() if torch.cuda.is_available() else "",)

    def __str__(self) -> str:
        return "a look for a GPU"


@lru_cache(maxsize=16)
def ground_of(site: Site) -> Ground:
    """A site's ground, made once a process. Raises UserError: no such task here, no such device."""
    if site.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"{site.task}: shall be trained on {site.device}, and torch sees no GPU on {platform.node()}")
    task = named_tasks.load(site.task)
    how = {"compile": site.compile, "native": site.native}
    return Ground(task, steps=site.steps, **how, device=site.device, among=os.cpu_count() or 1)


def _moved(spelled: Mapping[str, str], here: Here) -> Mapping[str, str]:
    return {**spelled, "class": here(spelled["class"])} if "class" in spelled else spelled
