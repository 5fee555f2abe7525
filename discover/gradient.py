"""Loss and gradient of a task for many lanes at once, compiled once for a task and kept on disk.

Lanes are computed in *tiles* of a fixed number of lanes; the last tile is filled up with copies of a lane, which are
thrown away. So one static artefact serves every number of lanes, the work of a tile stays in the cache of a core, and
a lane's bits do not depend on how many lanes run beside it, on what they hold, or on where it stands among them.

An artefact is an AOTInductor package (a shared library): generated C++ for everything between the matrix products,
without Python inside. It is single-threaded; workers, not threads, use the cores. Small products are computed by
products.cpp, whose text is compiled into the artefact, where the CPU has AVX-512; else, and on a GPU, by torch's BLAS.

This is the one place where anything is compiled, on a GPU too: AOTInductor is the compiler behind torch.compile, given
the traced operations in place of Python. A task that enters `torch.autocast` in its loss is traced through it, so that
the casts to bfloat16 are operations like others; parameters and gradients stay in the dtype that was asked for.

A task whose batch does not fit into memory states a `microbatch`: what is compiled is then a tile on a piece of the
batch, and the pieces' losses and gradients are averaged.

Letters in shapes: K lanes, T lanes in a tile, N numbers in all parameters of a task, B examples in a batch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tasks import Batch, Task

_PRODUCTS = Path(__file__).with_name("products.cpp")

_FORMAT = 1  # part of every key: raise it when the traced function or the way of compiling changes
_LOCK_SECONDS = 600.0  # a compile takes seconds; after this the lock is taken for broken and ignored
_AGREES = 1e-3  # relative difference from eager above which a fresh artefact is rejected
_AGREES_BFLOAT16 = 5e-2  # the same where products are rounded to 8 bits, and the compiler rounds fewer of them
_ALIGNMENT = 64  # bytes; a tile that starts elsewhere is copied, as vector code may round differently there

_Tile = Callable[..., Sequence[Tensor]]  # (flat [T, N], *batch [T, B, ...]) -> loss [T], grad [T, N]


class Gradient:
    """Computes loss and gradient of every lane; made by `build`.

    Attributes:
        tile: T, lanes computed at once. A K that is a multiple of it wastes nothing.
        compiled: whether an artefact runs; eager PyTorch does otherwise.
        device, dtype: of the parameters.
        note: empty, or one line that says what is not as it was asked for (no compiler, cache not writable, ...).

    Not for use by two threads at once: it owns the buffers in which tiles are filled up.
    """

    def __init__(self, task: Task, example: Sequence[Tensor], run: _Tile, compiled: bool, note: str) -> None:
        self.task = task
        self.tile = len(example[0])
        self.compiled = compiled
        self.device, self.dtype = example[0].device, example[0].dtype
        self.note = note
        self._run = run
        self._example = [x[0] for x in example]
        self._piece = _piece(task)
        self._filled = [torch.empty_like(x) for x in example]

    def __call__(self, flat: Tensor, batch: Batch, *, shared: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and gradient of each lane at its parameters, over its examples.

        Args:
            flat: [K, N], the parameters, of the dtype and on the device that were asked for.
            batch: what `task.gather` gave, each tensor [K, B, ...].
            shared: the batch is [1, B, ...], the same examples for all lanes; same bits as when repeated.

        Returns:
            loss [K] and grad [K, N], new tensors that own their memory, outside autograd. A lane that is not finite
            spoils no other.

        Raises:
            ValueError: a tensor that does not have the shape, dtype or device that the task says.
        """
        if flat.shape[1:] != self._example[0].shape or not _alike(flat, self._example[0]):
            raise self._wrong("flat", flat, (len(flat), *self._example[0].shape), self._example[0])
        at = self.at(batch, len(flat), shared=shared)
        loss, grad = flat.new_empty(len(flat)), flat.new_empty(flat.shape)
        for start in range(0, len(flat), self.tile):
            rows = slice(start, start + self.tile)
            loss[rows], grad[rows] = at(flat[rows], start)
        return loss, grad

    def at(self, batch: Batch, lanes: int, *, shared: bool = False) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """Loss and gradient on a batch a tile at a time, so that what is done with a gradient finds it in the cache.

        Args:
            batch: as above, of so many `lanes`; it must stay as it is.
            shared: as above.

        Returns:
            A function of the parameters of at most a tile's lanes, [k, N], and of the number of the first: loss [k] and
            grad [k, N], valid for good. It is not to be called after another `at`. Raises ValueError as above.
        """
        self._check(batch, 1 if shared else lanes)
        first, rest = self._filled[0], self._filled[1:]
        pieces = self.task.batch_size // self._piece

        def fill(start: int, stop: int, piece: int) -> list[Tensor]:
            mine = [x[:, piece * self._piece : (piece + 1) * self._piece] for x in batch] if pieces > 1 else batch
            if not shared:
                return [_full(x[start:stop], buffer) for x, buffer in zip(mine, rest, strict=True)]
            for buffer, x in zip(rest, mine, strict=True):
                buffer.copy_(x.expand_as(buffer))
            return rest

        once = fill(0, 0, 0) if shared and pieces == 1 else None

        def run(flat: Tensor, start: int) -> tuple[Tensor, Tensor]:
            count = flat.shape[0]
            if count > self.tile or flat.shape[1:] != first.shape[1:] or not _alike(flat, first):
                raise self._wrong("flat", flat, (min(count, self.tile), *first.shape[1:]), first)
            full = _full(flat, first)
            loss, grad = self._run(full, *(fill(start, start + count, 0) if once is None else once))
            for piece in range(1, pieces):
                more = self._run(full, *fill(start, start + count, piece))
                loss, grad = loss + more[0], grad + more[1]
            if pieces > 1:
                loss, grad = loss / pieces, grad / pieces
            return (loss, grad) if count == self.tile else (loss[:count], grad[:count])

        return run

    def _check(self, batch: Batch, lanes: int) -> None:
        """A compiled tile trusts its arguments: anything wrong here would be read as other numbers, or crash."""
        if len(batch) + 1 != len(self._example):
            raise ValueError(f"{self.task.name}: batch has {len(batch)} tensors, expected {len(self._example) - 1}")
        for i, (x, one) in enumerate(zip(batch, self._example[1:], strict=True)):
            expected = (lanes, self.task.batch_size, *one.shape[1:])
            if x.shape != expected or not _alike(x, one):
                raise self._wrong(f"batch[{i}]", x, expected, one)

    def _wrong(self, name: str, x: Tensor, expected: tuple[int, ...], one: Tensor) -> ValueError:
        return ValueError(
            f"{self.task.name}: {name} is {_kind(x)}, expected {_kind(one.new_empty(()).expand(expected))}"
        )

    def __repr__(self) -> str:
        how = "compiled" if self.compiled else "eager"
        return f"<gradient of {self.task.name}: {how}, tiles of {self.tile} lanes>"


