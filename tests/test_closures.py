"""Rules that ask for more than a gradient, and rules that keep eight bits, in a user's hands."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp

import dsl
from discover import optim
from discover.optimizer import RuleOptimizer
from dsl.graph import needs
from dsl.lane_rule import LaneRule
from tests.zoo.case import deviation, parameters
from tests.zoo.closures import EXAMPLES, SHAPES, closure_of, losses

PAGE = Path(__file__).parent.parent / "docs" / "closures.md"
ASKING = [name for name in dsl.names() if not dsl.load(name).rules and needs(dsl.load(name)).closure]
WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules and needs(dsl.load(f"{name}(sgd)")).closure]
COMPOSED = [
    *(f"{wrapper}(adamw)" for wrapper in WRAPPERS),
    "ema_nesterov(adahessian)",
    "clip_global(sam(adamw))",
    "lookahead(sophia_h)",
    "sam(adahessian)",
    "schedule_free(sophia_h)",
]
EIGHT_BITS = [name for name in dsl.names() if any(slot.code for slot in dsl.load(name).slots)]
RULES = [*ASKING, *COMPOSED, *EIGHT_BITS]
SIZES = [int(torch.Size(shape).numel()) for shape in SHAPES]


def network() -> list[Tensor]:
    return parameters(shapes=SHAPES)


def flat(params: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in params])


def flat_losses(t: int, values: Tensor, sample: bool = False) -> Tensor:
    """The losses of the network whose parameters are one vector, [EXAMPLES]."""
    return losses([part.view(shape) for part, shape in zip(values.split(SIZES), SHAPES, strict=True)], t, sample)


def flat_loss(t: int, values: Tensor, sample: bool = False) -> Tensor:
    return flat_losses(t, values, sample).mean()


def train(params: list[Tensor], opt: RuleOptimizer, start: int, stop: int, sign: int = 1) -> None:
    for t in range(start, stop):
        opt.step(
            closure_of(opt.program, params, lambda sample, t=t: sign * losses(params, t, sample)), examples=EXAMPLES
        )


# Answers --------------------------------------------------------------------------------------------------------------

ALL = """def everything(p, g, a: zeros, b: zeros, c: zeros, d: zeros, *, lr=0.1):
    q = p + 0.1 * g
    a = 0 * a + grad_at(q)
    b = 0 * b + hvp(a)
    c = 0 * c + sampled_grad(q)
    d = 0 * d + clipped_grad(q, 0.5)
    p = p - lr * (a + b + c + d) * loss_at(q)
