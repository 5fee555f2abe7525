"""Generated code means what the reference says, changes nothing but its own state, and reads as if written by hand."""

from __future__ import annotations

import ast
import math
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dsl
from discover import optim
from discover.gate import Gate, New
from discover.mutate import mutate
from discover.plan import Plan
from discover.space import Space
from dsl import reference
from dsl.codegen import Style, compiled, generate, is_flat
from dsl.graph import lower, needs
from dsl.lane_rule import LaneRule
from dsl.ops import OPS, Op
from dsl.parse import definition
from dsl.program import Assign, Call, Expr, Facts, Hyper, If, IsMatrix, Name, Number, Program, RuleError
from tests.strategies import rules
from tests.zoo.closures import closure_of

GOLDEN = Path(__file__).parent / "golden"
MATRIX = Facts(True, "hidden")
BASES = [name for name in dsl.names() if not dsl.load(name).rules]
RULES = [*BASES, *(f"{name}(adamw)" for name in dsl.names() if dsl.load(name).rules)]
SHAPES = {"matrix": (4, 3), "kernel": (2, 2, 3), "vector": (5,), "scalar": ()}


# Against the reference --------------------------------------------------------------------------------------------


def by_reference(program: Program, seed: int, steps: int) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return params, [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(steps)]


LAYOUT = [(shape, Facts.of(shape).role) for shape in SHAPES.values()]


def together(values: Mapping[str, np.ndarray]) -> Tensor:
    return torch.tensor(np.concatenate([values[name].ravel() for name in SHAPES]))


def close(mine: Tensor, want: np.ndarray) -> bool:
    size = float(np.max(np.abs(want), initial=1e-3))
    return bool(np.allclose(mine.detach().numpy(), want, rtol=1e-7, atol=1e-9 * size))


def test_division_by_zero_is_that_of_ieee_arithmetic() -> None:
    program = dsl.parse("def f(p, g, m: zeros, *, lr=0.1):\n    m = lerp(m, g / 0.0, 0.1)\n    p = p - lr * m\n")
    p = torch.ones(2, requires_grad=True)
    opt = optim.create(program, [p])
    p.grad = torch.tensor([2.0, -3.0])
    opt.step()
    assert p.tolist() == [-math.inf, math.inf]


@given(rules(), st.integers(0, 5))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_random_programs_follow_the_reference(program: Program, seed: int) -> None:
    """As an optimizer, and as two lanes; a program that leaves the finite numbers proves nothing from there on."""
    params, gradients = by_reference(program, seed, 5)
    with np.errstate(all="ignore"):
        states = reference.run(program, params, gradients)
    tensors = [torch.tensor(value, requires_grad=True) for value in params.values()]
    opt = optim.create(program, tensors)
    lanes = LaneRule(program, LAYOUT, lanes=2, dtype=torch.float64)
    P = together(params).repeat(2, 1)  # noqa: N806
    for t, (gradient, state) in enumerate(zip(gradients, states, strict=True), start=1):
        assume(all(np.isfinite(value).all() and np.abs(value).max() < 1e8 for value in state.parameters.values()))
        flat = together(gradient)
        for p, value in zip(tensors, gradient.values(), strict=True):
            p.grad = torch.tensor(value)
        try:
            opt.step()
            lanes.step(P, flat.repeat(2, 1), t, program.defaults)
        except (ArithmeticError, ValueError) as error:
            assume(isinstance(error, ArithmeticError) or "math domain" not in str(error))
            raise
        for p, want in zip(tensors, state.parameters.values(), strict=True):
            assert close(p, want), f"{dsl.format(program)}\n{generate(program, Facts.of(p.shape)).source}"
        assert close(P[0], together(state.parameters).numpy()), dsl.format(program)
        assert torch.equal(P[0], P[1])


def expression(text: str) -> Expr:
    return definition(text)({})


