"""Laws of the properties: what is known of the classics, and whatever analysis proves is also measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

import dsl
from dsl import identify, properties
from dsl.program import Program
from tests.analysis import EPS, proven_degree, proves_odd
from tests.strategies import rules

RULES = [name for name in dsl.names() if not dsl.load(name).rules]
COMPOSED = [f"{name}(adamw)" for name in dsl.names() if dsl.load(name).rules]


def rule(body: str, slots: str = "m: zeros, v: zeros") -> Program:
    lines = "".join(f"    {line.strip()}\n" for line in body.split(";"))
    return dsl.check(dsl.parse(f"def f(p, g, {slots}, *, lr=0.1, weight_decay=0.1):\n{lines}"))


SGD = "p = p - lr * (g + weight_decay * p)"
ADAM = "m = lerp(m, g, 0.1); v = lerp(v, g * g, 0.001); p = p - lr * debias(m, 0.9) / (sqrt(debias(v, 0.999)) + 1e-8)"
# body: odd, degree, finite at zero, elementwise, descends, slots
KNOWN = {
    SGD: (True, 1.0, True, True, True, 0),
    "m = 0.9 * m + g; p = p * (1 - lr * weight_decay) - lr * m": (True, 1.0, True, True, True, 1),
    ADAM: (True, 0.0, True, True, True, 2),
    "p = p - lr * sign(lerp(m, g, 0.1)); m = lerp(m, g, 0.01)": (True, 0.0, True, True, True, 1),
    "p = p - lr * g / abs(g)": (True, 0.0, False, True, True, 0),
    "p = p - lr * g / norm(g)": (True, 0.0, False, True, True, 0),
    "p = p - lr * g / (row_norm(g) + 1e-12)": (True, 0.0, True, False, True, 0),
    "p = p - lr * g * abs(g)": (True, 2.0, True, True, True, 0),
    "p = p - lr * sqrt(abs(g)) * sign(g)": (True, 0.5, True, True, True, 0),
    "p = p - lr * tanh(g)": (True, None, True, True, True, 0),
    "p = p - lr * (g + abs(g))": (False, 1.0, True, True, True, 0),
    "p = p + lr * g": (True, 1.0, True, True, False, 0),
    "m = every(100, g, m); p = p - lr * m": (False, None, True, False, False, 1),
}


@pytest.mark.parametrize("body", KNOWN)
def test_properties_of_the_classics(body: str) -> None:
    found = properties.of(rule(body))
    assert (
        found.odd,
        found.degree,
        found.finite_at_zero,
        found.elementwise,
        found.descends,
        found.slots,
    ) == KNOWN[body]


@pytest.mark.parametrize("body", [body for body in KNOWN if KNOWN[body][0]])
def test_analysis_proves_the_classics(body: str) -> None:
    assert proves_odd(rule(body))
    assert proven_degree(rule(body)) == KNOWN[body][1]


def _without_eps(program: dsl.Program) -> dsl.Program:
    """What is proven of the degree takes a small eps for zero."""
    small = {name: 1e-20 for name, value in program.defaults.items() if name.endswith("eps") and value <= EPS}
    return program.with_defaults(small)


@pytest.mark.parametrize("name", RULES + COMPOSED)
def test_whatever_is_proven_of_a_built_in_rule_is_measured(name: str) -> None:
    program = dsl.load(name)
    found = properties.of(program)
    assert found.moves
    assert found.finite_at_zero
    assert found.odd >= proves_odd(program)
    if (degree := proven_degree(program)) is not None:
        assert properties.of(_without_eps(program)).degree == degree


@settings(max_examples=200, deadline=None)
@given(rules())
def test_whatever_is_proven_of_any_rule_is_measured(program: Program) -> None:
    found = properties.of(program)
    if not found.moves or not 1e-6 < found.scale < 1e6:
        return
    assert found.odd >= proves_odd(program)


def test_scale_is_the_size_of_a_step() -> None:
    assert properties.of(rule(SGD)).scale == pytest.approx(1.0)
    assert properties.of(rule("p = p - 3 * lr * sign(g)")).scale == pytest.approx(3.0)


def test_cosine_says_which_way_a_rule_goes() -> None:
    assert properties.of(rule(SGD)).cosine == pytest.approx(1.0)
    assert properties.of(rule("p = p + lr * g")).cosine == pytest.approx(-1.0)
    assert 0.5 < properties.of(rule(ADAM)).cosine < 1.0


def test_weight_decay_plays_no_part() -> None:
    decayed, plain = (properties.of(rule(body)).plain() for body in (SGD, "p = p - lr * g"))
    assert decayed | {"operations": 2.0} == plain


def test_a_rule_that_diverges_or_stands_still_is_a_result() -> None:
    still = properties.of(rule("m = g; p = p - lr * 0 * m"))
    assert (still.moves, still.finite, still.scale, still.degree) == (False, True, 0.0, None)
    wild = properties.of(rule("p = p - lr * exp(exp(exp(9 + g * g)))"))
    assert (wild.moves, wild.finite, wild.odd) == (False, False, False)
    assert not math.isfinite(wild.scale)


def test_state_is_counted_by_extent() -> None:
    program = dsl.parse(
        "def f(p, g, m: zeros, r: rows(zeros), s: scalar(0), *, lr=1):\n"
        "    m = lerp(m, g, 0.1)\n    s = lerp(s, mean(g), 0.1)\n"
        "    if matrix(p):\n        r = lerp(r, row_mean(g), 0.1)\n        p = p - lr * (m + r + s)\n"
        "    else:\n        p = p - lr * (m + s)\n"
    )
    found = properties.of(dsl.check(program))
    assert found.state == {"full": 1, "rows": 1, "scalar": 1}
    assert (found.slots, found.state_bytes) == (3, 4.001)
    assert properties.of(rule(ADAM)).state_bytes == 8.0


def test_operations_count_passes_over_the_parameter_alone() -> None:
    assert properties.of(rule("p = p - lr * g")).operations == 2.0
    assert properties.of(rule("p = p - lr * (1 - 0.9 ** t) * g")).operations == 2.0
    assert properties.of(rule("p = p - lr * g * sqrt(mean(g))")).operations == 4.0


def test_plain_form_is_numbers_and_truth_values() -> None:
    plain = properties.of(dsl.load("adamw")).plain()
    assert plain["slots"] == 2
    assert {type(value) for value in plain.values()} <= {bool, float, int}


# Identification -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES + COMPOSED)
def test_a_known_rule_is_itself_or_one_that_does_the_same(name: str) -> None:
    match = identify.nearest(dsl.load(name))
    assert match.exact
    assert dsl.behaviour_hash(dsl.load(match.name)) == dsl.behaviour_hash(dsl.load(name))


@pytest.mark.parametrize(
    ("name", "hypers"),
    [
        ("adamw", {"beta1": 0.8, "weight_decay": 0.3}),
        ("lion", {"beta1": 0.95, "beta2": 0.98}),
        ("muon", {"momentum": 0.9, "adam_lr_ratio": 0.2}),
    ],
)
def test_constants_of_a_known_rule_are_found(name: str, hypers: dict[str, float]) -> None:
    program = dsl.load(name).with_defaults(hypers)
    match = identify.nearest(dsl.flatten(dsl.with_literals(program)))
    assert match.exact
    known = dsl.load(match.name).with_defaults(match.hypers)
    assert dsl.behaviour_hash(known) == dsl.behaviour_hash(program)


def test_a_rule_that_differs_in_weight_decay_says_so() -> None:
    match = identify.nearest(rule("p = p - lr * sign(lerp(m, g, 0.1)) - weight_decay; m = lerp(m, g, 0.01)"))
    assert (match.name, match.exact, match.but_for_decay) == ("lion", False, True)
    assert str(match) == "is lion but for its weight decay"


def test_a_new_rule_is_near_what_it_resembles() -> None:
    match = identify.nearest(rule("p = p - lr * (sign(lerp(m, g, 0.1)) + 0.5 * sign(g)); m = lerp(m, g, 0.01)"))
    assert not match.exact
    assert 0.8 < match.similarity < 0.999
    assert str(match).startswith(f"new; nearest is {match.name} (similarity {match.similarity:.3f})")
