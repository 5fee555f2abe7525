"""Steps all elementwise rules of a batch by one call into a small C++ program, instead of one torch call an operator.

The C++ (native.cpp) interprets short codes block by block, so a rule that was never seen before costs nothing to
prepare, and the memory of parameters and state is touched once a step. It is compiled once on a machine (some seconds)
and kept in the cache. A rule may use reductions over a tensor or over all parameters (norm, mean, global_norm, ...):
each is a phase that goes over the elements once more. Rules that see rows, columns or matrices, and machines without a
compiler, use the generated PyTorch code (`dsl.lane_rule`); both follow the reference to float32 rounding.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor

from discover.artefact import cache_directory, compiler, cpu
from discover.native_code import Code
from dsl.graph import CONSTANT, INPUT
from dsl.ops import OPS

_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    *("-shared", "-fPIC"),
)
_SOURCE = Path(__file__).with_name("native.cpp")


class NativeRules:
    """Rules with their state, each on its own rows of one buffer.

    Args:
        codes: the rules, from `encode`.
        rows: for each row of the buffer, which of them.
        hypers: for each row, its hyperparameters.
        parameters: [K, N] float32, contiguous, on the CPU; `step` changes it.
        sizes: of the task's parameters, in order; they add up to N.
        ratios: lr over its peak, for each step from 1.

    Raises:
        NativeError: the C++ cannot be had here.
        ValueError: arguments that do not fit together, or parameters that are not as above. The C++ checks nothing.
    """

    def __init__(
        self,
        codes: Sequence[Code],
        rows: Sequence[int],
        hypers: Sequence[Mapping[str, float]],
        parameters: Tensor,
        sizes: Sequence[int],
        ratios: Sequence[float],
    ) -> None:
        _check("parameters", parameters, (len(rows), sum(sizes)))
        if len(hypers) != len(rows):
            raise ValueError(f"hypers are for {len(hypers)} rows, expected {len(rows)}")
        if wrong := sorted(set(rows) - set(range(len(codes)))):
            raise ValueError(f"rows name rule {wrong[0]}, expected 0 to {len(codes) - 1}")
        self._library = library()
        self._slots = max(len(code.slots) for code in codes)
        self._width = max(1, *(len(code.numbers) for code in codes))
        words = [code.words(self._slots, self._width) for code in codes]
        self._code = np.array([word for each in words for word in each], np.int32)
        self._starts = np.cumsum([0, *(len(each) for each in words)], dtype=np.int64)
        self._bounds = np.cumsum([0, *sizes], dtype=np.int64)
        self._codes = codes
        self._rows = np.array(rows, np.int32)
        self.state = torch.zeros(self._slots, *parameters.shape)
        self._numbers = np.zeros((len(ratios), len(rows), self._width), np.float32)
        for index, code in enumerate(codes):
            mine = np.flatnonzero(self._rows == index).tolist()
            for slot, (_, init) in enumerate(code.slots):
                value = parameters[mine] if init == "p" else torch.tensor(float(init))
                self.state[slot, mine] = value
            self._numbers[:, mine, : len(code.numbers)] = _numbers(code, [hypers[row] for row in mine], ratios)
        self._fixed = [array.ctypes.data for array in (self._code, self._starts, self._bounds)]
        self._locate()

    def _locate(self) -> None:
        """Notes where in memory lies what `keep` moves; to ask numpy at each step takes longer than some steps."""
        self._at = self._rows.ctypes.data, self.state.data_ptr(), self._numbers.ctypes.data

    def step(self, parameters: Tensor, gradients: Tensor, t: int, start: int = 0) -> None:
        """Step t, from 1, of k rows from row `start` on: parameters [k, N] change in place; gradients [k, N] are only
        read. Raises ValueError for tensors that are not float32, contiguous and on the CPU, for more rows than there
        are, and for a step that has no ratio."""
        rows, n = self.state.shape[1:]
        if not 0 <= start < rows:
            raise ValueError(f"start is {start}, expected a row from 0 to {rows - 1}")
        lanes = min(parameters.shape[0], rows - start)
        _check("parameters", parameters, (lanes, n))
        _check("gradients", gradients, (lanes, n))
        if not 1 <= t <= len(self._numbers):
            raise ValueError(f"step {t}: there are ratios for steps 1 to {len(self._numbers)}")
        (code, starts, bounds), (rules, state, numbers) = self._fixed, self._at
        self._library.step(
            *(code, starts, rules + 4 * start, bounds, lanes, rows, n, self._slots, self._width, len(self._bounds) - 1),
            *(parameters.data_ptr(), gradients.data_ptr(), state + 4 * start * n),
            numbers + 4 * ((t - 1) * rows + start) * self._width,
        )

    def keep(self, rows: Tensor) -> None:
        """Keeps some rows, in order."""
        self.state = self.state[:, rows].contiguous()
        self._rows = np.ascontiguousarray(self._rows[rows.numpy()])
        self._numbers = np.ascontiguousarray(self._numbers[:, rows.numpy()])
        self._locate()

    def evaluation(self, parameters: Tensor) -> Tensor:
        """The point to evaluate of every row, [K, N]."""
        points = parameters.clone()
        for row, index in enumerate(self._rows):
            if (slot := self._codes[index].result) is not None:
                points[row] = self.state[slot, row]
        return points


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """The C++ is given bare pointers: anything wrong here would be memory of something else."""
    fits = tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
    if tensor.shape != shape or not fits:
        kind = f"{'' if tensor.is_contiguous() else 'not contiguous, '}{tensor.dtype}"
        raise ValueError(
            f"{name} are {list(tensor.shape)}, {kind} on {tensor.device}, expected {list(shape)}, contiguous, "
            "torch.float32 on cpu"
        )


def _numbers(code: Code, hypers: Sequence[Mapping[str, float]], ratios: Sequence[float]) -> Any:
    """The code's numbers, [steps, rows, numbers]: float64 arithmetic over all steps and rows at once."""
    ratio = np.array(ratios, np.float64)[:, None]
    t = np.arange(1, len(ratios) + 1, dtype=np.float64)[:, None]
    values: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for index, node in enumerate(code.graph.nodes):
            if not node.type.is_number:
                continue
            if node.op == CONSTANT:
                values[index] = np.float64(node.payload)
            elif node.op == INPUT:
                name = str(node.payload)
                own = {"t": t, "lr_ratio": ratio}.get(name)
                if own is None:
                    own = np.array([each[name] for each in hypers], np.float64)[None, :]
                values[index] = own * ratio if name == "lr" else own
            else:
                ref = OPS[node.op].ref
                assert ref is not None
                values[index] = ref(*(values[arg] for arg in node.args))
        shape = (len(ratios), len(hypers))
        return (
            np.stack([np.broadcast_to(values[index], shape) for index in code.numbers], -1)
            if code.numbers
            else np.zeros((*shape, 0))
        )


