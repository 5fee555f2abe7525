"""The meaning of a program: numpy float64, one operator after the other, as IEEE arithmetic says.

Everything else is measured against this: generated code follows it step by step, simplification must not change it,
and the behaviour hash and the properties are what it computes on fixed inputs. Nothing raises on special values: 1 / 0
is inf, and a program that diverges gives inf and nan.

`run` is the whole optimizer on named parameters of any shape. `Machine` is what it drives: arrays `[..., rows, cols]`,
all parameters in lock step, so that global operators see them all; leading axes are independent situations that are
computed in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from dsl.graph import CONSTANT, INPUT, Graph, lower
from dsl.ops import OPS
from dsl.program import Facts, Program, RuleError, Slot
from dsl.types import Scope

Array = np.ndarray[Any, np.dtype[np.float64]]
Call = tuple[Callable[..., Any], int, tuple[int, ...]]

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {"sum": np.add, "amax": np.maximum}


@dataclass(frozen=True, slots=True)
class State:
    """What one step leaves behind, by parameter name and in the parameter's own shape.

    Attributes:
        parameters: the new p.
        result: the value to evaluate and save; the same as `parameters` unless the rule returns another.
        slots: parameter -> slot -> value, as [rows, cols] of the slot's extent.
    """

    parameters: dict[str, Array]
    result: dict[str, Array]
    slots: dict[str, dict[str, Array]]


def run(
    program: Program,
    parameters: Mapping[str, Any],
    gradients: Sequence[Mapping[str, Any]] | Callable[[int, Mapping[str, Array]], Mapping[str, Any]],
    *,
    steps: int | None = None,
    start: int = 1,
    hypers: Mapping[str, float] | None = None,
    roles: Mapping[str, str] | None = None,
    lr_ratio: Callable[[int], float] = lambda t: 1.0,
) -> list[State]:
    """Runs a rule as an optimizer does.

    Args:
        program: a rule that takes no other rule.
        parameters: name -> initial value, any shape; two or more dimensions count as a matrix of shape[0] rows.
        gradients: for each step, name -> gradient of the parameter's shape; or a function of (t, parameters) that
            gives them, with `steps` to say how many.
        start: the first step's t.
        hypers: values other than the defaults; `lr` is the initial one.
        roles: parameter -> role, where it is not "hidden" (matrices) or "vector" (others).
        lr_ratio: t -> lr at step t over the initial lr.

    Returns:
        The state after each step.

    Raises:
        RuleError: a program that is not well formed, or an unknown hyperparameter.
    """
    if callable(gradients) and steps is None:
        raise ValueError("gradients as a function need the number of steps; give steps=")
    values = program.with_defaults(hypers or {}).defaults
    arrays = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    graphs = [lower(program, Facts.of(array.ndim, (roles or {}).get(name))) for name, array in arrays.items()]
    machine = Machine(graphs, [as_matrix(array) for array in arrays.values()], program.slots, values)
    states = []
    current = arrays
    for number in range(steps if steps is not None else len(gradients)):  # type: ignore[arg-type]
        t = start + number
        gradient = gradients(t, current) if callable(gradients) else gradients[number]
        ratio = lr_ratio(t)
        machine.step(
            [as_matrix(np.asarray(gradient[name], np.float64)) for name in arrays],
            t,
            values.get("lr", 1.0) * ratio,
            ratio,
        )
        shaped = list(zip(arrays.items(), machine.units, strict=True))
        current = {name: unit.p.reshape(array.shape) for (name, array), unit in shaped}
        result = {name: unit.result.reshape(array.shape) for (name, array), unit in shaped}
        states.append(State(current, result, {name: dict(unit.slots) for (name, _), unit in shaped}))
    return states


def as_matrix(array: Array) -> Array:
    """A parameter as the language sees it: a conv kernel as out x rest, a vector or a scalar as a column."""
    return array.reshape(array.shape[0], -1) if array.ndim >= 2 else array.reshape(-1, 1)


def extent_shape(extent: tuple[str, str], p: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a value of this extent beside a parameter of shape [..., rows, cols]."""
    sizes = {"r": p[-2], "c": p[-1], "1": 1}
    return (*p[:-2], sizes[extent[0]], sizes[extent[1]])


