"""Lanes: many trainings at once are the trainings one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dsl
from discover import optim
from dsl.lane_rule import LaneRule

LAYOUT = [((4, 3), "hidden"), ((3, 2, 2, 2), "hidden"), ((5,), "bias"), ((), "vector"), ((2, 6), "head")]
SIZES = [int(torch.Size(shape).numel()) for shape, _ in LAYOUT]
N = sum(SIZES)
STEPS = 12
BASES = [name for name in dsl.names() if not dsl.load(name).rules]
WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]
RULES = [*BASES, *(f"{wrapper}({base})" for wrapper in WRAPPERS for base in ("adamw", "muon"))]

ODD_RULES = """
def odd(p, g, m: zeros, r: rows(zeros), s: scalar(1), *, lr=0.1, beta1=0.7):
    m = lerp(m, sigmoid(g) - 0.5, 1 - beta1)
    r = lerp(r, row_mean(abs(g) ** 1.5), 0.1)
    s = s * beta1 ** t
    p = p - lr * m / (1 + r) * (1 + s) * tanh(norm(p)) - 1e-3 * g * global_amax(abs(g))
"""


def initial(lanes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(lanes, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def gradient(P: Tensor, t: int, seeds: Tensor) -> Tensor:  # noqa: N803
    """Each lane's own, from its own parameters and seed."""
    noise = [torch.randn(N, generator=torch.Generator().manual_seed(1000 * int(s) + t)) for s in seeds]
    return 0.8 * P + 0.7 * torch.stack(noise).to(P.dtype)


def run(
    rule: str | dsl.Program, lanes: list[int], lr: Tensor, dtype: torch.dtype = torch.float64, drop: bool = False
) -> Tensor:
    """Trains some of seven lanes side by side; with `drop`, leaves only the first of them from step 5 on."""
    program = dsl.load(rule) if isinstance(rule, str) else rule
    seeds = torch.tensor(lanes)
    buffer = torch.cat([torch.zeros(2, N, dtype=dtype), initial(7, dtype)[seeds]])  # a slice of a larger buffer
    P = buffer[2:]  # noqa: N806
    lane_rule = LaneRule(program, LAYOUT, lanes=len(lanes), dtype=dtype)
    lane_rule.start(P)
    hypers = {**program.defaults, "lr": lr[seeds].to(dtype)}
    for t in range(1, STEPS + 1):
        if drop and t == 5:
            keep = torch.tensor([0])
            lane_rule.keep(keep)
            P, seeds = P[keep], seeds[keep]  # noqa: N806
            hypers["lr"] = hypers["lr"][keep]
        ratio = 1 - t / 20
        lane_rule.step(P, gradient(P, t, seeds), t, hypers | {"lr": hypers["lr"] * ratio}, ratio)
    return lane_rule.evaluation(P).clone()


LR = torch.logspace(-3, -1, 7, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
def test_lanes_agree_with_the_optimizer(rule: str) -> None:
    together = run(rule, [0, 1, 2, 3], LR)
    for lane in range(4):
        pieces = initial(7)[lane].split(SIZES)
        params = [p.reshape(shape).clone().requires_grad_() for p, (shape, _) in zip(pieces, LAYOUT, strict=True)]
        opt = optim.create(
            rule,
            [{"params": [p], "role": role} for p, (_, role) in zip(params, LAYOUT, strict=True)],
            lr=float(LR[lane]),
        )
        for t in range(1, STEPS + 1):
            for group in opt.param_groups:
                group["lr"] = float(LR[lane]) * (1 - t / 20)
            flat = torch.cat([p.detach().flatten() for p in params])
            grads = gradient(flat[None], t, torch.tensor([lane]))[0].split(SIZES)
            for p, g in zip(params, grads, strict=True):
                p.grad = g.reshape(p.shape)
            opt.step()
        opt.eval()
        alone = torch.cat([p.detach().flatten() for p in params])
        assert torch.allclose(together[lane], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rule", [*RULES, "odd"])
def test_a_lane_does_not_depend_on_the_others(rule: str, dtype: torch.dtype) -> None:
    program = dsl.check(dsl.parse(ODD_RULES)) if rule == "odd" else dsl.load(rule)
    alone = run(program, [2], LR, dtype)[0]
    for lanes in ([2, 5], [0, 1, 2, 3, 4, 5, 6], [6, 2, 0]):
        beside = run(program, lanes, LR, dtype)[lanes.index(2)]
        assert torch.equal(alone, beside), lanes


@pytest.mark.parametrize("rule", RULES)
def test_kept_lanes_go_on_as_if_nothing_had_happened(rule: str) -> None:
    assert torch.equal(run(rule, [3, 1, 4], LR)[0], run(rule, [3, 1, 4], LR, drop=True)[0])


def test_an_elementwise_rule_is_one_call_for_all_parameters() -> None:
    flat = [rule for rule in RULES if LaneRule(dsl.load(rule), LAYOUT, lanes=2).flat]
    assert {"adamw", "lion", "clip_global(adamw)", "ema_nesterov(adamw)", "lookahead(adamw)"} <= set(flat)
    assert not {"muon", "cautious(adamw)"} & set(flat)


def test_every_hyperparameter_may_differ_between_lanes() -> None:
    program = dsl.load("adamw")
    hypers = {name: torch.tensor([value, value * 0.9]) for name, value in program.defaults.items()}
    P = initial(2)  # noqa: N806
    lane_rule = LaneRule(program, LAYOUT, lanes=2, dtype=torch.float64)
    for t in range(1, 5):
        lane_rule.step(P, gradient(P, t, torch.arange(2)), t, hypers)
    for lane in range(2):
        single = initial(2)[lane : lane + 1]
        rule = LaneRule(program, LAYOUT, lanes=1, dtype=torch.float64)
        numbers = {name: float(value[lane]) for name, value in hypers.items()}
        for t in range(1, 5):
            rule.step(single, gradient(single, t, torch.tensor([lane])), t, numbers)
        assert torch.allclose(P[lane], single[0], rtol=1e-9)


def test_a_number_that_decides_the_work_cannot_differ_between_lanes() -> None:
    P = initial(2)  # noqa: N806
    program = dsl.load("muon")
    hypers = {**program.defaults, "steps": torch.tensor([4.0, 5.0])}
    with pytest.raises(ValueError, match="newton_schulz: steps must be one number, the same for all lanes"):
        LaneRule(program, LAYOUT, lanes=2, dtype=torch.float64).step(P, P.clone(), 1, hypers)
