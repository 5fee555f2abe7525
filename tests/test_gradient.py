"""Laws of `discover.gradient`: right, the same bits for a lane in any company, and compiled once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tasks
from discover import artefact
from discover.gradient import Gradient, build, is_cached
from tasks import Batch, Parameter, Task

ROOT = Path(__file__).parent.parent
TILE = 4

needs_compiler = pytest.mark.skipif(not artefact.have_compiler(), reason="needs a C++ compiler")


class Tiny(Task):
    """Regression by a layer of 5 x 3 with a bias; odd sizes, so that no lane but the first is aligned."""

    name = "tiny"
    title = source = "a test"
    parameters = (Parameter.normal("w", (3, 5), "hidden", 1.0), Parameter.constant("b", (3,), "bias"))
    batch_size, horizon, warmup, learning_rate = 7, 20, 2, 1e-2

    def __init__(self, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        data = [torch.randn(50, width, generator=generator) for width in (5, 3)]
        super().__init__((data[0][:40], data[1][:40]), (data[0][40:], data[1][40:]))
        self.scale = torch.tensor([scale, 1.0, 1.0])

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x, y = batch
        w, b = parameters["w"], parameters["b"]
        z = torch.baddbmm(b.unsqueeze(1), x.to(w.dtype), w.mT).tanh() * self.scale.to(w.dtype)
        return (z - y.to(w.dtype)).square().mean((1, 2))


class Branching(Tiny):
    """Breaks the contract: what it computes depends on values. Eager can run that, no compiler can."""

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        loss = super().loss(parameters, batch)
        return loss if loss.sum().item() > 0 else 2 * loss


def lanes(task: Task, count: int) -> tuple[Tensor, Batch]:
    """Different parameters and examples in every lane."""
    flat = torch.stack([task.initial(seed) for seed in range(count)])
    return flat, task.gather(torch.stack([task.batches(seed, 1)[0] for seed in range(count)]))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def compiled(cache: Path) -> Gradient:
    if not artefact.have_compiler():
        pytest.skip("needs a C++ compiler")
    return build(Tiny(), compile=True, tile=TILE, cache_dir=cache)


@pytest.fixture(params=["eager", "compiled"])
def either(request: pytest.FixtureRequest) -> Gradient:
    if request.param == "eager":
        return build(Tiny(), compile=False, tile=TILE)
    made: Gradient = request.getfixturevalue("compiled")
    return made


def in_fresh_process(code: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    code = f"import tasks; from discover import artefact; from discover.gradient import *\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DISCOVER_CACHE_DIR": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- what it computes ---


@pytest.mark.parametrize("name", tasks.names())
def test_gradient_is_the_derivative_of_the_loss_of_one_lane_alone(name: str) -> None:
    task = tasks.load(name)
    flat, batch = lanes(task, 3)
    loss, grad = build(task, compile=False, tile=2, dtype=torch.float64)(flat.double(), batch)
    for lane in range(3):
        alone = flat[lane : lane + 1].double().requires_grad_()
        expected = task.loss(task.split(alone), tuple(x[lane : lane + 1] for x in batch))
        expected.sum().backward()
        torch.testing.assert_close(loss[lane], expected[0].detach())
        assert alone.grad is not None
        torch.testing.assert_close(grad[lane], alone.grad[0])


def test_compiled_agrees_with_eager(compiled: Gradient) -> None:
    assert compiled.compiled
    assert compiled.note == ""
    flat, batch = lanes(compiled.task, 10)
    for mine, expected in zip(compiled(flat, batch), build(compiled.task, compile=False)(flat, batch), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["digits_mlp"])
def test_compiled_agrees_with_eager_on_a_built_in_task(name: str, cache: Path) -> None:
    task = tasks.load(name)
    flat, batch = lanes(task, 5)
    made = build(task, compile=True, tile=8, cache_dir=cache)
    assert made.compiled
    for mine, expected in zip(made(flat, batch), build(task, compile=False)(flat, batch), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


# --- a lane is alone ---


def bits_do_not_depend_on_company(compute: Gradient) -> None:
    """K, position, and what other lanes hold: none of it changes a bit of a lane."""
    flat, batch = lanes(compute.task, 2 * compute.tile + 3)
    loss, grad = compute(flat, batch)

    def expect(rows: list[int], parameters: Tensor) -> None:
        again, again_grad = compute(parameters, tuple(x[rows] for x in batch))
        assert torch.equal(again, loss[rows])
        assert torch.equal(again_grad, grad[rows])

    for count in (1, 2, compute.tile, compute.tile + 1):
        for start in (0, 1, compute.tile - 1):
            rows = list(range(start, start + count))
            expect(rows, flat[rows])
            expect(rows, flat[start : start + count])  # a view, which may start anywhere in memory
    for seed in range(3):
        rows = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed)).tolist()
        expect(rows, flat[rows])
    spoiled = flat.clone()
    spoiled[::2] = torch.nan
    again, again_grad = compute(spoiled, batch)
    assert torch.equal(again[1::2], loss[1::2])
    assert torch.equal(again_grad[1::2], grad[1::2])


def test_bits_of_a_lane_do_not_depend_on_its_company(either: Gradient) -> None:
    bits_do_not_depend_on_company(either)


@pytest.mark.parametrize("name", tasks.names())
def test_bits_of_a_lane_do_not_depend_on_its_company_in_built_in_tasks(name: str) -> None:
    bits_do_not_depend_on_company(build(tasks.load(name), compile=False, tile=TILE))


@pytest.mark.parametrize("count", [1, TILE, TILE + 1, 3 * TILE])
def test_shared_batch_gives_the_bits_of_a_repeated_one(either: Gradient, count: int) -> None:
    flat, _ = lanes(either.task, count)
    batch = either.task.gather(either.task.batches(0, 1))
    repeated = tuple(x.expand(count, *x.shape[1:]) for x in batch)
    for one, other in zip(either(flat, batch, shared=True), either(flat, repeated), strict=True):
        assert torch.equal(one, other)


def test_results_outlive_the_next_call_and_arguments_are_not_written(either: Gradient) -> None:
    flat, batch = lanes(either.task, TILE + 1)
    before = [x.clone() for x in (flat, *batch)]
    results = either(flat, batch)
    kept = [x.clone() for x in results]
    either(2 * flat, batch)
    assert all(map(torch.equal, results, kept))
    assert all(map(torch.equal, (flat, *batch), before))


# --- the caller's mistakes ---


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda flat, batch: (flat.double(), batch), "flat is float64 [5, 18] on cpu, expected float32 [5, 18] on cpu"),
        (lambda flat, batch: (flat[:, 1:], batch), "flat is float32 [5, 17] on cpu, expected float32 [5, 18] on cpu"),
        (lambda flat, batch: (flat[1:], batch), "batch[0] is float32 [5, 7, 5] on cpu, expected float32 [4, 7, 5]"),
        (lambda flat, batch: (flat, batch[:1]), "batch has 1 tensors, expected 2"),
    ],
    ids=["dtype", "width", "lanes", "batch"],
)
def test_wrong_argument_is_an_error_that_names_it(
    either: Gradient, mistake: Callable[[Tensor, Batch], tuple[Tensor, Batch]], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"tiny: {message}")):
        either(*mistake(*lanes(either.task, 5)))


def test_tile_of_no_lanes_is_an_error() -> None:
    with pytest.raises(ValueError, match="tile is 0, expected at least 1 lane"):
        build(Tiny(), compile=False, tile=0)


# --- the key ---


class Rewritten(Tiny):
    """Other text and other helpers, the same operations."""

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return super().loss(dict(parameters), batch)


class Shifted(Tiny):
    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return super().loss(parameters, batch) + 1e-9


def test_cache_knows_what_is_computed_not_how_it_is_written(compiled: Gradient, cache: Path) -> None:
    def found(task: Task, tile: int = TILE, dtype: torch.dtype = torch.float32) -> bool:
        return is_cached(task, tile=tile, dtype=dtype, cache_dir=cache)

    assert found(Tiny())
    assert found(Rewritten())
    assert not found(Tiny(scale=1.0000001))  # a constant's last bit
    assert not found(Shifted())
    assert not found(Tiny(), tile=TILE + 1)
    assert not found(Tiny(), dtype=torch.float64)


# --- compiled once ---


@pytest.fixture
def package(compiled: Gradient, cache: Path) -> Path:
    (path,) = (cache / "gradients").glob("tiny-*.pt2")
    return path


@pytest.fixture
def compiles(package: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where the compiler was asked to write; it takes no time here, as it copies the artefact that there is."""
    asked: list[Path] = []
    good = package.read_bytes()

    def compile_at_once(path: Path, eager: object, example: list[Tensor]) -> object:
        asked.append(path)
        path.write_bytes(good)
        return artefact._load(path, example)

    monkeypatch.setattr(artefact, "_compile", compile_at_once)
    return asked


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="products.cpp is empty without AVX2"
)
def test_an_artefact_has_its_own_small_products(package: Path) -> None:
    with zipfile.ZipFile(package) as opened:
        libraries = [opened.read(name) for name in opened.namelist() if name.endswith(".so")]
    assert libraries
    assert all(b"discover_products" in library for library in libraries)


