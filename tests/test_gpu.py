"""Laws of a device: what is trained on a GPU is what is trained on the CPU, but for rounding.

They run where there is a GPU, `python -m pytest tests/test_gpu.py`, and most of them, on the CPU, everywhere: so it is
known that they run, and that what they ask of a device is true of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tasks
from discover import optim
from discover.contenders import contender
from discover.footprint import measure
from discover.keeper import Keeper, StoppedError
from discover.trainers import Ground, Run, train

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
STEPS = 12
ROUNDING = 2e-3
"""Of a loss after so many steps in float32, TF32 off: relative."""


RULES = ["adamw", "muon", "torch.optim:SGD(momentum=0.9)"]
TASKS = ["digits_mlp", "digits_cnn", "bytes_transformer", "gru_lm(horizon=300)"]
TRAININGS = [
    ("muon", "digits_mlp", "cpu"),
    *(pytest.param(rule, task, "cuda", marks=GPU) for rule in RULES for task in TASKS),
]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.parametrize(("rule", "task", "device"), TRAININGS)
def test_a_training_comes_to_what_it_comes_to_on_the_cpu(rule: str, task: str, device: str) -> None:
    runs = [Run({"lr": rate}, seed) for rate in (1e-3, 1e-2) for seed in (0, 1)]
    here, there = (
        train(contender(rule), Ground(tasks.load(task), steps=STEPS, compile=False, device=each), runs, curve=(6,))
        for each in ("cpu", device)
    )
    for mine, other in zip(here, there, strict=True):
        assert other.loss == pytest.approx(mine.loss, rel=ROUNDING)
        assert other.curve == pytest.approx(mine.curve, rel=ROUNDING)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", ["soap", "torch.optim:AdamW"])
def test_a_training_that_was_stopped_goes_on_where_it_was(rule: str, device: str, tmp_path: Path) -> None:
    ground = Ground(tasks.load("digits_mlp"), steps=STEPS, compile=False, device=device)
    runs, asked = [Run({"lr": 1e-3}, 0), Run({"lr": 1e-2}, 1)], iter([False] * 5 + [True])
    with pytest.raises(StoppedError):
        train(contender(rule), ground, runs, keeper=Keeper(tmp_path, seconds=0, spacing=0, stop=lambda: next(asked)))
    went = list[bool]()
    keeper = Keeper(tmp_path, stop=lambda: bool(went.append(True)))
    assert train(contender(rule), ground, runs, keeper=keeper) == train(contender(rule), ground, runs)
    assert 0 < len(went) < STEPS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", ["adamw", "lion", "ema_nesterov(muon)", "adafactor", "shampoo", "adam8bit"])
@pytest.mark.parametrize("foreach", [False, True])
def test_an_optimizer_steps_a_model_as_it_does_on_the_cpu(rule: str, device: str, foreach: bool) -> None:
    here, there = (stepped(rule, each, many=foreach) for each in ("cpu", device))
    assert all(x.device.type == torch.device(device).type for x in there)
    for mine, other in zip(here, there, strict=True):
        torch.testing.assert_close(other.cpu(), mine, rtol=ROUNDING, atol=1e-5)


def stepped(rule: str, device: str, *, many: bool) -> list[Tensor]:
    """The parameters of a small network after some steps; with many layers of one shape, which step as one, or few."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(6 if many else 1)], nn.Linear(16, 4)).to(device)
    x, y = torch.randn(32, 16).to(device), torch.randint(4, (32,)).to(device)
    optimizer = optim.create(rule, model, lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@GPU
def test_a_language_model_in_bfloat16_learns_and_is_near_float32() -> None:
    fine, coarse = (
        Ground(tasks.load(f"gpt(precision={precision}, size=100k)"), steps=STEPS, compile=False, device="cuda")
        for precision in ("float32", "bfloat16")
    )
    exact, rounded = (train(contender("adamw"), each, [Run({"lr": 3e-3}, 0)])[0].loss for each in (fine, coarse))
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact
    assert rounded < 0.9 * coarse.untrained(0)


@pytest.mark.parametrize("device", DEVICES)
def test_the_time_of_a_step_is_measured_where_it_is_taken(device: str) -> None:
    found = measure([contender("adamw"), contender("torch.optim:AdamW")], tasks.load("digits_mlp").to(device))
    assert {each.device for each in found.values()} == {device}
    assert all(each.seconds and each.state_bytes == 8.0 for each in found.values())


@GPU
def test_a_compiled_gradient_of_a_gpu_is_the_eager_one() -> None:
    task = tasks.load("digits_mlp")
    runs = [Run({"lr": 1e-2}, seed) for seed in range(3)]
    eager, compiled = (
        train(contender("adamw"), Ground(task, steps=STEPS, compile=each, device="cuda"), runs)
        for each in (False, True)
    )
    assert [each.loss for each in compiled] == pytest.approx([each.loss for each in eager], rel=ROUNDING)
