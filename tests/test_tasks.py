"""Laws of tasks. One table of tasks runs through every law; what differs between tasks is a field of the table."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import tasks
from tasks import Task, data
from tasks.layers import FEW_CLASSES, cross_entropy
from tests import twins


@dataclass(frozen=True)
class Case:
    """What is particular to one task.

    Attributes:
        size: N.
        knows_nothing: held-out loss of the best prediction that ignores the input, about.
        learned: what AdamW at the task's own learning rate must get below.
        repeats: the share of held-out examples that also stand in training, by the nature of the data; about.
        twin: the same network in plain torch.nn and its loss, where there is one.
        sha256: of the raw data, where every machine has the same.
        steps: how long AdamW learns here, where a full training takes too long.
    """

    name: str
    size: int
    knows_nothing: float
    learned: float
    twin: twins.Twin | None
    repeats: float = 0.0
    sha256: str | None = None
    steps: int | None = None


DIGITS = "faf2d98f61250c1cdc0b114323133d3c58da04f5c5d28bb78e4bde3c936a75b1"
MNIST = "1f75c140503b3082c96134f5593303f3133e59989a92e21f060c644c655c3722"
CASES = [
    Case("quadratic", 100, knows_nothing=14.0, learned=0.1, twin=None),
    Case("breast_cancer", 31, knows_nothing=0.66, learned=0.15, twin=twins.breast_cancer),
    Case("digits_mlp", 2410, knows_nothing=2.3, learned=0.3, twin=twins.mlp, sha256=DIGITS),
    Case("digits_autoencoder", 4744, knows_nothing=0.53, learned=0.3, twin=twins.autoencoder, sha256=DIGITS),
    Case("bytes_mlp", 5409, knows_nothing=3.2, learned=2.75, twin=twins.bytes_mlp, repeats=0.46),
    Case("digits_cnn", 3818, knows_nothing=2.3, learned=0.2, twin=twins.cnn, sha256=DIGITS),
    Case("gru_lm", 43945, knows_nothing=3.2, learned=2.6, twin=twins.gru, repeats=0.05, steps=120),
    Case("bytes_transformer", 23776, knows_nothing=3.2, learned=2.8, twin=twins.transformer),
    Case("wine_classification", 275, knows_nothing=1.09, learned=0.2, twin=twins.wine),
    Case("diabetes_regression", 385, knows_nothing=1.0, learned=0.55, twin=twins.diabetes),
    Case("digits_spikes", 2410, knows_nothing=2.3, learned=1.6, twin=twins.mlp, sha256=DIGITS),
    Case("burgers_pinn", 921, knows_nothing=1.0, learned=0.05, twin=twins.burgers),
    Case("digits_diffusion", 34112, knows_nothing=1.0, learned=0.5, twin=twins.diffusion, sha256=DIGITS),
    Case("photo_coordinates", 10563, knows_nothing=1.0, learned=0.1, twin=twins.photograph),
    Case("mnist_vit", 41674, knows_nothing=2.3, learned=1.6, twin=twins.vit, sha256=MNIST, steps=40),
    Case("mnist_resnet", 19714, knows_nothing=2.3, learned=1.8, twin=twins.resnet, sha256=MNIST, steps=80),
    Case("gpt", 111040, knows_nothing=3.2, learned=2.7, twin=twins.gpt, repeats=0.02, steps=60),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Kernels this small only lose by a second thread, a hundredfold where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def task(case: Case) -> Task:
    return tasks.load(case.name)


def lanes(task: Task, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A flat buffer [K, N] float64 that needs its gradient, and a batch of its own for each lane."""
    flat = torch.stack([task.initial(seed) for seed in range(count)]).double()
    flat += 0.01 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=flat.dtype) * flat.std()
    return flat.requires_grad_(), task.gather(torch.stack([task.batches(seed, 1)[0] for seed in range(count)]))