def build(
    task: Task,
    *,
    compile: bool,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tile: int | None = None,
    cache_dir: Path | str | None = None,
) -> Gradient:
    """The gradient of a task, from the cache on disk if it was compiled before.

    Args:
        task: what to train.
        compile: load the compiled artefact, or make it (5 to 30 s); else run eager PyTorch. Where that cannot be done
            the result is eager all the same, and its `note` says why.
        device: where parameters and batches will be. The artefact of a GPU is a CUDA one.
        dtype: of the parameters; examples stay as the task gathers them.
        tile: lanes computed at once, by default `default_tile`; another tile is another artefact and rounds on its own.
        cache_dir: where artefacts are; by default `cache_directory()`.

    Several processes may build the same gradient at once: one compiles, the others wait for it and load.
    """
    example = _example(task, device, dtype, default_tile(task, compile) if tile is None else tile)
    task = task.to(device)
    eager = _tile_of(task)
    if not compile:
        return Gradient(task, example, eager, False, "")
    try:
        path = _artefact(task, example, cache_dir)
        run, note = _load_or_compile(path, eager, example)
    except _CompileError as error:
        return Gradient(task, example, eager, False, f"{task.name}: gradients run uncompiled: {error}")
    return Gradient(task, example, run, True, note and f"{task.name}: {note}")


def is_cached(
    task: Task,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tile: int | None = None,
    cache_dir: Path | str | None = None,
) -> bool:
    """Whether `build(task, compile=True, ...)` would find its artefact on disk; takes some milliseconds."""
    example = _example(task, device, dtype, default_tile(task, True) if tile is None else tile)
    return _artefact(task.to(device), example, cache_dir).exists()


def have_compiler() -> bool:
    """Whether there is the C++ compiler that compiling on the CPU takes: `$CXX`, else g++ (clang++ on macOS)."""
    return shutil.which(compiler()) is not None


def cache_directory() -> Path:
    """Where artefacts are kept: `$DISCOVER_CACHE_DIR`, else the user's cache, as in ~/.cache/optimizer-discovery.

    Everything in it can be deleted at any time.
    """
    return Path(os.environ.get("DISCOVER_CACHE_DIR") or platformdirs.user_cache_dir("optimizer-discovery"))


