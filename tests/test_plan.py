"""Laws of a run's choices: what is on disk is used, what must be made is made where it can be and pays."""

from __future__ import annotations

import pytest

import tasks
from discover import artefact, gradient, native, plan
from discover.space import Space

SPACE = Space.of(
    {
        "name": "s",
        "operators": ["add"],
        "tasks": {"search": ["quadratic", "breast_cancer"]},
        "rungs": [{"tasks": ["quadratic", "breast_cancer"]}],
    },
    "s",
)
LATER = plan.COMPILE_FROM
SHORT, LONG = plan.REPAYS_SECONDS / 2, plan.REPAYS_SECONDS
CHOICES = {
    # choice, seconds, a compiler -> for the task in the cache, for the other
    ("auto", LONG, True): (0, LATER),
    ("auto", None, True): (0, LATER),
    ("auto", SHORT, True): (0, None),
    ("auto", LONG, False): (0, None),
    ("always", SHORT, True): (0, LATER),
    ("always", SHORT, False): (0, None),
    ("never", LONG, True): (None, None),
}


@pytest.mark.parametrize(("choice", "seconds", "compiler"), CHOICES, ids=map(str, CHOICES))
def test_artefacts_are_used_where_they_are_and_made_where_that_pays(
    choice: str, seconds: float | None, compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefact, "have_compiler", lambda: compiler)
    monkeypatch.setattr(gradient, "is_cached", lambda task: task.name == "quadratic")
    cached, other = CHOICES[choice, seconds, compiler]
    assert plan.compile_choice(SPACE, choice, seconds) == {"quadratic": cached, "breast_cancer": other}


def test_artefacts_are_there_if_they_are_for_each_batch_size_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact, "have_compiler", lambda: True)
    monkeypatch.setattr(gradient, "is_cached", lambda task: (task.name, task.batch_size) != ("quadratic", 8))
    own = Space.of({**SPACE.plain(), "batch_scales": [0.5, 2.0]}, "s")
    sizes = {name: tasks.load(name).batch_size for name in ("quadratic", "breast_cancer")}
    assert sizes["quadratic"] == 16
    assert plan.compile_choice(SPACE, "auto", LONG) == {"quadratic": 0, "breast_cancer": 0}
    assert plan.compile_choice(own, "auto", LONG) == {"quadratic": LATER, "breast_cancer": 0}


@pytest.mark.parametrize("available", [True, False])
def test_rules_are_native_where_they_can_be_and_anything_is_to_be_compiled(
    available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "available", lambda: available)
    assert {choice: plan.native_choice(choice) for choice in ("auto", "always", "never")} == {
        "auto": available,
        "always": available,
        "never": False,
    }
