"""Compiled tiles on disk: what an artefact is called, how it is found, made and loaded.

An artefact is an AOTInductor package (a shared library): generated C++ for everything between the matrix products,
without Python inside. It is single-threaded; workers, not threads, use the cores. Small products are computed by
products.cpp, whose text is compiled into the artefact, where the CPU has AVX-512, or AVX2 and FMA; else, and on a GPU,
by torch's BLAS.

This is where gradients are compiled, on a GPU too: AOTInductor is the compiler behind torch.compile, given the
traced operations in place of Python. A task that enters `torch.autocast` in its loss is traced through it, so that
the casts to bfloat16 are operations like others; parameters and gradients stay in the dtype that was asked for.
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
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = Path(__file__).with_name("products.cpp")

_FORMAT = 1  # part of every key: raise it when the traced function or the way of compiling changes
_LOCK_SECONDS = 600.0  # a compile takes seconds; after this the lock is taken for broken and ignored
_AGREES = 1e-3  # relative difference from eager above which a fresh artefact is rejected
_AGREES_BFLOAT16 = 5e-2  # the same where products are rounded to 8 bits, and the compiler rounds fewer of them

Tile = Callable[..., Sequence[Tensor]]
"""(flat [T, N], *batch [T, B, ...]) -> loss [T], grad [T, N]"""


def have_compiler() -> bool:
    """Whether there is the C++ compiler that compiling on the CPU takes: `$CXX`, else g++ (clang++ on macOS)."""
    return shutil.which(compiler()) is not None


def cache_directory() -> Path:
    """Where artefacts are kept: `$DISCOVER_CACHE_DIR`, else the user's cache, as in ~/.cache/optimizer-discovery.

    Everything in it can be deleted at any time.
    """
    return Path(os.environ.get("DISCOVER_CACHE_DIR") or platformdirs.user_cache_dir("optimizer-discovery"))


def kind(x: Tensor) -> str:
    """A tensor's type, shape and place, in words."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def path_of(name: str, tile: Tile, example: Sequence[Tensor], cache_dir: Path | str | None = None) -> Path:
    """The file of the artefact of a tile, which has its key in its name.

    Args:
        name: of the task, for people.
        tile: what is computed; example: arguments of the shapes and types that it will have.
        cache_dir: where artefacts are; by default `cache_directory()`.

    The key is made of what is computed, not of the text that says so: the operations that a tile runs, with shapes,
    dtypes and every constant. No edit of a task, of its helpers or of its data can therefore meet a stale artefact,
    and an edit that changes no operation compiles nothing anew. Together with the versions, the kind of CPU and the
    tile (a shape), that is all that the compiled code depends on.
    """
    machine = [torch.__version__, str(_FORMAT), str(example[0].device.type)]
    machine += _gpu(example[0].device) if example[0].is_cuda else [*cpu(), _PRODUCTS.read_text()]
    record = _Record(example)
    with record:
        results = tile(*example)
    digest = hashlib.sha256("\n".join([*machine, *record.lines, record.text(results)]).encode()).hexdigest()
    directory = cache_directory() if cache_dir is None else Path(cache_dir)
    return directory / "gradients" / f"{name}-{digest[:32]}.pt2"


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
        return f"<{kind(value)} {value.stride()} {hashlib.sha256(content).hexdigest()}>"


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


class CompileError(Exception):
    """Why there is no artefact, in words for the user."""


def load_or_compile(path: Path, eager: Tile, example: Sequence[Tensor]) -> tuple[Tile, str]:
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


def _load(path: Path, example: Sequence[Tensor]) -> Tile | None:
    """The artefact at `path`, or None if there is none or it is damaged."""
    if not path.exists():
        return None
    device = example[0].device
    try:
        with _unpacked_nowhere() if device.type == "cpu" else nullcontext():  # a GPU's kernels are read when first run
            # What torch._inductor.aoti_load_package wraps; that takes 0.8 s to import and 0.02 ms for each call.
            package = torch._C._aoti.AOTIModelPackageLoader(
                str(path), "model", False, 1, -1 if device.index is None else device.index
            )
    except (RuntimeError, OSError):
        return None
    return lambda *arguments: package.boxed_run(list(arguments))


@contextmanager
def _unpacked_nowhere() -> Iterator[None]:
    """Has torch unpack a package into a folder that is gone once it is loaded: what is mapped from it stays. Torch
    itself removes its folder when the package is let go, which a worker that is killed, as all are in the end, never
    does: they left 2 MB each."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="discover-") as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def _compile(path: Path, eager: Tile, example: Sequence[Tensor]) -> Tile:
    """Writes the artefact of `eager` to `path`, checks it against `eager`, and returns it loaded."""
    if not have_compiler():
        raise CompileError(f"no C++ compiler ('{compiler()}' not found); install g++ or set CXX")
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
        raise CompileError(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    run = _load(path, example)
    if run is None:
        raise CompileError("the compiled artefact cannot be loaded")
    agrees = _AGREES_BFLOAT16 if "torch.bfloat16" in graph.code else _AGREES
    try:
        found = run(*example)
    except RuntimeError as error:  # a kernel that torch compiles but cannot call, as for an LSTM on the CPU
        raise CompileError(f"the compiled artefact fails: {str(error).strip().partition(chr(10))[0]}") from error
    for mine, expected in zip(found, eager(*example), strict=True):
        off = (mine - expected).abs().max().item()
        if not off <= agrees * expected.abs().max().item():
            raise CompileError(f"the compiled artefact computes something else (largest difference {off:.2g})")
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