"""


def answer(t: int, at: Tensor, op: str, values: Tensor, *numbers: float) -> Tensor:
    """What the network says, by torch.func."""
    match op:
        case "grad_at" | "sampled_grad":
            return grad(partial(flat_loss, t, sample=op == "sampled_grad"))(values)
        case "hvp":
            return jvp(grad(partial(flat_loss, t)), (at,), (values,))[1]
        case "loss_at":
            return flat_loss(t, values)
    each = torch.stack([grad(lambda x, i=i: flat_losses(t, x)[i])(values) for i in range(EXAMPLES)])
    return (each * (numbers[0] / each.norm(dim=1, keepdim=True)).clamp(max=1)).mean(0)


@pytest.mark.parametrize("by_keyword", [False, True])
def test_answers_are_what_torch_func_says(by_keyword: bool) -> None:
    """All at once, the Hessian's product after parameters moved; gradients are zeroed in place, as some closures do."""
    params = network()
    opt = optim.create(dsl.check(dsl.parse(ALL)), params)

    def always(sample: bool = False, examples: bool = False, create_graph: bool = True) -> Tensor:
        opt.zero_grad(set_to_none=False)
        each = losses(params, 3, sample)
        if examples:
            return each
        each.mean().backward(create_graph=create_graph)
        return each.mean()

    def told(sample: bool = False, examples: bool = False, create_graph: bool = False) -> Tensor:
        return always(sample, examples, create_graph)

    start = flat(params)
    loss = opt.step(told if by_keyword else lambda sample=False, examples=False: always(sample, examples))
    heard = {name: torch.cat([opt.state[p][name].flatten() for p in params]) for name in "abcd"}
    g = answer(3, start, "grad_at", start)
    q = start + 0.1 * g
    a = answer(3, start, "grad_at", q)
    expected = {"a": a, "b": answer(3, start, "hvp", a)}
    expected |= {"c": answer(3, start, "sampled_grad", q), "d": answer(3, start, "clipped_grad", q, 0.5)}
    for name, value in expected.items():
        torch.testing.assert_close(heard[name], value, rtol=1e-10, atol=1e-12)
    e = answer(3, start, "loss_at", q)
    torch.testing.assert_close(flat(params), start - 0.1 * (sum(expected.values()) * e), rtol=1e-10, atol=1e-12)
    assert loss.item() == pytest.approx(float(flat_loss(3, start)), rel=1e-12)
    assert all(p.grad is not None and not p.grad.requires_grad for p in params)
    torch.testing.assert_close(flat([p.grad for p in params]), g, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", [*ASKING, *COMPOSED])
def test_lanes_agree_with_the_optimizer_on_a_network(rule: str) -> None:
    program = dsl.load(rule)
    starts = torch.stack([flat(network()), flat(network()) * 0.5])
    lanes = starts.clone()
    lane_rule = LaneRule(program, [(shape, "vector" if len(shape) < 2 else "hidden") for shape in SHAPES], lanes=2,
                         dtype=torch.float64)  # fmt: skip
    lane_rule.examples = EXAMPLES
    hypers = {**program.defaults, "lr": 0.02}
    for t in range(1, 7):
        lane_rule.closure = lambda op, values, *numbers, t=t, at=lanes: torch.stack(
            [answer(t, at[lane], op, values[lane], *numbers) for lane in range(2)]
        )
        lane_rule.step(lanes, torch.stack([answer(t, x, "grad_at", x) for x in lanes]), t, hypers)
    for lane in range(2):
        params = [x.view(shape).clone().requires_grad_()
                  for x, shape in zip(starts[lane].split(SIZES), SHAPES, strict=True)]  # fmt: skip
        opt = optim.create(rule, params, lr=0.02)
        train(params, opt, 1, 7)
        torch.testing.assert_close(lanes[lane], flat(params), rtol=1e-9, atol=1e-11)
        assert not torch.equal(starts[lane], flat(params))


def test_curvature_is_asked_for_at_the_steps_that_need_it_alone() -> None:
    params, calls = network(), []
    opt = optim.create("sophia_h", params, frequency=3)

    def closure(create_graph: bool = False) -> Tensor:
        calls.append(create_graph)
        opt.zero_grad()
        loss = losses(params, 1).mean()
        loss.backward(create_graph=create_graph)
        return loss

    for _ in range(5):
        opt.step(closure)
    assert calls == [False, True, False, False, False, True, False]


@pytest.mark.parametrize("by_keyword", [False, True])
def test_curvature_may_be_asked_for_twice_in_a_step(by_keyword: bool) -> None:
    params, calls = network(), []
    program = dsl.check(dsl.parse("def twice(p, g, *, lr=0.1):\n    p = p - lr * hvp(hvp(g))\n"))
    opt = optim.create(program, params)

    def always(create_graph: bool = True) -> Tensor:
        calls.append(create_graph)
        opt.zero_grad()
        loss = losses(params, 1).mean()
        loss.backward(create_graph=create_graph)
        return loss

    start = flat(params)
    opt.step((lambda create_graph=False: always(create_graph)) if by_keyword else lambda: always())
    g = answer(1, start, "grad_at", start)
    expected = start - 0.1 * answer(1, start, "hvp", answer(1, start, "hvp", g))
    torch.testing.assert_close(flat(params), expected, rtol=1e-10, atol=1e-12)
    assert calls == ([False, True] if by_keyword else [True])


def test_examples_of_poisson_sampling_are_divided_by_their_expected_number() -> None:
    moved = []
    for expected in (EXAMPLES, 2 * EXAMPLES):
        params = network()
        opt = optim.create("dp_sgd", params, noise=0.5)
        opt.step(closure_of("dp_sgd", params, partial(losses, params, 1)), examples=expected)
        moved.append(flat(params) - flat(network()))
    torch.testing.assert_close(moved[0], 2 * moved[1], rtol=1e-12, atol=1e-15)


def test_an_empty_batch_gives_noise_alone() -> None:
    params = network()
    opt = optim.create("dp_sgd", params, noise=0.5)
    opt.step(lambda examples=False: losses(params, 1)[:0], examples=EXAMPLES)
    assert torch.isfinite(flat(params)).all()
    assert not torch.equal(flat(params), flat(network()))


def test_a_parameter_that_the_loss_does_not_need_is_left_alone_or_decays() -> None:
    for rule in [*ASKING, *COMPOSED]:
        params, idle = network(), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
        opt = optim.create(rule, [*params, idle], lr=0.01, **({"noise": 0} if rule == "dp_sgd" else {}))
        opt.step(closure_of(rule, params, partial(losses, params, 1)), examples=EXAMPLES)
        assert torch.isfinite(flat(params)).all(), rule
        assert rule == "mezo" or torch.equal(idle.detach(), torch.ones_like(idle)), rule


# A user's hands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_saved_training_resumes_to_the_same_bits(rule: str) -> None:
    """Draws and eight-bit codes included: the run that was stopped is the run that was not."""
    whole, first, second = network(), network(), network()
    opts = [optim.create(rule, params, lr=0.02) for params in (whole, first, second)]
    train(whole, opts[0], 0, 8)
    train(first, opts[1], 0, 4)
    file = io.BytesIO()
    torch.save([[p.detach() for p in first], opts[1].state_dict()], file)
    file.seek(0)
    saved, state = torch.load(file)
    with torch.no_grad():
        for p, x in zip(second, saved, strict=True):
            p.copy_(x)
    opts[2].load_state_dict(state)
    for slot in opts[2].program.slots:
        if slot.code:
            assert all(opts[2].state[p][slot.name].dtype == torch.uint8 for p in second)
    torch.manual_seed(123)  # no draw depends on it
    train(second, opts[2], 4, 8)
    assert torch.equal(flat(whole), flat(second))


@pytest.mark.parametrize("rule", RULES)
def test_pickled_and_copied_optimizers_go_on_alike(rule: str) -> None:
    params = network()
    opt = optim.create(rule, params, lr=0.02)
    train(params, opt, 0, 3)
    for twin, twin_opt in (pickle.loads(pickle.dumps((params, opt))), copy.deepcopy((params, opt))):
        original, original_opt = copy.deepcopy((params, opt))
        train(original, original_opt, 3, 6)
        train(twin, twin_opt, 3, 6)
        assert torch.equal(flat(original), flat(twin))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "dp_sgd"])
