"""Laws of batched training: a lane's trace is its own, and what plain PyTorch gives; what is lost says why.

`alone or beside others` is meant to the bit: the same archive for any number of workers rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

import dsl
import tasks
from discover import gradient, native
from discover.lanes import Lane, Trace, Training, train
from dsl import Program
from tests import twins

STEPS = 24
PROGRAMS = {
    "adamw": dsl.load("adamw"),
    "lion": dsl.load("lion"),
    "muon": dsl.load("muon"),  # sees matrices: always the generated code
    "norms": dsl.parse(
        "def norms(p, g, m: zeros, *, lr=0.01):\n m = lerp(m, g, 0.1)\n p = p - lr * m / (norm(m) + 1e-8)\n"
    ),
    "clipped": dsl.parse("def clipped(p, g, *, lr=0.1):\n p = p - lr * g * min(1, 1 / (global_norm(g) + 1e-8))\n"),
    "wild": dsl.parse("def wild(p, g, *, lr=0.1):\n p = p - lr * 1e30 * p\n"),
    "third": dsl.parse("def third(p, g, *, lr=0.1):\n p = p - lr * g / (t - 3) * 1e-3\n"),
    "uphill": dsl.parse("def uphill(p, g, *, lr=0.1):\n p = p + lr * g\n"),
}
STEPPED = [
    pytest.param(False, id="generated"),
    pytest.param(
        True, id="native", marks=pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
    ),
]
TASKS = ("quadratic", "breast_cancer", "digits_mlp", "digits_cnn", "bytes_mlp")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def traces(
    names: Sequence[str], some: Sequence[Lane], *, task: str = "digits_mlp", native: bool = False, steps: int = STEPS
) -> list[Trace]:
    programs: list[Program] = [PROGRAMS[name] for name in names]
    loaded = tasks.load(task)
    ready = gradient.build(loaded, compile=False)
    return train(loaded, programs, some, steps=steps, gradient=ready, native=native)


# Alone or beside others ---------------------------------------------------------------------------------------------

BESIDE = ("adamw", "lion", "muon", "norms", "clipped", "third", "wild")


def crowd() -> list[Lane]:
    """Lanes of all programs, some of which are dropped early, some at the end of the warm-up, some not at all."""
    return [
        Lane(program, seed=7, hypers={"lr": lr}, loss_scale=scale, parameter_scale=1 / scale)
        for program in range(len(BESIDE))
        for lr, scale in ((1e-3, 1.0), (3e-2, 8.0))
    ]


@pytest.mark.parametrize("stepped", STEPPED)
@pytest.mark.parametrize("task", TASKS)
def test_a_lane_is_the_same_alone_and_beside_others_that_are_dropped(task: str, stepped: bool) -> None:
    together = traces(BESIDE, crowd(), task=task, native=stepped)
    assert any(trace.lost for trace in together)
    assert any(math.isfinite(trace.loss) for trace in together)
    for lane, trace in zip(crowd(), together, strict=True):
        assert traces(BESIDE, [lane], task=task, native=stepped) == [trace]


@pytest.mark.parametrize("stepped", STEPPED)
def test_the_order_of_lanes_and_of_programs_makes_no_difference(stepped: bool) -> None:
    together = traces(BESIDE, crowd(), native=stepped)
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0)).tolist()
    assert traces(BESIDE, [crowd()[i] for i in order], native=stepped) == [together[i] for i in order]
    turned = [
        Lane(len(BESIDE) - 1 - each.program, each.seed, each.hypers, each.loss_scale, each.parameter_scale)
        for each in crowd()
    ]
    assert traces(BESIDE[::-1], turned, native=stepped) == together


@pytest.mark.parametrize("stepped", STEPPED)
def test_lanes_of_several_seeds_in_one_call_equal_a_call_for_each(stepped: bool) -> None:
    names = ("adamw", "muon", "wild")
    seeds = (3, 11, 4)
    some = [Lane(p, seed, {"lr": 0.02}) for seed in seeds for p in range(len(names))]
    separate = [trace for seed in seeds for trace in traces(names, [e for e in some if e.seed == seed], native=stepped)]
    assert traces(names, some, native=stepped) == separate
    assert len({trace.loss for trace in separate}) > len(seeds)


# What a lane comes to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stepped", STEPPED)
@pytest.mark.parametrize("lr", [0.003, 0.05])
def test_adamw_agrees_with_a_plain_loop_of_torch(lr: float, stepped: bool) -> None:
    task = tasks.load("digits_mlp")
    model, loss_of = twins.mlp()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), task.split(task.initial(5)).values(), strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for t, index in enumerate(task.batches(5, task.horizon), start=1):
        optimizer.param_groups[0]["lr"] = lr * task.lr_ratio(t)
        optimizer.zero_grad()
        loss_of(model, task.gather(index)).backward()
        optimizer.step()
    with torch.no_grad():
        expected = loss_of(model, task.held_out).item()
    hypers = {"lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    (found,) = traces(["adamw"], [Lane(0, 5, hypers)], native=stepped, steps=task.horizon)
    assert found.steps == task.horizon
    assert found.loss == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("stepped", STEPPED)
@pytest.mark.parametrize("task", ["breast_cancer", "digits_mlp", "digits_autoencoder"])
def test_adamw_comes_to_the_same_at_any_scale_of_loss_and_parameters(task: str, stepped: bool) -> None:
    rate = tasks.load(task).learning_rate
    some = [
        Lane(0, 2, {"lr": rate / c, "weight_decay": 0.1 * c, "eps": 1e-12}, loss_scale=scale, parameter_scale=c)
        for scale in (1.0, 1e-2, 1e2)
        for c in (1.0, 1e-2, 1e2)
    ]
    losses = [trace.loss for trace in traces(["adamw"], some, task=task, native=stepped)]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)


# A scale for each tensor --------------------------------------------------------------------------------------------

TENSORS = (2.0, 0.25, 4.0, 0.5)
"""Of digits_mlp's four parameters. Powers of two, so that multiplying rounds nothing."""