def default_tile(task: Task, compiled: bool) -> int:
    """T by a rule of thumb: the least power of two from 4 to 64 whose tile works longer than it takes to call it, and 1
    where a lane alone takes some 10 ms.

    Calling a tile takes about 0.01 ms compiled and 0.3 ms eager, so it should hold some 10^7 or 10^8 operations; more
    lanes fill up more of the last tile in vain, and leave the cache. Measured with T from 4 to 64 on one core (AMD
    EPYC of family 26, AVX-512, torch 2.13, 64 lanes that share batches): compiled, `quadratic` runs 3.9 times as fast
    with T=64 as with T=4, the MLPs gain at most a tenth above T=16, and `digits_cnn` and `bytes_transformer` are
    fastest at 4 to 16 and lose a fifth at 64. `gpt(size=360k)` is a tenth faster with 1 than with 4.
    """
    if task.flops > 1e9:
        return 1
    wanted = (1e7 if compiled else 1e8) / max(task.flops, 1)
    return next((tile for tile in (4, 8, 16, 32) if tile >= wanted), 64)


def _tile_of(task: Task) -> _Tile:
    """The function that eager runs and the compiler traces."""

    def loss_and_gradient(flat: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        # Differentiating by the parts spares the sum of N-wide scatters that differentiating by `flat` would make.
        parts = {name: part.detach().requires_grad_() for name, part in task.split(flat).items()}
        with torch.enable_grad():
            loss = task.loss(parts, batch)
            grads = torch.autograd.grad(loss.sum(), list(parts.values()), materialize_grads=True)
        return loss.detach(), torch.cat([g.flatten(1) for g in grads], 1)

    return loss_and_gradient


def _example(task: Task, device: torch.device | str, dtype: torch.dtype, tile: int) -> list[Tensor]:
    """Arguments of a tile: what tracing, checking and the shapes go by."""
    if tile < 1:
        raise ValueError(f"tile is {tile}, expected at least 1 lane")
    task = task.to(device)
    flat = torch.stack([task.initial(seed) for seed in range(tile)]).to(device, dtype)
    index = torch.stack([task.batches(seed, 1)[0, : _piece(task)] for seed in range(tile)])
    return [flat, *(x.contiguous() for x in task.gather(index))]


def _piece(task: Task) -> int:
    """How many examples go through the loss at once: the most that `microbatch` allows and that divide the batch."""
    most = task.batch_size if task.microbatch is None else min(task.microbatch, task.batch_size)
    return next(count for count in range(most, 0, -1) if task.batch_size % count == 0)


def _full(x: Tensor, buffer: Tensor) -> Tensor:
    """`x` as a tile: itself, or a copy in `buffer` with its first lane repeated to the end."""
    if x.shape[0] == buffer.shape[0] and x.is_contiguous() and x.data_ptr() % _ALIGNMENT == 0:
        return x
    buffer[: len(x)] = x
    buffer[len(x) :] = x[0]
    return buffer


def _alike(x: Tensor, one: Tensor) -> bool:
    return x.dtype == one.dtype and x.device == one.device


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


# --- the key -----------------------------------------------------------------------------------------------------


def _artefact(task: Task, example: Sequence[Tensor], cache_dir: Path | str | None) -> Path:
    """The file of an artefact, which has its key in its name.

    The key is made of what is computed, not of the text that says so: the operations that a tile runs, with shapes,
    dtypes and every constant. No edit of a task, of its helpers or of its data can therefore meet a stale artefact,
    and an edit that changes no operation compiles nothing anew. Together with the versions, the kind of CPU and the
    tile (a shape), that is all that the compiled code depends on.
    """
    machine = [torch.__version__, str(_FORMAT), str(example[0].device.type)]
    machine += _gpu(example[0].device) if example[0].is_cuda else [*cpu(), _PRODUCTS.read_text()]
    record = _Record(example)
    with record:
        results = _tile_of(task)(*example)
    digest = hashlib.sha256("\n".join([*machine, *record.lines, record.text(results)]).encode()).hexdigest()
    directory = cache_directory() if cache_dir is None else Path(cache_dir)
    return directory / "gradients" / f"{task.name}-{digest[:32]}.pt2"


class _Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down each operation that runs inside it: `%7 = aten.mul.Tensor(%3, %6)`.

    Recording is a run in eager mode (milliseconds); tracing for the compiler imports a second's worth of modules.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it imports it, which takes that second too; nothing here runs under torch.compile

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []
        self._names: dict[int, str] = {}
        self._alive: list[Tensor] = []  # an id is a tensor's only as long as that lives
        for x in inputs:
            self.lines.append(f"{self._new(x)}: {x.dtype} {tuple(x.shape)} {x.stride()}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        called = f"{func}({self.text(args)}, {self.text(kwargs)})"
        result = func(*args, **kwargs)
        made = [self._new(x) for x in (result if isinstance(result, (tuple, list)) else [result])]
        self.lines.append(f"{', '.join(made)} = {called}")
        return result

    def text(self, value: Any) -> str:
        """A tensor by its number, or by its contents if it comes from outside; anything else as Python prints it."""
        if isinstance(value, Tensor):
            return self._names.get(id(value)) or self._constant(value)
        if isinstance(value, (tuple, list)):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, Mapping):
            return f"[{', '.join(f'{k}={self.text(v)}' for k, v in value.items())}]"
        return repr(value)

    def _new(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        self._alive.append(value)
        self._names[id(value)] = name = f"%{len(self._alive)}"
        return name

    def _constant(self, value: Tensor) -> str:
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"<{_kind(value)} {value.stride()} {hashlib.sha256(content).hexdigest()}>"


@cache
def cpu() -> list[str]:
    """What code for this very processor depends on: its model and its instructions."""
    machine = [platform.system(), platform.machine(), *platform.libc_ver(), torch.backends.cpu.get_cpu_capability()]
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return [*machine, platform.processor()]
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
    return [*machine, *(line for line in first if line.startswith(wanted))]


def _gpu(device: torch.device) -> list[str]:
    return [str(torch.version.cuda), torch.cuda.get_device_name(device), *cpu()]


# --- the artefact ------------------------------------------------------------------------------------------------


class _CompileError(Exception):
    """Why there is no artefact, in words for the user."""


def _load_or_compile(path: Path, eager: _Tile, example: Sequence[Tensor]) -> tuple[_Tile, str]:
    """The artefact at `path`, made if need be, and a note."""
    run = _load(path, example)
    if run is not None:
        return run, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        with tempfile.TemporaryDirectory() as temporary:
            made = _compile(Path(temporary) / path.name, eager, example)
        where = f"the cache {path.parent} cannot be written ({error.strerror})"
        return made, f"compiled for this process only, as {where}; set DISCOVER_CACHE_DIR"
    with _only_one(path):
        run = _load(path, example)  # another process may have made it while this one waited
        if run is not None:
            return run, ""
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            fresh = Path(temporary) / path.name
            run = _compile(fresh, eager, example)
            os.replace(fresh, path)
    return run, ""


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Lets one process at a time in. The system drops the lock of a process that dies."""
    lock = filelock.FileLock(path.with_suffix(".lock"))
    # Going on without the lock is harmless: the file is replaced in one go, so two that compile only waste time.
    with suppress(filelock.Timeout, OSError, NotImplementedError):
        lock.acquire(timeout=_LOCK_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _load(path: Path, example: Sequence[Tensor]) -> _Tile | None:
    """The artefact at `path`, or None if there is none or it is damaged."""
    if not path.exists():
        return None
    device = example[0].device
    try:
        # What torch._inductor.aoti_load_package wraps; that takes 0.8 s to import and 0.02 ms for each call.
        package = torch._C._aoti.AOTIModelPackageLoader(
            str(path), "model", False, 1, -1 if device.index is None else device.index
        )
    except RuntimeError:
        return None
    return lambda *arguments: package.boxed_run(list(arguments))


def _compile(path: Path, eager: _Tile, example: Sequence[Tensor]) -> _Tile:
    """Writes the artefact of `eager` to `path`, checks it against `eager`, and returns it loaded."""
    if not have_compiler():
        raise _CompileError(f"no C++ compiler ('{compiler()}' not found); install g++ or set CXX")
    try:
        with _quiet():
            from torch._inductor import aoti_compile_and_package
            from torch.fx.experimental.proxy_tensor import make_fx

            graph = make_fx(eager)(*example)
            program = torch.export.export(graph, tuple(example), strict=False)
            options: dict[str, Any] = {"cpp.threads": 1, "compile_threads": 1}
            if not example[0].is_cuda:
                # Meant for declarations of functions that custom operators call; each is put before what is generated
                # as `extern TEXT;`. So a block of C++ can stand there too, and the artefact needs no other library.
                inlined = f'"C++" {{\n{_PRODUCTS.read_text()}\n}}'
                options["aot_inductor.custom_ops_to_c_shims"] = {torch.ops.aten.bmm.default: [inlined]}
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except Exception as error:  # whatever a user's loss made the compiler say: eager still runs it
        raise _CompileError(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    run = _load(path, example)
    if run is None:
        raise _CompileError("the compiled artefact cannot be loaded")
    agrees = _AGREES_BFLOAT16 if "torch.bfloat16" in graph.code else _AGREES
    try:
        found = run(*example)
    except RuntimeError as error:  # a kernel that torch compiles but cannot call, as for an LSTM on the CPU
        raise _CompileError(f"the compiled artefact fails: {str(error).strip().partition(chr(10))[0]}") from error
    for mine, expected in zip(found, eager(*example), strict=True):
        off = (mine - expected).abs().max().item()
        if not off <= agrees * expected.abs().max().item():
            raise _CompileError(f"the compiled artefact computes something else (largest difference {off:.2g})")
    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what torch says of its own insides while compiling away from the user."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def compiler() -> str:
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
