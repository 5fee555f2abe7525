"""Laws of mutation: well typed stays well typed, the frame stays, chance comes from the generator alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import dsl
from discover.mutate import CHANGES, Grammar, mutate, perturbed, random_program, straight_lines, unfolded
from discover.plan import genotype
from dsl import properties
from dsl.ops import OPS
from dsl.program import Assign, Call, Name, Number, Program, assignments, names_read

ELEMENTWISE = tuple(n for n, op in OPS.items() if op.group in ("arithmetic", "elementwise") and n not in ("mod", "pow"))
REDUCING = (*ELEMENTWISE, "norm", "mean", "row_norm", "col_mean", "cosine", "global_norm", "where", "gt")
GRAMMARS = {
    "elementwise": Grammar(ELEMENTWISE, 24, ("m", "v"), dict.fromkeys(CHANGES, 1.0)),
    "reductions": Grammar(REDUCING, 30, ("m", "v", "w"), dict.fromkeys(CHANGES, 1.0)),
    "short": Grammar(ELEMENTWISE, 14, ("m",), dict.fromkeys(CHANGES, 1.0)),
}


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("ancestor", ["adamw", "lion", "sgd"])
def test_every_mutation_of_a_well_typed_program_is_well_typed(grammar: str, ancestor: str) -> None:
    rng = np.random.default_rng(1)
    program = genotype(dsl.load(ancestor))
    for _ in range(150):
        program = mutate(program, GRAMMARS[grammar], rng).program
        dsl.graph.lower(program, dsl.Facts.of((3, 2)))
        dsl.graph.lower(program, dsl.Facts.of((3,)))
        assert dsl.parse(dsl.format(program)) == program


@pytest.mark.parametrize("kind", CHANGES)
def test_each_kind_of_change_changes_the_program(kind: str) -> None:
    grammar = Grammar(ELEMENTWISE, 24, ("m", "v"), {kind: 1.0})
    program = genotype(dsl.load("adamw"))
    changed = [mutate(program, grammar, np.random.default_rng(seed)) for seed in range(40)]
    different = [each for each in changed if each.program != program]
    assert len(different) > 30
    assert all(each.change.startswith(kind) for each in different)


def test_a_mutation_depends_on_its_generator_alone() -> None:
    program = genotype(dsl.load("adamw"))
    one, same, other = (
        [mutate(program, GRAMMARS["elementwise"], np.random.default_rng([seed, n])) for n in range(20)]
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_the_learning_rate_goes_on_to_scale_the_step() -> None:
    rng = np.random.default_rng(3)
    program = genotype(dsl.load("adamw"))
    for _ in range(300):
        program = mutate(program, GRAMMARS["elementwise"], rng).program
        assert _rate_is_last(program)


def _rate_is_last(program: Program) -> bool:
    """lr multiplies into what p loses, and nothing else reads it."""
    readers = [s for s in assignments(program.body) if "lr" in names_read(s.value)]
    steps = [s for s in readers if isinstance(s.value, Call) and s.value.op == "mul" and s.value.args[0] == Name("lr")]
    return len(readers) >= 1 and readers == steps and list(assignments(program.body))[-1].target in ("p", "m", "v")


def test_mutation_keeps_within_the_grammar() -> None:
    grammar = GRAMMARS["short"]
    rng = np.random.default_rng(5)
    program = genotype(dsl.load("lion"))
    start = {e.value.op for e in assignments(program.body) if isinstance(e.value, Call)}
    for _ in range(300):
        program = mutate(program, grammar, rng).program
        assert len(program.body) <= grammar.max_statements
        assert {slot.name for slot in program.slots} <= {"m"}
        ops = {s.value.op for s in assignments(program.body) if isinstance(s.value, Call)}
        assert ops <= start | set(grammar.operators)


def test_random_programs_differ_and_use_the_whole_language() -> None:
    seedling = dsl.parse(
        "def s(p, g, *, lr=1, weight_decay=0):\n x1 = weight_decay * p\n x2 = g + x1\n x3 = lr * x2\n p = p - x3"
    )
    programs = [random_program(GRAMMARS["elementwise"], np.random.default_rng(n), seedling).program for n in range(200)]
    assert len(set(programs)) > 190
    used = {s.value.op for p in programs for s in assignments(p.body) if isinstance(s.value, Call)}
    assert used >= set(ELEMENTWISE)


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0.9, 0.0, 1.0), (1e-8, 0.0, 1e-4), (-2.0, -1e4, 0.0), (0.1, 0.0, 1e3)]
)
def test_a_perturbed_constant_keeps_its_side(value: float, low: float, high: float) -> None:
    rng = np.random.default_rng(7)
    values = [perturbed(value, 1.0, rng) for _ in range(500)]
    assert all(low <= each <= high for each in values)
    assert len(set(values)) > 300


def test_a_genotype_is_flat_and_keeps_only_rate_and_decay_as_hyperparameters() -> None:
    for name in ("adamw", "lion", "nadam", "adabelief"):
        program = genotype(dsl.load(name))
        assert set(program.defaults) <= {"lr", "weight_decay"}
        for statement in program.body:
            assert isinstance(statement, Assign)
            if isinstance(statement.value, Call):
                assert all(isinstance(arg, Name | Number) for arg in statement.value.args)


def test_state_can_be_found_by_a_rule_that_has_none() -> None:
    grammar = GRAMMARS["elementwise"]
    for ancestor in ("sgd", "lion"):
        program = genotype(dsl.load(ancestor))
        most = max(len(mutate(program, grammar, np.random.default_rng(n)).program.slots) for n in range(1000))
        assert most == len(program.slots) + 1
    seedling = dsl.parse("def s(p, g, *, lr=1):\n x1 = abs(g)\n x2 = x1 * g\n x3 = lr * x2\n p = p - x3")
    grown = [random_program(grammar, np.random.default_rng(n), seedling).program for n in range(100)]
    assert {len(program.slots) for program in grown} == {0, 1, 2}


# Rules with static ifs ----------------------------------------------------------------------------------------------

MATRIX = (*ELEMENTWISE, "matmul", "transpose", "newton_schulz", "sinkhorn", "matrix_power", "row_rms", "col_rms", "rms")
MATRICES = Grammar(MATRIX, 30, ("m", "v", "r", "l"), dict.fromkeys(CHANGES, 1.0), extents={"r": "rows", "l": "left"})


@pytest.mark.parametrize("name", ["muon", "swan", "scale", "soap", "shampoo"])
def test_unfolding_static_ifs_changes_nothing(name: str) -> None:
    program = dsl.load(name)
    straight = replace(program, body=unfolded(program.body))
    assert dsl.behaviour_hash(straight) == dsl.behaviour_hash(program)
    assert all(isinstance(s, Assign) for _, line in straight_lines(straight.body) for s in line)


@pytest.mark.parametrize("if_first", [False, True])
def test_a_static_if_beside_other_statements_is_refused_and_not_lost(if_first: bool) -> None:
    choice = "    if matrix(p):\n        p = p - lr * m\n    else:\n        p = p - lr * g\n"
    average = "    m = lerp(m, g, 0.1)\n"
    body = choice + average if if_first else average + choice
    program = dsl.flatten(dsl.parse(f"def f(p, g, m: zeros, *, lr=0.1):\n{body}"))
    with pytest.raises(ValueError, match="a static if stands alone in its block"):
        mutate(program, MATRICES, np.random.default_rng(0))
    whole = replace(program, body=unfolded(program.body))
    assert [len(line) for _, line in straight_lines(whole.body)] == [3, 3]
    assert mutate(whole, MATRICES, np.random.default_rng(0)).program.body


@pytest.mark.parametrize("name", ["muon", "sinkgd"])
def test_a_change_is_to_one_line_and_keeps_the_types(name: str) -> None:
    program = genotype(dsl.load(name))
    before = dict(straight_lines(program.body))
    touched = set()
    for seed in range(80):
        changed = mutate(program, MATRICES, np.random.default_rng(seed)).program
        dsl.graph.lower_all(changed)
        assert dsl.parse(dsl.format(changed)) == changed
        after = dict(straight_lines(changed.body))
        different = {path for path in before if path not in after or after[path] != before[path]}
        assert len(different) <= 1 or len(after) != len(before)
        touched |= different
    assert touched == set(before)


def test_matrix_operators_and_state_of_other_shapes_are_reached() -> None:
    program = genotype(dsl.load("muon"))
    growing = replace(MATRICES, operators=MATRIX[-8:], weights={"insert": 1.0, "operator": 1.0, "constant": 1.0})
    used, extents = set(), set()
    for seed in range(1000):
        changed = mutate(program, growing, np.random.default_rng(seed)).program
        used |= {s.value.op for s in assignments(changed.body) if isinstance(s.value, Call)}
        extents |= {slot.extent for slot in changed.slots}
        for statement in assignments(changed.body):
            if isinstance(statement.value, Call) and statement.value.op in ("newton_schulz", "sinkhorn"):
                steps = statement.value.args[1]
                assert isinstance(steps, Number)
                assert steps.value == int(steps.value) >= 1
    assert {"matmul", "transpose", "sinkhorn", "matrix_power", "row_rms"} <= used
    assert {("r", "1"), ("r", "r")} <= extents


def test_a_guarded_division_is_by_what_is_never_zero() -> None:
    program = genotype(dsl.load("sgd"))
    grammar = Grammar(("div", "abs", "max", "sqrt"), 16, ("m", "v"), {"insert": 1.0})
    shares = {}
    for guarded in (0.0, 1.0):
        found = [mutate(program, replace(grammar, guarded=guarded), np.random.default_rng(n)) for n in range(200)]
        divided = [each for each in found if " / " in each.change]
        shares[guarded] = np.mean([properties.of(each.program).finite_at_zero for each in divided])
        assert len(divided) > 20
    assert shares[1.0] == 1.0
    assert shares[0.0] < 0.6


def test_a_grammar_without_what_a_guard_is_made_of_gets_plain_divisions() -> None:
    program = genotype(dsl.load("sgd"))
    for operators in (("div", "abs"), ("div", "add"), ("div",)):
        grammar = Grammar(operators, 16, ("m",), {"insert": 1.0}, guarded=1.0)
        for n in range(30):
            changed = mutate(program, grammar, np.random.default_rng(n)).program
            calls = {each.value.op for each in assignments(changed.body) if isinstance(each.value, Call)}
            assert calls <= {"mul", "add", "sub", *operators}
