"""Laws of the pool: what programs share changes nothing of what is known of each."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import dsl
from discover.mutate import CHANGES, Grammar, mutate
from discover.plan import genotype
from dsl import pool, properties
from dsl.canonical import structure_hash_of_graphs
from dsl.check import well_typed
from dsl.graph import Graph, lower, lower_all
from dsl.ops import OPS
from dsl.program import Assign, Call, Expr, Facts, If, Name, Number, Program, RuleError, assignments, names_read
from tests.strategies import programs, rules

MATRIX = Facts(True, "hidden")
OPERATORS = tuple(op.name for op in OPS.values() if op.group in ("arithmetic", "elementwise", "reduction", "global"))


def children(ancestor: str, count: int) -> list[Program]:
    """Programs as a search makes them, each from the one before."""
    rng = np.random.default_rng(3)
    grammar = Grammar(OPERATORS, 30, ("m", "v"), dict.fromkeys(CHANGES, 1.0))
    found = [genotype(dsl.load(ancestor))]
    for _ in range(count):
        found.append(mutate(found[-1], grammar, rng).program)
    return found


def agrees(program: Program) -> bool:
    """Whether it is pooled; if so, it is what it is alone."""
    line = pool.pooled(program)
    if line is None:
        return False
    graph = lower(program, MATRIX)
    assert [slot.name for slot in line.kept(program.slots)] == [s.name for s in program.slots if s.name in graph.inputs]
    assert line.depends_on("g") == ("g" in graph.inputs)
    assert terms(line) == terms(graph)
    assert dsl.structure_hash(program) == structure_hash_of_graphs(program)
    return True


def terms(of: pool.Pooled | Graph) -> dict[str, object]:
    """What p, and each slot that p needs, is computed by, written out, types included."""
    nodes = of.nodes if isinstance(of, Graph) else of.pool.nodes
    written: dict[int, tuple[object, ...]] = {}
    positions = range(len(nodes)) if isinstance(of, Graph) else of.live()
    for index in positions:
        node = nodes[index]
        written[index] = (node.op, repr(node.payload), node.type, *(hash(written[arg]) for arg in node.args))
    needed = {name for name in of.outputs if isinstance(of, Graph) or name == "p" or of.depends_on(name)}
    return {
        name: written[of.outputs[name]]
        for name in needed - {"result"}
        if written[of.outputs[name]][:2] != ("input", repr(name)) or name == "p"
    }


@settings(max_examples=80, deadline=None)
@given(rules())
def test_a_pooled_program_is_the_one_that_is_lowered_alone(program: Program) -> None:
    is_line = not any(isinstance(statement, If) or statement.target in ("t", "place") for statement in program.body)
    assert agrees(program) == agrees(dsl.flatten(program)) == is_line


@pytest.mark.parametrize("ancestor", ["adamw", "lion"])
def test_children_of_children_are_what_they_are_alone(ancestor: str) -> None:
    assert all(agrees(program) for program in children(ancestor, 60))


@settings(max_examples=30, deadline=None)
@given(programs())
def test_what_is_ill_typed_is_ill_typed_in_the_pool_for_the_same_reason(program: Program) -> None:
    """And on the same line. A program with static ifs or matrix operators is not pooled."""
    line, pooled = outcome(pool.pooled, program)
    _, alone = outcome(lower_all, program)
    if pooled:
        assert pooled == alone
        assert not well_typed(program)
        return
    apart = any(isinstance(statement, If) for statement in program.body)
    if line is not None:
        assert not apart
        assert not alone
        assert well_typed(program)
        assert len({id(graph) for graph in lower_all(program).values()}) == 1


def outcome(make: Callable[[Program], Any], program: Program) -> tuple[Any, str]:
    """What is made of the program, or what is said to be wrong with it."""
    try:
        return make(program), ""
    except RuleError as error:
        return None, str(error)


def test_a_new_pool_is_begun_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = children("adamw", 60)
    hashes = [dsl.structure_hash(program) for program in found]
    monkeypatch.setattr(pool, "LARGEST", 60)
    pool._pooled.cache_clear()
    assert [dsl.structure_hash(program) for program in found] == hashes
    used = {id(line.pool) for program in found if (line := pool.pooled(program)) is not None}
    assert len(used) > 3


def test_a_pool_that_was_replaced_is_gone_without_a_search_for_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LARGEST", 100)
    found = children("adamw", 60)
    gc.disable()
    try:
        pools = [weakref.ref(line.pool) for line in map(pool.pooled, found) if line is not None]
        hashes = [dsl.structure_hash(program) for program in found]  # which simplifies, each time in a pool of its time
        pool._pooled.cache_clear()
        dsl.structure_hash(genotype(dsl.load("lion")))
        alive = {id(each()) for each in pools} - {id(None), id(pool._POOLS[0])}
    finally:
        gc.enable()
    assert len(hashes) == len(found)
    assert not alive


def test_programs_that_differ_in_name_alone_are_one_line_and_each_error_names_its_own() -> None:
    text = "def {}(p, g, *, lr=1):\n    x1 = abs({})\n    p = p - lr * x1\n"
    one, other = (dsl.parse(text.format(name, "g")) for name in ("one", "other"))
    assert pool.pooled(one) is pool.pooled(other)
    for name in ("one", "other"):
        wrong = replace(one, name=name, body=(Assign("x1", Name("y"), 2), *one.body))
        with pytest.raises(dsl.RuleError) as caught:
            pool.pooled(wrong)
        assert (caught.value.source, caught.value.line) == (f"{name}.rule", 2)


def test_a_program_that_assigns_what_definitions_read_is_not_pooled() -> None:
    """`debias` reads t; a program that assigns t, which no text can, means its own."""
    usual = dsl.parse("def f(p, g, m: zeros, *, lr=1):\n    m = lerp(m, g, 0.1)\n    p = p - lr * debias(m, 0.9)\n")
    later = Assign("t", Call("add", (Name("t"), Number(1.0))))
    program = replace(usual, body=(later, *usual.body))
    assert pool.pooled(program) is None
    assert dsl.structure_hash(program) != dsl.structure_hash(usual)
    agrees(usual)


def test_a_slot_of_the_same_name_and_another_extent_is_another_value() -> None:
    rule = "def f(p, g, m: {}, *, lr=1):\n    m = lerp(m, row_mean(g), 0.1)\n    p = p - lr * (g + m)\n"
    for extent in ("zeros", "rows(zeros)", "zeros", "rows(zeros)"):
        agrees(dsl.check(dsl.parse(rule.format(extent))))
    assert len({dsl.structure_hash(dsl.parse(rule.format(extent))) for extent in ("zeros", "rows(zeros)")}) == 2


@settings(max_examples=100, deadline=None)
@given(rules())
def test_passes_and_state_do_not_depend_on_the_pool(program: Program) -> None:
    if any(isinstance(statement, If) for statement in program.body):
        return
    graph = lower(program, MATRIX)
    found = properties.of(program)
    assert found.operations == sum(properties.passes(node, graph.nodes) for node in graph.nodes)
    assert found.slots == sum(slot.name in graph.inputs for slot in program.slots)


# What values remember ------------------------------------------------------------------------------------------------


def read(expr: Expr) -> set[str]:
    match expr:
        case Name(id):
            return {id}
        case Call(_, args):
            return {name for arg in args for name in read(arg)}
    return set()


@settings(max_examples=30, deadline=None)
@given(programs())
def test_what_is_remembered_is_what_is_found_anew(program: Program) -> None:
    for _ in range(2):
        for statement in assignments(program.body):
            assert names_read(statement.value) == read(statement.value)
        copy = pickle.loads(pickle.dumps(program))
        assert copy == program
        assert hash(copy) == hash(program)
        assert dsl.strip_dead(copy) == dsl.strip_dead(program) == dsl.strip_dead(dsl.strip_dead(program))


def test_what_is_remembered_makes_no_cycle_and_so_goes_without_a_search_for_cycles() -> None:
    """The search holds the collector off while it proposes."""
    program = dsl.load("adamw")
    for made in (
        replace(program, name="a"),
        dsl.strip_dead(replace(program, name="b")),
        replace(program, name="c").unnamed,
    ):
        assert dsl.strip_dead(made) is dsl.strip_dead(made)
        assert made.unnamed is made.unnamed
        assert not any(each is made for each in gc.get_referents(made))


def test_nothing_that_is_remembered_is_pickled() -> None:
    """The hash of a text is another one in another process."""
    program = dsl.load("adamw")
    hash(program), dsl.strip_dead(program)
    for value in (program, *program.body, *(s.value for s in assignments(program.body))):
        copy = pickle.loads(pickle.dumps(value))
        assert not any(hasattr(copy, name) for name in ("_hash", "_reads", "_stripped"))
    assert hash(Assign("p", Name("g"), 3)) == hash(Assign("p", Name("g"), 4))
