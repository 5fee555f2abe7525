"""Laws of the operators' table: the torch spelling means what the numpy reference means, and the facts are true."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import dsl
from dsl import docs, torch_functions
from dsl.graph import lower
from dsl.ops import OPS, Op, define
from dsl.parse import definition
from dsl.program import Assign, Call, Facts, Hyper, Name, Number, Program
from dsl.types import COLS, FULL, LEFT, ROWS, SCALAR, MismatchError

ORDINARY = (-3.7, -1.5, -1.0, -0.3, 0.2, 1.0, 1.7, 2.0, 4.4)
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, -5e-324, 1e-310, 1e300, -1e300, 1.0, -1.0, 2.5)
GIVEN = [op for op in OPS.values() if not op.expand]
ELEMENTWISE = [op for op in GIVEN if op.group in ("arithmetic", "comparison", "elementwise")]
WHOLE = [op for op in GIVEN if op not in ELEMENTWISE]
ABBREVIATIONS = [op for op in OPS.values() if op.expand]
RTOL = 1e-12

Evaluate = Callable[..., Any]


def each(ops: list[Op]) -> Any:
    return pytest.mark.parametrize("op", ops, ids=lambda op: op.name)


def grid(op: Op, values: tuple[float, ...]) -> list[np.ndarray[Any, Any]]:
    """Every combination of the values as the operator's arguments; masks of every combination of truth values."""
    choices = [(True, False) if op.kinds.get(param) == "mask" else values for param in op.params]
    return [np.array(column) for column in zip(*itertools.product(*choices), strict=True)]


def reference(op: Op, *args: Any) -> Any:
    assert op.ref is not None
    with np.errstate(all="ignore"):
        return op.ref(*args)


def evaluate(template: str, *args: Any) -> Any:
    names = [f"a{number}" for number in range(len(args))]
    scope = {"torch": torch, "math": math, **vars(torch_functions), "p": torch.zeros(1, dtype=torch.float64)}
    return eval(template.format(*names), scope | dict(zip(names, args, strict=True)))  # the table's own text


def forms(op: Op) -> list[tuple[str, str]]:
    """Each torch spelling with the kinds of its arguments, "t" a tensor and "n" a number."""
    if isinstance(op.torch, str):
        return [("t" * len(op.params), op.torch)]
    return list(op.torch.items())


def assert_torch_agrees(op: Op, values: tuple[float, ...]) -> None:
    columns = grid(op, values)
    for kinds, template in forms(op):
        numbers = [position for position, kind in enumerate(kinds) if kind == "n"]
        fixed = sorted(
            {tuple(columns[position][row] for position in numbers) for row in range(len(columns[0]))}, key=str
        )
        for choice in fixed:
            given: dict[int, Any] = dict(zip(numbers, choice, strict=True))
            rows = columns if not numbers else _rows(columns, given)
            expected = reference(op, *(given.get(i, rows[i]) for i in range(len(rows))))
            result = evaluate(
                template, *(given[i].item() if i in given else torch.tensor(rows[i]) for i in range(len(rows)))
            )
            np.testing.assert_allclose(
                np.asarray(result, np.float64),
                np.asarray(expected, np.float64),
                RTOL,
                1e-300,
                err_msg=f"{template} {choice}",
            )


def _rows(columns: list[np.ndarray[Any, Any]], given: dict[int, Any]) -> list[np.ndarray[Any, Any]]:
    keep = np.ones(len(columns[0]), bool)
    for position, value in given.items():
        column = columns[position]
        keep &= np.array([str(each) == str(value) for each in column])
    return [column[keep] for column in columns]


# Torch --------------------------------------------------------------------------------------------------------------


@each(ELEMENTWISE)
def test_torch_spelling_agrees_with_reference_on_ordinary_values(op: Op) -> None:
    assert_torch_agrees(op, ORDINARY)


@each([op for op in ELEMENTWISE if not op.special])
def test_torch_spelling_agrees_with_reference_on_special_values(op: Op) -> None:
    assert_torch_agrees(op, SPECIAL)


