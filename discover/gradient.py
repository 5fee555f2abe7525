"""Loss and gradient of a task for many lanes at once, compiled once for a task and kept on disk.

Lanes are computed in *tiles* of a fixed number of lanes; the last tile is filled up with copies of a lane, which are
thrown away. So one static artefact serves every number of lanes, the work of a tile stays in the cache of a core, and
a lane's bits do not depend on how many lanes run beside it, on what they hold, or on where it stands among them.

Artefacts are found, made and loaded by `discover.artefact`.

A task whose batch does not fit into memory states a `microbatch`: what is compiled is then a tile on a piece of the
batch, and the pieces' losses and gradients are averaged.

Letters in shapes: K lanes, T lanes in a tile, N numbers in all parameters of a task, B examples in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from discover import artefact
from discover.artefact import Tile, kind
from tasks import Batch, Task

_ALIGNMENT = 64  # bytes; a tile that starts elsewhere is copied, as vector code may round differently there


class Gradient:
    """Computes loss and gradient of every lane; made by `build`.

    Attributes:
        tile: T, lanes computed at once. A K that is a multiple of it wastes nothing.
        compiled: whether an artefact runs; eager PyTorch does otherwise.
        device, dtype: of the parameters.
        note: empty, or one line that says what is not as it was asked for (no compiler, cache not writable, ...).

    Not for use by two threads at once: it owns the buffers in which tiles are filled up.
    """

    def __init__(self, task: Task, example: Sequence[Tensor], run: Tile, compiled: bool, note: str) -> None:
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

    @property
    def batch_bytes(self) -> int:
        """Of a lane's examples of a step."""
        pieces = self.task.batch_size // self._piece
        return pieces * sum(x.numel() * x.element_size() for x in self._example[1:])

    def _check(self, batch: Batch, lanes: int) -> None:
        """A compiled tile trusts its arguments: anything wrong here would be read as other numbers, or crash."""
        if len(batch) + 1 != len(self._example):
            raise ValueError(f"{self.task.name}: batch has {len(batch)} tensors, expected {len(self._example) - 1}")
        for i, (x, one) in enumerate(zip(batch, self._example[1:], strict=True)):
            expected = (lanes, self.task.batch_size, *one.shape[1:])
            if x.shape != expected or not _alike(x, one):
                raise self._wrong(f"batch[{i}]", x, expected, one)

    def _wrong(self, name: str, x: Tensor, expected: tuple[int, ...], one: Tensor) -> ValueError:
        return ValueError(f"{self.task.name}: {name} is {kind(x)}, expected {kind(one.new_empty(()).expand(expected))}")

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
        compile: load the compiled artefact, or make it (5 to 40 s); else run eager PyTorch. Where that cannot be done
            the result is eager all the same, and its `note` says why.
        device: where parameters and batches will be. The artefact of a GPU is a CUDA one.
        dtype: of the parameters; examples stay as the task gathers them.
        tile: lanes computed at once, by default `default_tile`; another tile is another artefact and rounds on its own.
        cache_dir: where artefacts are; by default `artefact.cache_directory()`.

    Several processes may build the same gradient at once: one compiles, the others wait for it and load.
    """
    example = _example(task, device, dtype, default_tile(task, compile) if tile is None else tile)
    task = task.to(device)
    eager = _tile_of(task)
    if not compile:
        return Gradient(task, example, eager, False, "")
    try:
        run, note = artefact.load_or_compile(artefact.path_of(task.name, eager, example, cache_dir), eager, example)
    except artefact.CompileError as error:
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
    task = task.to(device)
    return artefact.path_of(task.name, _tile_of(task), example, cache_dir).exists()


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


def _tile_of(task: Task) -> Tile:
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
