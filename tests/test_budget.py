"""Laws of a budget: each limit ends a search when it is reached and not before, and a manifest keeps it to the bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discover.budget import EXHAUSTED, UNLIMITED, Budget
from discover.progress import Progress


@dataclass(frozen=True)
class Far:
    """How far a search is: what of its `Progress` a budget looks at."""

    trained: int = 100
    model_steps: int = 5000
    barren: int = 0
    best: float | None = 0.25
    trained_at_best: int = 80


FAR = Far()


def allows(budget: Budget, far: Far = FAR, elapsed: float = 60.0) -> bool:
    return not budget.reached(cast(Progress, far), elapsed)


LIMITS: dict[str, tuple[Budget, Budget, str]] = {
    "time": (Budget(time="1m"), Budget(time="1m1s"), "its 1m00s are over"),
    "candidates": (Budget(candidates=100), Budget(candidates=101), "100 candidates are trained, and 100 were to be"),
    "model steps": (Budget(model_steps=5000), Budget(model_steps=5001), "5,000 model steps are used, of 5,000"),
    "target": (
        Budget(target=0.25),
        Budget(target=0.26),
        "fresh scores let one expect +0.250 of a candidate, and +0.25 was the target",
    ),
    "plateau": (Budget(plateau=20), Budget(plateau=21), "the last 20 candidates brought nothing better"),
}


@pytest.mark.parametrize(("reached", "further", "said"), LIMITS.values(), ids=LIMITS)
def test_a_limit_ends_a_search_where_it_is_reached_and_not_before(reached: Budget, further: Budget, said: str) -> None:
    assert reached.reached(cast(Progress, FAR), 60.0) == said
    assert allows(further)
    others = {name: value for _, each, _ in LIMITS.values() for name, value in each.limits.items()}
    assert not allows(Budget.of(**cast(Any, {**others, **reached.limits})))  # the first that is reached ends it
    assert len(reached.limits) == len(list(reached.words())) == 1


def test_without_a_limit_a_search_ends_when_nothing_is_new() -> None:
    assert allows(UNLIMITED, elapsed=1e9)
    assert not UNLIMITED.limits
    assert not allows(UNLIMITED, replace(FAR, barren=EXHAUSTED))


def test_before_anything_is_confirmed_no_target_and_no_plateau_is_reached() -> None:
    assert allows(Budget(target=-1.0, plateau=1), replace(FAR, best=None, trained_at_best=0))


seconds = st.floats(min_value=1e-9, max_value=1e12)


@given(seconds, st.integers(min_value=1), st.floats(allow_nan=False, allow_infinity=False))
def test_a_budget_survives_a_manifest_to_the_last_bit(time: float, count: int, target: float) -> None:
    budget = Budget.of(seconds=time, candidates=count, target=target)
    assert budget.seconds == time
    assert Budget.of(**budget.plain()) == budget


def test_budgets_are_equal_that_end_searches_alike() -> None:
    assert Budget(time="90s") == Budget(time="1m30s") == Budget.of(seconds=90.0)
    assert len({Budget(time="90s"), Budget(time="1m30s"), Budget(time="91s"), UNLIMITED}) == 3
    assert Budget(target=1.0) != Budget(time="1s")


def test_compute_is_multiplied_and_what_is_no_compute_is_not() -> None:
    whole = Budget(time="1m", candidates=4, model_steps=1000, target=0.5, plateau=30)
    assert whole.times(2.5) == Budget(time="150s", candidates=10, model_steps=2500, target=0.5, plateau=30)
    assert whole.times(1e-6).candidates == 1
    assert UNLIMITED.times(4.0) == UNLIMITED


def test_time_is_of_a_session_and_what_is_left_of_it_is_for_the_next() -> None:
    whole = Budget(time="1m", candidates=4)
    assert whole.after(20.0) == Budget(time="40s", candidates=4)
    assert Budget(candidates=4).after(20.0) == Budget(candidates=4)
