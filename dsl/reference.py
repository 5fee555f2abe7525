"""The meaning of a program: numpy float64, one operator after the other, as IEEE arithmetic says.

Everything else is measured against this: generated code follows it step by step, simplification must not change it,
and the behaviour hash and the properties are what it computes on fixed inputs. Nothing raises on special values: 1 / 0
is inf, and a program that diverges gives inf and nan.

`run` is the whole optimizer on named parameters of any shape. `Machine` is what it drives: arrays `[..., rows, cols]`,
all parameters in lock step, so that global operators see them all; leading axes are independent situations that are
computed in one pass. What a closure operator asks for, the caller answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from dsl.graph import CONSTANT, INPUT, Graph, lower
from dsl.ops import OPS
from dsl.program import Facts, Program, RuleError, Slot
from dsl.types import Scope, size_of

Array = np.ndarray[Any, np.dtype[np.float64]]
Call = tuple[Callable[..., Any], int, tuple[int, ...]]

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {"sum": np.add, "amax": np.maximum}


class Closure(Protocol):
    """What a rule may ask for beside a gradient."""

    def __call__(self, op: str, values: list[Array], *numbers: float) -> list[Array] | Array | float:
        """Answers one closure operator of the table for all parameters at once.

        Args:
            op: the operator's name.
            values: its first argument for each parameter; p itself (zero for `hvp`) where a parameter does not ask.
            numbers: its other arguments.

        Returns: a value of the parameter's shape for each; one value for `loss_at`.
        """
        ...


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
    closure: Callable[..., Any] | None = None,
    examples: int = 1,
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
        closure: answers closure operators: (op, parameter -> value, *numbers) -> parameter -> value, or a number for
            `loss_at`; it is called with what holds at the current step.
        examples: how many the gradient is a mean over.

    Returns:
        The state after each step.

    Raises:
        RuleError: a program that is not well formed, or an unknown hyperparameter.
    """
    if callable(gradients) and steps is None:
        raise ValueError("gradients as a function need the number of steps; give steps=")
    values = program.with_defaults(hypers or {}).defaults
    arrays = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    graphs = [lower(program, Facts.of(array.shape, (roles or {}).get(name))) for name, array in arrays.items()]
    machine = Machine(graphs, [as_matrix(array) for array in arrays.values()], program.slots, values)
    if closure is not None:
        machine.closure = _named(closure, arrays)
    machine.examples = examples
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


def _named(closure: Callable[..., Any], arrays: Mapping[str, Array]) -> Closure:
    def answer(op: str, values: list[Array], *numbers: float) -> list[Array] | Array | float:
        shaped = {name: value.reshape(arrays[name].shape) for name, value in zip(arrays, values, strict=True)}
        found = closure(op, shaped, *numbers)
        if isinstance(found, Mapping):
            return [as_matrix(np.asarray(found[name], np.float64)) for name in arrays]
        return np.asarray(found, np.float64)

    return answer


def as_matrix(array: Array) -> Array:
    """A parameter as the language sees it: a conv kernel as out x rest, a vector or a scalar as a column."""
    return array.reshape(array.shape[0], -1) if array.ndim >= 2 else array.reshape(-1, 1)


def extent_shape(
    extent: tuple[str, str], p: tuple[int, ...], hypers: Mapping[str, float] = MappingProxyType({})
) -> tuple[int, ...]:
    """The shape of a value of this extent beside a parameter of shape [..., rows, cols]."""
    return (*p[:-2], *(size_of(symbol, p[-2], p[-1], hypers) for symbol in extent))