GRAM = "(transpose(g) @ g + eye(transpose(g) @ g))"
"""Symmetric and positive, cols x cols."""
SCALE = "block_amax(abs(g), 4)"
CODES = {
    "take_columns": expression(f"order(diagonal({GRAM}))"),
    "take_rows": expression("order(row_sum(g))"),
    "dequantize": expression(f"quantize(g, {SCALE}, 4, 1)"),
}
FITTING = {
    name: [expression(arg) for arg in args]
    for name, args in {
        "eye": [GRAM],
        "diagonal": [GRAM],
        "top_vectors": [GRAM, "2"],
        "matrix_power": [GRAM, "-0.25"],
        "orthonormal": [GRAM],
        "solve": [GRAM, "transpose(p)"],
        "unflatten": ["flatten(p)", "g"],
        "put_column": ["p", "1", "row_sum(g)"],
        "column": ["p", "1"],
        "quantize": ["g", SCALE, "4", "1"],
        "dequantize": [f"quantize(g, {SCALE}, 4, 1)", SCALE, "4", "1"],
        "order": ["row_sum(g)"],
        "eigenvectors": [GRAM],
    }.items()
}
"""Arguments for operators that take no p and g."""
WRAPS: list[Callable[[Expr], Expr]] = [
    lambda e: e,
    lambda e: Call("matmul", (e, Name("g"))),
    lambda e: Call("matmul", (Name("p"), e)),
    lambda e: Call("transpose", (e,)),
    lambda e: Call("square", (Call("matmul", (Name("p"), e)),)),  # eigenvectors have any sign
    lambda e: Call("matmul", (Name("p"), Call("matmul", (e, Call("transpose", (e,)))))),
    lambda e: Call("unflatten", (e, Name("g"))),
    lambda e: Call("sum", (e,)),
    lambda e: Call("take_rows", (Name("p"), e)),
    lambda e: Call("dequantize", (e, expression(SCALE), Number(4), Number(1))),
]


def operator_program(op: Op) -> Program | None:
    """p = op(p, g, ...), arguments made to fit and the result brought into p."""
    values: list[Expr] = [Name("p"), Name("g"), Number(0.3)]
    args: list[Expr] = []
    for position, param in enumerate(op.params):
        kind = op.kinds.get(param, "value")
        if kind == "mask":
            args.append(Call("gt", (Name("g"), Name("p"))))
        elif kind in ("number", "scalar", "key"):
            args.append(Number(0.3) if kind == "scalar" or param == "density" else Number(3))
        elif kind == "code":
            args.append(CODES[op.name])
        else:
            args.append(values[min(position, 2)])
    if op.name == "where" or op.name == "every":
        args[1:] = [Name("p"), Name("g")]
    if op.name == "matmul":
        args[1] = Call("transpose", (Name("g"),))
    args = FITTING.get(op.name, args)
    used = Call("mul", (Number(0), Name("g")))
    for wrap in WRAPS:
        line = (Assign("x", wrap(Call(op.name, tuple(args)))), Assign("p", Call("add", (used, Name("x")))))
        body = (If(IsMatrix(), line),)
        program = Program("operator", (), (Hyper("block", 4), Hyper("rank", 2), Hyper("history", 3)), body)
        try:
            lower(program, MATRIX)
            return program
        except RuleError:
            continue
    return None


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.7, -2.5, 1e-310, -1e-310, 1e300, -1e300]
INFINITE = [np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("infinite", [False, True], ids=["finite", "infinite"])
@pytest.mark.parametrize("op", [op for op in OPS.values() if op.combine != "closure"], ids=lambda op: op.name)
def test_operator_is_lowered_to_what_the_reference_says_on_special_values(op: Op, infinite: bool) -> None:
    if infinite and op.special:
        pytest.skip(op.special)
    program = operator_program(op)
    assert program is not None, "give its arguments in FITTING"
    values = np.array([x for x in SPECIAL if not op.special or 1e-3 < abs(x) < 1e3] + (INFINITE if infinite else []))
    pairs = np.stack(np.meshgrid(values, values)).reshape(2, len(values), len(values))
    elementwise = op.group in ("arithmetic", "elementwise", "comparison")
    p, g = pairs if elementwise else (np.cos(np.arange(12.0) ** 2).reshape(4, 3), np.sin(np.arange(12.0)).reshape(4, 3))
    g = np.where(np.isfinite(g), g, 1.0) if infinite and elementwise else g  # 0 * g keeps what is finite
    with np.errstate(all="ignore"):
        want = reference.run(program, {"p": p}, [{"p": g}])[0].parameters["p"]
    code = generate(program, MATRIX)
    mine = torch.tensor(p)
    numbers = {"t": 1, "lr_ratio": 1.0, "place": 0, **program.defaults}
    totals: dict[str, Tensor] = {}
    for barrier in code.barriers:
        shares = compiled(barrier.share)(mine, torch.tensor(g), *[numbers[name] for name in barrier.share.params[2:]])
        totals.update(zip((total.name for total in barrier.totals), shares, strict=True))
    compiled(code.update)(mine, torch.tensor(g), *[(numbers | totals)[name] for name in code.update.params[2:]])
    np.testing.assert_allclose(mine.numpy(), want, rtol=1e-12, atol=0 if elementwise else 1e-12, err_msg=code.source)


def distance(params: list[torch.Tensor], targets: list[torch.Tensor], sample: bool) -> torch.Tensor:
    """A loss whose gradient is params - targets, of one example."""
    return torch.stack([((p - x) ** 2 / 2).sum() for p, x in zip(params, targets, strict=True)]).sum()[None]


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_left_as_they_are(rule: str) -> None:
    params = [torch.randn(shape, requires_grad=True) for shape in SHAPES.values()]
    opt = optim.create(rule, params)
    for _ in range(5):
        targets = [torch.randn(p.shape) for p in params]
        for p, x in zip(params, targets, strict=True):
            p.grad = p.detach() - x
        before = [p.grad.clone() for p in params if p.grad is not None]
        asking = closure_of(rule, params, partial(distance, params, targets))
        opt.step(asking if needs(opt.program).closure else None, examples=1)
        assert all(torch.equal(a, b) for a, b in zip(before, (p.grad for p in params), strict=True))  # type: ignore[arg-type]


# The text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", ["adamw", "lion", "muon", "nadam", "lookahead_adam", "clip_global_sgd", "ema_nesterov_adamw"]
)
def test_code_reads_as_its_golden_file_says(rule: str) -> None:
    names = {"lookahead_adam": "lookahead(adam)", "clip_global_sgd": "clip_global(sgd)"}
    program = dsl.load({**names, "ema_nesterov_adamw": "ema_nesterov(adamw)"}.get(rule, rule))
    lanes = Style(lanes=True, flat=is_flat(lower(program, MATRIX)), per_lane=frozenset({"lr"}))
    text = f"# tensor\n{generate(program, MATRIX).source}\n\n# lanes\n{generate(program, MATRIX, lanes).source}"
    assert text == (GOLDEN / f"{rule}_code.txt").read_text()


