"""From a program to PyTorch source, as a good engineer would write it by hand.

One generator, two styles. `tensor`: one parameter of any shape, numbers are Python floats, `t` an int; what the
optimizer runs and what an exported file carries. `lanes`: values are [K, rows, cols] for K trainings side by side, and
a hyperparameter may be a tensor of one value a lane, [K, 1, 1].

A program without global operators is one function, `update`. A global operator is a barrier: what comes before it is
first computed for all parameters. For each level of global values there is a function `share_N` that changes nothing
and gives one parameter's share of each total; the caller joins the shares and hands the totals to what comes after.
A closure operator is a barrier too: its share is its arguments, None at a step that does not need the answer (what
stands under `every`), and its total is the caller's answer for this parameter.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from dsl import torch_functions
from dsl.codegen_plan import Plan
from dsl.codegen_print import Function, Printer, unique
from dsl.graph import INPUT, Graph, Node, lower, lower_all
from dsl.ops import OPS
from dsl.program import Facts, Program, Slot
from dsl.types import EXTENTS

EVALUATION = "evaluation"
"""The slot that is added where a rule returns a value that no slot holds."""

COMBINE: dict[str, Callable[[Any, Any], Any]] = {"sum": operator.add, "amax": torch.maximum}
"""How the shares that parameters have in a value of all of them join."""

_FULL, _SCALAR = EXTENTS["full"], EXTENTS["scalar"]


@dataclass(frozen=True, slots=True)
class Total:
    """A value that all parameters have a share in.

    Attributes:
        name: the argument that hands it to what comes after.
        place: which of the program's global values it is; the same for all kinds of parameters that share it.
        op: the operator.
        combine: how the shares join, "sum" or "amax"; or "closure".
        arity: how many results of the share function are its own: a closure operator's arguments, else one.
        plain: whether it is a Python number, as a count of elements is.
        scalar: whether it is one value, not a matrix.
    """

    name: str
    place: float
    op: str
    combine: str
    arity: int
    plain: bool
    scalar: bool


@dataclass(frozen=True, slots=True)
class Barrier:
    """A level of global values: `share` gives one parameter's shares, a tuple, those of each total in order.

    All shares of a level are known before the next level's are computed; a kind of parameter may have no share in one.
    """

    level: int
    share: Function
    totals: tuple[Total, ...]


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
    graph = lower(program, facts)
    slots, outputs, evaluation = storage(program, graph)
    matrix = needs_matrix(graph)
    keepdim = style.lanes or matrix
    by_place = _levels(program, style.flat)
    levels = {index: by_place[node.payload] for index, node in enumerate(graph.nodes) if _is_barrier(node, style.flat)}
    names = _total_names(program, graph, levels)
    order = [slot.name for slot in slots]
    barriers = []
    for level in sorted(set(levels.values())):
        mine = [index for index in levels if levels[index] == level]
        known = {index: name for index, name in names.items() if levels[index] < level}
        results: list[int] = []
        when: dict[int, tuple[tuple[int, bool], ...]] = {}
        for index in mine:
            closure = OPS[graph.nodes[index].op].combine == "closure"
            results += graph.nodes[index].args if closure else (index,)
            if closure:
                when.update(dict.fromkeys(graph.nodes[index].args, _needed(graph, outputs, index, style)))
        plan = Plan(graph, {}, external=known, lanes=style.lanes, per_lane=style.per_lane, results=results, when=when)
        share = Printer(plan, program, order, keepdim).function(f"share_{level + 1}")
        barriers.append(Barrier(level, share, tuple(_total(graph, plan, index, names[index]) for index in mine)))
    plan = Plan(graph, outputs, external=names, lanes=style.lanes, per_lane=style.per_lane)
    update = Printer(plan, program, order, keepdim).function("update")
    return Code(tuple(barriers), update, slots, evaluation, matrix)


def _total(graph: Graph, plan: Plan, index: int, name: str) -> Total:
    node = graph.nodes[index]
    combine = OPS[node.op].combine
    arity = len(node.args) if combine == "closure" else 1
    plain, scalar = plan.is_global_size(index), node.type.extent == _SCALAR
    return Total(name, float(node.payload or 0), node.op, combine, arity, plain, scalar)


def _total_names(program: Program, graph: Graph, levels: Mapping[int, int]) -> dict[int, str]:
    """A name for each total, numbered where several would have the same."""
    short = {"global_sum": "total", "global_amax": "largest", "global_inner": "inner"}
    words = [short.get(graph.nodes[index].op, graph.nodes[index].op) for index in levels]
    numbered = [f"{w}_{words[:i].count(w) + 1}" if words.count(w) > 1 else w for i, w in enumerate(words)]
    taken = {slot.name for slot in program.slots} | set(program.defaults)
    return {index: unique(word, taken) for index, word in zip(levels, numbered, strict=True)}


def _needed(graph: Graph, outputs: Mapping[str, int], index: int, style: Style) -> tuple[tuple[int, bool], ...]:
    """The choices by numbers, as positions in the graph, under which alone a value is needed."""
    plan = Plan(graph, outputs, lanes=style.lanes, per_lane=style.per_lane, statements=False)
    masks = {plan.number(node.args[0]): node.args[0] for i, node in enumerate(graph.nodes) if plan.lazy(i)}
    return tuple((masks[condition], holds) for condition, holds in plan.guards.get(index, ()))


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
        if node.op == INPUT and node.payload == "place":
            return False
        if node.op == "size" and (
            index in graph.outputs.values() or any(graph.nodes[user].op != "global_sum" for user in users[index])
        ):
            return False
        if node.op in OPS and OPS[node.op].group == "reduction" and node.op != "size":
            return False
        whole = node.args and (graph.nodes[node.args[0]].type.extent == _FULL or graph.nodes[node.args[0]].op == "size")
        if node.op in OPS and OPS[node.op].combine in ("sum", "amax") and not whole:
            return False
    return True


def _is_barrier(node: Node, flat: bool) -> bool:
    """Whether it is a global value; where one tensor holds all parameters, only a closure's answer is."""
    combine = OPS[node.op].combine if node.op in OPS else ""
    return combine == "closure" or (bool(combine) and not flat)


@lru_cache(maxsize=1024)
def _levels(program: Program, flat: bool) -> dict[object, int]:
    """Place of a global value -> how many barriers lie before it, in whatever kind of parameter has the most."""
    levels: dict[object, int] = {}
    graphs = {id(graph): graph for graph in lower_all(program).values()}.values()
    places = sorted({node.payload for g in graphs for node in g.nodes if _is_barrier(node, flat)}, key=str)
    for _ in places:  # a place depends on earlier ones, so as many rounds as there are places settle it
        for graph in graphs:
            depth: list[int] = []
            for node in graph.nodes:
                below = max((depth[arg] for arg in node.args), default=0)
                if _is_barrier(node, flat):
                    levels[node.payload] = max(levels.get(node.payload, 0), below)
                    below = levels[node.payload] + 1
                depth.append(below)
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
