"""Steps all elementwise rules of a batch by one call into a small C++ program, instead of one torch call an operator.

The C++ (native.cpp) interprets short codes block by block, so a rule that was never seen before costs nothing to prepare,
and the memory of parameters and state is touched once a step. It is compiled once on a machine (about two seconds) and
kept in the cache. Rules that need more than one element at a time (norms, matrices, globals) and machines without a
compiler use the generated PyTorch code (`dsl.lane_rule`); both follow the reference to float32 rounding.
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

from discover.gradient import _compiler as compiler
from discover.gradient import _cpu as machine
from discover.gradient import cache_directory
from dsl import Program
from dsl.graph import CONSTANT, INPUT, Graph, lower
from dsl.ops import OPS
from dsl.program import all_facts

OPERATIONS = (
    *("add", "sub", "mul", "div", "pow", "neg", "lt", "le", "gt", "ge", "eq", "ne", "where", "abs", "sign", "square"),
    *("sqrt", "rsqrt", "reciprocal", "exp", "log", "tanh", "sigmoid", "min", "max", "clip", "lerp", "number", "mod"),
)
"""What the C++ can do, in the order of its `Operation`."""

_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-shared",
    "-fPIC",
)
_SOURCE = Path(__file__).with_name("native.cpp")
_KEEP = -(2**31)
_REGISTERS = 96


@dataclass(frozen=True, slots=True)
class Code:
    """A rule for the C++.

    Attributes:
        words: operation, destination and three operands of each instruction; an operand below 0 is a number.
        stores: the register that becomes the new p, and each slot's; `_KEEP` where a slot does not change.
        slots: name and initial value of each.
        numbers: graph and position of each number that the instructions read; it is evaluated for all steps at once.
        result: which slot is the point to evaluate; None for p.
    """

    words: tuple[int, ...]
    stores: tuple[int, ...]
    slots: tuple[tuple[str, float | str], ...]
    graph: Graph
    numbers: tuple[int, ...]
    result: int | None


@lru_cache(maxsize=1024)
def encode(program: Program) -> Code | None:
    """The rule for the C++; None if it needs more than the C++ does."""
    graphs = [lower(program, facts) for facts in all_facts(program)]
    graph = graphs[0]
    if any(each != graph for each in graphs) or any(
        slot.extent != ("r", "c") or slot.init == "eye" for slot in program.slots
    ):
        return None
    slots = [slot for slot in program.slots if slot.name in graph.inputs or slot.name in graph.outputs]
    registers = {"p": 0, "g": 1, **{slot.name: 2 + index for index, slot in enumerate(slots)}}
    coder = _Coder(graph, registers, first=2 + len(slots))
    if not coder.possible:
        return None
    words = coder.instructions()
    stores = []
    for name in ("p", *(slot.name for slot in slots)):
        stores.append(coder.store(name) if name in graph.outputs else _KEEP)
    result = None
    if "result" in graph.outputs:
        same = [i for i, slot in enumerate(slots) if graph.outputs.get(slot.name) == graph.outputs["result"]]
        if not same:
            return None
        result = same[0]
    if coder.used > _REGISTERS:
        return None
    inits = tuple((slot.name, slot.init) for slot in slots)
    return Code(tuple(words), tuple(stores), inits, graph, tuple(coder.numbers), result)


class _Coder:
    """Gives each value a register, and each register back when its value was read for the last time."""

    def __init__(self, graph: Graph, registers: Mapping[str, int], first: int) -> None:
        self.graph, self.first = graph, first
        self.numbers: list[int] = []
        self.register: dict[int, int] = {
            index: registers[name] for name, index in graph.inputs.items() if name in registers
        }
        self.free: list[int] = []
        self.used = 0
        self.words: list[int] = []
        self.kept = set(graph.outputs.values())
        self.copies: dict[str, int] = {}
        """Outputs that are another input's old value, which is copied aside before anything is stored."""

    @property
    def possible(self) -> bool:
        return all(
            node.type.is_number or node.op == INPUT or (node.op in OPERATIONS and node.type.elementwise)
            for node in self.graph.nodes
        ) and all(node.op in (INPUT, CONSTANT) or not OPS[node.op].matrix for node in self.graph.nodes)

    def instructions(self) -> list[int]:
        last = {arg: index for index, node in enumerate(self.graph.nodes) for arg in node.args}
        for index, node in enumerate(self.graph.nodes):
            if node.type.is_number or node.op == INPUT:
                continue
            operands = [self._operand(arg) for arg in node.args]
            target = self._take()
            self.words += [OPERATIONS.index(node.op), target, *operands, *[0] * (3 - len(operands))]
            self.register[index] = target
            for arg in set(node.args):
                if last[arg] == index and arg not in self.kept and self.register.get(arg, 0) >= self.first:
                    self.free.append(self.register[arg])
        for name, index in self.graph.outputs.items():
            if self.graph.nodes[index].op == INPUT and self.graph.nodes[index].payload != name and name != "result":
                target = self._take()
                self.words += [OPERATIONS.index("number"), target, self._operand(index), 0, 0]
                self.copies[name] = target
        return self.words

    def store(self, name: str) -> int:
        return self.copies[name] if name in self.copies else self._operand(self.graph.outputs[name])

    def _operand(self, index: int) -> int:
        if not self.graph.nodes[index].type.is_number:
            return self.register[index]
        if index not in self.numbers:
            self.numbers.append(index)
        return -1 - self.numbers.index(index)

    def _take(self) -> int:
        if self.free:
            return self.free.pop()
        self.used += 1
        return self.first + self.used - 1