def available() -> bool:
    """Whether the C++ can be used here: it is in the cache, or there is a compiler."""
    try:
        library()
    except NativeError:
        return False
    return True


class NativeError(RuntimeError):
    """The C++ could not be compiled or loaded; the text says why."""


@cache
def library() -> Any:
    """The compiled C++, from the cache, or made now. Raises NativeError."""
    loaded = built(_SOURCE)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.step.argtypes = [pointer] * 4 + [size] * 6 + [pointer] * 4
    loaded.step.restype = None
    return loaded


def built(source: Path) -> ctypes.CDLL:
    """A file of C++ as a library, from the cache, or compiled now. Raises NativeError."""
    text = source.read_bytes()
    key = hashlib.sha256(b"\0".join([text, repr(_FLAGS).encode(), repr(cpu()).encode()])).hexdigest()[:24]
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{source.stem}-{key}.so"
        with filelock.FileLock(path.with_suffix(".lock"), timeout=120):
            if not path.exists():
                _compile(source, path)
        return ctypes.CDLL(str(path))
    except (OSError, filelock.Timeout) as error:
        raise NativeError(str(error)) from None


def _compile(source: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory) / "native.so"
        done = subprocess.run(
            [compiler(), *_FLAGS, str(source), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NativeError(
                f"{compiler()} failed: {done.stderr.strip().splitlines()[0] if done.stderr else done.returncode}"
            )
        os.replace(made, path)
