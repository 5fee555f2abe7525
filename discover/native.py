"""Steps all elementwise rules of a batch by one call into a small C++ program, instead of one torch call an operator.

The C++ (native.cpp) interprets short codes block by block, so a rule that was never seen before costs nothing to
prepare, and the memory of parameters and state is touched once a step. It is compiled once on a machine (some seconds)
and kept in the cache. A rule may use reductions over a tensor or over all parameters (norm, mean, global_norm, ...):
each is a phase that goes over the elements once more. Rules that see rows, columns or matrices, and machines without a
compiler, use the generated PyTorch code (`dsl.lane_rule`); both follow the reference to float32 rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor

from discover.artefact import cache_directory, compiler, cpu
from dsl import Program
from dsl.graph import CONSTANT, INPUT, Graph, Node, lower_all
from dsl.ops import OPS
from dsl.types import FULL, SCALAR

OPERATIONS = (
    *("add", "sub", "mul", "div", "pow", "neg", "lt", "le", "gt", "ge", "eq", "ne", "where", "abs", "sign", "square"),
    *("sqrt", "rsqrt", "reciprocal", "exp", "log", "tanh", "sigmoid", "min", "max", "clip", "lerp", "number", "mod"),
)
"""What the C++ can do element by element, in the order of its `Operation`."""

REDUCTIONS = ("sum", "mean", "norm", "amax", "size", "global_sum", "global_amax")
"""What it can do over a tensor or over all parameters, in the order of its `Reduction`."""

_OF_ONE = {"sum": "number", "mean": "number", "amax": "number", "norm": "abs"}

_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    *("-shared", "-fPIC"),
)
_SOURCE = Path(__file__).with_name("native.cpp")
_UNCHANGED = -(2**31)
_REGISTERS, _SCALARS = 96, 64


@dataclass(frozen=True, slots=True)
class Operand:
    """What an instruction reads or writes: a register (p, g, the slots, then temporaries), a number, or a scalar."""

    kind: str
    index: int


@dataclass(frozen=True, slots=True)
class Instruction:
    operation: int
    target: Operand
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """One pass over the elements, what it adds up, and what is computed from the sums."""

    instructions: tuple[Instruction, ...]
    reductions: tuple[tuple[int, Operand, int], ...]
    afterwards: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A rule for the C++.

    Attributes:
        phases: in order; the last stores.
        stores: what becomes the new p and each slot; None where a slot does not change.
        whole: all parameters may be treated as one tensor.
        slots: name and initial value of each.
        graph: of the rule; `numbers` are positions in it, evaluated for all steps at once.
        result: which slot is the point to evaluate; None for p.
    """

    phases: tuple[Phase, ...]
    stores: tuple[Operand | None, ...]
    whole: bool
    slots: tuple[tuple[str, float | str], ...]
    graph: Graph
    numbers: tuple[int, ...]
    result: int | None

    def words(self, slots: int, width: int) -> list[int]:
        """The code as the C++ reads it, in a batch where rules have up to `slots` slots and `width` numbers."""
        own = len(self.slots)

        def word(operand: Operand | None) -> int:
            match operand:
                case None:
                    return _UNCHANGED
                case Operand("number", index):
                    return -1 - index
                case Operand("scalar", index):
                    return -1 - width - index
                case Operand(_, index):
                    return index + slots - own if index >= 2 + own else index

        def line(instruction: Instruction) -> list[int]:
            target = instruction.target
            operands = [word(operand) for operand in instruction.operands]
            into = target.index if target.kind == "scalar" else word(target)
            return [instruction.operation, into, *operands, *[0] * (3 - len(operands))]

        code = [int(self.whole), len(self.phases)]
        for phase in self.phases:
            code += [len(phase.instructions), *(w for each in phase.instructions for w in line(each))]
            code += [len(phase.reductions), *(w for r, x, into in phase.reductions for w in (r, word(x), into))]
            code += [len(phase.afterwards), *(w for each in phase.afterwards for w in line(each))]
        stores = [word(store) for store in self.stores]
        return [*code, *stores, *[_UNCHANGED] * (1 + slots - len(stores))]


