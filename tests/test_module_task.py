"""Laws of `discover.module_task`: what it trains is the model as its author wrote it, lane by lane."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tasks
from discover import cli, gradient
from discover.module_task import ModuleTask, from_module
from discover.optimizer import module_groups
from tests.test_tasks import one_thread  # noqa: F401

PAGE = Path(__file__).parent.parent / "docs" / "own_model.md"

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(120, 6, generator=GENERATOR)
Y = (X[:, :3].sum(1) > 0).long()


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.view(-1, 3, 2))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.view(-1, 3, 2))[0][:, -1])


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x) if self.up(x).sum().item() > 0 else self.down(x)


class Tied(nn.Module):
    """One matrix twice, a constant buffer, and a layer that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.register_buffer("scale", torch.arange(1.0, 7.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.frozen(x) * self.scale).tanh()).tanh())


def mlp(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), *between, nn.ReLU(), nn.Linear(8, 2))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (mlp, "vmap"),
    "convolutional": (convolutional, "vmap"),
    "batch_norm": (lambda: mlp(nn.BatchNorm1d(8)), "vmap"),
    "tied": (Tied, "vmap"),
    "attends": (Attends, "vmap"),
    "recurrent": (Recurrent, "loop"),
    "branches": (Branches, "loop"),
}
NO_BRANCHES = [name for name in MODELS if name != "branches"]
"""Models that do not look at values: a trace would follow one branch, and `gradient.build` runs that one eager."""


def made(model: Callable[[], nn.Module] = mlp, loss: Any = None, train: Any = (X, Y), **options: Any) -> ModuleTask:
    if loss is None and "step" not in options:
        loss = nn.CrossEntropyLoss()
    return from_module(model, loss, train=train, **{"horizon": 20, "learning_rate": 0.01, "batch_size": 16, **options})


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def task(name: str) -> ModuleTask:
    return made(MODELS[name][0])