def loss_and_gradient(task: Task, flat: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
    loss = task.loss(task.split(flat), batch)
    return loss, torch.autograd.grad(loss.sum(), flat)[0]


# ---- the contract -----------------------------------------------------------------------------------------------


def test_table_has_every_task() -> None:
    assert {case.name for case in CASES} == set(tasks.names())


def test_task_keeps_the_contract(case: Case, task: Task) -> None:
    tasks.check(task, where=task.name)
    assert (task.name, task.size) == (case.name, case.size)
    assert tasks.load(case.name) is task


def test_initial_depends_on_the_seed_alone(task: Task) -> None:
    assert task.initial(3).dtype == torch.float32
    torch.testing.assert_close(task.initial(3), task.initial(3), rtol=0, atol=0)
    assert not torch.equal(task.initial(3), task.initial(4))


def test_split_gives_views_that_join_to_the_flat_buffer(task: Task) -> None:
    flat = torch.randn(3, task.size)
    parts = task.split(flat)
    assert [tuple(x.shape) for x in parts.values()] == [(3, *p.shape) for p in task.parameters]
    assert all(x.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for x in parts.values())
    assert torch.equal(torch.cat([x.flatten(1) for x in parts.values()], 1), flat)
    assert torch.equal(task.split(flat[0])[task.parameters[-1].name], parts[task.parameters[-1].name][0])


def test_batches_are_a_prefix_of_longer_ones(task: Task) -> None:
    long = task.batches(5, 200)
    assert long.shape == (200, task.batch_size)
    assert torch.equal(task.batches(5, 50), long[:50])
    assert not torch.equal(task.batches(6, 200), long)
    assert task.batches(5, 0).shape == (0, task.batch_size)


def test_epoch_sees_no_example_twice(task: Task) -> None:
    examples = task.train[0].shape[0]
    steps = examples // task.batch_size
    for epoch in task.batches(0, 2 * steps).view(2, -1):
        assert epoch.min() >= 0
        assert epoch.max() < examples
        assert len(epoch.unique()) == steps * task.batch_size


def test_gather_keeps_leading_axes(task: Task) -> None:
    index = task.batches(0, 6)
    shared, own = task.gather(index[0]), task.gather(index.view(2, 3, -1))
    for one, many, source in zip(shared, own, task.train, strict=True):
        assert many.shape == (2, 3, task.batch_size, *source.shape[1:])
        assert torch.equal(one, many[0, 0])


def test_schedule_warms_up_then_falls_to_zero_after_the_last_step(task: Task) -> None:
    ratios = [task.lr_ratio(t, task.horizon) for t in range(1, task.horizon + 2)]
    peak = task.warmup - 1
    assert ratios[peak] == 1.0
    assert all(a < b for a, b in pairwise(ratios[: peak + 1]))
    assert all(a > b for a, b in pairwise(ratios[peak:]))
    assert ratios[-2] > 0 == ratios[-1] == task.lr_ratio(10 * task.horizon, task.horizon)
    assert task.lr_ratio(2 * task.warmup, 2 * task.horizon) == 1.0


def test_data_follow_to_another_device(task: Task) -> None:
    assert task.to("cpu") is task
    assert task.to("cpu:0") is task  # the same device by another name, as "cuda" is of "cuda:0"
    moved = task.to("meta")  # knows shapes and devices alone: refuses to mix with the CPU
    parameters = moved.split(moved.initial(0).expand(2, -1))
    batch = moved.gather(moved.batches(0, 2))
    assert moved.loss(parameters, batch).device.type == "meta"
    assert moved.validation_loss(parameters).shape == (2,)
    assert task.device.type == "cpu"


# ---- the loss ---------------------------------------------------------------------------------------------------


def test_lanes_agree_with_each_lane_alone(task: Task) -> None:
    flat, batch = lanes(task, 3)
    together, gradients = loss_and_gradient(task, flat, *batch)
    validation = task.validation_loss(task.split(flat))
    for k in range(3):
        lane = flat[k : k + 1].detach().requires_grad_()
        alone, gradient = loss_and_gradient(task, lane, *(x[k : k + 1] for x in batch))
        torch.testing.assert_close(alone[0], together[k], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient[0], gradients[k], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(task.validation_loss(task.split(lane))[0], validation[k], rtol=1e-10, atol=1e-10)


def test_lanes_do_not_mix(task: Task) -> None:
    flat, batch = lanes(task, 3)
    before = loss_and_gradient(task, flat, *batch)
    changed = flat.detach().clone()
    changed[1] = math.nan
    after = loss_and_gradient(task, changed.requires_grad_(), *batch)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[[0, 2]], new[[0, 2]])
        assert new[1].isnan().any()


def test_gradient_agrees_with_finite_differences(task: Task) -> None:
    flat, batch = lanes(task, 4)
    _, gradient = loss_and_gradient(task, flat, *batch)
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=flat.dtype)
    step = 1e-8 * flat.detach().std()  # so short that hardly a relu of a large network switches on the way
    up, down = (task.loss(task.split((flat + sign * step * direction).detach()), batch) for sign in (1, -1))
    torch.testing.assert_close((up - down) / (2 * step), (gradient * direction).sum(1), rtol=1e-5, atol=1e-7)


