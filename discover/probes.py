"""The gate's two probes (`dsl.properties`, `dsl.behaviour`) of an elementwise rule, each by one call into C++.

A rule on fifteen numbers is nothing to compute; what takes time is to ask numpy for it, operator by operator. The C++
(probes.cpp) rounds as numpy does, and calls numpy back for what IEEE arithmetic does not fix, so that the gate says the
same with it and without. `tests/test_probes.py` holds the two against each other, to the last bit.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from discover.native import NativeError, built
from dsl import behaviour, properties
from dsl.behaviour import Changes
from dsl.graph import CONSTANT, INPUT
from dsl.ops import OPS
from dsl.pool import Pool, Pooled, pooled
from dsl.program import Program, Slot
from dsl.properties import Held
from dsl.reference import Array
from dsl.types import FULL, SCALAR

OPERATIONS = (
    *("add", "sub", "mul", "div", "neg", "lt", "le", "gt", "ge", "eq", "ne", "where", "abs", "sign", "square", "sqrt"),
    *("rsqrt", "reciprocal", "min", "max", "clip", "lerp", "number"),
    *("sum", "mean", "norm", "amax", "global_sum", "global_amax"),
)
"""What the C++ does, in the order of its `Operation`; the last line are reductions."""

CALLED = ("pow", "mod", "exp", "log", "tanh", "sigmoid", "cos", "floor")
"""What it calls numpy for."""

_KIND = {name: kind for kind, name in enumerate(OPERATIONS)} | dict.fromkeys(CALLED, len(OPERATIONS))
_OF_ONE = {
    "sum": "number",
    "mean": "number",
    "amax": "number",
    "global_amax": "number",
    "norm": "abs",
    "global_sum": "add",
}
"""What a reduction of what is one value a tensor already comes to: the value; over all parameters, which are a matrix
and a vector here, twice the value."""

_PADDING = ((0, 0, 0), (0, 0), (0,), ())

_ELEMENTS = properties.ROWS * properties.COLS
_REGISTERS, _SLOTS, _SITUATIONS = 128, 15, 8
_ROWS, _SCRATCH = 4096, 4 * _REGISTERS
"""Of numbers: at first; and how many of them one rule alone may have, by what its instructions and stores may read."""
_SOURCE = Path(__file__).with_name("probes.cpp")
_HELD, _FREE = properties.STEPS, len(behaviour.STEPS)


@dataclass(frozen=True, slots=True)
class Probed:
    """What a rule does: `held` in place; and what it changes where it runs free, at a weight decay and a scale of
    learning rates (`dsl.behaviour.changes`), asked for where that matters."""

    held: Held
    changes: Callable[[float | None, float], Changes]


class Probes:
    """Runs rules on the fixed inputs of both probes: what `dsl.properties.of` and `dsl.behaviour_hash` are read from.

    Raises:
        NativeError: the C++ cannot be had here.
    """

    def __init__(self) -> None:
        held, free = properties.inputs(), behaviour.inputs()
        self._held = _Run(0, held.p, held.g, properties.DESCENT, held.curvature)
        self._free = _Run(_HELD, free.parameters, free.gradients, -1, free.curvature)
        self._values: _Values | None = None

    def __call__(self, program: Program) -> Probed | None:
        """What the rule does; None for what the C++ cannot do.

        Raises:
            RuleError: the program is not well formed.
        """
        line = pooled(program)
        if line is None or program.result is not None:
            return None
        if self._values is None or self._values.pool is not line.pool:
            self._values = _Values(line.pool)
        values = self._values
        code = _code(line, program, values.steps)
        if code is None:
            return None
        rows = array("i", [values.row(index) for index in code.numbers])
        updates = self._held.updates(code, rows, values.table)
        finite = bool(np.isfinite(self._held.slots(len(code.starts))[:, properties.ZERO]).all())
        held, own = Held([updates], finite, [self._held.point.copy()]), program.defaults.get("weight_decay", 0.0)

        def changes(weight_decay: float | None, scale: float) -> Changes:
            given = _inputs(own if weight_decay is None else weight_decay, scale)
            values.put(code.numbers, rows, given)
            return {held.kinds[0]: self._free.updates(code, rows, values.table)}

        return Probed(held, changes)


class _Values:
    """What the C++ does for values of a pool, and what those are that are numbers.

    Attributes:
        steps: value -> what the C++ does for it.
        table: numbers, at each step of both probes; first those that one rule alone has, at its own learning rates.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool, self.steps = pool, _Steps(pool)
        self.table = np.zeros((_ROWS, _HELD + _FREE))
        self._given = _inputs(0.0, 1.0)
        self._rows: dict[int, int] = {}
        """A value that is a number -> its row of the table, from `_SCRATCH` on."""

    def row(self, index: int) -> int:
        """Where the table has a number."""
        if index not in self._rows:
            value, row = self._number(index, self._given, 0), _SCRATCH + len(self._rows)
            if row == len(self.table):
                self.table = np.concatenate([self.table, np.zeros_like(self.table)])
            self.table[row], self._rows[index] = value, row
        return self._rows[index]

    def put(self, numbers: Sequence[int], rows: array[int], given: Mapping[str, Array]) -> None:
        """Those of a rule's numbers that read its learning rate or weight decay as these are given, in rows that are
        its own until the next rule's are put there."""
        asked = self.pool.bits.get("lr", 0) | self.pool.bits.get("weight_decay", 0)
        for place, index in enumerate(numbers):
            if self.pool.reads[index] & asked:
                self.table[place], rows[place] = self._number(index, given, asked), place

    def _number(self, index: int, given: Mapping[str, Array], asked: int) -> Array:
        """A number at each step of the one probe and then of the other: from what is `given`, where it reads an input
        that is `asked` for, as bits; else from the table."""
        node = self.pool.nodes[index]
        if node.op == CONSTANT:
            return np.full(_HELD + _FREE, node.payload)
        if node.op == INPUT:
            return given[str(node.payload)]
        rows = [None if self.pool.reads[arg] & asked else self.row(arg) for arg in node.args]  # the table may grow
        args = [
            self._number(arg, given, asked) if row is None else self.table[row]
            for arg, row in zip(node.args, rows, strict=True)
        ]
        ref = OPS[node.op].ref
        assert ref is not None
        with np.errstate(all="ignore"):
            if node.op in _EXACT:
                return np.asarray(ref(*args))
            return np.array([ref(*each) for each in zip(*args, strict=True)], np.float64)


