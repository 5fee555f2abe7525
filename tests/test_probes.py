"""The gate's probes in C++ are those in numpy, to the last bit, and no verdict depends on which is used."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import dsl
from discover import native, probes
from discover.gate import Duplicate, Gate, New, Rejected
from discover.probes import CALLED, OPERATIONS, Probes
from discover.space import Probes as Wanted
from discover.space import Require
from dsl import behaviour, pool, properties
from dsl.ops import OPS
from dsl.program import Program
from tests.strategies import rules
from tests.test_pool import children

needs_compiler = pytest.mark.skipif(not native.available(), reason="the C++ cannot be compiled here")
SPECIAL = ["1 / (p - p)", "-1 / (p - p)", "(p - p) / (p - p)", "0 * g", "-0.0 * abs(g)", "1e-310 * g", "1e299 * g"]


@pytest.fixture(scope="module")
def run() -> Probes:
    return Probes()


def bits(value: Any) -> Any:
    return np.where(np.isnan(value), np.nan, value).view(np.int64)


def agrees(run: Probes, program: Program) -> bool:
    """Whether the C++ can do it; if so, it does what numpy does."""
    found = run(program)
    if found is None:
        return False
    held, changes = found.held, found.changes(None, 1.0)
    alone = properties.hold(program)
    for updates, end in zip(alone.updates, alone.ends, strict=True):
        np.testing.assert_array_equal(bits(held.updates[0]).ravel(), bits(updates).ravel())
        np.testing.assert_array_equal(bits(held.ends[0]).ravel(), bits(end).ravel())
    assert held.finite == alone.finite
    assert repr(properties.of(program, held)) == repr(properties.of(program))
    assert dsl.behaviour_hash(program, changes) == dsl.behaviour_hash(program)
    other = dsl.behaviour_hash(program, weight_decay=0.3, scale=7.0)
    assert dsl.behaviour_hash(program, found.changes(0.3, 7.0)) == other
    return True


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(rules(static_ifs=False))
def test_a_rule_does_the_same_in_both(program: Program) -> None:
    agrees(Probes(), program.with_defaults({}))


@needs_compiler
def test_the_table_of_numbers_may_grow_while_one_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_ROWS", probes._SCRATCH)  # full: the first number's own arguments make it grow
    assert agrees(Probes(), dsl.parse("def f(p, g, *, lr=1):\n    p = p - g / (1 - 0.9 ** t)\n"))


@needs_compiler
def test_what_numpy_raises_when_it_is_called_back_is_raised(run: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(x: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(probes.OPS, "tanh", replace(OPS["tanh"], ref=stopped))
    with pytest.raises(KeyboardInterrupt):
        run(dsl.parse("def called(p, g, *, lr=0.1):\n    p = p - lr * tanh(g)\n"))


@needs_compiler
@pytest.mark.parametrize("ancestor", ["adamw", "lion", "sgd"])
def test_programs_of_a_search_do_the_same_in_both(run: Probes, ancestor: str) -> None:
    found = [agrees(run, program) for program in children(ancestor, 50)]
    assert sum(found) > 15


@needs_compiler
@pytest.mark.parametrize("op", [*OPERATIONS, *CALLED])
def test_each_operator_does_the_same_on_ordinary_and_special_values(run: Probes, op: str) -> None:
    """Into a slot, which goes through the operator again at the next step."""
    values = ["g", "m", *SPECIAL]
    for number, value in enumerate(values):
        given = [value, values[number - 1], values[number - 2]]
        arguments = [
            _argument(OPS[op].kinds.get(param), each) for param, each in zip(OPS[op].params, given, strict=False)
        ]
        written = f"m = {op}({', '.join(arguments)}) + 0 * g"
        if OPS[op].infix:
            written = f"m = ({arguments[0]}) {OPS[op].infix} ({arguments[1]})"
        program = dsl.parse(f"def f(p, g, m: ones, *, lr=1):\n    {written}\n    p = p - lr * (g + m)\n")
        assert agrees(run, program)


def _argument(kind: str | None, value: str) -> str:
    match kind:
        case "mask":
            return f"({value}) > p"
        case "scalar" | "number":
            return "0.3"
    return value


RULES = [
    "p = p - lr * g / (global_norm(g) + global_mean(abs(g)))",
    "p = p - lr * global_amax(g) * global_sum(mean(g)) - lr * sum(norm(g) * amax(g)) * g",
    "m = 0.5; p = p - lr * m * g",
    "m = v; v = g; p = p - lr * (m + g)",
    "m = rms(g); v = m; p = p - lr * g / (v + 1)",
    "m = every(3, g, m); p = p - lr * (m + g) * lr_ratio",
    "p = p - lr * where(t > 4, g, p) * size(g) / size(mean(g))",
    "p = lr + 0 * sum(g)",
    "p = g * 0.9 ** t - examples * g",
    "v = std(g); p = p - lr * cosine(g, m) * block_mean(g, 2); m = g",
]


@needs_compiler
@pytest.mark.parametrize("body", RULES)
def test_reductions_state_and_numbers_do_the_same(run: Probes, body: str) -> None:
    lines = "".join(f"    {line.strip()}\n" for line in body.split(";"))
    for slots in ("m: zeros, v: ones", "m: like(p), v: full(0.5)"):
        program = dsl.check(dsl.parse(f"def f(p, g, {slots}, *, lr=1, weight_decay=0.1):\n{lines}"))
        assert agrees(run, program) == ("block_mean" not in body)


@needs_compiler
@pytest.mark.parametrize("name", ["muon", "adafactor", "adahessian", "schedule_free_adamw", "gaussian"])
def test_what_the_cpp_cannot_do_is_left_to_numpy(run: Probes, name: str) -> None:
    drawn = "def f(p, g, *, lr=1):\n    p = p - lr * (g + 0.1 * gaussian(g, 1, t))\n"
    program = dsl.parse(drawn) if name == "gaussian" else dsl.load(name)
    assert run(program) is None


def test_the_cpp_has_the_operations_in_the_table_s_order() -> None:
    text = Path(probes.__file__).with_suffix(".cpp").read_text()
    listed = re.search(r"enum Operation : int32_t \{(.*?)\};", text, re.DOTALL)
    assert listed is not None
    names = [f"k{''.join(part.title() for part in name.split('_'))}" for name in OPERATIONS]
    assert [each.strip() for each in listed[1].split(",")] == [*names, "kCalled"]
    assert f"kElements = {properties.ROWS * properties.COLS};" in text
    assert behaviour.ROWS * behaviour.COLS == properties.ROWS * properties.COLS


BOMBS = {
    "1.03 ** t": "p = p - lr * 1.03 ** t * g",
    "in a role": "if role('head'):\n        p = p - lr * sqrt(1 / 0.95 ** t) * g\n    else:\n        p = p - lr * g",
    "in the state": "m = m + t * t * g\n    p = p - lr * m",
}


@needs_compiler
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("case", BOMBS)
def test_a_schedule_that_only_a_short_training_survives_is_rejected(case: str, native: bool) -> None:
    gate = Gate(Require(), Wanted(), probes.runner(native), 0.0)
    program = dsl.parse(f"def f(p, g, m: zeros, *, lr=1):\n    {BOMBS[case]}\n")
    assert gate.examine(program) == Rejected("grows with time")


def test_no_known_rule_grows_with_time() -> None:
    for name in dsl.names():
        rule = dsl.load(name)
        found = behaviour.changes(dsl.load(f"{name}(adamw)") if rule.rules else rule)
        (growth,) = behaviour.growths([found])
        assert growth < 10, name


TINY = {
    "eps taken off": ("m / (sqrt(v) - 5e-9)", "turns round at tiny gradients"),
    "eps taken off in the root": ("m / sqrt(v - 1e-17)", "turns round at tiny gradients"),
    "eps added": ("m / (sqrt(v) + 5e-9)", ""),
    "no step below it": ("m * max(sqrt(v) - 5e-9, 0) / (sqrt(v) + 1e-8)", ""),
}


@needs_compiler
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("case", TINY)
def test_a_step_that_turns_round_where_gradients_are_below_its_eps_is_rejected(case: str, native: bool) -> None:
    step, reason = TINY[case]
    head = "def f(p, g, m: zeros, v: zeros, *, lr=1):\n    m = lerp(m, g, 0.4)\n    v = lerp(v, square(g), 0.01)\n"
    program = dsl.parse(f"{head}    p = p - lr * {step}\n")
    for homogeneous in (True, False):
        asked = Require(odd=False, homogeneous=homogeneous, finite_at_zero=False)
        found = Gate(asked, Wanted(), probes.runner(native), 0.0).examine(program)
        assert found == Rejected(reason) if reason and homogeneous else isinstance(found, New)


@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_is_not_finite_at_tiny_gradients_follows_none_for_whatever_parameter(first: bool) -> None:
    steps = ["p = p - lr * m / sqrt(v - 1e-17)", "p = p - lr * m"]
    one, other = steps if first else steps[::-1]
    program = dsl.parse(
        "def f(p, g, m: zeros, v: zeros, *, lr=1):\n    m = lerp(m, g, 0.4)\n    v = lerp(v, square(g), 0.01)\n"
        f"    if role('head'):\n        {one}\n    else:\n        {other}\n"
    )
    assert properties.of(program).tiny_cosine == -1.0


def test_all_known_rules_that_are_homogeneous_follow_tiny_gradients() -> None:
    for name in dsl.names():
        facts = properties.of(dsl.load(f"{name}(adamw)") if dsl.load(name).rules else dsl.load(name))
        assert facts.degree is None or name == "mezo" or facts.tiny_cosine > 0.1, name


ALIKE = {
    "a multiple of the step": ("lr * m", "lr * (3.7 * m)", True, True),
    "a multiple in the state": ("lr * m", "lr * sign(m) * abs(m) * 0.2", True, True),
    "weight decay by itself": ("lr * m", "lr * m - lr * weight_decay * p", True, False),
    "a multiple, and weight decay": ("lr * (m + weight_decay * p)", "lr * (2 * m + weight_decay * p)", True, False),
    "another power": ("lr * m", "lr * m * abs(m)", False, False),
    "p itself": ("lr * m", "lr * (m + 1e-3 * p)", False, False),
    "another power of lr": ("lr * lr * m", "lr * lr * (8 * m)", False, False),
    "a decay of its own": ("lr * m + 0.1 * lr_ratio * p", "lr * (2 * m) + 0.2 * lr_ratio * p", False, False),
    "weight decay as a number": ("lr * m", "lr * m * (1 + weight_decay)", True, False),
}


@needs_compiler
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("case", ALIKE)
def test_what_a_search_cannot_tell_apart_is_trained_once(case: str, native: bool) -> None:
    """A multiple of a step has other learning rates; weight decay matters where rules are trained with it."""
    *steps, alike, alike_with_decay = ALIKE[case]
    one, other = (
        dsl.parse(
            "def f(p, g, m: zeros, *, lr=1, weight_decay=0.1):\n    m = 0.9 * m + g\n"
            f"    p = p - {step} + 0 * weight_decay\n"
        )
        for step in steps
    )
    free = Require(odd=False, homogeneous=False)
    for decay, wanted in ((0.0, alike), (0.1, alike_with_decay)):
        gate = Gate(free, Wanted(), probes.runner(native), decay)
        first = gate.examine(one)
        assert isinstance(first, New)
        gate.remember(7, first.structure, first.behaviour)
        found = gate.examine(other)
        assert isinstance(found, Duplicate if wanted else New), (decay, found)


@needs_compiler
def test_no_verdict_depends_on_the_cpp(run: Probes) -> None:
    """Nor on whether a program was examined before under another name."""
    require, wanted = Require(odd=True, finite_at_zero=True), Wanted()
    fast, slow = Gate(require, wanted, run), Gate(require, wanted)
    kinds = set()
    for number, program in enumerate([*children("adamw", 60), *children("lion", 30)] * 2):
        one, other = fast.examine(program), slow.examine(program)
        assert repr(one) == repr(other)
        kinds.add(type(one).__name__)
        for gate, verdict in ((fast, one), (slow, other)):
            if type(verdict).__name__ == "New":
                gate.remember(number, verdict.structure, verdict.behaviour)  # type: ignore[union-attr]
    assert kinds == {"New", "Duplicate", "Rejected"}


@needs_compiler
@pytest.mark.parametrize("largest", [pool.LARGEST, 60])
def test_a_verdict_does_not_depend_on_what_else_is_looked_at(
    largest: int, run: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over many programs says of each what it says of that one alone: elementwise ones, those that treat
    kinds of parameters differently, those that grow and those that are wrong, in whatever order and pools they come."""
    monkeypatch.setattr(pool, "LARGEST", largest)
    programs = [*children("adamw", 60), *children("muon", 8), *children("adafactor", 8), *children("apollo", 8)]
    programs += [dsl.parse(f"def f(p, g, m: zeros, *, lr=1):\n    {body}\n") for body in BOMBS.values()]
    programs += [dsl.parse("def f(p, g, *, lr=1):\n    p = p - lr * sign(p)\n")]
    require, wanted = Require(odd=False, homogeneous=False), Wanted()
    alone = [repr(Gate(require, wanted, run, 0.0).examine(each)) for each in programs]
    assert any(each.startswith("New") for each in alone)
    assert len({each for each in alone if each.startswith("Rejected")}) >= 3
    for order in (programs, programs[::-1]):
        together = Gate(require, wanted, run, 0.0)
        together.look_at(order)
        assert [repr(together.examine(each)) for each in programs] == alone


