"""Runs one rule on many trainings side by side: lanes of a flat [K, N] buffer of parameters.

Where a rule treats every element alike, all parameters are one tensor, and a step is one set of kernels however many
parameters there are. Otherwise each parameter is updated on its own view [K, rows, cols].

A lane's bits depend on that lane alone: every operation is computed element by element, or along a lane's own row.
Whether a hyperparameter is a Python number or a tensor of one value a lane changes rounding, so that choice must not
depend on other lanes either: it is the caller's, by what he passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from dsl.codegen import COMBINE, Code, Style, Total, compiled, generate, is_flat, storage
from dsl.graph import lower
from dsl.program import Facts, Program, Slot
from dsl.types import SIZED_BY, size_of


class LaneClosure(Protocol):
    """What a rule may ask for beside a gradient, of K lanes at once."""

    def __call__(self, op: str, values: Tensor, *numbers: float | Tensor) -> Tensor:
        """Answers one closure operator of the table.

        Args:
            op: the operator's name.
            values: its first argument for all parameters, [K, N].
            numbers: its other arguments; a tensor has one value a lane, [K, 1, 1].

        Returns: [K, N]; [K] for `loss_at`.
        """
        ...


@dataclass(slots=True)
class _Unit:
    """What is updated by one call: one parameter, or all of them as one.

    Attributes:
        place: which parameter it is, from 0.
        rows, cols: its shape as a matrix.
        facts: decides the program's static ifs.
        slots: its state, and `evaluation`, the slot that holds the point to evaluate where that is not p.
        state: slot name -> [K, ...]; filled by `start`.
    """

    place: int
    rows: int
    cols: int
    facts: Facts
    slots: tuple[Slot, ...]
    evaluation: str | None
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Share:
    """The function that gives one parameter's shares of a level, and what it takes."""

    function: Callable[..., Any]
    names: list[str]
    state: list[Tensor]
    totals: tuple[Total, ...]


@dataclass(slots=True)
class _Asked:
    """A closure operator's arguments, by the parameter that gave them."""

    op: str
    values: dict[int, list[Any]] = field(default_factory=dict)


