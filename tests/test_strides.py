"""Laws of the stride: a rule's step at lr = 1 is what its learning rates are measured in."""

from __future__ import annotations

import pytest

import dsl
import tasks
from discover import native
from discover.strides import measured, sees_more_than_an_element
from dsl import properties

NORMALISED = "def normalised(p, g, *, lr=1):\n p = p - lr * g / norm(g)"
GLOBALLY = "def globally(p, g, *, lr=1):\n p = p - lr * g / global_norm(g)"
BOTH = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")),
]


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "signum"])
def test_an_elementwise_rule_strides_as_its_properties_say(name: str, native: bool) -> None:
    program = dsl.load(name)
    assert not sees_more_than_an_element(program)
    (found,) = measured(tasks.load("digits_mlp"), [program], native=native)
    assert found == pytest.approx(properties.of(program).scale, rel=0.25)


@pytest.mark.parametrize("native", BOTH)
def test_a_step_divided_by_a_norm_is_as_short_as_the_parameters_are_many(native: bool) -> None:
    program = dsl.parse(GLOBALLY)
    assert sees_more_than_an_element(program)
    for name in ("digits_mlp", "quadratic"):
        task = tasks.load(name)
        assert measured(task, [program], native=native) == pytest.approx([task.size**-0.5], rel=1e-4)
    assert sees_more_than_an_element(dsl.parse(NORMALISED))


def test_rules_measured_together_are_measured_as_alone() -> None:
    task = tasks.load("breast_cancer")
    programs = [dsl.parse(NORMALISED), dsl.load("muon"), dsl.load("clip_global(adamw)"), dsl.parse(GLOBALLY)]
    together = measured(task, programs, native=native.available())
    assert together == [measured(task, [program], native=native.available())[0] for program in programs]
    assert together == pytest.approx(measured(task, programs, native=False), rel=1e-4)


def test_a_rule_without_a_value_has_no_stride() -> None:
    program = dsl.parse("def r(p, g, *, lr=1):\n p = p - lr * g / norm(g) / (t - 3)")
    assert measured(tasks.load("breast_cancer"), [program], native=False) == [0.0]
    assert measured(tasks.load("breast_cancer"), [program], native=native.available()) == [0.0]