def lanes(task: ModuleTask, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    flat = torch.stack([task.initial(seed) for seed in range(count)]).double().requires_grad_()
    return flat, task.gather(torch.stack([task.batches(seed, 1)[0] for seed in range(count)]))


def loss_and_gradient(task: ModuleTask, flat: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
    loss = task.loss(task.split(flat), batch)
    return loss, torch.autograd.grad(loss.sum(), flat)[0]


# ---- what it computes -------------------------------------------------------------------------------------------


def test_lanes_are_those_that_a_trial_chose(name: str, task: ModuleTask) -> None:
    assert task.lanes == MODELS[name][1]
    assert bool(task.why) == (task.lanes == "loop")
    assert task.lanes in repr(task)
    tasks.check(task, name)


def test_loss_and_gradient_are_those_of_the_model_alone(name: str, task: ModuleTask) -> None:
    """As a training script has them; but for dropout, which is off here on both sides."""
    if name == "attends":
        task = made(without_dropout)
    flat, batch = lanes(task, 2)
    ours, gradients = loss_and_gradient(task, flat, *batch)
    for k in range(2):
        torch.manual_seed(0)  # constants are those of seed 0
        model = (without_dropout if name == "attends" else MODELS[name][0])().double()
        trained = [p for p in model.parameters() if p.requires_grad]
        nn.utils.vector_to_parameters(flat[k].detach(), trained)
        loss = functional.cross_entropy(model(batch[0][k].double()), batch[1][k])
        gradient = torch.autograd.grad(loss, trained, materialize_grads=True)
        torch.testing.assert_close(ours[k], loss, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradients[k], torch.cat([g.flatten() for g in gradient]), rtol=1e-7, atol=1e-9)


def without_dropout() -> nn.Module:
    model = Attends()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
    return model


def test_lanes_do_not_mix_and_agree_with_each_alone(task: ModuleTask) -> None:
    flat, batch = lanes(task, 3)
    loss, gradient = loss_and_gradient(task, flat, *batch)
    validation = task.validation_loss(task.split(flat))
    for k in range(3):
        lane = flat[k : k + 1].detach().requires_grad_()
        alone, own = loss_and_gradient(task, lane, *(x[k : k + 1] for x in batch))
        torch.testing.assert_close(alone[0], loss[k], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(own[0], gradient[k], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(task.validation_loss(task.split(lane))[0], validation[k], rtol=1e-10, atol=1e-10)


def test_gradient_in_tiles_agrees_whatever_runs_beside(task: ModuleTask) -> None:
    compute = gradient.build(task, compile=False, tile=4)
    flat = torch.stack([task.initial(seed) for seed in range(6)])
    batch = task.gather(torch.stack([task.batches(seed, 1)[0] for seed in range(6)]))
    loss, grad = compute(flat, batch)
    again, again_grad = compute(flat[[5, 2]], tuple(x[[5, 2]] for x in batch))
    assert torch.equal(again, loss[[5, 2]])
    assert torch.equal(again_grad, grad[[5, 2]])


@pytest.mark.parametrize("name", NO_BRANCHES)
def test_it_can_be_traced(name: str, task: ModuleTask) -> None:
    def step(flat: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        return loss_and_gradient(task, flat.detach().requires_grad_(), *batch)

    flat, batch = lanes(task, 2)
    traced = make_fx(step)(flat, *batch)
    others = task.gather(task.batches(8, 2))
    for ours, plain in zip(traced(flat, *others), step(flat, *others), strict=True):
        torch.testing.assert_close(ours, plain)


def test_roles_and_initial_values_are_those_of_the_module(name: str, task: ModuleTask) -> None:
    torch.manual_seed(3)
    model = MODELS[name][0]()
    roles = {p: group["role"] for group in module_groups(model) for p in group["params"]}
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert {p.name: p.role for p in task.parameters} == {key: roles[p] for key, p in trained.items()}
    assert torch.equal(task.initial(3), torch.cat([p.detach().flatten() for p in trained.values()]))
    assert not torch.equal(task.initial(3), task.initial(4))


def test_making_a_task_draws_nothing_from_the_users_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    made(Attends, train=DataLoader(TensorDataset(X, Y), shuffle=True)).initial(5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", NO_BRANCHES)
def test_it_works_on_shapes_alone(task: ModuleTask, name: str) -> None:
    moved = task.to("meta")
    parameters = moved.split(moved.initial(0).expand(2, -1))
    assert moved.loss(parameters, moved.gather(moved.batches(0, 2))).device.type == "meta"
    assert moved.validation_loss(parameters).shape == (2,)
    assert task.to("cpu") is task


# ---- dropout and batch norm -------------------------------------------------------------------------------------


class Seen(nn.Module):
    """A model whose loss is the mean of what dropout leaves of ones."""

    layer: nn.Module

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer, self.shape, self.weight = layer, shape, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.weight * x.new_ones(len(x), *self.shape))


def means(task: ModuleTask, steps: int) -> Tensor:
    index = task.batches(0, steps)
    return torch.stack([task.loss({"weight": torch.ones(1, 1)}, task.gather(row[None]))[0] for row in index])


@pytest.mark.parametrize("lanes_by", ["vmap", "loop"])
@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Dropout(0.3), (50,)), (nn.Dropout2d(0.3), (50, 3, 2)), (nn.Dropout1d(0.3), (50, 4))]
)
def test_dropout_keeps_its_share_and_depends_on_the_batch_alone(
    layer: nn.Module, shape: tuple[int, ...], lanes_by: str
) -> None:
    task = made(lambda: Seen(layer, *shape), step=lambda model, x, y: model(x).mean())
    task.lanes = lanes_by
    losses = means(task, 200)
    error = (0.3 / 0.7 / (16 * 50)) ** 0.5
    assert losses.mean().item() == pytest.approx(1.0, abs=4 * error / 200**0.5)
    assert losses.std().item() == pytest.approx(error, rel=0.25)
    assert torch.equal(means(task, 200), losses)
    other = task.batches(0, 1)
    other[0, 0] = task.batches(0, 2)[1, 0]
    assert task.loss({"weight": torch.ones(1, 1)}, task.gather(other))[0] != losses[0]
    assert task.validation_loss({"weight": torch.ones(1, 1)}).item() == 1.0


def test_dropout_drops_elements_or_whole_features() -> None:
    def kept(layer: nn.Module) -> Tensor:
        found = []
        made(lambda: Seen(layer, 50, 6), step=lambda model, x, y: found.append(model(x)) or found[-1].mean())
        return found[0] != 0  # the first trial is a loop

    assert kept(nn.Dropout1d(0.5)).float().mean(-1).unique().tolist() == [0.0, 1.0]
    assert len(kept(nn.Dropout(0.5)).float().mean(-1).unique()) > 2


def test_two_dropouts_of_one_batch_have_masks_of_their_own() -> None:
    found = []

    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found.append((model(x), model(x)))
        return found[-1][0].mean()

    made(lambda: Seen(nn.Dropout(0.5), 50), step=step)
    one, other = (part != 0 for part in found[0])
    assert 0.4 < (one == other).float().mean() < 0.6


def test_dropout_in_attention_is_drawn_too() -> None:
    layer = lambda: nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)  # noqa: E731

    def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        tokens = x[:, None, :] * torch.arange(1.0, 5.0)[:, None].to(x)
        return model(tokens, tokens, tokens, need_weights=False)[0].square().mean()

    task = made(layer, step=step)
    parameters = task.split(task.initial(0)[None])
    index = task.batches(0, 1)
    relabelled = (*task.gather(index)[:-1], task.gather(index)[-1] + 1)
    assert task.loss(parameters, task.gather(index)) != task.loss(parameters, relabelled)
    assert torch.equal(task.validation_loss(parameters), task.validation_loss(parameters))


def test_batch_norm_looks_at_the_batch_and_keeps_nothing() -> None:
    task = made(lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), step=lambda m, x, y: m(x).square().mean())
    parameters = task.split(task.initial(0)[None])
    before = task.validation_loss(parameters)
    task.loss(parameters, tuple(x * 1000 if x.is_floating_point() else x for x in task.gather(task.batches(0, 1))))
    assert torch.equal(task.validation_loss(parameters), before)
    shifted = tuple(x * 3 + 5 if x.is_floating_point() else x for x in task.gather(task.batches(0, 1)))
    torch.testing.assert_close(
        task.loss(parameters, shifted), task.loss(parameters, task.gather(task.batches(0, 1))), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("count", [65, 66, 129])
def test_no_piece_of_validation_is_too_small_for_batch_norm(count: int) -> None:
    task = made(lambda: mlp(nn.BatchNorm1d(8)), held_out=(X.repeat(2, 1)[:count], Y.repeat(2)[:count]))
    assert task.validation_loss(task.split(task.initial(0)[None])).isfinite().all()


# ---- data -------------------------------------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


def batches() -> Iterator[Any]:
    for start in range(0, 120, 24):
        yield {"x": X[start : start + 24], "y": Y[start : start + 24]}


@pytest.mark.parametrize(
    "train",
    [
        (X, Y),
        [X.double(), Y],
        TensorDataset(X, Y),
        Pairs(),
        DataLoader(Pairs(), batch_size=7),
        DataLoader(list(batches()), batch_size=None),  # type: ignore[arg-type]
    ],
    ids=["tuple", "float64", "tensors", "dataset", "loader", "dicts"],
)
def test_data_are_read_from_whatever_holds_them(train: Any) -> None:
    task = made(train=train, held_out=(X[:5], Y[:5]), batch_size=None)
    assert torch.equal(task.train[0], X)
    assert torch.equal(task.train[1], Y)
    assert len(task.held_out[0]) == 5
    assert task.batch_size == (7 if isinstance(train, DataLoader) and train.batch_size else 32)


def test_a_shuffling_loader_is_read_in_an_order_that_never_changes() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)
    one, other = made(train=loader, batch_size=None), made(train=loader, batch_size=None)
    assert torch.equal(one.train[0], other.train[0])
    assert (one.data_sha256, one.batch_size) == (other.data_sha256, 10)