def test_loss_is_that_of_the_same_network_in_torch_nn(case: Case, task: Task) -> None:
    if case.twin is None:
        pytest.skip("has no network; see test_quadratic_is_the_quadratic_form_it_claims_to_be")
    flat, batch = lanes(task, 2)
    ours, gradients = loss_and_gradient(task, flat, *batch)
    for k in range(2):
        model, loss_of = case.twin()
        model.double()
        assert sum(p.numel() for p in model.parameters()) == task.size
        nn.utils.vector_to_parameters(flat[k].detach(), model.parameters())
        loss = loss_of(model, tuple(x[k] for x in batch))
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        torch.testing.assert_close(ours[k], loss, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradients[k], gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("classes", [2, FEW_CLASSES, FEW_CLASSES + 1, 97])
@pytest.mark.parametrize("outer", [True, False], ids=["classes first in memory", "examples first"])
def test_cross_entropy_is_that_of_torch_for_few_classes_and_for_many(classes: int, outer: bool) -> None:
    logits = 3 * torch.randn(3, 5, classes, generator=torch.Generator().manual_seed(0))
    logits = (logits.mT.contiguous().mT if outer else logits).requires_grad_()
    target = torch.arange(15).view(3, 5) % classes
    found, exact = cross_entropy(logits, target), logits.detach().double().requires_grad_()
    expected = torch.stack([nn.functional.cross_entropy(x, y) for x, y in zip(exact, target, strict=True)])
    torch.testing.assert_close(found, expected.float())
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), logits)[0], torch.autograd.grad(expected.sum(), exact)[0].float()
    )
    for lane in range(3):
        assert torch.equal(found[lane : lane + 1], cross_entropy(logits[lane : lane + 1], target[lane : lane + 1]))


def test_quadratic_is_the_quadratic_form_it_claims_to_be() -> None:
    task = tasks.load("quadratic")
    flat, (d,) = lanes(task, 1)
    root = task.root.double()  # type: ignore[attr-defined]
    hessian = torch.func.hessian(lambda x: task.loss(task.split(x[None]), (d,))[0])(flat[0].detach())
    torch.testing.assert_close(hessian, root @ root)
    torch.testing.assert_close(torch.linalg.cond(hessian).item(), 1000.0, rtol=1e-2, atol=0)
    centre = torch.linalg.solve(root, d[0].double().T).T
    away = flat[0] - centre
    loss = 0.5 * torch.einsum("bi,ij,bj->b", away, hessian, away).mean()
    torch.testing.assert_close(task.loss(task.split(flat), (d,))[0], loss)
    best = torch.linalg.solve(root, task.held_out[0].double().mean(0))
    floor = task.validation_loss(task.split(best[None])).item()
    assert floor == pytest.approx(task.floor, rel=1e-4)  # type: ignore[attr-defined]
    assert floor == pytest.approx(50 * 0.03**2, rel=0.05)


