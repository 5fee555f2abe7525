"""What a run's results depend on, settled at its start and kept in its manifest: space, seed, algorithm, compiling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from numpy.random import Generator, default_rng

import dsl
import tasks
from discover import artefact, gradient, native
from discover.chance import generator
from discover.evaluate import Entry, Grid, Instance, batch_sizes, draw_instance, log_uniform
from discover.keys import slot_of
from discover.mutate import Grammar, unfolded
from discover.own_files import contents
from discover.space import Rung, Space
from dsl import Program, properties
from dsl.flatten import flatten, with_literals
from dsl.program import Call, Expr, Name, map_statements
from tasks.options import with_options

COMPILE_FROM = 3
"""The first generation that runs compiled where artefacts are still to be made: first results do not wait for them."""

REPAYS_SECONDS = 300.0
"""A search with at least this budget earns back what compiling costs."""

_PROPOSALS, _INSTANCES = 0, 1
"""Streams of the run's seed; no two uses share one."""


def compile_choice(space: Space, choice: str, seconds: float | None) -> dict[str, int | None]:
    """When each task's gradients run compiled, decided once, at the start: from the first generation where the artefact
    is on disk; from `COMPILE_FROM` on where it can be made and the budget (None: no limit) repays that; else never.
    """
    names = dict.fromkeys(name for rung in space.rungs for name in rung.tasks)
    if choice == "never":
        return dict.fromkeys(names)
    repays = choice == "always" or seconds is None or seconds >= REPAYS_SECONDS
    made = COMPILE_FROM if repays and artefact.have_compiler() else None
    return {name: 0 if all(map(gradient.is_cached, _variants(space, name))) else made for name in names}


def _variants(space: Space, name: str) -> list[tasks.Task]:
    """The task with each batch size that is drawn."""
    sizes = batch_sizes(tasks.load(name), space.batch_scales)
    return [tasks.load(with_options(name, batch_size=size)) for size in sizes]


def native_choice(choice: str) -> bool:
    """Whether elementwise rules are stepped by compiled code: where it can be had and anything is to be compiled."""
    return choice != "never" and native.available()


@dataclass(frozen=True)
class Plan:
    """All that the same archive needs again.

    Attributes:
        space: the search space, `--task` and the like applied.
        seed: of everything.
        algorithm: of a proposer, as `discover.proposers.load` takes it.
        compiled_from: task -> the first generation whose gradients run compiled; None for never.
        native: whether elementwise rules are stepped by `discover.native`.
        starts: the rules that evolution starts from, as text.
    """

    space: Space
    seed: int
    algorithm: str
    compiled_from: Mapping[str, int | None]
    native: bool
    starts: tuple[str, ...]

    def proposal_rng(self, proposal: int) -> Generator:
        """Of one proposal, whatever became of those before it."""
        return generator((self.seed, _PROPOSALS), proposal)

    def instances(self, generation: int) -> tuple[tuple[Instance, ...], ...]:
        """What each rung of a generation trains on: fresh seeds and scales, the same for all its candidates."""
        rng = default_rng([self.seed, _INSTANCES, generation])
        return tuple(
            tuple(
                draw_instance(
                    name,
                    self._steps(rung, name, rng),
                    self.space.loss_scales,
                    self.space.parameter_scales,
                    rng,
                    tensor_scales=self.space.tensor_scales,
                    batch_scales=self.space.batch_scales,
                )
                for name in rung.tasks
                for _ in range(rung.seeds)
            )
            for rung in self.space.rungs
        )

    def _steps(self, rung: Rung, task: str, rng: Generator) -> int:
        """How long an instance trains. Where lengths are not random, nothing is drawn."""
        steps, scales = rung.steps_of(self.horizons[task]), self.space.step_scales
        return steps if scales == (1.0, 1.0) else max(2, round(steps * log_uniform(scales, rng)))

    def compiled(self, task: str, generation: int) -> bool:
        start = self.compiled_from.get(task)
        return start is not None and generation >= start

    @cached_property
    def horizons(self) -> dict[str, int]:
        return {name: tasks.load(name).horizon for name in self.task_names}

    @property
    def files(self) -> dict[str, bytes]:
        """The user's files that tasks are read from, see `own_files.contents`."""
        return contents(self.task_names)

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for rung in self.space.rungs for name in rung.tasks))

    @property
    def weights(self) -> dict[str, float]:
        return {name: self.space.weights.get(name, 1.0) for name in self.task_names}

    @cached_property
    def weight(self) -> float:
        """Of all instances that a candidate may be trained on."""
        return math.fsum(rung.seeds * self.weights[name] for rung in self.space.rungs for name in rung.tasks)

    @property
    def grid(self) -> Grid:
        return Grid(self.space.learning_rates.points, self.space.learning_rates.factor)

    @cached_property
    def grammar(self) -> Grammar:
        mutation = self.space.mutation
        extents = {name: extent for extent, name in map(slot_of, self.space.slots)}
        return Grammar(
            self.space.operators,
            self.space.max_statements,
            tuple(extents),
            mutation.weights,
            mutation.constant_sigma,
            extents,
            mutation.guarded,
        )

    @cached_property
    def reference(self) -> Entry:
        """AdamW, what everything is measured against."""
        return Entry(None, dsl.format(dsl.load("adamw")), scale=1.0, degree=0.0)

    @cached_property
    def reference_scale(self) -> float:
        return properties.of(dsl.load("adamw")).scale

    @cached_property
    def ancestors(self) -> tuple[Program, ...]:
        return tuple(genotype(dsl.parse(text)) for text in self.starts)


def genotype(program: Program) -> Program:
    """A rule as evolution works on it: flat, each static if alone in its block, its hyperparameters literals, lr and
    weight_decay apart; the learning rate multiplies last, (lr * a) / b as lr * (a / b), so that a and b can change."""
    program = with_literals(program)
    body = map_statements(program.body, lambda s: (replace(s, value=_rate_last(s.value)),))
    return flatten(replace(program, body=unfolded(body), doc=""))


def _rate_last(expr: Expr) -> Expr:
    match expr:
        case Call(op, args):
            args = tuple(_rate_last(arg) for arg in args)
            match (op, args):
                case ("div", (Call("mul", (Name("lr"), a)), b)):
                    return Call("mul", (Name("lr"), Call("div", (a, b))))
            return Call(op, args)
        case _:
            return expr