def build_tiny(cache: Path) -> Gradient:
    return build(Tiny(), compile=True, tile=TILE, cache_dir=cache)


def test_cached_artefact_is_loaded_without_compiling(compiles: list[Path], cache: Path) -> None:
    assert build_tiny(cache).compiled
    assert compiles == []


@pytest.mark.parametrize("damage", [b"", b"not a package", None], ids=["empty", "text", "truncated"])
def test_damaged_artefact_is_made_again(
    compiles: list[Path], compiled: Gradient, package: Path, tmp_path: Path, damage: bytes | None
) -> None:
    copy = tmp_path / "gradients" / package.name
    copy.parent.mkdir()
    copy.write_bytes(package.read_bytes()[:-20_000] if damage is None else damage)
    made = build_tiny(tmp_path)
    assert made.compiled
    assert made.note == ""
    assert len(compiles) == 1
    assert copy.read_bytes() == package.read_bytes()
    flat, batch = lanes(made.task, 3)
    assert torch.equal(made(flat, batch)[1], compiled(flat, batch)[1])
    assert sorted(x.suffix for x in copy.parent.iterdir()) == [".lock", ".pt2"]  # nothing half made is left


def test_cache_that_cannot_be_written_costs_only_the_cache(compiles: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = build_tiny(tmp_path / "file")
    assert made.compiled
    assert len(compiles) == 1
    assert made.note.startswith("tiny: compiled for this process only, as the cache ")
    assert made.note.endswith("; set DISCOVER_CACHE_DIR")


def test_without_compiler_it_runs_eager_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    assert not artefact.have_compiler()
    made = build_tiny(tmp_path)
    assert not made.compiled
    assert made.note == (
        "tiny: gradients run uncompiled: no C++ compiler ('/nonexistent/g++' not found); install g++ or set CXX"
    )
    flat, batch = lanes(made.task, 3)
    assert torch.equal(made(flat, batch)[1], build(Tiny(), compile=False, tile=TILE)(flat, batch)[1])


@needs_compiler
def test_task_that_cannot_be_compiled_runs_eager_and_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = build(Branching(), compile=True, tile=TILE, cache_dir=tmp_path)
    assert not made.compiled
    assert made.note.startswith("tiny: gradients run uncompiled: RuntimeError: ")
    assert "\n" not in made.note
    assert made(*lanes(made.task, 3))[0].shape == (3,)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_fresh_process_loads_the_artefact_without_a_compiler(package: Path, cache: Path) -> None:
    process = in_fresh_process(
        f"import sys; task = tasks.load({f'{__file__}:Tiny'!r})\n"
        f"made = build(task, compile=True, tile={TILE})\n"
        "print(made, 'torch._inductor.codecache' in sys.modules, repr(made.note))",
        cache,
        CXX="/nonexistent/g++",
    )
    out, err = process.communicate(timeout=120)
    assert (out, err) == ("<gradient of tiny: compiled, tiles of 4 lanes> False ''\n", "")


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_of_an_artefact_behind(
    package: Path, cache: Path, tmp_path: Path
) -> None:
    process = in_fresh_process(
        "import os, signal\n"
        f"task = tasks.load({f'{__file__}:Tiny'!r})\n"
        f"made = build(task, compile=True, tile={TILE})\n"
        "flat = task.initial(0).unsqueeze(0)\n"
        "loss, _ = made(flat, task.gather(task.batches(0, 1)))\n"
        "print(made.compiled, loss.isfinite().all().item(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        cache,
        TMPDIR=str(tmp_path),
    )
    out, _ = process.communicate(timeout=120)
    assert out == "True True\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_compiler
def test_two_processes_at_once_compile_once_and_silently(tmp_path: Path) -> None:
    code = (
        f"task = tasks.load({f'{__file__}:Tiny'!r}); real = artefact._compile\n"
        "def counting(*arguments): print('compiling'); return real(*arguments)\n"
        "artefact._compile = counting\n"
        f"print(build(task, compile=True, tile={TILE}).compiled)"
    )
    results = [process.communicate(timeout=300) for process in [in_fresh_process(code, tmp_path) for _ in range(2)]]
    assert sorted(out for out, _ in results) == ["True\n", "compiling\nTrue\n"]
    assert [err for _, err in results] == ["", ""]
