"""Laws of the stride: a rule's step at lr = 1 is what its learning rates are measured in."""

from __future__ import annotations

import pytest

import dsl
import tasks
from discover.strides import measured, sees_more_than_an_element
from dsl import properties

NORMALISED = "def normalised(p, g, *, lr=1):\n p = p - lr * g / norm(g)"
GLOBALLY = "def globally(p, g, *, lr=1):\n p = p - lr * g / global_norm(g)"


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "signum"])
def test_an_elementwise_rule_strides_as_its_properties_say(name: str) -> None:
    program = dsl.load(name)
    assert not sees_more_than_an_element(program)
    found = measured(tasks.load("digits_mlp"), program, gradient_rms=1.0, parameter_scale=1.0)
    assert found == pytest.approx(properties.of(program).scale, rel=0.25)


def test_a_step_divided_by_a_norm_is_as_short_as_the_parameters_are_many() -> None:
    program = dsl.parse(GLOBALLY)
    assert sees_more_than_an_element(program)
    for name in ("digits_mlp", "quadratic"):
        task = tasks.load(name)
        found = measured(task, program, gradient_rms=1e-3, parameter_scale=10.0)
        assert found == pytest.approx(task.size**-0.5, rel=1e-6)
    assert sees_more_than_an_element(dsl.parse(NORMALISED))


def test_the_stride_follows_the_gradients_size_by_the_degree() -> None:
    task = tasks.load("breast_cancer")
    rule = dsl.parse("def r(p, g, *, lr=1):\n p = p - lr * square(g) * sign(g) / norm(g)")
    small, large = (measured(task, rule, gradient_rms=rms, parameter_scale=1.0) for rms in (1e-4, 1e-2))
    assert large / small == pytest.approx(100.0)