@lru_cache(maxsize=1024)
def encode(program: Program) -> Code | None:
    """The rule for the C++; None if it needs what the C++ has not."""
    graphs = list(lower_all(program).values())
    graph = graphs[0]
    if any(each != graph for each in graphs):
        return None
    slots = [slot for slot in program.slots if slot.name in graph.inputs or slot.name in graph.outputs]
    if any(slot.extent != FULL.extent or slot.init == "eye" for slot in slots):
        return None
    if not all(_possible(node) for node in graph.nodes):
        return None
    result = None
    if "result" in graph.outputs:
        same = [i for i, slot in enumerate(slots) if graph.outputs.get(slot.name) == graph.outputs["result"]]
        if not same:
            return None
        result = same[0]
    coder = _Coder(graph, [slot.name for slot in slots])
    phases, stores = coder.phases()
    if coder.registers > _REGISTERS or len(coder.scalars) > _SCALARS:
        return None
    whole = not any(op in REDUCTIONS and not OPS[op].combine for op in coder.operation)
    inits = tuple((slot.name, slot.init) for slot in slots)
    return Code(tuple(phases), tuple(stores), whole, inits, graph, tuple(coder.numbers), result)


def _possible(node: Node) -> bool:
    if node.op in (INPUT, CONSTANT):
        return node.type.is_number or node.type.extent == FULL.extent
    if node.type.is_number:
        return not OPS[node.op].matrix
    return node.op in REDUCTIONS or (node.op in OPERATIONS and node.type.extent in (FULL.extent, SCALAR.extent))


def _operation(graph: Graph, node: Node) -> str:
    """What the C++ does for a node: its operator, or for a reduction over a tensor of what is one value already, its
    meaning there. Over all parameters such a reduction stays one."""
    one = node.op in _OF_ONE and graph.nodes[node.args[0]].type.extent == SCALAR.extent
    return _OF_ONE[node.op] if one else node.op


class _Coder:
    """Orders a graph's values into phases, and gives each a register or a scalar."""

    def __init__(self, graph: Graph, slots: Sequence[str]) -> None:
        self.graph, self.slots = graph, slots
        self.operation = [_operation(graph, node) for node in graph.nodes]
        self.numbers: list[int] = []
        self.scalars: list[int] = []
        self.registers = 0
        self.level = self._levels()

    def phases(self) -> tuple[list[Phase], list[Operand | None]]:
        nodes, outputs = self.graph.nodes, self.graph.outputs
        phases = []
        for level in range(1, 1 + max(self.level.values(), default=0)):
            reductions = [i for i, op in enumerate(self.operation) if op in REDUCTIONS and self.level[i] == level]
            instructions, place = self._compute([nodes[i].args[0] for i in reductions])
            sums = [
                (REDUCTIONS.index(nodes[i].op), self._read(nodes[i].args[0], place), self._scalar(i))
                for i in reductions
            ]
            later = [
                i
                for i, op in enumerate(self.operation)
                if self._is_scalar(i) and op not in REDUCTIONS and self.level[i] == level
            ]
            afterwards = [
                Instruction(
                    OPERATIONS.index(self.operation[i]),
                    Operand("scalar", self._scalar(i)),
                    tuple(self._read(a, {}) for a in nodes[i].args),
                )
                for i in later
            ]
            phases.append(Phase(tuple(instructions), tuple(sums), tuple(afterwards)))
        instructions, place = self._compute([index for name, index in outputs.items() if name != "result"])
        stores: list[Operand | None] = []
        for name in ("p", *self.slots):
            if name not in outputs:
                stores.append(None)
                continue
            stored = self._read(outputs[name], place)
            source = nodes[outputs[name]]
            if source.op == INPUT and not source.type.is_number and source.payload != name:
                copy = Operand("register", 2 + len(self.slots) + len(set(place.values())))
                place[-1 - len(place)] = copy.index
                self.registers = max(self.registers, copy.index - 1 - len(self.slots))
                instructions.append(Instruction(OPERATIONS.index("number"), copy, (stored,)))
                stored = copy
            stores.append(stored)
        phases.append(Phase(tuple(instructions), (), ()))
        return phases, stores

    def _levels(self) -> dict[int, int]:
        """After how many rounds of reductions each value is known."""
        level: dict[int, int] = {}
        for index, node in enumerate(self.graph.nodes):
            level[index] = max((level[arg] for arg in node.args), default=0) + (self.operation[index] in REDUCTIONS)
        return level

    def _is_scalar(self, index: int) -> bool:
        kind = self.graph.nodes[index].type
        return not kind.is_number and kind.extent == SCALAR.extent

    def _compute(self, wanted: Sequence[int]) -> tuple[list[Instruction], dict[int, int]]:
        """Instructions for some values and all that they need, and the register of each."""
        nodes = self.graph.nodes
        needed: set[int] = set()
        stack = list(wanted)
        while stack:
            index = stack.pop()
            if index in needed or nodes[index].type.is_number or self._is_scalar(index) or nodes[index].op == INPUT:
                continue
            needed.add(index)
            stack.extend(nodes[index].args)
        last = {arg: index for index in sorted(needed) for arg in nodes[index].args}
        place: dict[int, int] = {}
        free: list[int] = []
        used = 0
        instructions = []
        for index in sorted(needed):
            operands = tuple(self._read(arg, place) for arg in nodes[index].args)
            if free:
                register = free.pop()
            else:
                register, used = 2 + len(self.slots) + used, used + 1
            instructions.append(
                Instruction(OPERATIONS.index(self.operation[index]), Operand("register", register), operands)
            )
            place[index] = register
            free += [
                place[arg]
                for arg in set(nodes[index].args)
                if arg in place and last[arg] == index and arg not in wanted
            ]
        self.registers = max(self.registers, used)
        return instructions, place

    def _read(self, index: int, place: Mapping[int, int]) -> Operand:
        node = self.graph.nodes[index]
        if node.type.is_number:
            if index not in self.numbers:
                self.numbers.append(index)
            return Operand("number", self.numbers.index(index))
        if self._is_scalar(index):
            return Operand("scalar", self._scalar(index))
        if node.op == INPUT:
            return Operand("register", ("p", "g", *self.slots).index(str(node.payload)))
        return Operand("register", place[index])

    def _scalar(self, index: int) -> int:
        if index not in self.scalars:
            self.scalars.append(index)
        return self.scalars.index(index)