def test_maximize_is_minimize_of_the_negated_loss(rule: str) -> None:
    up, down = network(), network()
    train(up, optim.create(rule, up, lr=0.02, maximize=True), 0, 5, sign=-1)
    train(down, optim.create(rule, down, lr=0.02), 0, 5)
    assert torch.equal(flat(up), flat(down))


def test_maximize_of_one_group_is_a_descent_of_its_own_losses() -> None:
    """A game: each group minds its own sign, also in what the closure answers."""
    params = network()
    groups = [{"params": params[:2], "maximize": True}, {"params": params[2:]}]
    opt = optim.create("sam(sgd)", groups, lr=0.1, rho=0.05)
    start = flat(params)
    train(params, opt, 1, 2)
    sign = torch.cat([torch.full((sum(SIZES[:2]),), -1.0), torch.ones(sum(SIZES[2:]))]).double()
    g = sign * answer(1, start, "grad_at", start)
    expected = start - 0.1 * sign * answer(1, start, "grad_at", start + 0.05 * g / g.norm())
    torch.testing.assert_close(flat(params), expected, rtol=1e-10, atol=1e-12)


def test_groups_have_hyperparameters_of_their_own() -> None:
    """What one group does depends on the other through the loss alone: held still, it changes nothing."""
    for rule in ("adahessian", "sophia_h", "sophia_g", "mezo", "mars_adamw_exact", "adam8bit"):
        params, alone = network(), network()
        opt = optim.create(rule, [{"params": params[:3], "lr": 0.0}, {"params": params[3:], "lr": 0.05}])
        other = optim.create(rule, [{"params": alone[:3], "lr": 0.0}, {"params": alone[3:], "lr": 0.1}])
        start = flat(params)
        train(params, opt, 1, 2)
        train(alone, other, 1, 2)
        held = sum(SIZES[:3])
        assert torch.equal(flat(params)[:held], start[:held]), rule
        torch.testing.assert_close(
            2 * (flat(params) - start)[held:], (flat(alone) - start)[held:], rtol=1e-9, atol=1e-12
        )


def test_another_seed_draws_otherwise_and_the_same_seed_alike() -> None:
    for rule in ("adahessian", "sophia_h", "mezo", "dp_sgd"):
        ends = []
        for seed in (0, 0, 1):
            params = network()
            train(params, optim.create(rule, params, lr=0.05, seed=seed), 0, 3)
            ends.append(flat(params))
        assert torch.equal(ends[0], ends[1]), rule
        assert not torch.equal(ends[0], ends[2]), rule


