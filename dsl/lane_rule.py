"""Runs one rule on many trainings side by side: lanes of a flat [K, N] buffer of parameters.

Where a rule treats every element alike, all parameters are one tensor, and a step is one set of kernels however many
parameters there are. Otherwise each parameter is updated on its own view [K, rows, cols].

A lane's bits depend on that lane alone: every operation is computed element by element, or along a lane's own row.
Whether a hyperparameter is a Python number or a tensor of one value a lane changes rounding, so that choice must not
depend on other lanes either: it is the caller's, by what he passes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsl.codegen import Code, Style, compiled, generate, is_flat, storage
from dsl.graph import lower
from dsl.program import Facts, Program, Slot

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {"sum": operator.add, "amax": torch.maximum}


@dataclass(slots=True)
class _Unit:
    """What is updated by one call: one parameter, or all of them as one.

    Attributes:
        rows, cols: its shape as a matrix.
        facts: decides the program's static ifs.
        slots: its state, and `evaluation`, the slot that holds the point to evaluate where that is not p.
        state: slot name -> [K, ...]; filled by `start`.
    """

    rows: int
    cols: int
    facts: Facts
    slots: tuple[Slot, ...]
    evaluation: str | None
    state: dict[str, Tensor] = field(default_factory=dict)


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
        facts = [Facts.of(len(shape), role) for shape, role in layout]
        graphs = [lower(program, each) for each in facts]
        self.sizes = [_numel(shape) for shape, _ in layout]
        self.flat = bool(graphs) and is_flat(graphs[0]) and all(graph == graphs[0] for graph in graphs[1:])
        shapes = [(1, sum(self.sizes))] if self.flat else [_as_matrix(shape) for shape, _ in layout]
        self.units = []
        for (rows, cols), each, graph in zip(shapes, facts, graphs, strict=False):
            slots, _, evaluation = storage(program, graph)
            self.units.append(_Unit(rows, cols, each, slots, evaluation))
        self._started = False
        self._read: list[tuple[str, bool]] | None = None
        """The hyperparameters that the code reads, and whether each is a tensor; None before the code is there."""
        self._expanded: dict[str, tuple[Tensor, Tensor]] = {}

    def start(self, P: Tensor) -> None:  # noqa: N803
        """Makes the state anew for parameters P [K, N]; the first step does it if nobody has."""
        for unit, p in zip(self.units, self._views(P), strict=True):
            unit.state = {slot.name: _initial(slot, p) for slot in unit.slots}
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
            self.start(P)
        numbers = self._numbers(hypers)
        numbers["t"], numbers["lr_ratio"] = t, lr_ratio
        if self.flat:
            update, names, state = self._calls[0]
            update(P.unsqueeze(1), G.unsqueeze(1), *state, *[numbers[name] for name in names])
            return
        ps, gs = self._views(P), self._views(G)
        for shares in self._barriers:
            totals: dict[str, Tensor] = {}
            for (share, names, state, outs, combine), p, g in zip(shares, ps, gs, strict=True):
                if share is None:
                    continue
                values = share(p, g, *state, *[numbers[name] for name in names])
                for name, how, value in zip(outs, combine, values, strict=True):
                    totals[name] = _COMBINE[how](totals[name], value) if name in totals else value
            numbers.update(totals)
        for (update, names, state), p, g in zip(self._calls, ps, gs, strict=True):
            update(p, g, *state, *[numbers[name] for name in names])

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
        depth = max((len(code.barriers) for code in codes), default=0)
        self._barriers = [
            [self._share(unit, code, level) for unit, code in zip(self.units, codes, strict=True)]
            for level in range(depth)
        ]
        read = {name for code in codes for function in code.functions for name in function.params}
        self._read = [(name, name in per_lane) for name in self.program.defaults if name in read]
        return self._read

    def _share(self, unit: _Unit, code: Code, level: int) -> Any:
        if level >= len(code.barriers):
            return None, (), (), (), ()
        barrier = code.barriers[level]
        names, state = self._arguments(unit, barrier.share.params)
        return compiled(barrier.share), names, state, barrier.totals, barrier.combine

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


def _initial(slot: Slot, p: Tensor) -> Tensor:
    """A slot's first value beside a parameter [K, rows, cols]."""
    if slot.init == "p":
        return p.clone(memory_format=torch.contiguous_format)
    sizes = {"r": p.shape[1], "c": p.shape[2], "1": 1}
    shape = (len(p), sizes[slot.extent[0]], sizes[slot.extent[1]])
    if slot.init == "eye":
        return torch.eye(shape[1], dtype=p.dtype, device=p.device).expand(shape).clone()
    assert not isinstance(slot.init, str)
    return p.new_full(shape, slot.init)
