"""Laws of identification: a known rule is known however it is written and whatever its constants; what is new has
neighbours that resemble it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

import dsl
from dsl import identify
from dsl.dead import strip_dead
from dsl.flatten import flatten, rename, with_literals
from dsl.ops import OPS
from dsl.parse import parse
from dsl.program import Call, Expr, If, Program, Statement, assignments, names_read
from dsl.types import SIZED_BY

WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]
BASES = [name for name in dsl.names() if name not in WRAPPERS]
COMPOSED = [f"{wrapper}({base})" for wrapper in WRAPPERS for base in ("adamw", "lion", "muon")]
NESTED = ["ema_nesterov(clip_global(adamw))", "lookahead(sam(momentum))", "grokfast(clip_tensor(lion))"]
SPECIAL = {"lr", "weight_decay", *SIZED_BY.values()}
"""Hyperparameters whose names mean something."""


def same(match: identify.Match, program: Program) -> bool:
    """Whether the known rule, with the hyperparameters that were found, is the program."""
    known, this = dsl.fingerprint(dsl.load(match.name).with_defaults(match.hypers)), dsl.fingerprint(program)
    return known.behaviour == this.behaviour or known.structure == this.structure


# Known however it is written ----------------------------------------------------------------------------------------


def rewritten(program: Program, rng: random.Random) -> Program:
    """The program with other names, other constants, statements and arguments in another order."""
    program = program.with_defaults({hyper.name: other(hyper.name, hyper.default, rng) for hyper in program.hypers})
    names = [slot.name for slot in program.slots] + [each.target for each in assignments(program.body)]
    names += [name for name in program.defaults if name not in SPECIAL]
    fresh = [f"z{number}" for number in range(len(set(names)))]
    rng.shuffle(fresh)
    chosen = (name for name in dict.fromkeys(names) if name not in ("p", "g", *SPECIAL))
    program = rename(program, dict(zip(chosen, fresh, strict=False)))
    slots = list(program.slots)
    rng.shuffle(slots)
    return replace(program, name="unknown", doc="", slots=tuple(slots), body=shuffled(program.body, rng))


def other(name: str, value: float, rng: random.Random) -> float:
    """Another value of a hyperparameter, of the same kind: a whole number, a share, or any other."""
    if name == "seed" or value in (0, 1):
        return value
    if value == int(value):
        return value + 1
    return value * rng.uniform(0.8, 0.95)


def shuffled(body: tuple[Statement, ...], rng: random.Random) -> tuple[Statement, ...]:
    """Neighbours that do not see each other swapped, in each block; arguments of commutative operators, too."""
    lines: list[Statement] = []
    for each in body:
        if isinstance(each, If):
            lines.append(replace(each, body=shuffled(each.body, rng), orelse=shuffled(each.orelse, rng)))
        else:
            lines.append(replace(each, value=mirrored(each.value)))
    for _ in range(3 * len(lines)):
        at = rng.randrange(max(1, len(lines) - 1))
        pair = lines[at : at + 2]
        if len(pair) == 2 and independent(*pair):
            lines[at : at + 2] = pair[::-1]
    return tuple(lines)


def independent(a: Statement, b: Statement) -> bool:
    return not (writes(a) & (writes(b) | reads(b)) or writes(b) & reads(a))


def writes(statement: Statement) -> set[str]:
    return {each.target for each in assignments((statement,))}


def reads(statement: Statement) -> set[str]:
    return {name for each in assignments((statement,)) for name in names_read(each.value)}


def mirrored(expr: Expr) -> Expr:
    if not isinstance(expr, Call):
        return expr
    args = tuple(map(mirrored, expr.args))
    return Call(expr.op, args[::-1] if OPS[expr.op].commutative and len(args) == 2 else args)


@pytest.mark.parametrize("rule", [*BASES, *COMPOSED, *NESTED])
def test_a_known_rule_is_known_by_other_names_in_another_order_with_other_constants(rule: str) -> None:
    program = dsl.check(rewritten(dsl.load(rule), random.Random(rule)))
    match = identify.nearest(program)
    assert match.exact, match
    assert same(match, program)
    assert match.name.count("(") <= rule.count("(")


@pytest.mark.parametrize("rule", BASES)
def test_a_known_rule_is_known_with_its_constants_written_into_it(rule: str) -> None:
    program = dsl.load(rule)
    kept = {"lr", "weight_decay", *SIZED_BY.values()}
    match = identify.nearest(strip_dead(flatten(with_literals(program, kept))))
    assert match.exact, match
    assert same(match, program)


WITHOUT_DECAY = {
    "m = 0.8 * m + 0.2 * g; v = lerp(v, g * g, 0.05); "
    "p = p - lr * (m / (1 - 0.8 ** t)) / (sqrt(v / (1 - 0.95 ** t)) + 1e-6)": (
        "adam",
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
    ),
    "u = sign(0.85 * m + 0.15 * g); m = 0.98 * m + 0.02 * g; p = p - lr * u": ("lion", {"beta1": 0.85, "beta2": 0.98}),
    "m = 0.7 * m + g; p = p - lr * (g + 0.7 * m)": ("nesterov", {"momentum": 0.7}),
}


@pytest.mark.parametrize("text", WITHOUT_DECAY)
def test_a_rule_without_decay_is_the_known_one_with_its_decay_off(text: str) -> None:
    name, hypers = WITHOUT_DECAY[text]
    lines = "".join(f"    {line.strip()}\n" for line in text.split(";"))
    match = identify.nearest(parse(f"def f(p, g, m: zeros, v: zeros, *, lr=0.1):\n{lines}"))
    assert (match.name, match.exact) == (name, True)
    assert dict(match.hypers) == pytest.approx(hypers)


def test_constants_that_stand_in_one_expression_are_told_apart() -> None:
    """MARS has gamma * beta1 / (1 - beta1): gamma is found once beta1 is, which stands alone elsewhere."""
    program = dsl.load("mars_adamw").with_defaults({"gamma": 0.05, "beta1": 0.9})
    match = identify.nearest(replace(program, name="f"))
    assert (match.name, match.exact) == ("mars_adamw", True)
    assert match.hypers["gamma"] == pytest.approx(0.05)


def test_a_rule_that_decays_by_default_is_known_without_its_decay() -> None:
    program = dsl.load("adamw").with_defaults({"weight_decay": 0.0, "beta1": 0.8})
    match = identify.nearest(with_literals(program, ["lr"]))
    assert match.exact
    assert same(match, program)


# What is new --------------------------------------------------------------------------------------------------------


def rule(body: str) -> Program:
    lines = "".join(f"    {line.strip()}\n" for line in body.split(";"))
    return dsl.check(parse(f"def f(p, g, m: zeros, v: zeros, *, lr=0.1):\n{lines}"))


def test_what_is_new_is_near_what_it_was_made_from() -> None:
    for name, change in {
        "lion": "u = sign(lerp(m, g, 0.1)); m = lerp(m, g, 0.01); p = p - lr * (u + 0.3 * tanh(g))",
        "adam": "m = lerp(m, g, 0.1); v = lerp(v, square(g), 0.001); "
        "p = p - lr * debias(m, 0.9) / (sqrt(debias(v, 0.999)) + abs(m) + 1e-8)",
    }.items():
        match = identify.nearest(rule(change))
        assert not match.exact
        assert match.name in (name, "adamw", "signum", "adabelief"), match
        assert 0.7 < match.similarity < 1
        assert 0 < match.shared < 1
        assert f"(similarity {match.similarity:.3f}), {match.shared:.0%} of operations shared" in str(match)


@pytest.mark.parametrize("body", ["u = g / max(abs(g), 0.8)", "u = g / (abs(g) + 0.8)"])
def test_a_bounded_gradient_is_near_gradient_descent_clipped(body: str) -> None:
    match = identify.nearest(rule(f"{body}; p = p - lr * u"))
    assert (match.name, match.exact) == ("clip_value(sgd)", False)
    assert match.similarity > 0.95


def test_an_average_with_a_short_memory_is_near_momentum_with_a_short_memory() -> None:
    """By its memory a rule goes elsewhere, so momentum with its default, 0.9, is not what it is like."""
    match = identify.nearest(rule("m = lerp(m, g / max(abs(g), 0.8), 0.5); p = p - lr * m"))
    assert (match.name, match.exact) == ("clip_value(momentum)", False)
    assert dict(match.hypers) == {"momentum": 0.5}
    assert match.similarity > 0.95
    assert str(match).startswith("new; nearest is clip_value(momentum) with momentum=0.5 (similarity 0.9")
    known = dsl.load("clip_value(momentum)")
    apart = [identify._directions(known.with_defaults(hypers)) for hypers in (match.hypers, {})]
    assert identify._similarity(*apart) < 0.9


@pytest.mark.parametrize(("gradients", "name"), [(1e-3, "sgd"), (None, "clip_value(sgd)"), (1e4, "signsgd")])
def test_a_rule_with_a_limit_is_another_on_gradients_of_another_size(gradients: float | None, name: str) -> None:
    match = identify.nearest(rule("u = g / (abs(g) + 0.8); p = p - lr * u"), gradients)
    assert match.name == name
    assert match.similarity > 0.97


def test_similarity_is_one_for_the_same_direction_and_minus_one_for_the_opposite() -> None:
    forward, back = (identify._directions(rule(f"p = p {sign} lr * g")) for sign in "-+")
    assert identify._similarity(forward, forward) == pytest.approx(1.0)
    assert identify._similarity(forward, back) == pytest.approx(-1.0)


def test_shared_is_one_for_the_same_operations_and_less_the_fewer_they_are() -> None:
    adam, lion, sgd = (identify._operations(dsl.load(name)) for name in ("adam", "lion", "sgd"))
    assert identify._share(adam, adam) == 1.0
    assert identify._share(adam, identify._operations(dsl.load("adamw"))) > identify._share(adam, lion)
    assert identify._share(adam, lion) > 0
    assert identify._share(sgd, adam) < 0.5


def test_every_wrapper_has_the_traits_that_its_compositions_show() -> None:
    """Else a composition would be passed over without a look."""
    for wrapper in WRAPPERS:
        for base in ("adamw", "muon", "signsgd"):
            expected = identify._wrapper_traits(wrapper) + identify._traits(dsl.load(base))
            assert identify._traits(dsl.load(f"{wrapper}({base})")) == expected