def test_mezo_makes_no_gradient_and_puts_parameters_back_exactly() -> None:
    params, seen = network(), []
    frozen = torch.ones(3, dtype=torch.float64)
    opt = optim.create("mezo", [*params, frozen], lr=0.0)
    start = flat(params)

    def closure() -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(flat(params))
        return losses(params, 1).mean()

    loss = opt.step(closure)
    assert len(seen) == 2
    assert torch.equal(flat(params), start)
    torch.testing.assert_close(seen[0] + seen[1], 2 * start, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in params)
    assert not any(isinstance(value, Tensor) for state in opt.state.values() for value in state.values())
    assert torch.equal(loss, flat_loss(1, seen[0]))
    assert torch.equal(frozen, torch.ones(3, dtype=torch.float64))


def test_mezo_trains_without_any_gradient() -> None:
    params = network()
    opt = optim.create("mezo", params, lr=0.05)
    before = flat_loss(1, flat(params))
    for _ in range(80):
        opt.step(lambda: losses(params, 1).mean())
    assert flat_loss(1, flat(params)) < 0.8 * before
    assert all(p.grad is None for p in params)


def test_eight_bits_take_two_bytes_an_element() -> None:
    p = torch.randn(100, 300, requires_grad=True)
    opt = optim.create("adam8bit", [p])
    p.grad = torch.randn(100, 300)
    opt.step()
    kept = [value for value in opt.state[p].values() if isinstance(value, Tensor)]
    blocks = -(-p.numel() // 256)
    assert sum(value.nbytes for value in kept) == 2 * p.numel() + 2 * 4 * blocks
    adam = optim.create("adamw", [p])
    adam.step()
    assert sum(value.nbytes for value in adam.state[p].values() if isinstance(value, Tensor)) == 8 * p.numel()


def test_eight_bits_train_about_as_well_as_thirty_two() -> None:
    ends = []
    for rule in ("adam8bit", "adam"):
        params = network()
        train(params, optim.create(rule, params, lr=0.02), 0, 60)
        ends.append(params)
    assert 0 < deviation(*ends) < 0.05


def test_one_bit_leaves_elements_alone_that_had_no_gradient_in_the_warm_up() -> None:
    """A sign cannot say 0, and their second moment is 0: the step would be the momentum over eps."""
    p = torch.ones(6, dtype=torch.float64, requires_grad=True)
    opt = optim.create("onebit_adam", [p], warmup=3)
    for t in range(1, 9):
        p.grad = torch.tensor([0.0, 0.0, 1.0, -2.0, 0.5, 0.1 * t], dtype=torch.float64)
        opt.step()
    assert torch.equal(p.detach()[:2], torch.ones(2, dtype=torch.float64))
    assert (p.detach()[2:] != 1).all()
    assert (p.detach() - 1).abs().max() < 1


# Mistakes -------------------------------------------------------------------------------------------------------------


def backward(params: list[Tensor]) -> Tensor:
    loss = losses(params, 1).mean()
    loss.backward()
    return loss


MISTAKES: list[tuple[str, Callable[[list[Tensor]], Any] | None, int | None, str]] = [
    ("sam(sgd)", None, None, r"asks for grad_at\(...\); call opt.step\(closure\)"),
    ("sam(sgd)", lambda ps: lambda: losses(ps, 1).mean(), None, r"its closure must call loss.backward\(\)"),
    ("adahessian", None, None, r"asks for hvp\(...\); call opt.step\(closure\)"),
    ("adahessian", lambda ps: lambda: backward(ps), None,
     r"asks for hvp\(...\): its closure must call loss.backward\(create_graph=True\); or take create_graph"),
    ("adahessian", lambda ps: lambda create_graph=False: backward(ps), None, r"'def closure\(create_graph=False\)'"),
    ("mezo", None, None, r"asks for loss_at\(...\); call opt.step\(closure\)"),
    ("mezo", lambda ps: lambda: backward(ps), None, r"its closure returns the loss and leaves backward\(\) out"),
    ("mezo", lambda ps: lambda: None, None, r"its closure must return the loss, not None"),
    ("mezo", lambda ps: lambda: losses(ps, 1), None, r"its closure must return the loss, not a tensor \[6\]"),
    ("sophia_g", None, 6, r"asks for sampled_grad\(...\); call opt.step\(closure\)"),
    ("sophia_g", lambda ps: lambda: backward(ps), 6, r"its closure must take sample, as 'def closure\(sample=False\)'"),
    ("sophia_g", lambda ps: lambda sample=False: losses(ps, 1) if sample else backward(ps), 6,
     r"its closure must call loss.backward\(\), also with sample=True"),
    ("sophia_g", lambda ps: lambda sample=False: backward(ps), None,
     r"needs the number of examples in the batch; call opt.step\(closure, examples=len\(x\)\)"),
    ("sophia_g", lambda ps: lambda sample=False: backward(ps), 0, r"how many the loss is a mean over, not 0"),
    ("dp_sgd", None, 6, r"asks for clipped_grad\(...\); call opt.step\(closure\)"),
    ("dp_sgd", lambda ps: lambda: backward(ps), 6, r"its closure must take examples, as 'def closure\(examples="),
    ("dp_sgd", lambda ps: lambda examples=False: losses(ps, 1), None, r"needs the number of examples"),
    ("dp_sgd", lambda ps: lambda examples=False: losses(ps, 1).mean(), 6,
     r"closure\(examples=True\) must return the loss of each example, a tensor \[examples\], and leave backward\(\)"),
    ("dp_sgd", lambda ps: lambda examples=False: losses(ps, 1).backward(), 6, r"must return the loss of each example"),
    ("dp_sgd", lambda ps: lambda examples=False: (backward_of(each := losses(ps, 1)), each)[1], 6,
     r"must return the loss of each example"),
]  # fmt: skip


def backward_of(each: Tensor) -> None:
    each.sum().backward()


@pytest.mark.parametrize(("rule", "make", "examples", "message"), MISTAKES)
def test_a_closure_that_does_not_do_what_is_asked_is_told(
    rule: str, make: Callable[[list[Tensor]], Any] | None, examples: int | None, message: str
) -> None:
    params = network()
    opt = optim.create(rule, params)
    with pytest.raises(ValueError, match=message) as caught:
        opt.step(make and make(params), examples=examples)
    text = str(caught.value)
    assert text.startswith(f"optimizer '{opt.program.name}'")
    assert "\n" not in text
    assert torch.equal(flat(params), flat(network()))


def test_mistakes_of_every_kind_of_answer_are_tested() -> None:
    asked = {op for rule in [*ASKING, *COMPOSED] for op in needs(dsl.load(rule)).closure}
    assert asked == {op for rule, *_ in MISTAKES for op in needs(dsl.load(rule)).closure}


def test_a_closure_that_fails_leaves_the_parameters_where_they_were() -> None:
    params = network()
    opt = optim.create("sam(sgd)", params)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        opt.zero_grad()
        return backward(params)

    with pytest.raises(KeyboardInterrupt):
        opt.step(closure)
    assert torch.equal(flat(params), flat(network()))
    assert all(opt.state[p]["step"] == 0 for p in params)
    torch.testing.assert_close(flat([p.grad for p in params]), answer(1, flat(params), "grad_at", flat(params)))


def test_loss_at_needs_one_sign() -> None:
    params = network()
    opt = optim.create("mezo", [{"params": params[:2], "maximize": True}, {"params": params[2:]}])
    with pytest.raises(ValueError, match="maximize must be the same for all parameters"):
        opt.step(lambda: losses(params, 1).mean())


# The page -------------------------------------------------------------------------------------------------------------


BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_examples_of_the_page_run_and_train(number: int) -> None:
    space: dict[str, Any] = {}
    exec(BLOCKS[0], space)
    before = nn.functional.cross_entropy(space["model"](space["x"]), space["y"]).item()
    exec(BLOCKS[number], space)
    after = nn.functional.cross_entropy(space["model"](space["x"]), space["y"]).item()
    assert after < before - 0.01
    assert space["loss"].item() < before + 0.01


def test_the_pages_table_is_true_and_its_examples_are_of_every_kind() -> None:
    rows = re.findall(r"^\| (`.*?) \| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    told = {
        rule.replace("(...)", "(sgd)"): set(re.findall(r"\w+", asks))
        for rules, asks in rows
        for rule in re.findall(r"`(.*?)`", rules)
    }
    assert set(told) == {*ASKING, *(f"{wrapper}(sgd)" for wrapper in WRAPPERS)}
    for rule, asks in told.items():
        assert asks == set(str(needs(dsl.load(rule))).split(", ")), rule
    shown = {
        op for block in BLOCKS for rule in re.findall(r'create\("(.*?)"', block) for op in needs(dsl.load(rule)).closure
    }
    assert shown == {op for rule in told for op in needs(dsl.load(rule)).closure}