def test_a_share_of_the_data_is_held_out_and_not_trained_on() -> None:
    task = made(held_out=0.25)
    assert (len(task.train[0]), len(task.held_out[0])) == (90, 30)
    rows = [tuple(row.tolist()) for part in (task.train, task.held_out) for row in part[0]]
    assert len(set(rows)) == 120


def test_a_step_takes_the_batch_as_it_is() -> None:
    task = made(step=lambda model, x, y: functional.cross_entropy(model(x), y))
    flat, batch = lanes(task, 2)
    torch.testing.assert_close(loss_and_gradient(task, flat, *batch), loss_and_gradient(made(), flat, *batch))


# ---- what is refused --------------------------------------------------------------------------------------------


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(x)


def ragged() -> Iterator[Any]:
    yield X[:3], Y[:3]
    yield X[:3, :5], Y[:3]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a model": (lambda: made(mlp()), "give a function that makes the model"),  # type: ignore[arg-type]
    "no loss": (lambda: from_module(mlp, train=X, horizon=1, learning_rate=1.0), r"give either loss\(output"),
    "random": (
        lambda: made(lambda: nn.Sequential(mlp(), nn.RReLU())),
        "draws random numbers other than by torch's dropout",
    ),
    "state": (lambda: made(Counts), "'calls' changes while the model runs"),
    "lazy": (lambda: made(lambda: nn.Sequential(nn.LazyLinear(2))), "'0.weight' has no shape yet"),
    "nothing to train": (lambda: made(nn.Identity), "no parameters that require a gradient"),
    "unequal starts": (lambda: made(Unequal), "other initial values for the same seed"),
    "wrong shapes": (lambda: made(lambda: nn.Linear(5, 2)), r"cannot be run on \[\(96, 6\), \(96,\)\].*RuntimeError"),
    "no mean": (
        lambda: made(loss=nn.CrossEntropyLoss(reduction="none")),
        r"the loss of a batch is shape \[16\], expected one number",
    ),
    "no tensors": (lambda: made(train=DataLoader([("a", 1.0)])), "train: a batch holds tuple, Tensor, expected"),  # type: ignore[arg-type]
    "ragged": (lambda: made(train=DataLoader(list(ragged()), batch_size=None)), "do not join"),  # type: ignore[arg-type]
    "counts differ": (lambda: made(train=(X, Y[:3])), "first axes count the same examples"),
    "empty": (lambda: made(train=(X[:0], Y[:0])), "holds no examples"),
    "all held out": (lambda: made(held_out=1.0), "leaves none to train on"),
}