class NativeRules:
    """Rules with their state, each on its own rows of one buffer.

    Args:
        codes: the rules, from `encode`.
        rows: for each row of the buffer, which of them.
        hypers: for each row, its hyperparameters.
        parameters: [K, N] float32, contiguous, on the CPU; `step` changes it.
        sizes: of the task's parameters, in order; they add up to N.
        ratios: lr over its peak, for each step from 1.

    Raises:
        NativeError: the C++ cannot be had here.
        ValueError: arguments that do not fit together, or parameters that are not as above. The C++ checks nothing.
    """

    def __init__(
        self,
        codes: Sequence[Code],
        rows: Sequence[int],
        hypers: Sequence[Mapping[str, float]],
        parameters: Tensor,
        sizes: Sequence[int],
        ratios: Sequence[float],
    ) -> None:
        _check("parameters", parameters, (len(rows), sum(sizes)))
        if len(hypers) != len(rows):
            raise ValueError(f"hypers are for {len(hypers)} rows, expected {len(rows)}")
        if wrong := sorted(set(rows) - set(range(len(codes)))):
            raise ValueError(f"rows name rule {wrong[0]}, expected 0 to {len(codes) - 1}")
        self._library = library()
        self._slots = max(len(code.slots) for code in codes)
        self._width = max(1, *(len(code.numbers) for code in codes))
        words = [code.words(self._slots, self._width) for code in codes]
        self._code = np.array([word for each in words for word in each], np.int32)
        self._starts = np.cumsum([0, *(len(each) for each in words)], dtype=np.int64)
        self._bounds = np.cumsum([0, *sizes], dtype=np.int64)
        self._codes = codes
        self._rows = np.array(rows, np.int32)
        self.state = torch.zeros(self._slots, *parameters.shape)
        self._numbers = np.zeros((len(ratios), len(rows), self._width), np.float32)
        for index, code in enumerate(codes):
            mine = np.flatnonzero(self._rows == index).tolist()
            for slot, (_, init) in enumerate(code.slots):
                value = parameters[mine] if init == "p" else torch.tensor(float(init))
                self.state[slot, mine] = value
            self._numbers[:, mine, : len(code.numbers)] = _numbers(code, [hypers[row] for row in mine], ratios)
        self._fixed = [array.ctypes.data for array in (self._code, self._starts, self._bounds)]
        self._locate()

    def _locate(self) -> None:
        """Notes where in memory lies what `keep` moves; to ask numpy at each step takes longer than some steps."""
        self._at = self._rows.ctypes.data, self.state.data_ptr(), self._numbers.ctypes.data

    def step(self, parameters: Tensor, gradients: Tensor, t: int, start: int = 0) -> None:
        """Step t, from 1, of k rows from row `start` on: parameters [k, N] change in place; gradients [k, N] are only
        read. Raises ValueError for tensors that are not float32, contiguous and on the CPU, for more rows than there
        are, and for a step that has no ratio."""
        rows, n = self.state.shape[1:]
        if not 0 <= start < rows:
            raise ValueError(f"start is {start}, expected a row from 0 to {rows - 1}")
        lanes = min(parameters.shape[0], rows - start)
        _check("parameters", parameters, (lanes, n))
        _check("gradients", gradients, (lanes, n))
        if not 1 <= t <= len(self._numbers):
            raise ValueError(f"step {t}: there are ratios for steps 1 to {len(self._numbers)}")
        (code, starts, bounds), (rules, state, numbers) = self._fixed, self._at
        self._library.step(
            *(code, starts, rules + 4 * start, bounds, lanes, rows, n, self._slots, self._width, len(self._bounds) - 1),
            *(parameters.data_ptr(), gradients.data_ptr(), state + 4 * start * n),
            numbers + 4 * ((t - 1) * rows + start) * self._width,
        )

    def keep(self, rows: Tensor) -> None:
        """Keeps some rows, in order."""
        self.state = self.state[:, rows].contiguous()
        self._rows = np.ascontiguousarray(self._rows[rows.numpy()])
        self._numbers = np.ascontiguousarray(self._numbers[:, rows.numpy()])
        self._locate()

    def evaluation(self, parameters: Tensor) -> Tensor:
        """The point to evaluate of every row, [K, N]."""
        points = parameters.clone()
        for row, index in enumerate(self._rows):
            if (slot := self._codes[index].result) is not None:
                points[row] = self.state[slot, row]
        return points


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """The C++ is given bare pointers: anything wrong here would be memory of something else."""
    fits = tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
    if tensor.shape != shape or not fits:
        kind = f"{'' if tensor.is_contiguous() else 'not contiguous, '}{tensor.dtype}"
        raise ValueError(
            f"{name} are {list(tensor.shape)}, {kind} on {tensor.device}, expected {list(shape)}, contiguous, "
            "torch.float32 on cpu"
        )