class Machine:
    """Steps the graphs of one program, one for each parameter, in lock step.

    Args:
        graphs: one for each parameter.
        parameters: initial values [..., rows, cols]; leading axes are situations computed side by side.
        slots: the program's slots; only those that a graph reads or writes exist.
        hypers: values of all hyperparameters; `lr` is given anew each step.

    Attributes:
        closure: answers the closure operators of the program.
        examples: how many the gradient is a mean over.
    """

    def __init__(
        self, graphs: Sequence[Graph], parameters: Sequence[Array], slots: Sequence[Slot], hypers: Mapping[str, float]
    ):
        self.closure: Closure | None = None
        self.examples = 1
        shared = {node.payload: node.op for graph in graphs for node in graph.nodes if node.op in _BARRIERS}
        self.places = [(float(place), op) for place, op in sorted(shared.items())]  # type: ignore[arg-type]
        places = [place for place, _ in self.places]
        self.units = [
            _Unit(graph, p, slots, hypers, places, number)
            for number, (graph, p) in enumerate(zip(graphs, parameters, strict=True))
        ]

    def step(self, gradients: Sequence[Array], t: float, lr: float, lr_ratio: float) -> None:
        """One step; afterwards each unit's `p`, `result` and `slots` are the new ones.

        Raises:
            ValueError: the program asks for more than a gradient, and there is no closure.
        """
        numbers = {"t": t, "lr": lr, "lr_ratio": lr_ratio, "examples": self.examples}
        with np.errstate(all="ignore"):
            for unit, g in zip(self.units, gradients, strict=True):
                unit.begin(g, {name: np.float64(value) for name, value in numbers.items()})
            for phase, (place, op) in enumerate(self.places):
                for unit in self.units:
                    unit.compute(phase)
                answers = self._asked(place, op) if OPS[op].combine == "closure" else self._joined(place, op)
                for unit, answer in zip(self.units, answers, strict=True):
                    if place in unit.shares:
                        unit.values[unit.shares[place]] = answer
            for unit in self.units:
                unit.compute(len(self.places))
                unit.commit()

    def _joined(self, place: float, op: str) -> list[Any]:
        shares = [unit.values[unit.shares[place]] for unit in self.units if place in unit.shares]
        return [reduce(_COMBINE[OPS[op].combine], shares)] * len(self.units)

    def _asked(self, place: float, op: str) -> list[Any]:
        if self.closure is None:
            raise ValueError(f"the rule asks for {op}(...); give a closure that answers it")
        values: list[Array] = []
        numbers: list[float] = []
        for unit in self.units:
            if place in unit.arguments:
                point, *rest = (unit.values[arg] for arg in unit.arguments[place])
                values.append(_stored(point, unit.p.shape))
                numbers = [float(number) for number in rest]
            else:
                values.append(0.0 * unit.p if op == "hvp" else unit.p)
        found = self.closure(op, values, *numbers)
        return found if isinstance(found, list) else [found] * len(self.units)


_BARRIERS = frozenset(op.name for op in OPS.values() if op.combine)


class _Unit:
    """One parameter: its graph as calls in order, cut into phases at the values it shares with other parameters."""

    def __init__(
        self,
        graph: Graph,
        p: Array,
        slots: Sequence[Slot],
        hypers: Mapping[str, float],
        places: list[float],
        number: int,
    ):
        self.p = p
        self.result = p
        self.slots: dict[str, Array] = {}
        self.values: list[Any] = [None] * len(graph.nodes)
        self.shares: dict[float, int] = {}
        self.arguments: dict[float, tuple[int, ...]] = {}
        """For each place of a closure operator, the values that it is given."""
        self.phases: list[list[Call]] = [[] for _ in range(len(places) + 1)]
        self.numbers: list[tuple[str, int]] = []
        self.inputs = graph.inputs
        self.outputs = [(name, index) for name, index in graph.outputs.items() if name not in ("p", "result")]
        self.out = graph.outputs["p"]
        self.out_result = graph.outputs.get("result")
        for slot in slots:
            if slot.name in self.inputs or slot.name in graph.outputs:
                self.slots[slot.name] = _initial(slot, p, hypers)
        fixed = [False] * len(graph.nodes)
        phase_of = [0] * len(graph.nodes)
        for index, node in enumerate(graph.nodes):
            if node.op == CONSTANT:
                self.values[index], fixed[index] = np.float64(node.payload), True
            elif node.op == INPUT:
                name = str(node.payload)
                if name in ("t", "lr", "lr_ratio", "examples"):
                    self.numbers.append((name, index))
                elif name == "place":
                    self.values[index], fixed[index] = np.float64(number), True
                elif name in hypers and node.type.scope is Scope.NUMBER:
                    self.values[index], fixed[index] = np.float64(hypers[name]), True
            else:
                op = OPS[node.op]
                function = op.ref
                assert function is not None or op.combine == "closure"
                if function is not None and not op.combine and all(fixed[arg] for arg in node.args):
                    with np.errstate(all="ignore"):
                        self.values[index] = function(*(self.values[arg] for arg in node.args))
                    fixed[index] = True
                    continue
                phase = max(phase_of[arg] for arg in node.args)
                if op.combine:
                    place = float(node.payload)  # type: ignore[arg-type]
                    phase = places.index(place)
                    self.shares[place] = index
                    phase_of[index] = phase + 1
                else:
                    phase_of[index] = phase
                if function is None:
                    self.arguments[place] = node.args
                    continue
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


def _initial(slot: Slot, p: Array, hypers: Mapping[str, float]) -> Array:
    shape = extent_shape(slot.extent, p.shape, hypers)
    match slot.init:
        case "p":
            return p
        case "eye":
            return np.broadcast_to(np.eye(shape[-1]), shape)
        case str():
            raise RuleError(f"state '{slot.name}': unknown initial value '{slot.init}'")
        case _:
            return np.full(shape, slot.init, np.float64)
