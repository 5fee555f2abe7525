"""From a program to PyTorch source, as a good engineer would write it by hand.

One generator, two styles. `tensor`: one parameter of any shape, numbers are Python floats, `t` an int; what the
optimizer runs and what an exported file carries. `lanes`: values are [K, rows, cols] for K trainings side by side, and
a hyperparameter may be a tensor of one value a lane, [K, 1, 1].

A program without global operators is one function, `update`. A global operator is a barrier: what comes before it is
first computed for all parameters. For each level of global values there is a function `share_N` that changes nothing
and gives one parameter's share of each total; the caller joins the shares and hands the totals to what comes after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from dsl import torch_functions
from dsl.codegen_plan import Plan
from dsl.codegen_print import RESERVED, Function, Printer, unique
from dsl.graph import Graph, lower
from dsl.ops import OPS
from dsl.program import Facts, Program, RuleError, Slot
from dsl.types import EXTENTS

EVALUATION = "evaluation"
"""The slot that is added where a rule returns a value that no slot holds."""
_FULL, _SCALAR = EXTENTS["full"], EXTENTS["scalar"]


@dataclass(frozen=True, slots=True)
class Barrier:
    """A level of global values.

    Attributes:
        share: gives one parameter's share of each total, a tuple.
        totals: the totals' names.
        combine: how the shares of each join, "sum" or "amax".
        plain: whether each is a Python number, as a count of elements is.
    """

    share: Function
    totals: tuple[str, ...]
    combine: tuple[str, ...]
    plain: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """A program's code for one kind of parameter.

    Attributes:
        barriers: levels of global values, in order; empty for most rules.
        update: one step of one parameter, in place.
        slots: the state that it keeps.
        evaluation: the slot that holds the value to evaluate; None where that is p itself.
        matrix: whether p, g and full slots must be given as [rows, cols].
    """

    barriers: tuple[Barrier, ...]
    update: Function
    slots: tuple[Slot, ...]
    evaluation: str | None
    matrix: bool

    @property
    def functions(self) -> tuple[Function, ...]:
        return (*(barrier.share for barrier in self.barriers), self.update)

    @property
    def source(self) -> str:
        return "\n\n".join(function.source for function in self.functions)


@dataclass(frozen=True, slots=True)
class Style:
    """Which variant to generate.

    Attributes:
        lanes: whether values have a leading axis of lanes.
        flat: whether one tensor holds all parameters, so that a global operator is an ordinary reduction.
        per_lane: hyperparameters that are tensors of one value a lane.
    """

    lanes: bool = False
    flat: bool = False
    per_lane: frozenset[str] = frozenset()


TENSOR = Style()


def generate(program: Program, facts: Facts, style: Style = TENSOR) -> Code:
    """Generates the code of a program for one kind of parameter.

    Raises:
        RuleError: a program that is not well formed.
    """
    return _generate(program, facts, style)


@lru_cache(maxsize=1024)
def _generate(program: Program, facts: Facts, style: Style) -> Code:
    if clash := RESERVED & {*program.defaults, *(slot.name for slot in program.slots)}:
        raise RuleError(f"'{min(clash)}' is a name that generated code uses itself; choose another", 1, program.name)
    graph = lower(program, facts)
    slots, outputs, evaluation = storage(program, graph)
    matrix = needs_matrix(graph)
    keepdim = style.lanes or matrix
    levels = {} if style.flat else _levels(program, graph)
    names = {index: f"{'total' if graph.nodes[index].op == 'global_sum' else 'largest'}" for index in levels}
    if len(names) > 1:
        names = {index: f"{name}_{position}" for position, (index, name) in enumerate(names.items(), 1)}
    taken = {slot.name for slot in program.slots} | set(program.defaults)
    names = {index: unique(name, taken) for index, name in names.items()}
    order = [slot.name for slot in slots]
    barriers = []
    for level in sorted(set(levels.values())):
        mine = [index for index in levels if levels[index] == level]
        known = {index: name for index, name in names.items() if levels[index] < level}
        plan = Plan(graph, {}, external=known, lanes=style.lanes, per_lane=style.per_lane, results=mine)
        share = Printer(plan, program, order, keepdim).function(f"share_{level + 1}")
        combine = tuple(OPS[graph.nodes[index].op].combine for index in mine)
        plain = tuple(plan.is_global_size(index) for index in mine)
        barriers.append(Barrier(share, tuple(names[index] for index in mine), combine, plain))
    plan = Plan(graph, outputs, external=names, lanes=style.lanes, per_lane=style.per_lane)
    update = Printer(plan, program, order, keepdim).function("update")
    return Code(tuple(barriers), update, slots, evaluation, matrix)


def storage(program: Program, graph: Graph) -> tuple[tuple[Slot, ...], dict[str, int], str | None]:
    """A graph's slots, what is stored in p and in each of them, and the slot that holds the value to evaluate."""
    outputs = {name: index for name, index in graph.outputs.items() if name != "result"}
    slots = tuple(slot for slot in program.slots if slot.name in outputs or slot.name in graph.inputs)
    result = graph.outputs.get("result")
    if result is None or result == outputs["p"]:
        return slots, outputs, None
    for slot in slots:
        if slot.extent == _FULL and outputs.get(slot.name, graph.inputs.get(slot.name)) == result:
            return slots, outputs, slot.name
    return (*slots, Slot(EVALUATION, _FULL, "p")), {**outputs, EVALUATION: result}, EVALUATION


def needs_matrix(graph: Graph) -> bool:
    """Whether anything in it treats the parameter as rows and columns."""
    return any(
        node.type.extent not in (_FULL, _SCALAR) or (node.op in OPS and OPS[node.op].matrix) for node in graph.nodes
    )


def is_flat(graph: Graph) -> bool:
    """Whether it treats every element alike but for global values, so that all parameters may be one tensor."""
    if needs_matrix(graph):
        return False
    users = graph.users()
    for index, node in enumerate(graph.nodes):
        if node.op == "size" and (
            index in graph.outputs.values() or any(graph.nodes[user].op != "global_sum" for user in users[index])
        ):
            return False
        if node.op in OPS and OPS[node.op].group == "reduction" and node.op != "size":
            return False
        whole = node.args and (graph.nodes[node.args[0]].type.extent == _FULL or graph.nodes[node.args[0]].op == "size")
        if node.op in OPS and OPS[node.op].combine and not whole:
            return False
    return True


def _levels(program: Program, graph: Graph) -> dict[int, int]:
    """Global operator -> how many barriers lie before it."""
    levels: dict[int, int] = {}
    depth: list[int] = []
    for index, node in enumerate(graph.nodes):
        below = max((depth[arg] for arg in node.args), default=0)
        barrier = node.op in OPS and bool(OPS[node.op].combine)
        if barrier:
            levels[index] = below
        depth.append(below + barrier)
    return levels


# Compiling --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _compiled(source: str, name: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {"torch": torch, "math": math, **HELPERS}
    exec(compile(source, f"<generated {name}>", "exec"), namespace)
    return namespace[name]  # type: ignore[no-any-return]


HELPERS: Mapping[str, Callable[..., Any]] = {
    name: function for name, function in vars(torch_functions).items() if callable(function) and name != "annotations"
}


def compiled(function: Function) -> Callable[..., Any]:
    """The generated function, ready to be called; compiled once for each text."""
    return _compiled(function.source, function.name)