def _numbers(code: Code, hypers: Sequence[Mapping[str, float]], ratios: Sequence[float]) -> Any:
    """The code's numbers, [steps, rows, numbers]: float64 arithmetic over all steps and rows at once."""
    ratio = np.array(ratios, np.float64)[:, None]
    t = np.arange(1, len(ratios) + 1, dtype=np.float64)[:, None]
    values: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for index, node in enumerate(code.graph.nodes):
            if not node.type.is_number:
                continue
            if node.op == CONSTANT:
                values[index] = np.float64(node.payload)
            elif node.op == INPUT:
                name = str(node.payload)
                own = {"t": t, "lr_ratio": ratio}.get(name)
                if own is None:
                    own = np.array([each[name] for each in hypers], np.float64)[None, :]
                values[index] = own * ratio if name == "lr" else own
            else:
                ref = OPS[node.op].ref
                assert ref is not None
                values[index] = ref(*(values[arg] for arg in node.args))
        shape = (len(ratios), len(hypers))
        return (
            np.stack([np.broadcast_to(values[index], shape) for index in code.numbers], -1)
            if code.numbers
            else np.zeros((*shape, 0))
        )


def available() -> bool:
    """Whether the C++ can be used here: it is in the cache, or there is a compiler."""
    try:
        library()
    except NativeError:
        return False
    return True


class NativeError(RuntimeError):
    """The C++ could not be compiled or loaded; the text says why."""


@cache
def library() -> Any:
    """The compiled C++, from the cache, or made now. Raises NativeError."""
    loaded = built(_SOURCE)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.step.argtypes = [pointer] * 4 + [size] * 6 + [pointer] * 4
    loaded.step.restype = None
    return loaded


def built(source: Path) -> ctypes.CDLL:
    """A file of C++ as a library, from the cache, or compiled now. Raises NativeError."""
    text = source.read_bytes()
    key = hashlib.sha256(b"\0".join([text, repr(_FLAGS).encode(), repr(cpu()).encode()])).hexdigest()[:24]
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{source.stem}-{key}.so"
        with filelock.FileLock(path.with_suffix(".lock"), timeout=120):
            if not path.exists():
                _compile(source, path)
        return ctypes.CDLL(str(path))
    except (OSError, filelock.Timeout) as error:
        raise NativeError(str(error)) from None


def _compile(source: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory) / "native.so"
        done = subprocess.run(
            [compiler(), *_FLAGS, str(source), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NativeError(
                f"{compiler()} failed: {done.stderr.strip().splitlines()[0] if done.stderr else done.returncode}"
            )
        os.replace(made, path)
