"""Lanes: many trainings at once are the trainings one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial

import pytest
import torch
from torch import Tensor

import dsl
from discover import optim
from dsl.graph import needs
from dsl.lane_rule import LaneRule
from tests import zoo
from tests.zoo import around
from tests.zoo.closures import closure_of

LAYOUT = [
    ((4, 3), "hidden"),
    ((3, 2, 2, 2), "hidden"),
    ((5,), "bias"),
    ((), "vector"),
    ((2, 6), "head"),
    ((4, 4), "query_key"),
]
SIZES = [int(torch.Size(shape).numel()) for shape, _ in LAYOUT]
N = sum(SIZES)
STEPS = 12
BASES = [name for name in dsl.names() if not dsl.load(name).rules]
WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]
COMPOSED = [f"{wrapper}({base})" for wrapper in WRAPPERS for base in ("adamw", "muon")]
RULES = list(dict.fromkeys([*BASES, *COMPOSED, *(case.rule for case in zoo.CASES)]))

SOON = {
    "chunk": 3,
    "delta": 1.5,  # the cosine under which adamp and sgdp project
    "frequency": 3,
    "history": 4,
    "interval": 6,
    "k": 3,
    "rank": 2,
    "rest": 9,
    "start": 2,
    "warmup": 4,
}
"""What a rule waits for, so that it comes within `STEPS`, twice where it comes again."""
AWAY: dict[str, dict[str, float]] = {}
"""Hyperparameters away from their defaults, of every rule here: those of its first case, then what others add."""
for case in (*zoo.CASES, *around.CASES):
    AWAY[case.rule] = {**case.changed, **case.other, **AWAY.get(case.rule, {})}

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
    return 0.8 * P + 0.6 * P / (1 + P**2) ** 2 + 0.7 * torch.stack(noise).to(P.dtype)


def bowl(P: Tensor) -> Tensor:  # noqa: N803
    """What has the gradient `gradient`, but for noise; no quadratic, so that it matters where one looks and how far."""
    return 0.4 * P**2 + 0.3 * P**2 / (1 + P**2)


def spread(t: int) -> Tensor:
    """How far the gradients of two examples lie from their mean."""
    return torch.randn(N, generator=torch.Generator().manual_seed(77_000 + t))


def losses(params: list[Tensor], lane: int, t: int, sample: bool) -> Tensor:
    """Of two examples, [2]: their mean has the gradient `gradient`; a model's own labels give that of another step."""
    flat = torch.cat([p.flatten() for p in params])
    pull = gradient(torch.zeros(1, N, dtype=flat.dtype), t + 500 * sample, torch.tensor([lane]))[0]
    return torch.stack([(bowl(flat) + (pull + side * spread(t)) * flat).sum() for side in (1, -1)])


def answer(P: Tensor, t: int, seeds: Tensor, op: str, values: Tensor, *numbers: float | Tensor) -> Tensor:  # noqa: N803
    """What `losses` says of many lanes that are at P; each lane's on its own, so that its bits are."""
    match op:
        case "grad_at" | "sampled_grad":
            return gradient(values, t + 500 * (op == "sampled_grad"), seeds)
        case "hvp":
            return (0.8 + 0.6 * (1 - 3 * P**2) / (1 + P**2) ** 3) * values
        case "loss_at":
            pull = gradient(torch.zeros_like(values), t, seeds)
            return torch.stack([each.sum() for each in bowl(values) + pull * values])
    examples = [gradient(values, t, seeds) + side * spread(t).to(values.dtype) for side in (1, -1)]
    limits = numbers[0].flatten() if isinstance(numbers[0], Tensor) else [numbers[0]] * len(values)
    clipped = [
        torch.stack([g * (limit / g.norm()).clamp(max=1) for g, limit in zip(each, limits, strict=True)])
        for each in examples
    ]
    return (clipped[0] + clipped[1]) / 2