class LaneRule:
    """A rule with its state for K lanes.

    Args:
        program: a rule that takes no other rule.
        layout: (shape, role) of each parameter, in the order in which they lie in a row of the buffer.
        lanes: K.
        device, dtype: of the buffer.

    Raises:
        RuleError: the program is not well formed.
    """

    def __init__(
        self,
        program: Program,
        layout: Sequence[tuple[Sequence[int], str]],
        *,
        lanes: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.program, self.lanes = program, lanes
        self.device, self.dtype = torch.device(device), dtype
        facts = [Facts.of(shape, role) for shape, role in layout]
        graphs = [lower(program, each) for each in facts]
        self.sizes = [_numel(shape) for shape, _ in layout]
        self.flat = bool(graphs) and is_flat(graphs[0]) and all(graph == graphs[0] for graph in graphs[1:])
        shapes = [(1, sum(self.sizes))] if self.flat else [_as_matrix(shape) for shape, _ in layout]
        self.units = []
        for place, ((rows, cols), each, graph) in enumerate(zip(shapes, facts, graphs, strict=False)):
            slots, _, evaluation = storage(program, graph)
            self.units.append(_Unit(place, rows, cols, each, slots, evaluation))
        self.closure: LaneClosure | None = None
        """Answers the closure operators of the program, which needs it if it has any."""
        self.examples = 1
        """How many examples a gradient is a mean over."""
        self._started = False
        self._sizes: dict[str, Any] = {}
        """What shapes the state, as it was when the state was made."""
        self._alike = True
        self._read: list[tuple[str, bool]] | None = None
        """The hyperparameters that the code reads, and whether each is a tensor; None before the code is there."""
        self._expanded: dict[str, tuple[Tensor, Tensor]] = {}

    def start(self, P: Tensor, hypers: Mapping[str, float | Tensor] | None = None) -> None:  # noqa: N803
        """Makes the state anew for parameters P [K, N]; the first step does it if nobody has.

        Raises:
            ValueError: a hyperparameter that gives the state its shape (`rank`) is no whole number, or differs by lane.
        """
        values: Mapping[str, Any] = {**self.program.defaults, **(hypers or {})}
        symbols = {symbol for slot in self.program.slots for symbol in slot.extent}
        self._sizes = {name: values[name] for symbol, name in SIZED_BY.items() if symbol in symbols}
        for unit, p in zip(self.units, self._views(P), strict=True):
            unit.state = {slot.name: _initial(slot, p, values) for slot in unit.slots}
        self._started, self._read = True, None

    def step(
        self,
        P: Tensor,  # noqa: N803
        G: Tensor,  # noqa: N803
        t: int,
        hypers: Mapping[str, float | Tensor],
        lr_ratio: float = 1.0,
    ) -> None:
        """One step of every lane, in place.

        Args:
            P: parameters [K, N]; rows are contiguous, as a slice of lanes of a larger buffer is.
            G: gradients [K, N]; may be overwritten.
            t: the step, from 1.
            hypers: every hyperparameter of the program by name, a number or a tensor [K]; `lr` is the current one.
            lr_ratio: the current lr over the initial one.

        Raises:
            ArithmeticError, ValueError: a number expression of the rule has no value (1 / 0, the root of -1); a result
                of this rule, and P is then as it was or partly updated.
        """
        if not self._started:
            self.start(P, hypers)
        for name, value in self._sizes.items():
            if hypers[name] != value:
                raise ValueError(f"{name} gave the state its shape and cannot change from {value} to {hypers[name]}")
        numbers = self._numbers(hypers)
        numbers["t"], numbers["lr_ratio"] = t, lr_ratio
        if self._alike:
            ps, gs = self._views(P), self._views(G)
            for (update, names, state), p, g in zip(self._calls, ps, gs, strict=True):
                update(p, g, *state, *[numbers[name] for name in names])
            return
        self._step_together(P, G, numbers)

    def _step_together(self, P: Tensor, G: Tensor, numbers: dict[str, Any]) -> None:  # noqa: N803
        """A step whose parameters wait for one another, or are given different numbers."""
        numbers["examples"] = self.examples
        ps, gs = self._views(P), self._views(G)
        known = [{**numbers, "place": unit.place} for unit in self.units]
        for level in self._barriers:
            totals: dict[float, Any] = {}
            asked: dict[float, _Asked] = {}
            for share, p, g, unit, mine in zip(level, ps, gs, self.units, known, strict=True):
                if share is None:
                    continue
                values = iter(share.function(p, g, *share.state, *[mine[name] for name in share.names]))
                for total in share.totals:
                    if total.combine == "closure":
                        question = asked.setdefault(total.place, _Asked(total.op))
                        question.values[unit.place] = [next(values) for _ in range(total.arity)]
                    else:
                        value, place = next(values), total.place
                        totals[place] = COMBINE[total.combine](totals[place], value) if place in totals else value
            answers = {place: self._answer(question, P, ps) for place, question in asked.items()}
            for share, unit, mine in zip(level, self.units, known, strict=True):
                for total in share.totals if share else ():
                    both = answers[total.place][unit.place] if total.place in answers else totals[total.place]
                    mine[total.name] = both
        for (update, names, state), p, g, mine in zip(self._calls, ps, gs, known, strict=True):
            update(p, g, *state, *[mine[name] for name in names])

    def _answer(self, asked: _Asked, P: Tensor, ps: list[Tensor]) -> list[Tensor | None]:  # noqa: N803
        """What the closure says, for each parameter; None for all where none needs it at this step."""
        given = [values for values in asked.values.values() if values[0] is not None]
        if not given:
            return [None] * len(self.units)
        if self.closure is None:
            raise ValueError(f"rule '{self.program.name}' asks for {asked.op}(...) and nobody answers")
        parts = []
        for unit, p in zip(self.units, ps, strict=True):
            value = asked.values.get(unit.place, [None])[0]
            if value is None:
                value = torch.zeros_like(p) if asked.op == "hvp" else p
            parts.append(value.expand_as(p).reshape(len(P), -1))
        answer = self.closure(asked.op, torch.cat(parts, dim=1), *given[0][1:])
        if answer.ndim == 1:
            return [answer.view(-1, 1, 1)] * len(self.units)
        return list(self._views(answer))

    def keep(self, index: Tensor) -> None:
        """Keeps the state of some lanes: index [K'], the kept lanes' positions in order."""
        self.lanes = len(index)
        self._expanded.clear()
        for unit in self.units:
            unit.state = {name: value[index] for name, value in unit.state.items()}
        self._read = None

    def evaluation(self, P: Tensor) -> Tensor:  # noqa: N803
        """The point to evaluate, [K, N]: P itself, or a new tensor where the rule returns another value than p."""
        if not self._started or not any(unit.evaluation for unit in self.units):
            return P
        parts = [
            (unit.state[unit.evaluation] if unit.evaluation else p).reshape(len(P), -1)
            for unit, p in zip(self.units, self._views(P), strict=True)
        ]
        return torch.cat(parts, dim=1)

    # Inside -------------------------------------------------------------------------------------------------------

    def _views(self, flat: Tensor) -> list[Tensor]:
        if self.flat:
            return [flat.unsqueeze(1)]
        lanes = len(flat)
        pieces = zip(torch.split(flat, self.sizes, dim=1), self.units, strict=True)
        return [piece.view(lanes, unit.rows, unit.cols) for piece, unit in pieces]

    def _numbers(self, hypers: Mapping[str, float | Tensor]) -> dict[str, Any]:
        """The hyperparameters that the code reads: numbers as they are, tensors [K] as [K, 1, 1], each made once."""
        numbers: dict[str, Any] = {}
        for name, lane in self._read if self._read is not None else self._bind(hypers):
            value = hypers[name]
            if isinstance(value, Tensor) is not lane:
                self._read = None
                return self._numbers(hypers)
            if lane:
                known = self._expanded.get(name)
                if known is None or known[0] is not value:
                    assert isinstance(value, Tensor)
                    known = self._expanded[name] = (value, value.to(self.device, self.dtype).view(-1, 1, 1))
                value = known[1]
            numbers[name] = value
        return numbers

    def _bind(self, hypers: Mapping[str, float | Tensor]) -> list[tuple[str, bool]]:
        """Fetches the generated functions, with the state that each takes."""
        per_lane = frozenset(name for name in self.program.defaults if isinstance(hypers[name], Tensor))
        style = Style(lanes=True, flat=self.flat, per_lane=per_lane)
        codes = [generate(self.program, unit.facts, style) for unit in self.units]
        self._calls = [
            (compiled(code.update), *self._arguments(unit, code.update.params))
            for unit, code in zip(self.units, codes, strict=True)
        ]
        depth = max((barrier.level + 1 for code in codes for barrier in code.barriers), default=0)
        self._barriers = [
            [self._share(unit, code, level) for unit, code in zip(self.units, codes, strict=True)]
            for level in range(depth)
        ]
        read = {name for code in codes for function in code.functions for name in function.params}
        self._alike = not depth and not read & {"place", "examples"}
        self._read = [(name, name in per_lane) for name in self.program.defaults if name in read]
        return self._read

    def _share(self, unit: _Unit, code: Code, level: int) -> _Share | None:
        for barrier in code.barriers:
            if barrier.level == level:
                names, state = self._arguments(unit, barrier.share.params)
                return _Share(compiled(barrier.share), names, state, barrier.totals)
        return None

    def _arguments(self, unit: _Unit, params: Sequence[str]) -> tuple[list[str], list[Tensor]]:
        """The names of the numbers, and the state, that a function takes after p and g."""
        slots = [name for name in params[2:] if name in unit.state]
        return [name for name in params[2:] if name not in unit.state], [unit.state[name] for name in slots]


def _numel(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """A conv kernel counts as out x rest, a vector or a scalar as a column."""
    return (shape[0], _numel(shape[1:])) if len(shape) >= 2 else (_numel(shape), 1)


def _initial(slot: Slot, p: Tensor, hypers: Mapping[str, Any]) -> Tensor:
    """A slot's first value beside a parameter [K, rows, cols]."""
    if slot.init == "p":
        return p.clone(memory_format=torch.contiguous_format)
    rows, cols = (size_of(symbol, p.shape[1], p.shape[2], hypers) for symbol in slot.extent)
    if slot.init == "eye":
        return torch.eye(rows, dtype=p.dtype, device=p.device).expand(len(p), rows, cols).clone()
    assert not isinstance(slot.init, str)
    return p.new_full((len(p), rows, cols), slot.init, dtype=torch.uint8 if slot.code else p.dtype)