@each([op for op in GIVEN if op.special])
def test_departure_on_special_values_is_real(op: Op) -> None:
    """A record that says where torch departs from the reference says so only where it does."""
    with pytest.raises(AssertionError):
        assert_torch_agrees(op, SPECIAL)


@each([op for op in ELEMENTWISE if op.number])
def test_number_spelling_agrees_with_reference(op: Op) -> None:
    assert op.number is not None
    for args in zip(*grid(op, ORDINARY), strict=True):
        expected = float(reference(op, *args))
        if math.isfinite(expected):
            assert evaluate(op.number, *(arg.item() for arg in args)) == pytest.approx(expected, rel=RTOL)


def matrices(op: Op, *values: float) -> list[Any]:
    """Arguments [2, 5, 3] for an operator on whole tensors, with the given values among the elements of one lane."""
    rng = np.random.default_rng(0)
    args: list[Any] = []
    for param in op.params:
        if op.kinds.get(param) == "number":
            args.append(5.0)
            continue
        array = rng.standard_normal((2, 5, 3))
        array[0, 1, : len(values)] = values
        args.append(array if not (op.name == "matmul" and args) else np.swapaxes(array, -1, -2))
    return args


@each(WHOLE)
@pytest.mark.parametrize(
    "values", [(), (0.0, -0.0), (math.inf,), (math.inf, -math.inf), (math.nan,), (1e-310, 1e200)], ids=str
)
def test_operator_on_whole_tensors_agrees_with_reference_alone_and_in_lanes(op: Op, values: tuple[float, ...]) -> None:
    if op.name == "newton_schulz" and not all(abs(value) < 1e100 for value in values):
        pytest.skip("a norm that overflows leaves nothing to orthogonalise")
    assert isinstance(op.torch, str)
    args = matrices(op, *values)
    expected = np.asarray(reference(op, *args))
    lanes = evaluate(op.lanes or op.torch, *(torch.tensor(a) if isinstance(a, np.ndarray) else a for a in args))
    np.testing.assert_allclose(np.asarray(lanes), np.broadcast_to(expected, np.shape(lanes)), 1e-9, 1e-12)
    for lane in range(2):
        one = [a[lane] if isinstance(a, np.ndarray) else a for a in args]
        alone = reference(op, *one)
        result = evaluate(op.torch, *(torch.tensor(a) if isinstance(a, np.ndarray) else a for a in one))
        np.testing.assert_allclose(
            np.asarray(result), np.squeeze(alone) if np.ndim(result) == 0 else alone, 1e-9, 1e-12
        )
        if np.ndim(expected) == 3:
            np.testing.assert_allclose(expected[lane], alone, 1e-9, 1e-12)


@pytest.mark.parametrize("steps", [math.nan, -1.0, 0.0, 2.9, 1e9, math.inf])
def test_newton_schulz_takes_any_number_of_steps(steps: float) -> None:
    g = np.eye(3)[:2] + 0.1
    expected = reference(OPS["newton_schulz"], g, steps)
    np.testing.assert_allclose(torch_functions.newton_schulz(torch.tensor(g), steps), expected, 1e-9)


# Facts --------------------------------------------------------------------------------------------------------------


@each([op for op in GIVEN if op.commutative])
def test_commutative_operator_does_not_see_the_order(op: Op) -> None:
    a, b = grid(op, (*ORDINARY, *SPECIAL))
    np.testing.assert_array_equal(reference(op, a, b), reference(op, b, a))


def _positive(op: Op) -> list[Any]:
    return [np.abs(arg) + 0.1 if isinstance(arg, np.ndarray) else arg for arg in matrices(op)]


@each([op for op in GIVEN if op.degree.lstrip("-").replace(".", "").isdigit() and "mask" not in op.kinds.values()])
def test_degree_of_one_argument(op: Op) -> None:
    args = _positive(op)
    scaled = [3.0 * arg if isinstance(arg, np.ndarray) else arg for arg in args]
    expected = 3.0 ** float(op.degree) * np.asarray(reference(op, *args), float)
    np.testing.assert_allclose(np.asarray(reference(op, *scaled), float), expected, 1e-5)