class Unequal(nn.Module):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        Unequal.made += 1
        self.head = nn.Parameter(torch.full((2, 6), float(Unequal.made)))


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_a_task_is_one_line_that_says_why(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---- the tutorial -----------------------------------------------------------------------------------------------


@pytest.fixture
def tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's file, as a user would save it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")  # compiling takes longer than training here
    path = tmp_path / "my_task.py"
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    path.write_text(found[1])
    return path


def test_the_tutorials_file_is_about_twenty_lines_and_learns(tutorial: Path) -> None:
    assert len([line for line in tutorial.read_text().splitlines() if line.strip()]) <= 20
    task = tasks.load("my_task.py:task")
    assert isinstance(task, ModuleTask)
    assert {p.role for p in task.parameters} == {"hidden", "bias", "norm", "head"}
    parameters = {k: v.clone().requires_grad_() for k, v in task.split(task.initial(0)[None]).items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=task.learning_rate)
    for index in task.batches(0, task.horizon):
        optimizer.zero_grad()
        task.loss(parameters, task.gather(index[None])).sum().backward()
        optimizer.step()
    assert task.validation_loss(parameters).item() < 0.35


def test_the_tutorials_file_is_referenced_and_searched_on(tutorial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "my_task.py:task(horizon=10)"
    assert cli.main(["reference", name, "--trials", "9", "--tuning-seeds", "1", "--seeds", "2"]) == 0
    assert "not stored: my_task.py:task(horizon=10)" in capsys.readouterr().out
    tiny = "operators: [mul, sign, lerp]\ntasks: {search: [quadratic]}\nrungs: [{tasks: [quadratic], steps: 5}]\n"
    Path("tiny.yaml").write_text(tiny + "proposals_per_generation: 8\nlearning_rates: {points: 3}\ncompile: never\n")
    command = ["search", "--space", "tiny.yaml", "--task", name, "--candidates", "2", "--workers", "0", "--out", "out"]
    assert cli.main(command) == 0
    assert f"{tutorial}:task(horizon=10)" in Path("out/manifest.json").read_text()


def test_the_page_shows_every_argument() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for argument in from_module.__annotations__:
        assert argument == "return" or f"`{argument}`" in page, argument