def test_what_is_measured_of_many_is_what_is_measured_of_one_to_the_last_bit() -> None:
    """Rules of several kinds of parameters among others, whose arrays numpy lays out in another order."""
    rules = [dsl.load(name) for name in ("adamw", "apollo", "apollo_mini", "muon", "adafactor", "shampoo", "conda")]
    held, found = [properties.hold(rule) for rule in rules], [behaviour.changes(rule) for rule in rules]
    together = properties.of_each(rules, held)
    assert [repr(each) for each in together] == [repr(properties.of(rule)) for rule in rules]
    along = behaviour.in_one_pass(found, lambda changes, facts: list(np.add.reduce(changes**2, axis=(-2, -1))))
    for each, whole in zip(found, along, strict=True):
        (alone,) = behaviour.in_one_pass([each], lambda changes, facts: list(np.add.reduce(changes**2, axis=(-2, -1))))
        assert alone.keys() == whole.keys()
        for facts, sums in alone.items():
            np.testing.assert_array_equal(bits(sums), bits(whole[facts]))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("step", ["exp(t) / exp(t)", "1 / (t - 1000)", "1 / (t - 1)"])
def test_a_step_that_is_not_finite_later_grows_with_time_in_any_kind_of_parameter(step: str, first: bool) -> None:
    bad, good = f"p = p - lr * m * ({step})", "p = p - lr * m"
    one, other = (bad, good) if first else (good, bad)
    program = dsl.parse(
        "def f(p, g, m: zeros, *, lr=1):\n    m = lerp(m, g, 0.1)\n"
        f"    if matrix(p):\n        {one}\n    else:\n        {other}\n"
    )
    (growth,) = behaviour.growths([behaviour.changes(program)])
    assert growth == np.inf


@needs_compiler
def test_a_pool_may_end_between_the_probes_of_a_program(run: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dsl.parse("def f(p, g, m: zeros, *, lr=1):\n    m = lerp(m, g, 0.3)\n    p = p - 2 * lr * 0.7 * m\n")
    wanted = dsl.behaviour_hash(first, weight_decay=0.0, scale=3.0)
    found = run(first)
    assert found is not None
    monkeypatch.setattr(pool, "LARGEST", 0)
    assert run(dsl.parse("def f(p, g, *, lr=1):\n    p = p - 3 * lr * 0.1 * g\n")) is not None
    assert dsl.behaviour_hash(first, found.changes(0.0, 3.0)) == wanted


def test_without_a_compiler_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(source: Path) -> None:
        raise native.NativeError("no compiler")

    monkeypatch.setattr(probes, "built", missing)
    probes._library.cache_clear()
    try:
        assert probes.runner(True)(dsl.load("adamw")) is None
        assert probes.runner(False)(dsl.load("adamw")) is None
    finally:
        probes._library.cache_clear()
