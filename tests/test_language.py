"""Laws of the language: text and program, what is refused and how, flat and tidy spellings, composition,
settings.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsl
from dsl import reference, spelling
from dsl.graph import CONSTANT, INPUT, lower
from dsl.ops import OPS
from dsl.program import (
    RESERVED,
    Assign,
    Call,
    Facts,
    Hyper,
    IdleGradientError,
    If,
    IsMatrix,
    Name,
    Number,
    Program,
    RuleError,
    Slot,
    assignments,
    names_read,
)
from dsl.reference import Machine, extent_shape
from dsl.spelling import renamed
from dsl.types import EXTENTS, FULL, NUMBER, ROWS, SCALAR, MismatchError, Type, broadcast, fits
from tests.strategies import programs, rules

GOLDEN = Path(__file__).parent / "golden"
RULES = [name for name in dsl.names() if not dsl.load(name).rules]
WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]


# Text and program ---------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(programs())
def test_parse_of_format_is_the_same_program(program: Program) -> None:
    assert dsl.parse(dsl.format(program)) == program


@settings(max_examples=100, deadline=None)
@given(programs())
def test_format_of_parse_is_the_same_text(program: Program) -> None:
    text = dsl.format(program)
    assert dsl.format(dsl.parse(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_program_or_an_error_with_a_place(text: str) -> None:
    try:
        dsl.parse(f"def f(p, g):\n    p = {text}\n", "case.rule")
    except RuleError as error:
        assert error.source == "case.rule"  # noqa: PT017


@pytest.mark.parametrize("name", dsl.names())
def test_built_in_rule_reads_back_from_its_print(name: str) -> None:
    program = dsl.load(name)
    assert dsl.parse(dsl.format(program)) == program


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("-2 ** p", "-2 ** p"),
        ("(-2) ** p", "(-2) ** p"),
        ("p ** -2", "p ** -2"),
        ("(p ** g) ** 2", "(p ** g) ** 2"),
        ("p ** g ** 2", "p ** g ** 2"),
        ("p - (g - 1)", "p - (g - 1)"),
        ("(p - g) - 1", "p - g - 1"),
        ("p / (g * 2)", "p / (g * 2)"),
        ("-(p * g)", "-(p * g)"),
        ("-p * g", "-p * g"),
        ("neg(2)", "neg(2)"),
        ("(p < g) * g", "(p < g) * g"),
        ("p @ g * 2", "p @ g * 2"),
        ("1e-8 * p", "1e-8 * p"),
        ("1e16 * p", "1e16 * p"),
        ("-0.0 * p", "-0 * p"),
        ("1000.0 * p", "1000 * p"),
    ],
)
def test_expression_prints_with_the_fewest_parentheses(text: str, printed: str) -> None:
    program = dsl.parse(f"def f(p, g):\n    p = {text}\n")
    assert dsl.format(program).splitlines()[1] == f"    p = {printed}"


def test_the_pages_show_lion_as_it_is() -> None:
    root = Path(__file__).parent.parent
    blocks = re.compile(r"^```python\n(def lion.*?)^```", re.MULTILINE | re.DOTALL)
    (shown,) = blocks.findall((root / "README.md").read_text(encoding="utf-8"))
    assert shown == dsl.format(dsl.load("lion"))
    (written,) = blocks.findall((root / "docs" / "language.md").read_text(encoding="utf-8"))
    assert dsl.parse(written) == dsl.load("lion")


def test_augmented_assignment_is_an_assignment() -> None:
    assert dsl.parse("def f(p, g):\n    p -= g\n") == dsl.parse("def f(p, g):\n    p = p - g\n")


def test_programs_compare_and_hash_by_value_and_not_by_line() -> None:
    a, b = (dsl.parse(f"def f(p, g):\n{blank}    p = p - g\n") for blank in ("", "\n\n"))
    assert a == b
    assert hash(a) == hash(b)
    assert a != dsl.parse("def f(p, g):\n    p = p - 2 * g\n")


# What is refused, and how -------------------------------------------------------------------------------------------

HEAD = "def f(p, g, m: zeros, *, lr=1e-3):\n    "
REFUSED = {
    "syntax": "def f(p, g):\n    p = p - * g\n",
    "two functions": "def f(p, g):\n    p = g\n\ndef h(p, g):\n    p = g\n",
    "nothing": "",
    "null byte": "def f(p, g):\n    p = g\0\n",
    "import": "import os\n\ndef f(p, g):\n    p = g\n",
    "import inside": "def f(p, g):\n    import os\n    p = g\n",
    "no p": "def f(x, g):\n    x = g\n",
    "default on a slot": "def f(p, g, m=0):\n    p = g\n",
    "star arguments": "def f(p, g, *args):\n    p = g\n",
    "slot without shape": "def f(p, g, m):\n    p = g\n",
    "unknown extent": "def f(p, g, m: row(zeros)):\n    p = g\n",
    "eye for a full slot": "def f(p, g, m: eye):\n    p = g\n",
    "copy of p by row": "def f(p, g, m: rows(p)):\n    p = g\n",
    "declared twice": "def f(p, g, m: zeros, *, m=1):\n    p = g\n",
    "g declared": "def f(p, g, m: zeros, g: zeros):\n    p = g\n",
    "built in": "def f(p, g, *, t=1):\n    p = g\n",
    "operator as a name": "def f(p, g, sign: zeros):\n    p = g\n",
    "the count of steps as a slot": "def f(\n    p, g,\n    m: zeros, step: zeros):\n    p = p - g\n",
    "the point to evaluate as a slot": "def f(p, g, evaluation: zeros):\n    p = p - g\n",
    "an option of the optimizer": "def f(p, g, *, maximize=1):\n    p = p - maximize * g\n",
    "a key of parameter groups": "def f(p, g, *, reference_lr=1):\n    p = p - reference_lr * g\n",
    "a name of generated code": "def f(p, g, *,\n    math=1):\n    p = p - math * g\n",
    "hyperparameter without default": "def f(p, g, *, lr):\n    p = g\n",
    "range": "def f(p, g, *, lr: log(0, 1) = 0.1):\n    p = g\n",
    "only a docstring": 'def f(p, g):\n    """Nothing."""\n',
    "unknown operator": HEAD + "p = p - lr * sgn(g)\n",
    "number of arguments": HEAD + "p = p - lr * lerp(m, g)\n",
    "keyword argument": HEAD + "p = lerp(m, g, w=0.1)\n",
    "attribute": HEAD + "p = p.data\n",
    "attribute call": HEAD + "p = torch.sign(g)\n",
    "indexing": HEAD + "p = g[0]\n",
    "lambda": HEAD + "p = (lambda: g)()\n",
    "loop": HEAD + "for i in range(3):\n        p = g\n",
    "conditional expression": HEAD + "p = g if lr else m\n",
    "and": HEAD + "p = g and m\n",
    "chained comparison": HEAD + "p = 0 < g < 1\n",
    "string": HEAD + "p = 'g'\n",
    "walrus": HEAD + "p = (m := g)\n",
    "huge literal": HEAD + "p = g * 1e400\n",
    "huge integer": HEAD + "p = g * 1" + "0" * 400 + "\n",
    "truth value": HEAD + "p = g * True\n",
    "complex number": HEAD + "p = g * 1j\n",
    "nested deeply": HEAD + "p = " + "(" * 70 + "g" + " + g)" * 70 + "\n",
    "nested very deeply": HEAD + "p = " + "-" * 20000 + "g\n",
    "test nested deeply": HEAD + "if " + "not " * 100 + "matrix(p):\n        p = g\n",
    "assignment to a built-in": HEAD + "t = g\n    p = g\n",
    "assignment to a hyperparameter": HEAD + "lr = 1\n    p = g\n",
    "two targets": HEAD + "p = m = g\n",
    "tuple": HEAD + "p, m = g, g\n",
    "returned expression": HEAD + "p = g\n    return p + 1\n",
    "early return": HEAD + "if matrix(p):\n        return p\n    p = g\n",
    "returned name": HEAD + "p = g\n    return x\n",
    "if on a value": HEAD + "if g > 0:\n        p = g\n",
    "unknown role": HEAD + "if role('heads'):\n        p = g\n",
    "unknown name": HEAD + "p = p - lr * momentum\n",
    "name before its assignment": HEAD + "p = p - lr * u\n    u = g\n",
    "scalar wanted": HEAD + "p = lerp(m, g, m)\n",
    "mask wanted": HEAD + "p = where(g, m, g)\n",
    "tensor wanted": HEAD + "p = p - sum(lr) * g\n",
    "number wanted": "def f(p, g):\n    if matrix(p):\n        p = newton_schulz(g, mean(g))\n",
    "matrix wanted": HEAD + "p = p - lr * newton_schulz(g, 5)\n",
    "sizes do not meet": "def f(p, g):\n    if matrix(p):\n        p = p - g - transpose(g)\n",
    "inner sizes differ": "def f(p, g):\n    if matrix(p):\n        p = g @ g\n",
    "rows of rows": "def f(p, g):\n    if matrix(p):\n        p = p - row_mean(row_mean(g)) * g\n",
    "does not fit a slot": "def f(p, g, r: rows(zeros)):\n    r = g\n    p = p - g\n",
    "does not fit p": "def f(p, g):\n    if matrix(p):\n        p = transpose(g)\n",
    "gradient unused": HEAD + "p = p * 0.9\n",
    "p not assigned": HEAD + "m = g\n",
    "rule not given": "def f(p, g, base: rule):\n    p = base(p, g)\n",
    "arguments of a rule": "def f(p, g, base: rule):\n    p = base(p)\n",
}


def test_messages_of_refused_rules_are_the_golden_ones() -> None:
    lines = []
    for case, text in REFUSED.items():
        with pytest.raises(RuleError) as caught:
            dsl.check(dsl.parse(text, "case.rule"))
        lines.append(f"{case}\n    {caught.value}\n")
    assert "".join(lines) == (GOLDEN / "refused_rules.txt").read_text()


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name_is_refused_in_one_line_wherever_it_is_declared(name: str) -> None:
    plain = dsl.parse("def f(p, g):\n    p = p - g\n")
    for program in (replace(plain, slots=(Slot(name, FULL.extent),)), replace(plain, hypers=(Hyper(name, 1.0),))):
        said = f"'{name}' is {RESERVED[name]}; choose another name"
        if program.slots and name in OPS:
            said = f"'{name}' is an operator and cannot be declared"
        with pytest.raises(RuleError, match=f"^{re.escape(f'f.rule:1: {said}')}$"):
            dsl.check(program)
        with pytest.raises(RuleError, match=f"^{re.escape(f'<rule>:1: {said}')}$"):
            dsl.parse(dsl.format(program))


def test_a_slot_twice_is_refused() -> None:
    program = dsl.parse("def f(p, g, m: zeros):\n    m = m + g\n    p = p - m\n")
    with pytest.raises(RuleError, match=r"^f\.rule:1: 'm' is declared twice$"):
        dsl.check(replace(program, slots=2 * program.slots))


def test_rule_error_survives_pickling_and_takes_a_file_name() -> None:
    import pickle

    error = RuleError("wrong", 3, "x.rule")
    assert str(pickle.loads(pickle.dumps(error))) == "x.rule:3: wrong"
    assert str(error.at("y.rule")) == "y.rule:3: wrong"
    with pytest.raises(IdleGradientError) as idle:
        dsl.check(dsl.parse("def idle(p, g):\n    p = p * 2\n"))
    assert type(pickle.loads(pickle.dumps(idle.value.at("y.rule")))) is IdleGradientError


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1e301])
def test_literal_must_be_finite_and_not_huge(value: float) -> None:
    with pytest.raises(RuleError, match="smaller than 1e\\+300"):
        Number(value)


# Types --------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(rules())
def test_every_value_has_the_shape_its_extent_says(program: Program) -> None:
    p = np.linspace(-1.0, 2.0, 30).reshape(2, 5, 3)
    for matrix in (True, False):
        graph = lower(program, Facts.of((2, 2) if matrix else (2,)))
        point = p if matrix else p.reshape(2, 15, 1)
        machine = Machine([graph], [point], program.slots, program.defaults)
        machine.step([point * 0.5], 1, 0.1, 1.0)
        for node, value in zip(graph.nodes, machine.units[0].values, strict=True):
            if node.type.is_number:
                assert np.ndim(value) == 0
            else:
                expected = extent_shape(node.type.extent, point.shape)
                assert np.broadcast_shapes(np.shape(value), expected) == expected
                assert np.shape(value)[-2:] == expected[-2:]


def test_types_broadcast_where_sizes_meet() -> None:
    assert broadcast(ROWS, FULL) == FULL
    assert broadcast(NUMBER, NUMBER) == NUMBER
    assert broadcast(SCALAR, ROWS) == ROWS
    assert broadcast(replace(FULL, mask=True), SCALAR) == FULL
    with pytest.raises(MismatchError, match="flipped"):
        broadcast(FULL, Type(EXTENTS["flipped"]))
    assert fits(SCALAR, ROWS)
    assert not fits(ROWS, SCALAR)


@settings(max_examples=100, deadline=None)
@given(rules())
def test_lowering_keeps_each_value_once_and_after_its_arguments(program: Program) -> None:
    graph = lower(program, Facts(True, "hidden"))
    assert len({(node.op, node.args, repr(node.payload)) for node in graph.nodes}) == len(graph.nodes)
    assert all(arg < index for index, node in enumerate(graph.nodes) for arg in node.args)
    live = {arg for node in graph.nodes for arg in node.args} | set(graph.outputs.values())
    assert live == set(range(len(graph.nodes)))
    assert all(node.op in (INPUT, CONSTANT) or not OPS[node.op].expand for node in graph.nodes)


# Dead statements, flat and tidy -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(rules())
def test_without_dead_statements_a_rule_does_the_same(program: Program) -> None:
    stripped = dsl.strip_dead(program)
    assert dsl.fingerprint(stripped) == dsl.fingerprint(program)
    assert dsl.strip_dead(stripped) == stripped


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("m = v\n v = g\n p = p - lr * m", (0, 1, 2)),  # v is seen to matter only where it is read, before it is set
        ("m = g\n m = 2 * g\n p = p - lr * m", (1, 2)),
        ("m = 2 * g\n p = p - lr * v\n v = m\n m = g", (0, 1, 2)),
        ("m = m + g\n v = v + m\n p = p - lr * g", (2,)),
    ],
)
def test_a_statement_stays_where_its_value_reaches_p_in_some_step(body: str, kept: tuple[int, ...]) -> None:
    program = dsl.parse(f"def r(p, g, m: zeros, v: zeros, *, lr=1):\n {body}")
    assert dsl.strip_dead(program).body == tuple(program.body[index] for index in kept)


@settings(max_examples=100, deadline=None)
@given(rules())
def test_flat_statements_are_one_operator_and_do_the_same(program: Program) -> None:
    flat = dsl.flatten(program)
    for statement in assignments(flat.body):
        assert isinstance(statement.value, Name | Number) or all(
            isinstance(arg, Name | Number) for arg in statement.value.args
        )
    assert dsl.fingerprint(flat) == dsl.fingerprint(program)
    assert dsl.flatten(flat) == flat
    assert dsl.parse(dsl.format(flat)) == flat


@settings(max_examples=100, deadline=None)
@given(rules())
def test_tidy_of_flat_does_the_same_in_fewer_statements(program: Program) -> None:
    flat = dsl.flatten(program)
    tidy = dsl.tidy(flat)
    assert dsl.fingerprint(tidy) == dsl.fingerprint(program)
    assert len(list(assignments(tidy.body))) <= len(list(assignments(dsl.strip_dead(program).body)))
    assert dsl.parse(dsl.format(tidy)) == tidy
    assert dsl.tidy(tidy) == tidy


@pytest.mark.parametrize("name", RULES)
def test_tidy_of_flat_reads_as_the_rule_was_written(name: str) -> None:
    program = dsl.load(name)
    tidy = dsl.tidy(dsl.flatten(program))
    assert dsl.fingerprint(tidy) == dsl.fingerprint(program)
    assert len(list(assignments(tidy.body))) <= len(list(assignments(program.body)))


def test_an_evolved_rule_prints_like_a_written_one() -> None:
    text = (GOLDEN / "evolved.rule").read_text()
    flat, tidy = text.split("\n\n\n")
    assert dsl.format(dsl.tidy(dsl.parse(flat))) == tidy


def test_dead_slots_and_hyperparameters_go() -> None:
    program = dsl.parse(
        "def f(p, g, m: zeros, n: zeros, *, lr=0.1, beta=0.9):\n"
        "    n = lerp(n, m, 0.1)\n    m = g\n    p = p - lr * m\n"
    )
    stripped = dsl.strip_dead(program, hypers=True)
    assert stripped.slots == ()
    assert list(stripped.defaults) == ["lr"]
    assert [statement.target for statement in assignments(stripped.body)] == ["m", "p"]


def test_literals_take_the_place_of_hyperparameters() -> None:
    program = dsl.with_literals(dsl.load("adamw"))
    assert list(program.defaults) == ["lr", "weight_decay"]
    assert "m = lerp(m, g, 0.1)" in dsl.format(program)
    assert dsl.behaviour_hash(program) == dsl.behaviour_hash(dsl.load("adamw"))


# Composition --------------------------------------------------------------------------------------------------------

IDENTITY = dsl.parse("def identity(p, g, base: rule):\n    p = base(p, g)\n")


@pytest.mark.parametrize("base", RULES)
def test_the_identity_wrapper_changes_nothing(base: str) -> None:
    program = dsl.load(base)
    assert dsl.fingerprint(dsl.check(dsl.apply(IDENTITY, {"base": program}))) == dsl.fingerprint(program)


@pytest.mark.parametrize("base", RULES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_takes_every_rule(wrapper: str, base: str) -> None:
    program = dsl.load(f"{wrapper}({base})")
    assert dsl.parse(dsl.format(program)) == program
    assert dsl.fingerprint(dsl.tidy(dsl.flatten(program))) == dsl.fingerprint(program)


@settings(max_examples=60, deadline=None)
@given(rules())
def test_wrapping_is_the_base_on_what_the_wrapper_gives_it(base: Program) -> None:
    """A wrapper that doubles the gradient and halves the step, over any base, step by step against doing so by hand."""
    wrapper = dsl.parse(
        "def half(p, g, m: zeros, base: rule, *, beta=2):\n    m = base(p, beta * g)\n    p = p + (m - p) / 2\n"
    )
    composed = dsl.check(dsl.apply(wrapper, {"base": base}))
    rng = np.random.default_rng(0)
    start = {"w": rng.standard_normal((3, 2)), "b": rng.standard_normal(3)}
    gradients = [{name: rng.standard_normal(value.shape) for name, value in start.items()} for _ in range(1)]
    doubled = [{name: 2 * value for name, value in each.items()} for each in gradients]
    whole = reference.run(composed, start, gradients)[-1].parameters
    by_hand = reference.run(base, start, doubled)[-1].parameters
    for name, value in start.items():
        np.testing.assert_allclose(whole[name], value + (by_hand[name] - value) / 2, rtol=1e-12, atol=1e-12)


def test_names_that_clash_are_prefixed_with_the_base() -> None:
    wrapper = dsl.parse(
        "def slow(p, g, m: like(p), base: rule, *, beta1=0.5):\n"
        "    x = base(p, g)\n    m = lerp(m, x, beta1)\n    p = m\n"
    )
    program = dsl.apply(wrapper, {"base": dsl.load("adamw")})
    assert [slot.name for slot in program.slots] == ["m", "adamw_m", "v"]
    assert list(program.defaults) == ["lr", "beta1", "adamw_beta1", "beta2", "eps", "weight_decay"]


def test_a_name_with_the_base_s_prefix_is_not_one_that_the_base_has() -> None:
    wrapper = dsl.parse("def w(p, g, m: zeros, base: rule):\n    m = m + g\n    p = base(p, m)\n")
    base = dsl.parse(
        "def b(p, g, m: zeros, b_m: ones, *, lr=0.1):\n    m = m + g\n    b_m = b_m * 2\n    p = p - lr * m * b_m\n"
    )
    program = dsl.check(dsl.apply(wrapper, {"base": base}))
    assert [slot.name for slot in program.slots] == ["m", "b_b_m", "b_m"]
    assert dsl.parse(dsl.format(program)) == program
    one = {"p": np.zeros(1)}
    done = reference.run(program, one, [{"p": np.ones(1)}] * 2)
    by_hand = reference.run(base, one, [{"p": np.ones(1)}, {"p": np.full(1, 2.0)}])
    assert done[-1].parameters["p"] == by_hand[-1].parameters["p"]


def test_a_name_with_the_base_s_prefix_is_not_a_reserved_one() -> None:
    wrapper = dsl.parse("def w(p, g, base: rule):\n    bits = g\n    p = base(p, bits)\n")
    base = dsl.parse("def draw(p, g, bits: zeros, *, lr=0.1):\n    bits = bits + g\n    p = p - lr * bits\n")
    program = dsl.check(dsl.apply(wrapper, {"base": base}))
    assert [slot.name for slot in program.slots] == ["draw_draw_bits"]


@pytest.mark.parametrize(
    ("wrapper", "bases", "message"),
    [
        ("p = base(p, g)", {}, "takes a rule as 'base'"),
        ("p = base(p, g)", {"base": "adamw", "other": "lion"}, "takes no rule as 'other'"),
        ("p = base(p, g)", {"base": "clip_global"}, "takes a rule itself"),
        ("p = base(p, g)\n    p = base(p, g)", {"base": "adamw"}, "must call base\\(p, g\\) once"),
        ("p = p + base(p, g)", {"base": "adamw"}, "as a statement of its own"),
        ("p = g", {"base": "adamw"}, "must call base\\(p, g\\) once"),
    ],
)
def test_composition_refused(wrapper: str, bases: dict[str, str], message: str) -> None:
    program = dsl.parse(f"def f(p, g, base: rule):\n    {wrapper}\n")
    with pytest.raises(RuleError, match=message):
        dsl.apply(program, {name: dsl.load(base) for name, base in bases.items()})


# Settings -----------------------------------------------------------------------------------------------------------


def by_hand(rule: str, **values: float) -> Program:
    return dsl.parse(dsl.format(dsl.load(rule).with_defaults(values)))


SET = {
    "muon(adam_lr_ratio=1)": by_hand("muon", adam_lr_ratio=1),
    "  adamw( beta2 = 0.95 ,eps=1e-6 ) ": by_hand("adamw", beta2=0.95, eps=1e-6),
    "sgd()": dsl.load("sgd"),
    "adamw(weight_decay=0)": by_hand("adamw", weight_decay=0),
    "ema_nesterov(muon(adam_lr_ratio=1))": by_hand("ema_nesterov(muon)", adam_lr_ratio=1),
    "ema_nesterov(adamw, gamma=0.9)": by_hand("ema_nesterov(adamw)", gamma=0.9),
    "ema_nesterov(gamma=0.9, adamw(beta1=0.8))": by_hand("ema_nesterov(adamw)", gamma=0.9, beta1=0.8),
    "ema_nesterov(gamma=0.9)(adamw)": by_hand("ema_nesterov(adamw)", gamma=0.9),
    "lookahead(clip_global(momentum(momentum=0.8), max_norm=0.5), k=3)": by_hand(
        "lookahead(clip_global(momentum))", momentum=0.8, max_norm=0.5, k=3
    ),
    "decay_l2(adamw(weight_decay=0.2), weight_decay=0.001)": by_hand(
        "decay_l2(adamw)", adamw_weight_decay=0.2, weight_decay=0.001
    ),
    "galore(rank=3)": by_hand("galore", rank=3),
}


NO_RATES = {
    "ema_nesterov": {"beta": 1.5},  # how far the point is shifted
    "asam": {"rho": 2.0},  # a distance
    "lookahead": {"alpha": 1.0},  # how far slow weights go, which is all the way without it
    "adafactor": {"beta2_decay": 1.0},  # a power of t
    "namo_d": {"clamp": 1.0},
    "am_sgd": {"beta_max": 1.0},
}
"""What looks like the rate of an average by its default, and may well be 1 or more."""

OTHER_USES = {
    "m3": {"beta1", "beta2"},  # weights of sums
    "schedule_free_adamw": {"beta1"},  # where between two points the gradient is taken
    "schedule_free_sgd": {"momentum"},
}


@pytest.mark.parametrize("name", dsl.names())
def test_every_default_of_the_zoo_may_be_set_and_no_average_is_given_a_rate_that_is_none(name: str) -> None:
    program = dsl.load(name)
    for hyper in program.hypers:
        assert spelling.with_settings(program, {hyper.name: hyper.default}, name) == program
    for hyper in program.hypers:
        if hyper.name in spelling.rates(program) and hyper.range is None:
            for value in (0.0, 0.5, 0.9999):
                spelling.with_settings(program, {hyper.name: value}, name)
            for value in (-0.1, 1.0, 2.0):
                with pytest.raises(dsl.RuleError, match="how much of an average stays"):
                    spelling.with_settings(program, {hyper.name: value}, name)
    assert {"beta1", "beta2", "momentum"} & program.defaults.keys() <= spelling.rates(program) | OTHER_USES.get(
        name, set()
    )
    assert not NO_RATES.get(name, {}).keys() & spelling.rates(program)
    spelling.with_settings(program, NO_RATES.get(name, {}), name)


@pytest.mark.parametrize("rule", SET)
def test_settings_are_the_defaults_that_a_file_could_have_and_nothing_else(rule: str) -> None:
    assert dsl.load(rule) == SET[rule]


def test_a_file_and_a_registered_rule_take_settings_and_are_wrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path))
    for path in (tmp_path / "rules" / "mine.rule", tmp_path / "a (copy)" / "x.rule"):
        path.parent.mkdir()
        path.write_text("def mine(p, g, *, lr=0.1, factor=2):\n    p = p - lr * factor * g\n")
    for name in ("mine", str(tmp_path / "a (copy)" / "x.rule")):
        assert dsl.load(f"{name}(factor=3)") == dsl.load(name).with_defaults({"factor": 3})
        assert dsl.load(f"cautious({name}(factor=3), floor=0.1)").defaults == {"lr": 0.1, "floor": 0.1, "factor": 3}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "muon(adam_lr=1)",
            "muon(adam_lr=1): rule 'muon' has no hyperparameter 'adam_lr'; did you mean 'adam_lr_ratio'?",
        ),
        ("sgd(k=1)", "rule 'sgd' has no hyperparameter 'k'; it has lr, weight_decay"),
        ("muon(adam_lr_ratio=100)", "adam_lr_ratio=100 is outside of the range that rule 'muon' declares, 0.001 to 10"),
        (
            "cautious(adamw(lr=-1))",
            "adamw(lr=-1): lr=-1 is outside of the range that rule 'adamw' declares, 1e-05 to 0.1",
        ),
        (
            "cautious(adamw(beta1=2))",
            "adamw(beta1=2): beta1=2: in rule 'adamw' it says how much of an average stays, at least 0 and less than 1",
        ),
        ("adamw(beta2=1)", "beta2=1: in rule 'adamw' it says how much of an average stays"),
        ("momentum(momentum=-0.1)", "momentum=-0.1: in rule 'momentum' it says how much"),
        ("ema_nesterov(muon, gamma=1)", "gamma=1: in rule 'ema_nesterov' it says how much"),
        ("galore(rank=2.5)", "rank gives the state its shape: expected a whole number from 1 for all, not 2.5"),
        ("adamw(beta1)", "'adamw' takes 0 rules, 'adamw(beta1)' gives 1"),
        ("adamw(beta1=high)", "beta1=high: a hyperparameter is set to a number, beta1=0.9 for example"),
        ("adamw(beta1=0.5+0.4)", "beta1=0.5+0.4: a hyperparameter is set to a number"),
        ("adamw(beta1=nan)", "beta1=nan: a hyperparameter is set to a number"),
        ("adamw(eps=1e999)", "eps=1e999: a hyperparameter is set to a number"),
        ("adamw(beta1=True)", "beta1=True: a hyperparameter is set to a number"),
        ("adamw(beta1=)", "beta1=: a hyperparameter is set to a number"),
        ("adamw(beta1=0.8, beta1=0.9)", "'beta1' is given twice"),
        ("adamw(0.9)", "write a rule, or name=number, in place of '0.9'"),
        ("adamw(beta1=0.8,)", "write a rule, or name=number, in place of ''"),
        ("adamw(beta1=0.8", "'adamw(beta1=0.8' is not a rule"),
        ("adamw(beta1=0.8))", "its parentheses do not match"),
        ("(adamw)", "its parentheses do not match"),
        ("ema_nesterov(adamw, gama=0.9)", "rule 'ema_nesterov' has no hyperparameter 'gama'; did you mean 'gamma'?"),
        (
            "ema_nesterov(adamw, beta2=0.9)",
            "'ema_nesterov' has no hyperparameter 'beta2', 'adamw' has it: adamw(beta2=...)",
        ),
        ("lookahead(ema_nesterov(gamma=0.9))", "'ema_nesterov' takes a rule itself"),
        ("f" + "(" * 100_000 + ")" * 100_000, "more than 60 parentheses"),
        ("f" + "()" * 100_000, "more than 60 parentheses"),
    ],
    ids=lambda text: text[:40],
)
def test_settings_refused(rule: str, message: str) -> None:
    with pytest.raises(RuleError, match=re.escape(message)):
        dsl.load(rule)


def test_a_learning_rate_that_a_wrapper_would_ignore_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.rule"
    path.write_text("def half(p, g, base: rule, *, lr=0.5):\n    x = base(p, g)\n    p = p + lr * (x - p)\n")
    assert dsl.load(f"{path}(sgd, lr=0.2)").defaults["lr"] == 0.2
    for base in ("sgd(lr=0.1)", "cautious(sgd(lr=0.1))"):
        with pytest.raises(RuleError, match="has an lr of its own, which holds for both"):
            dsl.load(f"{path}({base})")


names_in_parentheses = st.text("abc_./@:", min_size=1, max_size=5)
spelled = st.recursive(
    names_in_parentheses,
    lambda inner: st.tuples(names_in_parentheses, st.lists(inner | st.just("x=1"), min_size=1, max_size=3)).map(
        lambda both: f"{both[0]}({', '.join(both[1])})"
    ),
    max_leaves=6,
)


@given(spelled)
def test_renaming_changes_names_alone(text: str) -> None:
    assert renamed(text, lambda name: name) == text
    there = re.findall(r"[abc_./@:]+", text)
    assert renamed(text, lambda name: f"<{name}>") == re.sub(r"[abc_./@:]+", lambda found: f"<{found[0]}>", text)
    seen: list[str] = []
    renamed(text, lambda name: seen.append(name) or name)
    assert sorted(seen) == sorted(there)


# Finding rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("adamww", "unknown rule 'adamww'; did you mean 'adamw'\\?"),
        ("adamw(lion)", "'adamw' takes 0 rules, 'adamw\\(lion\\)' gives 1"),
        ("clip_global(", "is not a rule"),
        ("clip_global(1)", "is not a rule"),
        ("nowhere/x.rule", "cannot read rule file 'nowhere/x.rule'"),
    ],
)
def test_rule_not_found(rule: str, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        dsl.load(rule)


def test_a_registered_rule_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(tmp_path))
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "mine.rule").write_text("def mine(p, g, *, lr=0.1):\n    p = p - lr * g\n")
    assert dsl.load("mine").name == "mine"
    assert dsl.load("clip_global(mine)").name == "clip_global_mine"


def test_a_file_that_is_no_rule_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.rule"
    path.write_text("def bad(p, g):\n    p = p * 2\n")
    with pytest.raises(RuleError, match=r"bad\.rule:1: the gradient g is not used"):
        dsl.load(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RuleError, match="is not UTF-8 text"):
        dsl.load(str(path))


def test_defaults_can_be_changed_by_name_only() -> None:
    assert dsl.load("lion").with_defaults({"beta1": 0.5}).defaults["beta1"] == 0.5
    with pytest.raises(RuleError, match="has no hyperparameter 'gamma'; it has lr, beta1"):
        dsl.load("lion").with_defaults({"gamma": 0.5})


def test_slots_read_before_their_assignment_hold_the_last_steps_value() -> None:
    program = dsl.check(dsl.parse("def f(p, g, m: zeros):\n    p = p - m\n    m = g\n"))
    gradients = [{"p": np.array([float(step)])} for step in (1, 2, 3)]
    states = reference.run(program, {"p": np.zeros(1)}, gradients)
    assert [state.parameters["p"].item() for state in states] == [0.0, -1.0, -3.0]


def test_walking_covers_both_branches() -> None:
    body = (If(IsMatrix(), (Assign("u", Name("g")),), (Assign("p", Call("neg", (Name("u"),))),)),)
    assert [statement.target for statement in assignments(body)] == ["u", "p"]
    assert names_read(Call("add", (Name("u"), Number(1.0)))) == {"u"}
