"""What a task is: parameters, data, a loss over many lanes at once, a horizon and a schedule.

A *lane* is one training run inside a batch of K of them. Everything that depends on the parameters carries a leading
lanes axis K, and no lane may see another. A task knows nothing of update rules, nor of searching for them.

The docstrings of the built-in tasks say under *Measured* what known rules reach there at the full horizon, as the
geometric mean of the held-out loss over seeds at the best of five learning rates a factor 2 apart (three for
`bytes_transformer`), in float32 with torch 2.13. In brackets: the mean difference of the logarithm to AdamW on the same
seeds, and its standard error. AdamW has beta1 0.9, beta2 0.999, weight decay 0.01; "no momentum" is AdamW with beta1 0,
"no correction" is AdamW without bias correction; SGD's momentum is 0.9. Where it says 2 seeds, the rates are a factor
2.5 apart, more of them where the best lay at an edge, and there is no weight decay.

Letters in shapes: K lanes, N numbers in all parameters together, B examples in a batch, M held-out examples.
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, get_args

import torch
from torch import Tensor

Role = Literal["hidden", "embedding", "head", "bias", "norm", "query_key", "vector"]
ROLES: tuple[str, ...] = get_args(Role)
Batch = tuple[Tensor, ...]
SIZE_CLASSES = {"proxy": 3e10, "small": 1e13, "medium": 1e17}
"""Floating-point operations of a full training below which a task is of that class; from the last limit on, "large"."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor that is trained.

    Args:
        name: unique within its task, spelled as torch would (`hidden.weight`).
        shape: as torch spells it: a matrix is [out, in], a convolution [out, in, height, width].
        role: what the tensor does. `hidden` matrices map features to features, `embedding` is a table with a row a
            symbol, `head` makes the outputs, `query_key` matrices make an attention's queries or keys; `bias` is added,
            `norm` is a gain, `vector` is any other 1-d tensor.
        init: draws the initial value, float32 of `shape`, from a generator on the CPU.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    init: Callable[[torch.Generator], Tensor]

    @classmethod
    def normal(cls, name: str, shape: tuple[int, ...], role: Role, std: float) -> Self:
        """A parameter that starts as independent draws of N(0, std^2)."""
        return cls(name, shape, role, partial(_draw_normal, shape, std))

    @classmethod
    def constant(cls, name: str, shape: tuple[int, ...], role: Role, value: float = 0.0) -> Self:
        """A parameter that starts at one value everywhere."""
        return cls(name, shape, role, partial(_fill, shape, value))

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def _draw_normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    return std * torch.randn(shape, generator=generator)


def _fill(shape: tuple[int, ...], value: float, generator: torch.Generator) -> Tensor:
    return torch.full(shape, value)