def stepped_by_torch(optimizer: type[torch.optim.Optimizer], power: int, lr: float, **settings: float) -> float:
    """The end of a plain loop over digits_mlp; a parameter of scale a has the learning rate lr * a^power."""
    task = tasks.load("digits_mlp")
    values = [x.clone().requires_grad_() for x in task.split(task.initial(5)).values()]
    names = [parameter.name for parameter in task.parameters]
    groups = [{"params": [x], "lr": lr * a**power} for x, a in zip(values, TENSORS, strict=True)]
    made = optimizer(groups, **settings)
    for t, index in enumerate(task.batches(5, STEPS), start=1):
        for group, a in zip(made.param_groups, TENSORS, strict=True):
            group["lr"] = lr * a**power * task.lr_ratio(t, STEPS)
        made.zero_grad()
        batch = task.gather(index.unsqueeze(0))
        task.loss({name: x.unsqueeze(0) for name, x in zip(names, values, strict=True)}, batch).sum().backward()
        made.step()
    ended = {name: x.detach().unsqueeze(0) for name, x in zip(names, values, strict=True)}
    return task.validation_loss(ended).item()


@pytest.mark.parametrize("stepped", STEPPED)
@pytest.mark.parametrize(
    ("name", "power", "lr"),
    # where w = a * theta, theta's gradient is a times that of w, and its step moves w a times as far
    [("sgd", 2, 0.1), ("momentum", 2, 0.02), ("adam", 1, 0.003), ("adagrad", 1, 0.01)],
)
def test_training_a_scaled_tensor_is_training_it_at_a_learning_rate_of_its_own(
    name: str, power: int, lr: float, stepped: bool
) -> None:
    kind, settings = {
        "sgd": (torch.optim.SGD, {}),
        "momentum": (torch.optim.SGD, {"momentum": 0.9}),
        "adam": (torch.optim.Adam, {"eps": 1e-14}),
        "adagrad": (torch.optim.Adagrad, {"eps": 1e-14}),
    }[name]
    hypers = {"lr": lr} | ({"eps": 1e-14} if "eps" in settings else {})
    task = tasks.load("digits_mlp")
    ready = gradient.build(task, compile=False)
    some = [Lane(0, 5, hypers, tensor_scales=TENSORS), Lane(0, 5, hypers)]
    scaled, plain = train(task, [dsl.load(name)], some, steps=STEPS, gradient=ready, native=stepped)
    assert scaled.loss == pytest.approx(stepped_by_torch(kind, power, lr, **settings), rel=1e-4)
    assert abs(scaled.loss - plain.loss) > 1e-2 * plain.loss


@pytest.mark.parametrize("stepped", STEPPED)
def test_lanes_of_other_scales_beside_it_change_no_bit_of_a_lane(stepped: bool) -> None:
    some = [
        Lane(program, 7, {"lr": lr}, loss_scale=loss, parameter_scale=whole, tensor_scales=tensors)
        for program in range(len(BESIDE))
        for lr, loss, whole, tensors in ((1e-3, 1.0, 1.0, ()), (3e-2, 8.0, 0.3, (0.7, 3.1, 11.0, 0.013)))
        for whole in (whole, 2.0 * whole)
    ]
    together = traces(BESIDE, some, native=stepped)
    assert any(trace.lost for trace in together)
    assert any(math.isfinite(trace.loss) for trace in together)
    for lane, trace in zip(some, together, strict=True):
        assert traces(BESIDE, [lane], native=stepped) == [trace]
    one = replace(some[0], parameter_scale=0.3)
    assert traces(BESIDE, [one], native=stepped) == traces(
        BESIDE, [replace(one, parameter_scale=1.0, tensor_scales=(0.3,) * 4)], native=stepped
    )