@pytest.mark.parametrize("rule", RULES)
def test_elementwise_code_never_asks_for_the_shape(rule: str) -> None:
    program = dsl.load(rule)
    for facts in (MATRIX, Facts(False, "vector")):
        code = generate(program, facts)
        assert code.matrix or not any(word in code.source for word in ("view", "reshape", "shape", "dim="))


def test_work_that_only_a_branch_needs_is_done_in_that_branch() -> None:
    text = """
    def rare(p, g, q: left(eye), *, lr=0.1, k=10):
        if matrix(p):
            q = every(k, newton_schulz(g @ transpose(g), 5), q)
            p = p - lr * (q @ g)
    """
    code = generate(dsl.check(dsl.parse(textwrap.dedent(text))), MATRIX)
    (function,) = ast.parse(code.update.source).body
    assert isinstance(function, ast.FunctionDef)
    outside = [ast.unparse(node) for node in function.body if not isinstance(node, ast.If)]
    inside = [ast.unparse(node) for node in function.body if isinstance(node, ast.If)]
    assert len(inside) == 1
    assert "newton_schulz" in inside[0]
    assert not any("newton_schulz" in line for line in outside)


EXCHANGES = {
    "swap": ("a: zeros, b: ones", "c = a + g\na = b\nb = c\np = p - lr * a"),
    "rotate": ("a: zeros, b: ones, c: like(p)", "d = a\na = b\nb = c\nc = d + g\np = p - lr * (a + b * c)"),
    "old value read last": ("m: zeros", "n = m\nm = lerp(m, g, 0.1)\np = p - lr * (m + n * m)"),
    "p read by a slot": ("m: zeros", "m = p\np = p - lr * g * m"),
    "difference": ("q: like(p)", "d = p - q\nq = p\np = p - lr * (g + d)"),
    "in a branch": ("a: zeros, b: ones", "x = every(2, a + g, b)\nb = every(2, a, x)\na = x\np = p - lr * (a + b)"),
    "both ways": ("a: zeros", "a = where(t > 2, a * 0.5 + g, a - g)\np = where(t % 2 == 0, p - lr * a, p + lr * a)"),
    **{
        f"turned: {change}": (
            "r: right(eye)",
            f"if matrix(p):\n    p = p - lr * (g + p @ r)\n    r = {change}\nelse:\n    p = p - lr * g",
        )
        for change in (
            "transpose(r)", "r + 0.5 * transpose(r)", "lerp(r, transpose(r), 0.3)", "max(r, transpose(r))",
            "r * transpose(r)", "every(2, transpose(p) @ g, transpose(r))", "transpose(r) @ r",
            "0.5 * r - transpose(r) + transpose(p) @ g",
        )
    },
    **{
        f"spread: {read}": (
            slots,
            f"if matrix(p):\n    x = where(t < 3, {narrow}, {wide})\n    p = p - lr * {read}\n"
            "else:\n    p = p - lr * g",
        )
        for slots, narrow, wide, read in (
            ("", "2", "row_mean(g)", "g * norm(x)"),
            ("", "rms(g)", "col_mean(g)", "g * norm(x)"),
            ("", "row_mean(g)", "g", "x * norm(x)"),
            ("", "2", "g @ transpose(g)", "x @ g"),
            ("", "rms(g)", "transpose(g) @ g", "g @ x"),
            ("", "rms(g)", "transpose(g)", "g @ x @ g"),
        )
    },
}  # fmt: skip
"""Slots and statements that a wrong order, or a value in fewer places than it should have, would make wrong."""


