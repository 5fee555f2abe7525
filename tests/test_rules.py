"""Every built-in rule follows an independent implementation for fifty steps in float64; the table is tests/zoo/."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

import pytest
import torch

import dsl
from discover import optim
from tests import zoo
from tests.zoo import around
from tests.zoo.case import Case, deviation, gradients, parameters
from tests.zoo.closures import closure_of

NAME = re.compile(r"[a-z_0-9]+")
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|[A-Z][a-z]+ (et al\. |& [A-Z][A-Za-z-]+ )?(19|20)\d\d")
YEAR = re.compile(r"\b(19|20)\d\d\b")
PRECISE = 1e-9


@pytest.mark.parametrize("other", [False, True], ids=["default", "other"])
@pytest.mark.parametrize("case", zoo.CASES, ids=lambda case: case.rule)
def test_rule_follows_its_oracle_for_fifty_steps(case: Case, other: bool) -> None:
    found = case.deviations(other)
    assert len(found) >= 50
    assert max(found) < case.tolerance, f"from step {next(t for t, d in enumerate(found, 1) if d >= case.tolerance)}"


def cases_of(rule: str) -> list[Case]:
    """Those in which the rule stands; a wrapper's are with any base."""
    return [case for case in zoo.CASES if rule in NAME.findall(case.rule)]


@pytest.mark.parametrize("rule", dsl.names())
def test_every_rule_is_followed_to_rounding(rule: str) -> None:
    cases = cases_of(rule)
    assert any(case.tolerance <= PRECISE for case in cases), "no case in tests/zoo/ holds the rule to its equations"
    assert all(case.note for case in cases if case.tolerance > PRECISE)


def unseen(rule: str, cases: Iterable[Case]) -> list[str]:
    """The hyperparameters that the rule, a wrapper without its base's, could have at their defaults unnoticed."""
    return [name for name in dsl.load(rule).defaults if not any(case.sees(name) for case in cases)]


@pytest.mark.parametrize("rule", dict.fromkeys(case.rule for case in zoo.CASES))
def test_a_case_breaks_when_the_rule_alone_has_a_hyperparameter_at_its_default(rule: str) -> None:
    cases = [case for case in zoo.CASES if case.rule == rule]
    finest = min(case.tolerance for case in cases)
    assert not unseen(rule, [case for case in cases if case.tolerance == finest])


@pytest.mark.parametrize("rule", dsl.names())
def test_rule_is_documented_with_year_and_source(rule: str) -> None:
    program = dsl.load(rule)
    first, _, _ = program.doc.partition("\n")
    assert first[:1].isupper()
    assert YEAR.search(first)
    assert SOURCE.search(first)
    assert program.rules or "lr" in program.defaults


WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]


def bowl(params: list[torch.Tensor], t: int, sample: bool) -> torch.Tensor:
    """The loss of one example whose gradient is `gradients`."""
    pulls = zip(params, gradients(params, t), strict=True)
    return torch.stack(
        [sum((p * (g - p.detach() * (1 + i)) + p**2 * (1 + i) / 2).sum() for i, (p, g) in enumerate(pulls))]
    )


@pytest.mark.parametrize("case", around.CASES, ids=lambda case: case.rule)
def test_wrapper_follows_its_formula_around_the_base_s_own_optimizer(case: Case) -> None:
    assert max(case.deviations(True)) < case.tolerance


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_has_a_formula_that_sees_its_hyperparameters(wrapper: str) -> None:
    assert not unseen(wrapper, [case for case in around.CASES if case.rule.startswith(f"{wrapper}(")])


@pytest.mark.parametrize("base", [f"{wrapper}(adamw)" for wrapper in WRAPPERS])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_steps_every_wrapped_rule(wrapper: str, base: str) -> None:
    params = parameters()
    opt = optim.create(f"{wrapper}({base})", params, lr=1e-2)
    for t in range(1, 8):
        before = [p.detach().clone() for p in params]
        opt.step(closure_of(opt.program, params, partial(bowl, params, t)))
        assert all(torch.isfinite(p).all() for p in params)
        assert t < 3 or any((p != old).any() for p, old in zip(params, before, strict=True))
        trained = [p.detach().clone() for p in params]
        opt.eval()
        assert all(torch.isfinite(p).all() for p in params)
        opt.train()
        assert all(torch.equal(p, old) for p, old in zip(params, trained, strict=True))


def test_global_clipping_joins_all_groups() -> None:
    mine, theirs = parameters(), parameters()
    opt = optim.create("clip_global(sgd)", [{"params": mine[:1]}, {"params": mine[1:], "lr": 0.03}], lr=0.1)
    groups = torch.optim.SGD([{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.03}], lr=0.1)
    for t in range(1, 6):
        for a, b, g in zip(mine, theirs, gradients(mine, t), strict=True):
            a.grad, b.grad = g, g.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        opt.step()
        groups.step()
    assert deviation(mine, theirs) < 1e-12


def test_muon_follows_torch_to_the_precision_of_bfloat16() -> None:
    mine = [torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()]
    theirs = [mine[0].detach().clone().requires_grad_()]
    opt = optim.create("muon", mine, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for t in range(1, 11):
        mine[0].grad = gradients(theirs, t)[0]
        theirs[0].grad = mine[0].grad.clone()
        opt.step()
        other.step()
    assert deviation(mine, theirs) < 2e-2