def away(rule: str) -> dict[str, float]:
    """All hyperparameters of a rule, away from their defaults and for a short training; `odd` has no others."""
    if rule == "odd":
        return dict(ODD.defaults)
    defaults = dsl.load(rule).defaults
    return {**defaults, **AWAY[rule], **{name: value for name, value in SOON.items() if name in defaults}}


def run(
    rule: str,
    lanes: list[int],
    hypers: Mapping[str, float | Tensor],
    dtype: torch.dtype = torch.float64,
    drop: bool = False,
) -> Tensor:
    """Trains some of seven lanes side by side; with `drop`, leaves only the first of them from step 5 on.

    Of the hyperparameters, tensors have a value for each of `lanes`.
    """
    program = ODD if rule == "odd" else dsl.load(rule)
    seeds = torch.tensor(lanes)
    buffer = torch.cat([torch.zeros(2, N, dtype=dtype), initial(7, dtype)[seeds]])  # a slice of a larger buffer
    P = buffer[2:]  # noqa: N806
    lane_rule = LaneRule(program, LAYOUT, lanes=len(lanes), dtype=dtype)
    lane_rule.start(P, hypers)
    hypers = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in hypers.items()}
    for t in range(1, STEPS + 1):
        if drop and t == 5:
            keep = torch.tensor([0])
            lane_rule.keep(keep)
            P, seeds = P[keep], seeds[keep]  # noqa: N806
            hypers = {name: value[keep] if isinstance(value, Tensor) else value for name, value in hypers.items()}
        ratio = 1 - t / 20
        lane_rule.closure, lane_rule.examples = partial(answer, P, t, seeds), 2
        lane_rule.step(P, gradient(P, t, seeds), t, hypers | {"lr": hypers["lr"] * ratio}, ratio)
    return lane_rule.evaluation(P).clone()


LR = torch.logspace(-3, -1, 7, dtype=torch.float64)
ODD = dsl.check(dsl.parse(ODD_RULES))


def with_lr(rule: str, lanes: list[int]) -> dict[str, float | Tensor]:
    """Away from the defaults, and the lanes each with a learning rate of its own."""
    return {**away(rule), "lr": LR[lanes]}


@pytest.mark.parametrize("rule", RULES)
def test_lanes_agree_with_the_optimizer(rule: str) -> None:
    together = run(rule, [0, 1, 2, 3], with_lr(rule, [0, 1, 2, 3]))
    for lane in range(4):
        pieces = initial(7)[lane].split(SIZES)
        params = [p.reshape(shape).clone().requires_grad_() for p, (shape, _) in zip(pieces, LAYOUT, strict=True)]
        opt = optim.create(
            rule,
            [{"params": [p], "role": role} for p, (_, role) in zip(params, LAYOUT, strict=True)],
            **{**away(rule), "lr": float(LR[lane])},
        )
        for t in range(1, STEPS + 1):
            for group in opt.param_groups:
                group["lr"] = float(LR[lane]) * (1 - t / 20)
            flat = torch.cat([p.detach().flatten() for p in params])
            grads = gradient(flat[None], t, torch.tensor([lane]))[0].split(SIZES)
            for p, g in zip(params, grads, strict=True):
                p.grad = g.reshape(p.shape)
            asking = closure_of(rule, params, partial(losses, params, lane, t))
            opt.step(asking if needs(opt.program).closure else None, examples=2)
        opt.eval()
        alone = torch.cat([p.detach().flatten() for p in params])
        mine, others = together[lane].split(SIZES), alone.split(SIZES)
        for (shape, _), one, other in zip(LAYOUT, mine, others, strict=True):
            if rule != "soap" or has_a_basis(shape):
                assert torch.allclose(one, other, rtol=1e-12, atol=1e-12), shape


def has_a_basis(shape: tuple[int, ...]) -> bool:
    """Whether the eigenvectors of G G^T and of G^T G are determined by one G, but for their signs: with two eigenvalues
    of 0 any basis of their plane will do, and which one comes out is a matter of the last bits, so of the processor."""
    return len(shape) < 2 or abs(shape[0] - math.prod(shape[1:])) < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rule", [*RULES, "odd"])
