"""An optimizer made from a rule behaves as PyTorch users expect of any optimizer."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsl
from discover import optim
from discover.optimizer import RuleOptimizer
from dsl.graph import needs
from dsl.program import RESERVED
from tests.zoo.closures import closure_of

BASES = optim.available()
WRAPPERS = [name for name in dsl.names() if dsl.load(name).rules]
RULES = [*BASES, *(f"{wrapper}(adamw)" for wrapper in WRAPPERS), "ema_nesterov(muon)", "clip_global(muon)"]


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 2)]
    return nn.Sequential(*layers).double()


def losses(net: nn.Module, seed: int, sample: bool = False) -> Tensor:
    """Of six examples, [6]."""
    x = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (net(x) - sample * x[:, 0, 0, :2]).square().mean(1)


def backward(net: nn.Module, seed: int) -> Tensor:
    net.zero_grad()
    loss = losses(net, seed).mean()
    loss.backward()
    return loss


def train(net: nn.Module, opt: RuleOptimizer, start: int, stop: int, schedule: Any = None) -> None:
    for seed in range(start, stop):
        opt.step(closure_of(opt.program, net.parameters(), partial(losses, net, seed)), examples=6)
        if schedule is not None:
            schedule.step()


def values(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("rule", RULES)
def test_saved_training_resumes_to_the_same_bits(rule: str) -> None:
    """Through torch.save, in evaluation mode, with a scheduler: the run that was stopped is the run that was not."""
    whole, first, second = model(), model(), model()
    nets = {"whole": whole, "first": first, "second": second}
    opts = {name: optim.create(rule, net.parameters(), lr=0.02) for name, net in nets.items()}
    schedules = {
        name: torch.optim.lr_scheduler.CosineAnnealingLR(opts[name], 12) for name in ("whole", "first", "second")
    }
    train(whole, opts["whole"], 0, 10, schedules["whole"])
    train(first, opts["first"], 0, 5, schedules["first"])
    opts["first"].eval()
    file = io.BytesIO()
    torch.save([first.state_dict(), opts["first"].state_dict(), schedules["first"].state_dict()], file)
    file.seek(0)
    for target, state in zip((second, opts["second"], schedules["second"]), torch.load(file), strict=True):
        target.load_state_dict(state)
    opts["second"].train()
    train(second, opts["second"], 5, 10, schedules["second"])
    assert torch.equal(values(whole), values(second))


@pytest.mark.parametrize("rule", RULES)
def test_pickled_and_copied_optimizers_go_on_alike(rule: str) -> None:
    net = model()
    opt = optim.create(rule, net, lr=0.02)
    train(net, opt, 0, 3)
    for twin, twin_opt in (pickle.loads(pickle.dumps((net, opt))), copy.deepcopy((net, opt))):
        assert type(twin_opt) is type(opt)
        original, original_opt = copy.deepcopy((net, opt))
        train(original, original_opt, 3, 6)
        train(twin, twin_opt, 3, 6)
        assert torch.equal(values(original), values(twin))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_follows_float64_roughly(rule: str, dtype: torch.dtype) -> None:
    results = []
    start, *targets = torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for precision in (dtype, torch.float64):
        p = start.to(precision).requires_grad_()
        opt = optim.create(
            rule, [p], lr=0.01, **({"scale": 0.5} if rule == "mezo" else {})
        )  # two points in bfloat16 too
        for target in targets:  # gradients that differ and have full rank, so that no direction is rounding alone
            opt.step(
                closure_of(opt.program, [p], lambda sample, p=p, x=target: ((p - x) ** 2 / 2).sum()[None]), examples=1
            )
        assert p.dtype == precision
        slots = {slot.name: torch.uint8 if slot.code else precision for slot in opt.program.slots}
        assert all(state.dtype == slots.get(name, precision) for name, state in opt.state[p].items() if name != "step")
        results.append(p.detach().double())
    assert torch.allclose(*results, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("rule", ["adamw", "clip_global(lion)", "ema_nesterov(muon)"])
def test_maximize_is_minimize_of_the_negated_gradient(rule: str) -> None:
    results = []
    for sign in (1, -1):
        p = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
        opt = optim.create(rule, [p], lr=0.1, maximize=sign < 0)
        for t in range(4):
            p.grad = sign * (p.detach() - t)
            opt.step()
        results.append(p.detach())
    assert torch.equal(*results)


def test_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    net = model()
    opt = optim.create("adamw", net)
    before = values(net)
    loss = opt.step(lambda: backward(net, 0))
    assert loss.requires_grad
    assert not torch.equal(values(net), before)


def test_lr_ratio_is_the_lr_over_the_one_it_was_made_with(tmp_path: Path) -> None:
    rule = tmp_path / "ratio.rule"
    rule.write_text("def ratio(p, g, *, lr=0.1):\n    p = p - lr_ratio * g\n")
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    opt = optim.create(str(rule), [{"params": [a]}, {"params": [b], "lr": 0.5}])
    opt.param_groups[0]["lr"] = 0.025
    a.grad, b.grad = torch.ones(1), torch.ones(1)
    opt.step()
    assert a.item() == pytest.approx(-0.25)
    assert b.item() == -1


def test_parameters_without_a_gradient_are_left_alone_and_keep_their_own_step() -> None:
    p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    opt = optim.create("adamw", [p, q])
    for t in range(3):
        p.grad = torch.ones(2)
        q.grad = torch.ones(2) if t == 2 else None
        opt.step()
    assert opt.state[p]["step"] == 3
    assert opt.state[q]["step"] == 1


def test_evaluation_mode_does_nothing_where_the_rule_has_one_point() -> None:
    net = model()
    opt = optim.create("adamw", net)
    train(net, opt, 0, 2)
    before = values(net)
    opt.eval()
    assert torch.equal(values(net), before)
    train(net, opt, 2, 3)


def test_step_at_the_evaluation_point_is_refused() -> None:
    net = model()
    opt = optim.create("ema_nesterov(adamw)", net)
    train(net, opt, 0, 2)
    opt.eval()
    opt.eval()
    with pytest.raises(ValueError, match=r"call opt\.train\(\)"):
        opt.step()
    opt.train()
    opt.step()


def test_roles_are_found_from_a_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(5, 4)
            self.norm = nn.LayerNorm(4)
            self.inner = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))
            self.out = nn.Linear(4, 5)

    net = Net()
    roles = {p: group["role"] for group in optim.create("muon", net).param_groups for p in group["params"]}
    assert {name: roles[p] for name, p in net.named_parameters()} == {
        "scale": "vector", "tokens.weight": "embedding", "norm.weight": "norm", "norm.bias": "norm",
        "inner.weight": "hidden", "inner.bias": "bias", "out.weight": "head", "out.bias": "bias",
    }  # fmt: skip


def test_role_decides_the_branch() -> None:
    p, q = torch.ones(4, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    opt = optim.create("muon", [{"params": [p]}, {"params": [q], "role": "head"}])
    p.grad, q.grad = torch.ones(4, 3), torch.ones(4, 3)
    opt.step()
    assert "v" not in opt.state[p]
    assert "v" in opt.state[q]


def test_channels_last_parameters_are_updated_in_matrix_rules() -> None:
    results = []
    for memory in (torch.contiguous_format, torch.channels_last):
        generator = torch.Generator().manual_seed(0)
        p = torch.randn(4, 3, 2, 2, generator=generator).contiguous(memory_format=memory).requires_grad_()
        opt = optim.create("muon", [p])
        for _ in range(3):
            p.grad = torch.randn(4, 3, 2, 2, generator=generator)
            opt.step()
        results.append(p.detach().contiguous())
    assert torch.allclose(*results)


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("lion", {"beta3": 0.9}, r"optimizer 'lion' has no hyperparameter 'beta3'; did you mean 'beta2'\?"),
    ("lion", {"lr": -1.0}, "lr must not be negative"),
    ("lion", {"lr": float("nan")}, "lr must be a finite number"),
    ("lion", {"beta1": "high"}, "beta1 must be a finite number, not 'high'"),
    ("loin", {}, r"unknown rule 'loin'; did you mean 'lion'\?"),
    ("lion(beta3=0.9)", {}, r"rule 'lion' has no hyperparameter 'beta3'; did you mean 'beta2'\?"),
    ("lookahead", {}, r"takes a rule; write 'lookahead\(adamw\)'"),
]


@pytest.mark.parametrize(("rule", "hypers", "message"), REFUSED, ids=lambda each: str(each)[:20])
def test_mistake_is_answered_with_what_was_expected(rule: str, hypers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.create(rule, [torch.ones(2, requires_grad=True)], **hypers)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"role": "haed"}, r"unknown role 'haed'; did you mean 'head'\?"),
        ({"weightdecay": 0.1}, r"unknown key 'weightdecay'; did you mean 'weight_decay'\?"),
        ({"params": [torch.ones(2, dtype=torch.complex64, requires_grad=True)]}, "takes real parameters"),
    ],
)
def test_mistake_in_a_group_is_answered_and_the_group_not_added(group: dict[str, Any], message: str) -> None:
    opt = optim.create("adamw", [torch.ones(2, requires_grad=True)])
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [torch.ones(2, requires_grad=True)]} | group)
    assert len(opt.param_groups) == 1


def test_no_rule_has_a_name_under_which_its_optimizer_keeps_something_else() -> None:
    text = "def f(p, g, m: zeros, *, lr=0.1):\n    m = m + g\n    p = p - lr * m\n    x = p + m\n    return x\n"
    kind = optim.optimizer_class(dsl.parse(text))
    p = nn.Parameter(torch.ones(3))
    opt = kind([("name", p)])
    torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=9, cycle_momentum=False)
    torch.optim.swa_utils.SWALR(opt, swa_lr=0.05)
    assert {"initial_lr", "max_lr", "min_lr", "swa_lr"} <= set(opt.param_groups[0])
    p.grad = torch.ones(3)
    opt.step()
    assert set(opt.param_groups[0]) - {"lr"} <= set(RESERVED)
    assert set(opt.state[p]) - {"m"} <= set(RESERVED)
    assert set(inspect.signature(kind).parameters) - {"lr"} <= set(RESERVED)
    assert {"step", "evaluation"} <= set(opt.state[p])


def test_sparse_gradients_are_refused() -> None:
    layer = nn.Embedding(5, 3, sparse=True)
    opt = optim.create("adamw", layer)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="does not take sparse gradients"):
        opt.step()


def test_class_has_the_rules_signature_and_docstring_and_is_a_name_of_the_module() -> None:
    lion = optim.optimizer_class("lion")
    signature = inspect.signature(lion)
    assert list(signature.parameters) == ["params", "lr", "beta1", "beta2", "weight_decay", "maximize"]
    assert signature.parameters["beta2"].default == 0.99
    assert signature.parameters["lr"].annotation is float
    assert lion.__doc__ == dsl.load("lion").doc
    assert optim.Lion is lion is pickle.loads(pickle.dumps(lion))
    assert "Lion" in dir(optim)
    assert optim.Lion([torch.ones(1, requires_grad=True)], 0.5).param_groups[0]["lr"] == 0.5
    with pytest.raises(AttributeError, match="Loin"):
        optim.Loin  # noqa: B018


def test_settings_are_defaults_that_arguments_come_before() -> None:
    p = torch.ones(1, requires_grad=True)
    group = optim.create("lookahead(lion(beta1=0.8), k=3)", [p], alpha=0.4).param_groups[0]
    assert (group["beta1"], group["beta2"], group["k"], group["alpha"]) == (0.8, 0.99, 3, 0.4)
    assert optim.create("lion(beta1=0.8)", [p], beta1=0.7).param_groups[0]["beta1"] == 0.7
    made = optim.optimizer_class("lion(beta1=0.8)")
    assert inspect.signature(made).parameters["beta1"].default == 0.8
    assert made is pickle.loads(pickle.dumps(made)) is not optim.Lion
    assert inspect.signature(optim.Lion).parameters["beta1"].default == 0.9


def test_class_of_a_rule_file_is_picklable(tmp_path: Path) -> None:
    (tmp_path / "mine.rule").write_text("def mine(p, g, *, lr=0.1):\n    p = p - lr * g\n")
    mine = optim.optimizer_class(str(tmp_path / "mine.rule"))
    assert pickle.loads(pickle.dumps(mine)) is mine


def test_import_is_light() -> None:
    code = (
        "import sys; from discover import optim; "
        "print(sorted({'ray', 'optuna', 'tasks', 'sklearn', 'pydantic', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FROZEN_NORMS = """
