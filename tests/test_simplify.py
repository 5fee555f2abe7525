"""Laws of the rewrite rules: exact ones change no bit, algebraic ones hold up to rounding, each one is needed."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from dsl.behaviour import generic
from dsl.graph import Graph, lower
from dsl.ops import OPS
from dsl.parse import parse
from dsl.program import Call, Expr, Facts, Name, Number, Program, expressions, names_read
from dsl.reference import Machine
from dsl.simplify import ALGEBRAIC, EXACT, HITS, Rule, read, simplify
from tests.strategies import rules

ORDINARY = (-3.7, -1.5, -0.3, 0.2, 1.7, 2.0)
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -1e-310, 1e300, -1e300, 1.0, -1.0)
LITERALS = (0.3, -2.0, 5.0)
MATRIX = Facts(True, "hidden")


def text(rule: Rule) -> str:
    return " -> ".join(rule)


def evaluate(expr: Expr, env: dict[str, Any]) -> Any:
    match expr:
        case Number(value):
            return np.float64(value)
        case Name(id):
            return env[id]
        case Call(op, args):
            function = OPS[op].ref
            assert function is not None
            with np.errstate(all="ignore"):
                return function(*(evaluate(arg, env) for arg in args))


def environments(rule: Rule, values: tuple[float, ...]) -> list[dict[str, Any]]:
    """What the names of a rule may stand for: elements in every combination, as matrices; each literal in turn."""
    left = read(rule[0])
    names = sorted(names_read(left))
    masks = {arg.id for each in expressions(left) if isinstance(each, Call) and each.op in ("where", "number")
             for arg in each.args[:1] if isinstance(arg, Name)}  # fmt: skip
    tensors = [name for name in names if not name.isupper()]
    literals = [name for name in names if name.isupper()]
    choices = [(True, False) if name in masks else values for name in tensors]
    columns = [np.array(column).reshape(-1, 1) for column in zip(*itertools.product(*choices), strict=True)]
    elements = dict(zip(tensors, columns, strict=True))
    return [
        elements | dict(zip(literals, each, strict=True)) for each in itertools.product(LITERALS, repeat=len(literals))
    ]


def bits(value: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    value = np.broadcast_to(np.asarray(value, np.float64), shape)
    return np.where(np.isnan(value), np.nan, value).view(np.int64)


@pytest.mark.parametrize("rule", EXACT, ids=text)
def test_exact_rule_changes_no_bit(rule: Rule) -> None:
    for env in environments(rule, ORDINARY + SPECIAL):
        before, after = (evaluate(read(side), env) for side in rule)
        shape = np.shape(before)
        np.testing.assert_array_equal(bits(before, shape), bits(after, shape))


@pytest.mark.parametrize("rule", ALGEBRAIC, ids=text)
def test_algebraic_rule_holds_up_to_rounding(rule: Rule) -> None:
    for env in environments(rule, ORDINARY):
        before, after = (evaluate(read(side), env) for side in rule)
        np.testing.assert_allclose(np.broadcast_to(after, np.shape(before)), before, 1e-9, 1e-12)


@pytest.mark.parametrize("rule", ALGEBRAIC, ids=text)
def test_rule_fires_where_it_should(rule: Rule) -> None:
    """No rule is hidden behind another one."""
    meaning = {"x": "g", "y": "m", "z": "v", "w": "lr", "c": "(m < v)", "K": "3", "L": "5"}
    side = re.sub(r"\b[a-zKL]\b", lambda name: meaning[name[0]], rule[0])
    program = parse(
        "def f(p, g, m: zeros, v: zeros, *, lr=1):\n    if matrix(p):\n"
        f"        p = p - lr * (exp({side}) + v + m)\n        m = lerp(m, g, 0.1)\n        v = sqrt(m)\n"
    )
    graph = lower(program, MATRIX)
    HITS.clear()
    simplify(graph, exact=rule in EXACT)
    assert HITS[rule] > 0


def test_a_rule_that_fires_is_counted_once_a_value() -> None:
    program = parse("def f(p, g, *, lr=1):\n    p = p - lr * neg(neg(g))\n")
    HITS.clear()
    simplify(lower(program, MATRIX))
    assert dict(HITS) == {("neg(neg(x))", "x"): 1}


def outputs(
    graph: Graph, program: Program, p: np.ndarray[Any, Any], g: np.ndarray[Any, Any]
) -> dict[tuple[int, str], np.ndarray[Any, Any]]:
    """The new p and state after each of three steps."""
    machine = Machine([graph], [p], program.slots, program.defaults)
    values = {}
    for step in range(3):
        machine.step([g[step]], step + 1, 0.1, 1.0)
        for name, value in {"p": machine.units[0].p, **machine.units[0].slots}.items():
            values[step, name] = value
    return values


@settings(max_examples=150, deadline=None)
@given(rules())
def test_exact_simplification_of_a_rule_changes_no_bit(program: Program) -> None:
    graph = lower(program, MATRIX)
    simple = simplify(graph)
    p, *g = generic(3, (4, 5, 3))
    for gradients in (np.array(g), np.resize(np.array(SPECIAL), (3, 5, 3))):
        before, after = outputs(graph, program, p, gradients), outputs(simple, program, p, gradients)
        assert {name for _, name in after} >= {"p", *simple.outputs} - {"result"}
        for key, value in after.items():  # a slot that nothing depends on any more is gone
            np.testing.assert_array_equal(bits(before[key], np.shape(before[key])), bits(value, np.shape(before[key])))


@settings(max_examples=150, deadline=None)
@given(rules())
def test_simplifying_twice_is_simplifying_once(program: Program) -> None:
    for exact in (True, False):
        once = simplify(lower(program, MATRIX), exact=exact)
        assert simplify(once, exact=exact) == once


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("sum(g - g + 1)", "sum(g - g + 1)"),
        ("mean(where(g > 0, 2, 2))", "mean(where(0 < g, 2, 2))"),
        ("g * (1 - 1)", "0"),
        ("g ** (4 / 2)", "square(g)"),
        ("where(1 < 2, g, 0)", "g"),
        ("(2 > 1) * g", "g"),
        ("g / 0", "g / 0"),
        ("1 / 0 * g", "1 / 0 * g"),
    ],
)
def test_a_value_shrinks_only_where_what_reads_it_broadcasts(before: str, after: str) -> None:
    """A reduction must see as many elements as it was written over; a literal that is not finite is not folded."""
    graphs = []
    for value in (before, after):
        program = parse(f"def f(p, g, *, lr=1):\n    p = p - lr * g - lr * tanh({value})\n")
        graphs.append(simplify(lower(program, MATRIX), exact=False))
    p, *g = generic(3, (4, 5, 3))
    for a, b in zip(*(outputs(graph, program, p, np.array(g)).values() for graph in graphs), strict=True):
        np.testing.assert_allclose(a, b, 1e-12)
    assert len(graphs[0].nodes) == len(graphs[1].nodes)


def test_hyperparameters_may_be_given_their_values() -> None:
    program = parse("def f(p, g, *, lr=1, weight_decay=0):\n    p = p * (1 - lr * weight_decay) - lr * g\n")
    simple = simplify(lower(program, MATRIX), exact=False, values={"weight_decay": 0.0})
    plain = lower(parse("def f(p, g, *, lr=1):\n    p = p - lr * g\n"), MATRIX)
    assert [node.op for node in simple.nodes] == [node.op for node in plain.nodes]
