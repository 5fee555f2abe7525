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
from discover import optim
from dsl import docs, torch_functions
from dsl.graph import lower
from dsl.lane_rule import LaneRule
from dsl.ops import OPS, Op, define
from dsl.parse import definition
from dsl.program import Assign, Call, Facts, Hyper, Name, Number, Program
from dsl.types import COLS, EXTENTS, FULL, LEFT, NUMBER, ROWS, SCALAR, MismatchError, Type
from tests.analysis import DEGREES, PARITIES

ORDINARY = (-3.7, -1.5, -1.0, -0.3, 0.2, 1.0, 1.7, 2.0, 4.4)
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, -5e-324, 1e-310, 1e300, -1e300, 1.0, -1.0, 2.5)
GIVEN = [op for op in OPS.values() if not op.expand and op.combine != "closure"]
CLOSURES = [op for op in OPS.values() if op.combine == "closure"]
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


ROW, COLUMN, BLOCK, RANK = 5, 3, 4, 2
SIZES = {"r": ROW, "c": COLUMN, "1": 1, "n": ROW * COLUMN, "k": RANK, "b": 4}
UPRIGHT = {"column order": ("c", "1"), "row order": ("r", "1"), "flat": ("n", "1")}
DRAWN = (3.0, 7.0, 2.0)
ARGUMENTS: dict[str, tuple[str | float, ...]] = {
    "matmul": ("full", "flipped"),
    "newton_schulz": ("full", 5.0),
    "newton_schulz_cubic": ("full", 5.0),
    "sinkhorn": ("full", 3.0),
    "quantile": ("full", 0.3),
    "block_mean": ("full", BLOCK),
    "eye": ("right",),
    "diagonal": ("right",),
    "eigenvectors": ("right",),
    "top_vectors": ("right", RANK),
    "matrix_power": ("right", -0.25),
    "orthonormal": ("right",),
    "solve": ("right", "plain"),
    "order": ("rows",),
    "take_columns": ("full", "column order"),
    "take_rows": ("full", "row order"),
    "unflatten": ("flat", "full"),
    "put_column": ("full", 1.0, "rows"),
    "column": ("full", 2.0),
    "draw_uniform": ("full", *DRAWN),
    "draw_gaussian": ("full", *DRAWN),
    "draw_rademacher": ("full", *DRAWN),
    "draw_subset": ("full", 0.4, *DRAWN),
    "block_amax": ("full", BLOCK),
    "quantize": ("full", "scale", BLOCK, 1.0),
    "dequantize": ("codes", "scale", BLOCK, 0.0),
}
"""What an operator on whole tensors is given, where it is not full tensors: extents, some by what they must hold, and
numbers."""


def array(kind: str, rng: np.random.Generator, values: tuple[float, ...]) -> np.ndarray[Any, Any]:
    """An argument of two lanes, with the given values among the elements of the first."""
    match kind:
        case "right":  # symmetric and positive, but for the values
            x = rng.standard_normal((2, ROW, COLUMN))
            square = np.swapaxes(x, -1, -2) @ x + 0.1 * np.eye(COLUMN)
            for place, value in enumerate(values):
                square[0, place, place] = value
            return square
        case "plain":
            return rng.standard_normal((2, COLUMN, ROW))
        case "codes":
            return rng.integers(0, 256, (2, ROW, COLUMN))
        case "scale":
            return 0.1 + 4 * rng.random((2, SIZES["b"], 1))
        case "column order" | "row order":
            return rng.permuted(np.tile(np.arange(SIZES[UPRIGHT[kind][0]]), (2, 1)), axis=1)[..., None]
    rows, cols = (SIZES[size] for size in UPRIGHT.get(kind) or EXTENTS[kind])
    free = rng.standard_normal((2, rows, cols))
    free[0].flat[cols : cols + len(values)] = values
    return free


def type_of(argument: str | float) -> Type:
    if not isinstance(argument, str):
        return NUMBER
    named = {"plain": "flipped", "codes": "full", "scale": "blocks"}
    extent = UPRIGHT.get(argument) or EXTENTS[named.get(argument, argument)]
    return Type(extent, code=argument in ("codes", "column order", "row order"))


def given(op: Op) -> tuple[str | float, ...]:
    return ARGUMENTS.get(op.name) or ("full",) * len(op.params)


def matrices(op: Op, *values: float) -> list[Any]:
    """Arguments [2, rows, cols] for an operator on whole tensors, with the given values in the first lane."""
    rng = np.random.default_rng(0)
    return [array(each, rng, values) if isinstance(each, str) else each for each in given(op)]


def times(factor: float, args: list[Any]) -> list[Any]:
    """Values scaled; numbers and codes as they are."""
    return [factor * arg if isinstance(arg, np.ndarray) and arg.dtype == np.float64 else arg for arg in args]


TROUBLE = [(), (0.0, -0.0), (math.inf,), (math.inf, -math.inf), (math.nan,), (1e-310, 1e200)]
OVERFLOWING = ("newton_schulz", "newton_schulz_cubic", "polar", "eigenvectors", "top_vectors", "orthonormal")
"""What is left of other elements beside one of 1e200 is rounding."""