def test_as_many_tensor_scales_as_parameters_are_wanted() -> None:
    with pytest.raises(ValueError, match="3 tensor scales; task digits_mlp has 4 parameters"):
        traces(["adamw"], [Lane(0, 0, {"lr": 0.1}, tensor_scales=(1.0, 2.0, 3.0))])


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("name", ["adamw", "lion", "norms", "clipped"])
def test_native_and_generated_code_agree(name: str) -> None:
    some = [Lane(0, seed, {"lr": lr}) for seed in (0, 1) for lr in (1e-3, 1e-2)]
    ours, theirs = (traces([name], some, native=stepped) for stepped in (False, True))
    assert [t.loss for t in ours] == pytest.approx([t.loss for t in theirs], rel=1e-2)


# What is lost -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stepped", STEPPED)
def test_a_lane_that_is_not_finite_or_rises_is_dropped_and_says_why(stepped: bool) -> None:
    names = ("adamw", "wild", "uphill")
    kept, wild, rising = traces(
        names, [Lane(p, 0, {"lr": 1.0 if p == 1 else 0.05}) for p in range(3)], native=stepped, task="quadratic"
    )
    assert math.isfinite(kept.loss)
    assert (kept.lost, kept.steps) == ("", STEPS)
    assert (wild.lost, wild.loss) == ("not finite", math.inf)
    assert wild.steps == round(0.1 * STEPS)
    assert rising.loss == math.inf
    assert rising.lost in ("rising", "not finite")
    assert rising.steps < STEPS


@pytest.mark.parametrize("at", [1, 2, 3, 6, 12])
def test_a_kernel_that_fails_loses_its_own_lanes_whether_or_not_it_is_a_checkpoint(at: int) -> None:
    task, names = tasks.load("digits_mlp"), ("adamw", "failing", "wild", "muon")
    failing = dsl.parse(f"def failing(p, g, *, lr=0.1):\n p = p - lr * g * (1 / (t - {at}))\n")
    programs = [failing if name == "failing" else PROGRAMS[name] for name in names]
    some = [Lane(p, 0, {"lr": lr}) for p in range(4) for lr in (0.01, 0.02)]
    ready = gradient.build(task, compile=False)
    found = train(task, programs, some, steps=STEPS, gradient=ready, checkpoints=(1 / 24, 2 / 24, 3 / 24, 0.25))
    for lane, trace in zip(some, found, strict=True):
        if lane.program == 1:
            assert (trace.loss, trace.steps) == (math.inf, at)
            assert trace.lost.startswith("ZeroDivisionError: ")
        else:
            alone = train(task, programs, [lane], steps=STEPS, gradient=ready, checkpoints=(1 / 24, 2 / 24, 3 / 24))
            assert trace == alone[0]


def test_where_all_lanes_are_lost_training_ends() -> None:
    found = traces(["wild", "third"], [Lane(0, 0, {"lr": 1.0}), Lane(1, 0, {"lr": 0.1})])
    assert [trace.loss for trace in found] == [math.inf, math.inf]
    assert [trace.lost.partition(":")[0] for trace in found] == ["not finite", "ZeroDivisionError"]


def test_a_training_leaves_denormals_to_the_process_as_they_were() -> None:
    traces(["adamw"], [Lane(0, 0, {"lr": 0.01})], steps=2)
    assert torch.tensor(1e-40) * 1 != 0


def on_meta() -> Training:
    """A training on a device that is not the CPU: torch's `meta`, which has shapes and places and no numbers."""
    ready = gradient.build(tasks.load("digits_mlp"), compile=False, device="meta")
    some = [Lane(program, seed, {"lr": 0.1}) for program in (0, 1) for seed in (0, 1)]
    return Training(ready.task, [PROGRAMS["adamw"], PROGRAMS["muon"]], some, STEPS, ready, native=False, checkpoints=())


def test_a_training_that_goes_on_lies_where_it_trains() -> None:
    stopped = on_meta()
    for t in (1, 2):
        stopped.step(t)
    stopped._drop({1: "pruned"}, 2)
    stopped.done = 2
    resumed = on_meta()
    resumed.restore(stopped.state())
    resumed.step(3)
    for training in (on_meta(), stopped, resumed):
        kept = training.state()
        tensors = [kept["first_loss"], kept["buffer"], *(each for part in kept["parts"] for each in part)]
        assert {each.device.type for each in tensors} == {"meta"}
    assert [part.state()[0].shape for part in resumed.parts] == [part.state()[0].shape for part in stopped.parts]
    assert len(resumed.first_loss) == len(resumed.order) == 3
