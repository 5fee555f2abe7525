"""Laws of the fingerprint: blind to names, order and algebra; sharp on constants and behaviour; the same everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsl
from dsl.behaviour import generic
from dsl.canonical import shape_hash
from dsl.flatten import rename
from dsl.ops import OPS
from dsl.program import Assign, Call, Facts, Name, Program, assignments, names_read
from tests.strategies import rules

GOLDEN = Path(__file__).parent / "golden" / "fingerprints.txt"
ADAM = """
def adam(p, g, m: zeros, v: zeros, *, lr=1e-3):
    m = lerp(m, g, 0.1)
    v = lerp(v, square(g), 0.001)
    p = p - lr * debias(m, 0.9) / (sqrt(debias(v, 0.999)) + 1e-8)
"""
MUON = """
def muon(p, g, m: zeros, *, lr=1e-3):
    m = lerp(m, g, 0.05)
    if matrix(p) and not role('head'):
        p = p - lr * newton_schulz(m, 5)
    else:
        p = p - lr * sign(m) * min(1, 1 / global_norm(g))
"""


def rule(body: str, slots: str = "m: zeros, v: zeros", hypers: str = "lr=0.1") -> Program:
    lines = "".join(f"    {line.strip()}\n" for line in body.split(";"))
    return dsl.check(dsl.parse(f"def f(p, g, {slots}, *, {hypers}):\n{lines}"))


# Blind to accidents -------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(rules(), st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(program: Program, random: object) -> None:
    changed = _shuffled(dsl.flatten(program), random)
    assert dsl.fingerprint(changed) == dsl.fingerprint(program)


def _shuffled(program: Program, random: object) -> Program:
    """Other names, neighbours that do not see each other swapped, arguments of commutative operators swapped."""
    declared = [slot.name for slot in program.slots] + [s.target for s in assignments(program.body) if s.target != "p"]
    names = list(dict.fromkeys(declared))
    shuffled = [f"z{number}" for number in range(len(names))]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    program = rename(program, dict(zip(names, shuffled, strict=True)))
    slots = list(program.slots)
    random.shuffle(slots)  # type: ignore[attr-defined]
    body = list(program.body)
    for _ in range(3 * len(body)):
        at = random.randrange(max(1, len(body) - 1))  # type: ignore[attr-defined]
        pair = body[at : at + 2]
        if len(pair) == 2 and all(isinstance(each, Assign) for each in pair) and _independent(*pair):
            body[at : at + 2] = pair[::-1]
    mirrored = tuple(_mirrored(each) if isinstance(each, Assign) else each for each in body)
    return Program(program.name, tuple(slots), program.hypers, mirrored, program.result)


def _independent(a: Assign, b: Assign) -> bool:
    return a.target != b.target and a.target not in names_read(b.value) and b.target not in names_read(a.value)


def _mirrored(statement: Assign) -> Assign:
    value = statement.value
    if isinstance(value, Call) and OPS[value.op].commutative:
        value = Call(value.op, value.args[::-1])
    return Assign(statement.target, value)


SAME = [
    ("p = p - lr * g", "p = p - g * lr"),
    ("m = lerp(m, g, 0.1); p = p - lr * m", "v = 0.9 * v + 0.1 * g; p = p - v * lr"),
    (
        "m = lerp(m, g, 0.1); v = lerp(v, g, 0.1); p = p - lr * (m + sign(v))",
        "m = lerp(m, g, 0.1); p = p - lr * (m + sign(m))",
    ),
    ("p = p - lr * square(g) / (norm(g) + 1)", "p = p - lr * (g * g) / (sqrt(sum(g ** 2)) + 1)"),
    ("p = p - lr * rms(g)", "p = p - lr * sqrt(mean(g * g))"),
    ("p = p - lr * g; m = lerp(m, m, 0.5)", "p = p - lr * g"),
    ("u = g; u = sign(u); p = p - lr * u", "p = p - lr * sign(g)"),
    ("p = p - lr * where(g > 0, g, 0 - g)", "p = p - lr * where(0 < g, g, -g)"),
    ("p = p - lr * (g / 4)", "p = p - lr * (0.25 * g)"),
    ("p = p + lr * -g", "p = p - lr * g"),
    ("p = p - lr * where(1 == 1, g, p)", "p = p - lr * g"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same_up_to_algebra(a: str, b: str) -> None:
    assert dsl.fingerprint(rule(a)) == dsl.fingerprint(rule(b))


BEHAVE_ALIKE = [
    ("p = p - lr * g - lr * m; m = g", "p = p - lr * (g + m); m = g"),
    ("p = p * (1 - lr * 0.1) - lr * g", "p = p - lr * (g + 0.1 * p)"),
    ("p = p - lr * rms(g) * g", "p = p - lr * g * rms(g)"),
    ("p = p - lr * tanh(g)", "p = p - lr * (2 * sigmoid(2 * g) - 1)"),
    ("m = m + g; p = p - lr * m", "m = (m + g / 2) + g / 2; p = p - lr * m"),
]


@pytest.mark.parametrize(("a", "b"), BEHAVE_ALIKE)
def test_same_behaviour_however_written(a: str, b: str) -> None:
    assert dsl.structure_hash(rule(a)) != dsl.structure_hash(rule(b))
    assert dsl.behaviour_hash(rule(a)) == dsl.behaviour_hash(rule(b))


def test_rounding_does_not_split_behaviours() -> None:
    """Two spellings that differ in the last bits, over many constants: none of them lands on the edge of a digit."""
    rng = np.random.default_rng(0)
    for beta in rng.uniform(0.01, 0.99, 200):
        a = rule(f"m = lerp(m, g, {beta}); p = p - lr * m / (sqrt(abs(m)) + {beta})")
        b = rule(f"m = {beta} * g + (1 - {beta}) * m; p = p - (lr / 3) * (3 * m) / ({beta} + abs(m) ** 0.5)")
        assert dsl.behaviour_hash(a) == dsl.behaviour_hash(b)


# Sharp on what matters ----------------------------------------------------------------------------------------------

DIFFERENT = [
    ("m = lerp(m, g, 0.1); p = p - lr * m", "m = lerp(m, g, 0.2); p = p - lr * m"),
    ("m = lerp(m, g, 0.1); p = p - lr * m", "p = p - lr * m; m = lerp(m, g, 0.1)"),
    ("p = p - lr * sign(lerp(m, g, 0.1)); m = lerp(m, g, 0.01)", "m = lerp(m, g, 0.1); p = p - lr * sign(m)"),
    ("p = p - lr * g / (abs(g) + 1e-3)", "p = p - lr * g / (abs(g) + 1e-8)"),
    ("p = p - lr * g / (abs(g) + 1e-8)", "p = p - lr * g / abs(g)"),
    ("m = every(10, g, m); p = p - lr * (m + g)", "m = every(2, g, m); p = p - lr * (m + g)"),
    ("p = p - lr * g / norm(g)", "p = p - lr * g / global_norm(g)"),
    ("p = p - lr * g / norm(g)", "p = p - lr * g / row_norm(g)"),
    ("p = p - lr * g", "p = p - lr_ratio * g"),
    ("p = p - lr * g", "p = p - lr * lr * g"),
    ("p = p - lr * g", "p = p - lr * g * where(t < 200, 1, 0.5)"),
    ("p = p - lr * g", "p = p - lr * g; return m"),
]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_programs_differ_in_both(a: str, b: str) -> None:
    one, other = dsl.fingerprint(rule(a)), dsl.fingerprint(rule(b))
    assert one.structure != other.structure
    assert one.behaviour != other.behaviour


def test_slots_initial_value_matters() -> None:
    body = "m = lerp(m, g, 0.1); p = p - lr * m"
    prints = {dsl.fingerprint(rule(body, f"m: {init}, v: zeros")) for init in ("zeros", "ones", "like(p)", "full(0.5)")}
    assert len(prints) == 4


def test_a_role_counts_where_it_is_treated_in_its_own_way() -> None:
    plain = dsl.parse("def f(p, g, *, lr=1):\n    p = p - lr * g\n")
    same = dsl.parse(
        "def f(p, g, *, lr=1):\n    if role('head'):\n        p = p - lr * g\n    else:\n        p = p - g * lr\n"
    )
    other = dsl.parse(
        "def f(p, g, *, lr=1):\n    if role('head'):\n        p = p - lr * sign(g)\n    else:\n        p = p - lr * g\n"
    )
    assert dsl.fingerprint(plain) == dsl.fingerprint(same)
    assert dsl.fingerprint(plain).structure != dsl.fingerprint(other).structure
    assert dsl.fingerprint(plain).behaviour != dsl.fingerprint(other).behaviour


def test_a_global_shared_by_all_is_not_one_shared_by_some() -> None:
    head = "def f(p, g, *, lr=1):\n"
    shared = dsl.parse(head + "    n = global_norm(g)\n    p = p - lr * g / n\n")
    apart = dsl.parse(
        head
        + "    if matrix(p):\n        n = global_norm(g)\n"
        + "    else:\n        n = global_norm(g)\n    p = p - lr * g / n\n"
    )
    assert dsl.fingerprint(shared).structure != dsl.fingerprint(apart).structure
    assert dsl.fingerprint(shared).behaviour != dsl.fingerprint(apart).behaviour


def test_defaults_of_hyperparameters_count_but_for_lr() -> None:
    adamw = dsl.load("adamw")
    assert dsl.fingerprint(adamw.with_defaults({"lr": 0.5})) == dsl.fingerprint(adamw)
    for name in ("beta1", "eps", "weight_decay"):
        changed = adamw.with_defaults({name: 0.0123})
        assert dsl.structure_hash(changed) != dsl.structure_hash(adamw)
        assert dsl.behaviour_hash(changed) != dsl.behaviour_hash(adamw)
        assert shape_hash(changed) == shape_hash(adamw)


def test_shape_is_blind_to_constants_and_to_nothing_else() -> None:
    adam = dsl.parse(ADAM)
    assert shape_hash(dsl.with_literals(dsl.load("adamw"))) == shape_hash(dsl.load("adamw"))
    assert shape_hash(adam) == shape_hash(dsl.parse(ADAM.replace("0.999", "0.5").replace("0.1)", "0.3)")))
    assert shape_hash(adam) != shape_hash(dsl.parse(ADAM.replace("square(g)", "abs(g)")))


# The same everywhere ------------------------------------------------------------------------------------------------


def golden() -> str:
    return "".join(
        f"{dsl.parse(text).name} {(f := dsl.fingerprint(dsl.parse(text))).structure} {f.behaviour}\n"
        for text in (ADAM, MUON)
    )


def test_fingerprints_are_the_golden_ones() -> None:
    """Archives of other machines and of earlier versions hold these."""
    assert golden() == GOLDEN.read_text()


@pytest.mark.parametrize("seed", ["1", "2"])
def test_fingerprint_is_the_same_in_another_process(seed: str) -> None:
    code = "import dsl, sys; print(dsl.fingerprint(dsl.parse(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, MUON],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={"PYTHONHASHSEED": seed, "PATH": ""},
    )
    assert done.stdout.strip() == str(dsl.fingerprint(dsl.parse(MUON)))


def test_fixed_inputs_are_the_same_bits_everywhere() -> None:
    numbers = generic(7, (4, 25))
    assert numbers.ravel()[:3].tolist() == [
        float.fromhex(each) for each in ("0x1.d42fddb0cd86bp+0", "0x1.641ca1d7ff581p-1", "0x1.0138405b71b2cp+0")
    ]
    assert abs(numbers.mean()) < 0.2
    assert abs(numbers.std() - 1.0) < 0.1


def test_kinds_without_a_name_in_the_program_are_one() -> None:
    assert Facts.of((3, 2)) == Facts(True, "hidden")
    assert Facts.of((3,)) == Facts(False, "vector")
    assert Facts.of((8, 2, 2, 1), "head") == Facts(True, "head")
    assert Name("x") == Name("x")