def _code(line: Pooled, program: Program, known: _Steps) -> _Code | None:
    """The straight line as the C++ reads it, or None."""
    live = line.live()
    steps = [step for index in live if not isinstance(step := known[index], str)]
    slots = line.kept(program.slots)
    if len(steps) < len(live) or len(steps) + 2 > _REGISTERS or len(slots) > _SLOTS:
        return None
    if any(slot.init == "eye" for slot in slots):
        return None
    if any(hyper.name not in ("lr", "weight_decay") for hyper in program.hypers):
        return None
    return _Code(line, slots, steps)


class _Run:
    """One of the probes: what a rule is run on, and room for what it computes.

    Args:
        first: the column of the table of numbers that has the first step.
        start: p in each situation; gradients: [steps, situations, rows, cols].
        descent: the situation that goes along its update, on a quadratic of this curvature; -1: p goes in all of them.

    Attributes:
        point: where that situation has got to; no more than a place where there is none.
    """

    def __init__(self, first: int, start: Array, gradients: Array, descent: int, curvature: Array) -> None:
        if len(start) > _SITUATIONS:
            raise ValueError(f"probes.cpp has room for {_SITUATIONS} situations, not for {len(start)}")
        self._probe = _library().probe
        self.start = np.ascontiguousarray(start)
        self._kept = [np.ascontiguousarray(gradients), np.ascontiguousarray(curvature)]
        self._updates = np.empty(gradients.shape)
        self.point, self._begin = np.zeros(start.shape[1:]), start[descent]
        self._registers = np.zeros((_REGISTERS, start.size))
        start_at, gradients_at, curvature_at, updates_at, registers_at, point_at = (
            each.ctypes.data for each in (self.start, *self._kept, self._updates, self._registers, self.point)
        )
        self._first = first
        self._before = (_HELD + _FREE, len(gradients), len(start), start_at, gradients_at, registers_at, updates_at)
        self._after = (descent, curvature_at, point_at)

    def updates(self, code: _Code, rows: array[int], numbers: Array) -> Array:
        """Old p - new p at each step; `point` moves along it."""
        self.point[:] = self._begin
        for register, init in enumerate(code.starts, start=2):
            self._registers[register] = self.start.reshape(-1) if init == "p" else init
        mine = numbers[:, self._first :]
        called = _callback(code.calls(self._registers, rows, mine)) if code.called else _NOTHING
        words, stores, read = (each.buffer_info()[0] for each in (code.words, code.stores, rows))
        at = read, mine.ctypes.data, *self._before, *self._after
        self._probe(words, code.count, stores, len(code.starts), *at, called)
        if code.raised:
            raise code.raised[0]
        return self._updates.copy()

    def slots(self, count: int) -> Array:
        """The state after the last step, [slots, situations, elements]."""
        return self._registers[2 : 2 + count].reshape(count, len(self.start), _ELEMENTS)


_EXACT = frozenset({"add", "sub", "mul", "div", "neg"})
"""Operators that round alike on one number and on many; numpy's power, for one, does not."""


def _inputs(decay: float, scale: float) -> dict[str, Array]:
    """What inputs are at each step of the one probe and then of the other."""
    rates = np.concatenate([_HELD_RATES, _FREE_RATES / scale])
    return {**_FIXED, "lr": rates, "weight_decay": np.array([0.0] * _HELD + [decay] * _FREE)}