class Machine:
    """Steps the graphs of one program, one for each parameter, in lock step.

    Args:
        graphs: one for each parameter.
        parameters: initial values [..., rows, cols]; leading axes are situations computed side by side.
        slots: the program's slots; only those that a graph reads or writes exist.
        hypers: values of all hyperparameters; `lr` is given anew each step.
    """

    def __init__(
        self, graphs: Sequence[Graph], parameters: Sequence[Array], slots: Sequence[Slot], hypers: Mapping[str, float]
    ):
        shared = [node for graph in graphs for node in graph.nodes if node.op in _GLOBAL]
        joins: dict[Any, str] = {node.payload: OPS[node.op].combine for node in shared}
        self.places = [(float(place), _COMBINE[joins[place]]) for place in sorted(joins)]
        places = [place for place, _ in self.places]
        self.units = [_Unit(graph, p, slots, hypers, places) for graph, p in zip(graphs, parameters, strict=True)]

    def step(self, gradients: Sequence[Array], t: float, lr: float, lr_ratio: float) -> None:
        """One step; afterwards each unit's `p`, `result` and `slots` are the new ones."""
        numbers = {"t": np.float64(t), "lr": np.float64(lr), "lr_ratio": np.float64(lr_ratio)}
        with np.errstate(all="ignore"):
            for unit, g in zip(self.units, gradients, strict=True):
                unit.begin(g, numbers)
            for phase, (place, combine) in enumerate(self.places):
                for unit in self.units:
                    unit.compute(phase)
                shares = [unit.values[unit.shares[place]] for unit in self.units if place in unit.shares]
                total = reduce(combine, shares)
                for unit in self.units:
                    if place in unit.shares:
                        unit.values[unit.shares[place]] = total
            for unit in self.units:
                unit.compute(len(self.places))
                unit.commit()


_GLOBAL = frozenset(op.name for op in OPS.values() if op.combine)


class _Unit:
    """One parameter: its graph as calls in order, cut into phases at the values it shares with other parameters."""

    def __init__(self, graph: Graph, p: Array, slots: Sequence[Slot], hypers: Mapping[str, float], places: list[float]):
        self.p = p
        self.result = p
        self.slots: dict[str, Array] = {}
        self.values: list[Any] = [None] * len(graph.nodes)
        self.shares: dict[float, int] = {}
        self.phases: list[list[Call]] = [[] for _ in range(len(places) + 1)]
        self.numbers: list[tuple[str, int]] = []
        self.inputs = graph.inputs
        self.outputs = [(name, index) for name, index in graph.outputs.items() if name not in ("p", "result")]
        self.out = graph.outputs["p"]
        self.out_result = graph.outputs.get("result")
        for slot in slots:
            if slot.name in self.inputs or slot.name in graph.outputs:
                self.slots[slot.name] = _initial(slot, p)
        fixed = [False] * len(graph.nodes)
        phase_of = [0] * len(graph.nodes)
        for index, node in enumerate(graph.nodes):
            if node.op == CONSTANT:
                self.values[index], fixed[index] = np.float64(node.payload), True
            elif node.op == INPUT:
                name = str(node.payload)
                if name in ("t", "lr", "lr_ratio"):
                    self.numbers.append((name, index))
                elif name in hypers and node.type.scope is Scope.NUMBER:
                    self.values[index], fixed[index] = np.float64(hypers[name]), True
            else:
                function = OPS[node.op].ref
                assert function is not None
                if all(fixed[arg] for arg in node.args):
                    with np.errstate(all="ignore"):
                        self.values[index] = function(*(self.values[arg] for arg in node.args))
                    fixed[index] = True
                    continue
                phase = max(phase_of[arg] for arg in node.args)
                if node.op in _GLOBAL:
                    place = float(node.payload)  # type: ignore[arg-type]
                    phase = places.index(place)
                    self.shares[place] = index
                    phase_of[index] = phase + 1
                else:
                    phase_of[index] = phase
                self.phases[phase].append((function, index, node.args))
        self.slot_inputs = [(name, self.inputs[name]) for name in self.slots if name in self.inputs]

    def begin(self, g: Array, numbers: Mapping[str, Any]) -> None:
        values = self.values
        for name, index in self.numbers:
            values[index] = numbers[name]
        for name, index in self.slot_inputs:
            values[index] = self.slots[name]
        if "p" in self.inputs:
            values[self.inputs["p"]] = self.p
        if "g" in self.inputs:
            values[self.inputs["g"]] = g

    def compute(self, phase: int) -> None:
        values = self.values
        for function, index, args in self.phases[phase]:
            if len(args) == 2:
                values[index] = function(values[args[0]], values[args[1]])
            elif len(args) == 1:
                values[index] = function(values[args[0]])
            else:
                values[index] = function(*[values[arg] for arg in args])

    def commit(self) -> None:
        values = self.values
        for name, index in self.outputs:
            self.slots[name] = _stored(values[index], self.slots[name].shape)
        shape = self.p.shape
        self.p = _stored(values[self.out], shape)
        self.result = self.p if self.out_result is None else _stored(values[self.out_result], shape)


def _stored(value: Any, shape: tuple[int, ...]) -> Array:
    return value if np.shape(value) == shape else np.broadcast_to(value, shape)


def _initial(slot: Slot, p: Array) -> Array:
    shape = extent_shape(slot.extent, p.shape)
    match slot.init:
        case "p":
            return p
        case "eye":
            return np.broadcast_to(np.eye(shape[-1]), shape)
        case str():
            raise RuleError(f"state '{slot.name}': unknown initial value '{slot.init}'")
        case _:
            return np.full(shape, slot.init, np.float64)