@each([op for op in GIVEN if op.degree in ("linear", "product", "quotient", "constant")])
def test_degree_of_all_arguments(op: Op) -> None:
    args = matrices(op)
    power = {"linear": 1, "product": 2, "quotient": 0, "constant": 0}[op.degree]
    expected = 3.0**power * np.asarray(reference(op, *args))
    np.testing.assert_allclose(reference(op, *(3.0 * arg for arg in args)), expected, 1e-12)


@each([op for op in GIVEN if op.parity in ("odd", "even", "linear", "product", "constant")])
def test_parity(op: Op) -> None:
    args = matrices(op)
    sign = {"odd": -1, "linear": -1, "even": 1, "product": 1, "constant": 1}[op.parity]
    negated = [-arg if isinstance(arg, np.ndarray) else arg for arg in args]
    np.testing.assert_allclose(reference(op, *negated), sign * np.asarray(reference(op, *args)), 1e-12)


@each([op for op in WHOLE if op.law is not OPS["rows"].law])
def test_law_gives_the_references_shape(op: Op) -> None:
    shapes = {"r": 5, "c": 3, "1": 1}
    args = [arg[0] if isinstance(arg, np.ndarray) else arg for arg in matrices(op)]
    types = [FULL] * len(args)
    if op.name == "matmul":
        types = [FULL, OPS["transpose"].law(FULL)]
    extent = op.law(*types).extent
    assert np.shape(reference(op, *args)) in ((shapes[extent[0]], shapes[extent[1]]), ())


@each(ABBREVIATIONS)
def test_abbreviation_is_typed_as_what_it_stands_for(op: Op) -> None:
    arguments = [Name("g"), Name("p"), Name("g")][: len(op.params)]
    values = [
        Number(0.5) if op.kinds.get(param) in ("number", "scalar") else arg
        for param, arg in zip(op.params, arguments, strict=True)
    ]
    body = (
        Assign("u", Call(op.name, tuple(values))),
        Assign("p", Call("sub", (Name("p"), Call("mul", (Name("u"), Name("g")))))),
    )
    graph = lower(Program("rule", (), (Hyper("lr", 1.0),), body), Facts(True, "hidden"))
    types = {node.type for node in graph.nodes}
    if op.law is not OPS["debias"].law:
        assert op.law(FULL, FULL) in types
    assert definition(op.expand)


@each(list(OPS.values()))
def test_record_is_complete(op: Op) -> None:
    assert op.doc.endswith(".")
    assert set(op.kinds) <= set(op.params)
    assert set(op.kinds.values()) <= {"mask", "number", "tensor", "scalar"}
    assert (op.ref is None) == bool(op.expand)
    assert bool(op.torch) != bool(op.expand)
    assert all(hasattr(torch_functions, helper) for helper in op.helpers)


def test_second_definition_is_refused() -> None:
    with pytest.raises(ValueError, match="operator 'lerp' is already defined"):
        define("lerp", "a b", "elementwise", "Twice.")


def test_reductions_say_what_they_need() -> None:
    with pytest.raises(MismatchError, match="must be full to have rows and columns"):
        OPS["row_mean"].law(ROWS)
    assert OPS["col_mean"].law(FULL) == COLS
    assert OPS["mean"].law(ROWS) == SCALAR
    assert OPS["matmul"].law(LEFT, FULL) == FULL


def test_the_table_in_the_documentation_is_the_one_in_force() -> None:
    assert docs.PAGE.read_text() == docs.updated(docs.PAGE.read_text())


def test_every_rule_in_the_documentation_is_well_formed() -> None:
    examples = docs.examples(docs.PAGE.read_text())
    assert len(examples) >= 5
    for text in examples:
        program = dsl.parse(text)
        if not program.rules:
            dsl.check(program)
        else:
            dsl.check(dsl.apply(program, dict.fromkeys(program.rules, dsl.load("adamw"))))