def test_traced_loss_and_gradient_agree(task: Task) -> None:
    def step(flat: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        return loss_and_gradient(task, flat.detach().requires_grad_(), *batch)

    flat, batch = lanes(task, 2)
    traced = make_fx(step, tracing_mode="real")(flat.float(), *batch)
    other = torch.stack([task.initial(8), task.initial(9)])
    others = task.gather(task.batches(8, 2))
    for ours, plain in zip(traced(other, *others), step(other, *others), strict=True):
        torch.testing.assert_close(ours, plain)


def test_flops_agree_with_those_counted(task: Task) -> None:
    if task.name == "quadratic":
        pytest.skip("its work is elementwise, which the counter does not see")
    flat, batch = lanes(task, 2)
    with FlopCounterMode(display=False) as counter:
        loss_and_gradient(task, flat, *batch)
    assert 0.6 < counter.get_total_flops() / (2 * task.flops) < 1.2  # no gradient flows to the data: less than 6


# ---- the data ---------------------------------------------------------------------------------------------------


def test_raw_data_are_recorded(case: Case, task: Task) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", task.data_sha256)
    assert case.sha256 in (None, task.data_sha256)


def test_held_out_examples_are_not_trained_on(case: Case, task: Task) -> None:
    def rows(x: Tensor) -> list[bytes]:
        return [row.numpy().tobytes() for row in x]

    trained = set(rows(task.train[0]))
    held_out = rows(task.held_out[0])
    share = sum(row in trained for row in held_out) / len(held_out)
    assert abs(share - case.repeats) <= 0.1 * (case.repeats > 0)


def test_manual_is_cut_into_blocks_of_which_none_is_in_both_parts() -> None:
    train, held_out = data.manual_blocks()
    assert 0.08 < len(held_out) / (len(train) + len(held_out)) < 0.12
    text = data.manual_text().encode()
    blocks = [text[i : i + 4096] for i in range(0, len(text) - 4095, 4096)]
    assert len(blocks) == len(train) + len(held_out)
    assert torch.equal(held_out[0], data.as_symbols(blocks[9]))
    assert torch.equal(train[9], data.as_symbols(blocks[10]))


def test_symbols_are_few_and_the_same_everywhere() -> None:
    assert data.as_symbols(b"\n ~\xc3\t").tolist() == [1, 2, 96, 0, 0]
    assert data.as_symbols(bytes(range(256))).unique().numel() == data.SYMBOLS


# ---- training ---------------------------------------------------------------------------------------------------


def test_adamw_learns(case: Case, task: Task) -> None:
    steps = case.steps or task.horizon
    parameters = {k: v.clone().requires_grad_() for k, v in task.split(task.initial(0)[None]).items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=task.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: task.lr_ratio(t + 1, steps))
    for index in task.batches(0, steps):
        optimizer.zero_grad()
        task.loss(parameters, task.gather(index[None])).sum().backward()
        optimizer.step()
        schedule.step()
    assert task.validation_loss(parameters).item() < case.learned < case.knows_nothing


# ---- by name ----------------------------------------------------------------------------------------------------

OWN = """
    import torch
    from tasks import Parameter, Task

    class Line(Task):
        name, title, source = "line", "a line through noisy points", "generated"
        parameters = (Parameter.normal("slope", (1, 3), "hidden", 0.1), Parameter.constant("shift", (1,), "bias"))
        batch_size, horizon, warmup, learning_rate = 4, 20, 2, 0.1

        def __init__(self):
            x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
            y = x.sum(1) + 1
            super().__init__((x[:30], y[:30]), (x[30:], y[30:]))

        def loss(self, parameters, batch):
            x, y = batch
            guess = (x @ parameters["slope"].mT).squeeze(2) + parameters["shift"]
            return (guess - y).square().mean(1)

    class Short(Line):
        parameters = (Parameter.normal("slope", (1, 3), "hiden", 0.1),)

    class Summed(Line):
        def loss(self, parameters, batch):
            return super().loss(parameters, batch).sum()

    class Negative(Line):
        def loss(self, parameters, batch):
            return -super().loss(parameters, batch)

    class Misspelt(Line):
        def loss(self, parameters, batch):
            return parameters["slop"]

    class Silent(Line):
        def __init__(self, points):
            pass

    line = Line()
    number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN))
    return path


@pytest.mark.parametrize("name", ["Line", "line"])
def test_own_task_loads_from_a_file(own: Path, name: str) -> None:
    task = tasks.load(f"{own}:{name}")
    assert (task.name, task.size) == ("line", 4)
    assert re.fullmatch(r"[0-9a-f]{64}", task.data_sha256)
    loss, gradient = loss_and_gradient(task, *lanes_of(task))
    assert loss.shape == (2,)
    assert gradient.shape == (2, 4)


def lanes_of(task: Task) -> tuple[Tensor, ...]:
    flat, batch = lanes(task, 2)
    return flat, *(x.double() for x in batch)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_mpl", "unknown task 'digits_mpl'; did you mean 'digits_mlp'?"),
        ("xyzzy", "unknown task 'xyzzy'; there are quadratic, .*path/file.py:NAME"),
        ("nowhere.py:Line", "nowhere.py: no such file"),
        ("OWN:Lime", "own.py: 'Lime' is not defined; did you mean 'Line'?"),
        ("OWN:number", "own.py: 'number' is not a tasks.Task; tasks there: .*Line"),
        ("OWN:Short", "own.py: Short: parameter 'slope': unknown role 'hiden'; did you mean 'hidden'?"),
        ("OWN:Summed", r"own.py: Summed: loss of 2 lanes gave shape \(\), expected \(2,\)"),
        ("OWN:Negative", r"own.py: Negative: held-out loss at the start is \[-.*\], expected numbers above 0"),
        ("OWN:Misspelt", r"own.py: Misspelt: loss raised KeyError: 'slop'"),
        ("OWN:Silent", r"own.py: Silent\(\) cannot be made: TypeError: .*points"),
        ("OWN:", "own.py: say which task"),
        ("OWN", "own.py: say which task, as .*own.py:NAME; tasks there: .*Line"),
    ],
)
def test_wrong_name_says_what_was_expected(own: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        tasks.load(name.replace("OWN", str(own)))


def test_file_that_cannot_be_executed_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import torch\nx = 1 / 0\n")
    with pytest.raises(ValueError, match=r"broken.py: cannot be executed: ZeroDivisionError: division by zero"):
        tasks.load(f"{path}:Line")