def frozen_norms(p, g, *, lr=0.1):
    if not role('norm'):
        p = p - lr * g
"""


def test_a_global_value_is_over_all_parameters_also_those_that_have_no_use_for_it() -> None:
    program = dsl.apply(dsl.load("clip_global"), {"base": dsl.parse(FROZEN_NORMS)})
    matrix, gain = (torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (4,)))
    matrix.grad, gain.grad = torch.full((2, 3), 2.0).double(), torch.full((4,), 5.0).double()
    opt = optim.optimizer_class(program)([{"params": [matrix]}, {"params": [gain], "role": "norm"}], lr=1.0)
    norm = float(torch.cat([matrix.grad.flatten(), gain.grad]).norm())
    opt.step()
    torch.testing.assert_close(matrix.detach(), -matrix.grad / (norm + 1e-6))
    assert not gain.any()


def test_numbers_of_a_question_must_be_the_same_in_all_groups() -> None:
    params = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    opt = optim.create("dp_sgd", [{"params": params[:1]}, {"params": params[1:], "clip": 0.01}], lr=0.1)

    def closure(examples: bool = False) -> torch.Tensor:
        return (torch.arange(4.0).unsqueeze(1) * torch.cat(params)).sum(1)

    with pytest.raises(ValueError, match="must be the same in all groups"):
        opt.step(closure, examples=4)


@pytest.mark.parametrize("name", [name for name in RULES if not needs(dsl.load(name)).closure])
def test_all_that_a_rule_computes_with_is_where_the_parameters_are(name: str) -> None:
    """On torch's `meta`, which has shapes, places and no numbers: what is made elsewhere does not go with these."""
    params = [torch.empty(shape, device="meta", requires_grad=True) for shape in ((6, 4), (5,), (3, 2, 2))]
    opt = optim.create(name, params, lr=0.1)
    for _ in range(2):
        for param in params:
            param.grad = torch.empty_like(param)
        opt.step()
    places = {x.device.type for state in opt.state.values() for x in state.values() if isinstance(x, Tensor)}
    assert places <= {"meta"}


def test_hyperparameters_by_which_a_rule_divides_by_nothing_are_named() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    message = "optimizer 'adamw': a number of the rule divides by 0 with {'lr': 0.001, 'beta1': 1.0, "
    with pytest.raises(ValueError, match=re.escape(message)):
        optim.create("adamw", [p], beta1=1.0).step()