@pytest.mark.parametrize(
    ("op", "values"),
    [
        pytest.param(op, values, id=f"{op.name}-{values}")
        for op in WHOLE
        for values in TROUBLE
        if not (op.name in OVERFLOWING and 1e200 in values)
    ],
)
def test_operator_on_whole_tensors_agrees_with_reference_alone_and_in_lanes(op: Op, values: tuple[float, ...]) -> None:
    assert isinstance(op.torch, str)
    args = matrices(op, *values)
    expected = np.asarray(reference(op, *args), np.float64)
    lanes = evaluate(op.lanes or op.torch, *(torch.tensor(a) if isinstance(a, np.ndarray) else a for a in args))
    np.testing.assert_allclose(np.asarray(lanes), np.broadcast_to(expected, np.shape(lanes)), 1e-9, 1e-12)
    for lane in range(2):
        one = [a[lane] if isinstance(a, np.ndarray) else a for a in args]
        alone = np.asarray(reference(op, *one), np.float64)
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


@pytest.mark.parametrize("shapes", [((5, 3), (3, 1)), ((1, 5), (5, 3)), ((1, 5), (5, 1)), ((5, 3), (3, 5))], ids=str)
def test_product_of_lanes_is_that_of_each(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    a, b = (torch.tensor(np.random.default_rng(0).standard_normal((7, *shape))) for shape in shapes)
    together = torch_functions.lane_product(a, b)
    np.testing.assert_allclose(together, a @ b, 1e-12)
    assert torch.equal(together[2:3], torch_functions.lane_product(a[2:3], b[2:3]))


def test_eigenvectors_have_one_sign_and_fall() -> None:
    a = torch.tensor(array("right", np.random.default_rng(1), ()))
    vectors = torch_functions.eigenvectors(a)
    values = torch.diagonal(vectors.mT @ a @ vectors, dim1=-2, dim2=-1)
    np.testing.assert_allclose(vectors @ torch.diag_embed(values) @ vectors.mT, a, 1e-12)
    assert (values.diff() < 0).all()
    assert (vectors.amax(-2) == vectors.abs().amax(-2)).all()


SIZED = """
def sized(p, g, q: rows_rank(zeros), h: history(zeros), s: blocks(zeros), *, lr=0.1, rank=2, history=3, block=4):
    if matrix(p):
        s = block_amax(abs(g), block)
        h = put_column(h, t % history, flatten(g))
        q = where(t % 2 == 0, 0, q)
        q = q + cols(q) + 10 * rows(q) + 100 * cols(h) + 1000 * rows(s) + 1e4 * rows(h) + 1e5 * size(q) + 1e6 * size(s)
        p = p - lr * g * sum(q) - lr * sum(s) - lr * sum(h)
"""


@pytest.mark.parametrize("shape", [(3, 5), (5, 1), (6, 2)], ids=str)
def test_sizes_of_state_are_what_they_are(shape: tuple[int, int]) -> None:
    program = dsl.check(dsl.parse(SIZED))
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(shape), rng.standard_normal((4, *shape))
    expected = dsl.reference.run(program, {"p": start}, [{"p": g} for g in grads])[-1].parameters["p"]
    p = torch.tensor(start, requires_grad=True)
    opt = optim.create(program, [p])
    lanes, lane_rule = (
        torch.tensor(start).reshape(1, -1),
        LaneRule(program, [(shape, "hidden")], lanes=1, dtype=p.dtype),
    )
    for t, g in enumerate(torch.tensor(grads), 1):
        p.grad = g
        opt.step()
        lane_rule.step(lanes, g.reshape(1, -1).clone(), t, program.defaults)
    np.testing.assert_allclose(p.detach(), expected, 1e-12)
    np.testing.assert_allclose(lanes.reshape(shape), expected, 1e-12)


# Facts --------------------------------------------------------------------------------------------------------------


@each([op for op in GIVEN if op.commutative])
def test_commutative_operator_does_not_see_the_order(op: Op) -> None:
    a, b = grid(op, (*ORDINARY, *SPECIAL))
    np.testing.assert_array_equal(reference(op, a, b), reference(op, b, a))


def _positive(op: Op) -> list[Any]:
    floats = (isinstance(arg, np.ndarray) and arg.dtype == np.float64 for arg in matrices(op))
    return [np.abs(arg) + 0.1 if free else arg for arg, free in zip(matrices(op), floats, strict=True)]


NUMBERED = {name: float(word) for name, word in DEGREES.items() if word.lstrip("-").replace(".", "").isdigit()}


@each([op for op in GIVEN if op.name in NUMBERED and "mask" not in op.kinds.values()])
def test_degree_of_one_argument(op: Op) -> None:
    args = _positive(op)
    expected = 3.0 ** NUMBERED[op.name] * np.asarray(reference(op, *args), float)
    np.testing.assert_allclose(np.asarray(reference(op, *times(3.0, args)), float), expected, 1e-5)


@each([op for op in GIVEN if DEGREES.get(op.name) in ("linear", "product", "quotient", "constant")])
def test_degree_of_all_arguments(op: Op) -> None:
    args = matrices(op)
    power = {"linear": 1, "product": 2, "quotient": 0, "constant": 0}[DEGREES[op.name]]
    expected = 3.0**power * np.asarray(reference(op, *args))
    np.testing.assert_allclose(reference(op, *times(3.0, args)), expected, 1e-12)


@each([op for op in GIVEN if PARITIES.get(op.name) in ("odd", "even", "linear", "product", "constant")])
def test_parity(op: Op) -> None:
    args = matrices(op)
    sign = {"odd": -1, "linear": -1, "even": 1, "product": 1, "constant": 1}[PARITIES[op.name]]
    np.testing.assert_allclose(reference(op, *times(-1.0, args)), sign * np.asarray(reference(op, *args)), 1e-12)


@each([op for op in WHOLE if op.law is not OPS["rows"].law])
def test_law_gives_the_references_shape(op: Op) -> None:
    args = [arg[0] if isinstance(arg, np.ndarray) else arg for arg in matrices(op)]
    rows, cols = op.law(*map(type_of, given(op))).extent
    assert np.shape(reference(op, *args)) in ((SIZES[rows], SIZES[cols]), ())


@each(ABBREVIATIONS)
def test_abbreviation_is_typed_as_what_it_stands_for(op: Op) -> None:
    arguments = [Name("gp"[position % 2]) for position in range(len(op.params))]
    values = [
        Number(0.5) if op.kinds.get(param) in ("number", "scalar", "key") else arg
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
    assert set(op.kinds.values()) <= {"mask", "number", "key", "tensor", "scalar", "code"}
    assert (op.ref is None) == bool(op.expand or op in CLOSURES)
    assert bool(op.torch) != bool(op.expand or op in CLOSURES)
    assert all(hasattr(torch_functions, helper) for helper in op.helpers)


def test_second_definition_is_refused() -> None:
    with pytest.raises(ValueError, match="operator 'lerp' is already defined"):
        define("lerp", "a b", "elementwise", "Twice.")


def test_reductions_say_what_they_need() -> None:
    with pytest.raises(MismatchError, match="must be full to have rows and columns"):
        OPS["row_mean"].law(ROWS)
    with pytest.raises(MismatchError, match="must have columns"):
        OPS["column"].law(ROWS, NUMBER)
    assert OPS["col_mean"].law(FULL) == COLS
    assert OPS["row_norm"].law(Type(EXTENTS["rows_rank"])) == ROWS
    assert OPS["col_norm"].law(Type(EXTENTS["rank_cols"])) == COLS
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


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("values", [(), (math.nan,)], ids=str)
def test_quantile_interpolates_as_numpy(q: float, values: tuple[float, ...]) -> None:
    a = matrices(OPS["quantile"], *values)[0]
    with np.errstate(all="ignore"):
        expected = np.quantile(a, q, axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(reference(OPS["quantile"], a, q), expected, 1e-12)
    np.testing.assert_allclose(torch_functions.quantile(torch.tensor(a), q, lanes=True), expected, 1e-12)


@pytest.mark.parametrize("q", [math.nan, -1.0, 0.25, 2.0, math.inf])
def test_quantile_takes_any_share(q: float) -> None:
    a = np.arange(6.0).reshape(2, 3)
    expected = 0.0 if not q > 0 else 5.0 * min(q, 1.0)
    assert float(reference(OPS["quantile"], a, q).item()) == expected
    assert float(torch_functions.quantile(torch.tensor(a), q)) == expected


@pytest.mark.parametrize("k", [math.nan, -1.0, 1.0, 2.0, 4.0, 6.0, math.inf])
def test_block_mean_takes_any_length(k: float) -> None:
    a = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    blocks = {2.0: [1.5, 1.5, 6, 6, 24, 24], 4.0: [3.75, 3.75, 3.75, 3.75, 24, 24]}
    whole = [10.5] * 6 if k >= 6 else a.flatten()
    expected = np.reshape(blocks.get(k, whole), (2, 3))
    np.testing.assert_allclose(reference(OPS["block_mean"], a, k), expected, 1e-15)
    np.testing.assert_allclose(torch_functions.block_mean(torch.tensor(a), k), expected, 1e-15)


def test_powers_in_low_precision_keep_small_eigenvalues() -> None:
    """They are cut off where the precision of the decomposition ends, not where the matrix's own does."""
    values = torch.logspace(0, -4, 128).bfloat16()
    found = torch_functions.matrix_power(values.diag(), -0.25)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.diagonal(), values.float().pow(-0.25).bfloat16(), rtol=0.02, atol=0)


def test_a_singular_system_is_lost_alone() -> None:
    a = np.stack([np.eye(3), np.zeros((3, 3)), 2 * np.eye(3)])
    b = np.ones((3, 3, 1))
    expected = reference(OPS["solve"], a, b)
    assert np.isnan(expected[1]).all()
    np.testing.assert_array_equal(expected[[0, 2], :, 0], [[1.0] * 3, [0.5] * 3])
    np.testing.assert_array_equal(torch_functions.solve(torch.tensor(a), torch.tensor(b)), expected)