class NativeRules:
    """Rules with their state, each on its own rows of one buffer.

    Args:
        codes: the rules, from `encode`.
        rows: for each row of the buffer, which of them.
        hypers: for each row, its hyperparameters.
        parameters: [K, N] float32, contiguous, on the CPU; `step` changes it.
        ratios: lr over its peak, for each step from 1.
    """

    def __init__(
        self,
        codes: Sequence[Code],
        rows: Sequence[int],
        hypers: Sequence[Mapping[str, float]],
        parameters: Tensor,
        ratios: Sequence[float],
    ) -> None:
        self._library = library()
        self._slots = max(len(code.slots) for code in codes)
        self._width = max(1, *(len(code.numbers) for code in codes))
        words = [self._moved(code) for code in codes]
        self._code = np.array([word for each in words for word in each], np.int32)
        self._starts = np.cumsum([0, *(len(each) for each in words)], dtype=np.int64)
        self._stores = np.array([self._padded_stores(code) for code in codes], np.int32)
        self._codes = codes
        self._rows = np.array(rows, np.int32)
        self.state = torch.zeros(self._slots, *parameters.shape)
        self._numbers = np.zeros((len(ratios), len(rows), self._width), np.float32)
        for index, code in enumerate(codes):
            mine = np.flatnonzero(self._rows == index)
            for slot, (_, init) in enumerate(code.slots):
                value = parameters[mine] if init == "p" else torch.tensor(float(init))
                self.state[slot, torch.from_numpy(mine)] = value
            self._numbers[:, mine, : len(code.numbers)] = _numbers(code, [hypers[row] for row in mine], ratios)

    def step(self, parameters: Tensor, gradients: Tensor, t: int) -> None:
        """Step t, from 1, of every row: parameters [K, N] change in place; gradients [K, N] are only read."""
        lanes, n = parameters.shape
        self._library.step(
            _at(self._code), _at(self._starts), _at(self._stores), _at(self._rows), lanes, n, self._slots, self._width,
            parameters.data_ptr(), gradients.data_ptr(), self.state.data_ptr(), _at(self._numbers[t - 1]),
        )  # fmt: skip

    def keep(self, rows: Tensor) -> None:
        """Keeps some rows, in order."""
        self.state = self.state[:, rows].contiguous()
        self._rows = np.ascontiguousarray(self._rows[rows.numpy()])
        self._numbers = np.ascontiguousarray(self._numbers[:, rows.numpy()])

    def evaluation(self, parameters: Tensor) -> Tensor:
        """The point to evaluate of every row, [K, N]."""
        points = parameters.clone()
        for row, index in enumerate(self._rows):
            if (slot := self._codes[index].result) is not None:
                points[row] = self.state[slot, row]
        return points

    def _moved(self, code: Code) -> list[int]:
        """The code with its registers moved up, where another rule of the batch has more slots."""
        moved = []
        for at in range(0, len(code.words), 5):
            operation, *registers = code.words[at : at + 5]
            moved += [operation, *(self._register(code, register) for register in registers)]
        return moved

    def _padded_stores(self, code: Code) -> list[int]:
        stores = [store if store == _KEEP else self._register(code, store) for store in code.stores]
        return stores + [_KEEP] * (1 + self._slots - len(stores))

    def _register(self, code: Code, register: int) -> int:
        return register + self._slots - len(code.slots) if register >= 2 + len(code.slots) else register


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
                values[index] = np.float64(node.payload)  # type: ignore[arg-type]
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
    source = _SOURCE.read_bytes()
    key = hashlib.sha256(b"\0".join([source, repr(_FLAGS).encode(), repr(machine()).encode()])).hexdigest()[:24]
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"native-{key}.so"
        with filelock.FileLock(path.with_suffix(".lock"), timeout=120):
            if not path.exists():
                _compile(path)
        loaded = ctypes.CDLL(str(path))
    except (OSError, filelock.Timeout) as error:
        raise NativeError(str(error)) from None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.step.argtypes = [pointer] * 4 + [size] * 4 + [pointer] * 4
    loaded.step.restype = None
    return loaded


def _compile(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory) / "native.so"
        done = subprocess.run(
            [compiler(), *_FLAGS, str(_SOURCE), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NativeError(
                f"{compiler()} failed: {done.stderr.strip().splitlines()[0] if done.stderr else done.returncode}"
            )
        os.replace(made, path)


def _at(array: Any) -> int:
    return int(array.ctypes.data)
