"""Rules as short codes for native.cpp: which value is computed when, from what, and where it is put.

A code has phases: each computes, block by block, what its reductions need, and then numbers of the tensor from them;
the last writes the new p and slots. A value lives in a register as long as something reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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

REGISTERS, SCALARS = 96, 64
"""How many the C++ has room for."""

_UNCHANGED = -(2**31)


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
    if coder.registers > REGISTERS or len(coder.scalars) > SCALARS:
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