@pytest.mark.parametrize("name", EXCHANGES)
def test_values_are_read_before_they_are_overwritten(name: str) -> None:
    slots, body = EXCHANGES[name]
    text = f"def exchange({', '.join(filter(None, ('p, g', slots)))}, *, lr=0.1):\n" + "".join(
        f"    {line}\n" for line in body.split("\n")
    )
    program = dsl.check(dsl.parse(text))
    params, gradients = by_reference(program, 0, 6)
    states = reference.run(program, params, gradients)
    tensors = [torch.tensor(value, requires_grad=True) for value in params.values()]
    opt = optim.create(program, tensors)
    lanes = LaneRule(program, LAYOUT, lanes=2, dtype=torch.float64)
    flat = together(params).repeat(2, 1)
    for t, (gradient, state) in enumerate(zip(gradients, states, strict=True), start=1):
        for p, value in zip(tensors, gradient.values(), strict=True):
            p.grad = torch.tensor(value)
        opt.step()
        lanes.step(flat, together(gradient).repeat(2, 1), t, program.defaults)
        for p, want in zip(tensors, state.parameters.values(), strict=True):
            assert close(p, want), generate(program, MATRIX).source
        assert close(flat[1], together(state.parameters).numpy())


@pytest.mark.parametrize("name", ["lion_like", "matrix", "stateless"])
def test_what_a_search_proposes_follows_the_reference_in_lanes(name: str) -> None:
    """Sixty programs, each a change of an earlier one, with all operators of the space: more than the random ones."""
    space, rng = Space.load(name), np.random.default_rng(0)
    plan = Plan(space, 0, "evolution", {}, False, tuple(dsl.format(rule) for rule in space.ancestors()))
    gate, family, tried = Gate(space.require, space.probes), list(plan.ancestors), 0
    while tried < 60:
        found = gate.examine(mutate(family[int(rng.integers(len(family)))], plan.grammar, rng).program)
        if not isinstance(found, New):
            continue
        family.append(found.program)
        tried += 1
        params, gradients = by_reference(found.program, tried, 4)
        with np.errstate(all="ignore"):
            states = reference.run(found.program, params, gradients)
        lanes, flat = LaneRule(found.program, LAYOUT, lanes=2, dtype=torch.float64), together(params).repeat(2, 1)
        for t, (gradient, state) in enumerate(zip(gradients, states, strict=True), start=1):
            whole = together(state.parameters).numpy()
            if not (np.isfinite(whole).all() and np.abs(whole).max() < 1e6):
                break
            try:
                lanes.step(flat, together(gradient).repeat(2, 1), t, found.program.defaults)
            except ArithmeticError:
                break
            size = max(1e-3, float(np.abs(whole).max()))
            assert np.allclose(flat[1].numpy(), whole, rtol=1e-4, atol=1e-5 * size), dsl.format(found.program)