_HELD_RATES, _FREE_RATES = np.ones(_HELD), behaviour.LR * np.array(behaviour.RATIOS)
_FIXED: dict[str, Array] = {
    "t": np.concatenate([np.arange(1.0, _HELD + 1), np.array(behaviour.STEPS, np.float64)]),
    "lr_ratio": np.concatenate([_HELD_RATES, np.array(behaviour.RATIOS)]),
    "examples": np.full(_HELD + _FREE, float(behaviour.Surrogate.EXAMPLES)),
}


@dataclass(frozen=True, slots=True)
class _Step:
    """What the C++ does for a value.

    Attributes:
        kind: its operation; None for an input, and for a number, which is an operand and no step.
        args: positions in the pool; what it reads.
        name: of an input, or of the operator where numpy is called for it.
    """

    kind: int | None
    args: tuple[int, ...]
    name: str


class _Operands(dict[int, int]):
    """Of each value the operand that reads it: a register; for any other value -1 - its place among the `numbers`."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __missing__(self, index: int) -> int:
        self.numbers.append(index)
        self[index] = operand = -len(self.numbers)
        return operand


class _Code:
    """A straight line as the C++ reads it.

    Attributes:
        words: [instructions, 5]; stores: the new p and slots; starts: what slots are at first.
        numbers: positions in the pool, by which operands below 0 count; called: what numpy is called back for.
    """

    def __init__(self, line: Pooled, slots: Sequence[Slot], steps: Sequence[_Step | None]) -> None:
        self.starts = [slot.init for slot in slots]
        self.called: list[tuple[int, str, int, tuple[int, ...]]] = []
        self.raised: list[BaseException] = []
        """By what numpy was called for: it goes on where the C++ has returned."""
        place = {"p": 0, "g": 1} | {slot.name: 2 + number for number, slot in enumerate(slots)}
        at = _Operands()
        words: list[int] = []
        register = first = len(place)
        for index, step in zip(line.live(), steps, strict=True):
            if step is None:
                continue
            if step.kind is None:
                at[index] = place[step.name]
                continue
            operands = [at[arg] for arg in step.args]
            if step.name:
                self.called.append((register - first, step.name, register, tuple(operands)))
            words += (step.kind, register, *operands, *_PADDING[len(operands)])
            at[index] = register
            register += 1
        self.count = register - first
        self.words = array("i", words)
        outputs = [line.outputs["p"], *(line.outputs[slot.name] for slot in slots)]
        self.stores = array("i", [at[index] for index in outputs])
        self.numbers = at.numbers

    def calls(self, registers: Array, rows: array[int], numbers: Array) -> Callable[[int, int], None]:
        """Does what numpy is called back for."""
        doing = {number: (OPS[op].ref, registers[into], operands) for number, op, into, operands in self.called}

        def call(number: int, step: int) -> None:
            ref, into, operands = doing[number]
            assert ref is not None
            try:
                given = [registers[each] if each >= 0 else numbers[rows[-1 - each], step] for each in operands]
                with np.errstate(all="ignore"):
                    into[:] = ref(*given)
            except BaseException as error:  # C++ has nowhere to put it: a second Ctrl-C, for example
                self.raised.append(error)

        return call


def _step(pool: Pool, index: int) -> _Step | str | None:
    """What the C++ does for a value: a step, or nothing where it is a number; a text where it can do nothing."""
    node = pool.nodes[index]
    if node.op == INPUT and node.payload == "place":
        return "reads the parameter's number"
    if node.type.is_number:
        return None
    if node.type.extent not in (FULL.extent, SCALAR.extent):
        return "has rows and columns"
    if node.op == INPUT:
        return _Step(None, (), str(node.payload))
    if node.op == "size":
        whole = pool.nodes[node.args[0]].type.extent == FULL.extent
        return _Step(_KIND["number"], (pool.constant(float(_ELEMENTS if whole else 1)),), "")
    if node.op in _OF_ONE and pool.nodes[node.args[0]].type.extent == SCALAR.extent:
        op = _OF_ONE[node.op]
        return _Step(_KIND[op], node.args * len(OPS[op].params), "")
    if node.op not in _KIND:
        return f"is {node.op}"
    return _Step(_KIND[node.op], node.args, node.op if node.op in CALLED else "")


class _Steps(dict[int, _Step | str | None]):
    """What the C++ does for each value of a pool, see `_step`."""

    def __init__(self, pool: Pool) -> None:
        self._of = pool

    def __missing__(self, index: int) -> _Step | str | None:
        self[index] = found = _step(self._of, index)
        return found


_callback = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
_NOTHING = _callback(lambda number, step: None)


@cache
def _library() -> Any:
    loaded = built(_SOURCE)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.probe.argtypes = [
        *(pointer, size, pointer, size, pointer, pointer, size, size, size),
        *(pointer, pointer, pointer, pointer, size, pointer, pointer, _callback),
    ]
    loaded.probe.restype = None
    return loaded


def runner(native: bool) -> Callable[[Program], Probed | None]:
    """The probes in C++ where that is wanted and can be had; else what leaves them to numpy, which says the same."""
    try:
        return Probes() if native else lambda program: None
    except NativeError:
        return lambda program: None