class Task(ABC):
    """Something to train. A subclass states the attributes below and `loss`; the rest follows from them.

    Attributes:
        name: how it is asked for, a Python identifier.
        title: a line for people.
        source: where the data come from, and why this task is here.
        parameters: what is trained, in the order of the flat vector.
        batch_size: B, examples in a step.
        horizon: steps of a full training.
        warmup: steps of linear warm-up, part of the horizon.
        learning_rate: where a rule whose step has RMS `lr` (Adam-like) does best at `horizon`: the centre of a grid.
        microbatch: how many examples of a batch go through `loss` at once, at most; None, all. A batch is cut into
            equal pieces, and their gradients are averaged: the same step in less memory.
        train: the data, tensors whose first axis counts examples.
        held_out: data of the same form that no batch contains.
        data_sha256: of the raw data, so that a stored result says what it was measured on.
        device: where the data are; `to` moves them.
    """

    name: str
    title: str
    source: str
    parameters: tuple[Parameter, ...]
    batch_size: int
    horizon: int
    warmup: int
    learning_rate: float
    microbatch: int | None = None
    train: Batch
    held_out: Batch
    data_sha256: str

    def __init__(self, train: Batch, held_out: Batch, data_sha256: str | None = None) -> None:
        """Keeps the data; `data_sha256` is computed from the tensors where the raw data have none of their own."""
        self.train = train
        self.held_out = held_out
        self.data_sha256 = sha256(*train, *held_out) if data_sha256 is None else data_sha256

    @abstractmethod
    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean loss of each lane over its examples.

        Args:
            parameters: name to [K, *shape], any floating dtype; computing is done in that dtype.
            batch: what `gather` gave, each tensor [K, B, ...]; B is any number from 1.

        Returns: [K]. Lane k depends on lane k of the arguments alone, and is a mean over its examples.

        No operation in place, no control flow that depends on values: `make_fx` must be able to trace it, together
        with its gradient.
        """

    def validation_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The mean loss of each lane over all held-out examples, without gradient: [K, *shape] each -> [K]."""
        lanes = next(iter(parameters.values())).shape[0]
        count, piece = self.held_out[0].shape[0], self.microbatch or 4 * self.batch_size  # to bound the memory
        sums = []
        with torch.no_grad():
            for start in range(0, count, piece):
                examples = tuple(x[start : start + piece] for x in self.held_out)
                loss = self.loss(parameters, tuple(x.expand(lanes, *x.shape) for x in examples))
                sums.append(loss * examples[0].shape[0])
        return torch.stack(sums).sum(0) / count

    def initial(self, seed: int) -> Tensor:
        """The parameters before the first step, one after the other: [N] float32, the same for the same seed."""
        generator = _generator("initial", seed)
        return torch.cat([p.init(generator).flatten() for p in self.parameters]).to(self.device)

    def batches(self, seed: int, steps: int) -> Tensor:
        """Which examples each step sees: [steps, B] int64.

        Every epoch is a fresh permutation of the examples, cut into full batches (what is left over waits for the
        next epoch). Depends on the seed alone: the first rows are the same whatever `steps` is.
        """
        examples = self.train[0].shape[0]
        per_epoch = examples // self.batch_size
        generator = _generator("batches", seed)
        epochs = [
            torch.randperm(examples, generator=generator)[: per_epoch * self.batch_size]
            for _ in range(math.ceil(steps / per_epoch))
        ]
        order = torch.cat(epochs) if epochs else torch.empty(0, dtype=torch.int64)
        return order.view(-1, self.batch_size)[:steps].to(self.device)

    def gather(self, index: Tensor) -> Batch:
        """The examples at `index`, int64 [..., B]: tensors with the same leading axes, [..., B, *example]."""
        return tuple(x[index] for x in self.train)

    def lr_ratio(self, t: int, horizon: int | None = None) -> float:
        """The learning rate at step t (from 1) over its peak: linear warm-up, then a cosine.

        The cosine reaches 0 at step `horizon + 1`, so that no step is wasted. The warm-up takes the same part of any
        horizon as `warmup` does of the task's own.
        """
        horizon = self.horizon if horizon is None else horizon
        warmup = self.warmup * horizon / self.horizon
        if t <= warmup:
            return t / warmup
        progress = min(1.0, (t - warmup) / (horizon + 1 - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat buffer [..., N] as parameters, name to [..., *shape]."""
        parts = torch.split(flat, [p.size for p in self.parameters], dim=-1)
        leading = flat.shape[:-1]
        return {p.name: x.view(*leading, *p.shape) for p, x in zip(self.parameters, parts, strict=True)}

    def to(self, device: torch.device | str) -> Self:
        """The same task with its data on `device`; itself where they are there already."""
        if self.train[0].device == torch.empty(0, device=device).device:  # "cuda" is "cuda:0" where that is current
            return self
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
            elif isinstance(value, tuple) and value and all(isinstance(x, Tensor) for x in value):
                setattr(moved, name, tuple(x.to(device) for x in value))
        return moved

    @property
    def spelling(self) -> str:
        """What results are stored under: `tasks.load` reads it. The name, or what the task was loaded by."""
        return getattr(self, "_spelling", self.name)

    @spelling.setter
    def spelling(self, value: str) -> None:
        self._spelling = value

    @property
    def training_flops(self) -> int:
        """Floating-point operations of one lane's full training, about."""
        return self.flops * self.horizon

    @property
    def size_class(self) -> str:
        """By the cost of a lane's full training: "proxy" (seconds on a core), "small" (up to some minutes), "medium"
        (up to hours of a GPU) or "large"; see `SIZE_CLASSES`.
        """
        return next((name for name, limit in SIZE_CLASSES.items() if self.training_flops < limit), "large")

    @property
    def device(self) -> torch.device:
        return self.train[0].device

    @property
    def size(self) -> int:
        """N, the numbers in all parameters together."""
        return sum(p.size for p in self.parameters)

    @property
    def flops(self) -> int:
        """Floating-point operations of a lane's step, forward and backward, about: 6 for each use of a weight.

        Counts matrices used once an example; a task that uses them more often, or does work without them, says so.
        """
        used = sum(p.size for p in self.parameters if len(p.shape) > 1 and p.role != "embedding")
        return 6 * self.batch_size * used

    def __repr__(self) -> str:
        return f"<task {self.name}: {self.size} parameters, batch {self.batch_size}, {self.horizon} steps>"


def sha256(*tensors: Tensor) -> str:
    """Hex digest of the tensors' bytes, one after the other."""
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _generator(stream: str, seed: int) -> torch.Generator:
    """A generator of its own for each stream of a seed: initial values and batches share no draws."""
    digest = hashlib.sha256(f"{stream}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