def test_a_lane_does_not_depend_on_the_others(rule: str, dtype: torch.dtype) -> None:
    alone = run(rule, [2], with_lr(rule, [2]), dtype)[0]
    for lanes in ([2, 5], [0, 1, 2, 3, 4, 5, 6], [6, 2, 0]):
        beside = run(rule, lanes, with_lr(rule, lanes), dtype)[lanes.index(2)]
        assert torch.equal(alone, beside), lanes


@pytest.mark.parametrize("rule", RULES)
def test_kept_lanes_go_on_as_if_nothing_had_happened(rule: str) -> None:
    hypers = with_lr(rule, [3, 1, 4])
    assert torch.equal(run(rule, [3, 1, 4], hypers)[0], run(rule, [3, 1, 4], hypers, drop=True)[0])


def test_an_elementwise_rule_is_one_call_for_all_parameters() -> None:
    flat = [rule for rule in RULES if LaneRule(dsl.load(rule), LAYOUT, lanes=2).flat]
    assert {"adamw", "lion", "clip_global(adamw)", "ema_nesterov(adamw)", "lookahead(adamw)"} <= set(flat)
    assert not {"muon", "cautious(adamw)"} & set(flat)


DECIDES_THE_WORK = {
    "adahessian": {"block"},
    "adam8bit": {"block"},
    "adam_mini": {"heads"},
    "apollo": {"rank"},
    "clip_quantile(adamw)": {"fraction"},
    "frugal": {"density"},
    "galore": {"rank"},
    "m3": {"steps"},
    "mfac": {"history"},
    "muon": {"steps"},
    "namo": {"steps"},
    "namo_d": {"steps"},
    "sinkgd": {"iterations"},
    "swan": {"steps"},
}
"""Hyperparameters that must be one number for all lanes: they say how often, how wide or where."""
NO_MATTER_HERE = {("adahessian", "seed"): "where the Hessian is diagonal, as here, a vector of signs tells all of it"}
"""Hyperparameters whose lanes end together, and why."""
WITH_OWN = [*((rule, dsl.load(rule)) for rule in BASES), *((f"{name}(adamw)", dsl.load(name)) for name in WRAPPERS)]
HYPERPARAMETERS = [(rule, name) for rule, program in WITH_OWN for name in program.defaults]


@cache
def away_from_all_defaults(rule: str) -> Tensor:
    return run(rule, [2], away(rule))[0]


@pytest.mark.parametrize(("rule", "name"), HYPERPARAMETERS)
def test_lanes_that_differ_in_one_hyperparameter_end_apart_each_as_with_its_number(rule: str, name: str) -> None:
    default = dsl.load(rule).defaults[name]
    both = torch.tensor([away(rule)[name], default], dtype=torch.float64)
    if name in DECIDES_THE_WORK.get(rule, ()):
        with pytest.raises(ValueError, match=r"must be one number, the same for all lanes|expected a whole number"):
            run(rule, [2, 2], {**away(rule), name: both})
        return
    moved, back = run(rule, [2, 2], {**away(rule), name: both})
    assert torch.allclose(moved, back, rtol=1e-9, atol=0) is ((rule, name) in NO_MATTER_HERE)
    assert torch.allclose(moved, away_from_all_defaults(rule), rtol=1e-9, atol=1e-12)
    assert torch.allclose(back, run(rule, [2], {**away(rule), name: default})[0], rtol=1e-9, atol=1e-12)


def test_what_shaped_the_state_cannot_change() -> None:
    program = dsl.load("apollo")
    points = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    rule = LaneRule(program, [((6, 4), "hidden")], lanes=2)
    rule.step(points, torch.ones(2, 24), 1, {**program.defaults, "rank": 2})
    with pytest.raises(ValueError, match="rank gave the state its shape and cannot change from 2 to 3"):
        rule.step(points, torch.ones(2, 24), 2, {**program.defaults, "rank": 3})
