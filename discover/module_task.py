"""Any torch model as a task: a module, a loss and a DataLoader that were not written for this project.

`from_module` makes the task, for a file named on the command line (`--task my_task.py:task`); docs/own_model.md shows
it. What a plain training script leaves open is settled here:

- lanes: `torch.func.vmap` over `functional_call` where a trial shows that it computes what the model alone computes,
  else a loop over lanes, slower and right for any model;
- dropout: masks come from a hash of which examples are in the batch, since a loss must depend on its arguments alone.
  The same batch has the same mask, another batch another one; in validation there is none;
- batch norm: normalises by the batch in training and in validation, and keeps no running averages, which are state
  beside the parameters;
- anything else that is random, or is written to while the model runs, is refused with its name.

Letters in shapes: K lanes, B examples in a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from discover.optimizer import module_groups
from tasks import Batch, Parameter, Task

Source = DataLoader[Any] | Dataset[Any] | Tensor | tuple[Tensor, ...] | list[Tensor]
Loss = Callable[..., Tensor]

_AGREES = 1e-3  # relative difference between vmap and loop that rounding explains
_SEED = 20251122  # of the order in which a shuffling loader is read, and of the part held out
_WORD = 0xFFFFFFFF


def from_module(
    model: Callable[[], nn.Module],
    loss: Loss | None = None,
    *,
    train: Source,
    held_out: Source | float = 0.2,
    step: Loss | None = None,
    horizon: int,
    learning_rate: float,
    batch_size: int | None = None,
    warmup: int | None = None,
    name: str = "own_model",
    title: str = "a model of one's own",
    source: str = "data of one's own",
) -> ModuleTask:
    """A task from a model, a loss and data as any training script has them.

    Args:
        model: makes the model, with fresh initial values drawn by torch: a class or a function, not a model.
        loss: of the model's output for the batch's first tensor, and of the batch's other tensors:
            `loss(model(x), y)`; one number, the mean over examples.
        train: a DataLoader, a Dataset, or tensors whose first axis counts examples. It is read once, into memory:
            random augmentation is drawn once.
        held_out: the same to validate on, or the share of `train` to hold out, drawn with a fixed seed.
        step: in place of `loss`, where that form does not fit: `step(model, *batch)` gives the loss.
        horizon: steps of a full training.
        learning_rate: where AdamW does best, see docs/tasks.md; `discover reference` finds it.
        batch_size: by default the loader's, else 32.
        warmup: steps of linear warm-up; by default a twentieth of the horizon.
        name, title, source: see `tasks.Task`.

    Raises:
        ValueError: something is missing, or the model cannot be a task; says why and what to do.
    """
    if isinstance(model, nn.Module):
        raise ValueError(f"{name}: give a function that makes the model (its class, say): every seed starts anew")
    if (loss is None) == (step is None):
        raise ValueError(f"{name}: give either loss(output, *targets) or step(model, *batch)")
    if batch_size is None:
        batch_size = train.batch_size if isinstance(train, DataLoader) else None
    examples = _collect(train, f"{name}: train")
    if isinstance(held_out, float):
        parts = _divided(examples, held_out, name)
    else:
        parts = examples, _collect(held_out, f"{name}: held_out")
    task = ModuleTask(model, loss, step, *parts, name=name)
    task.title, task.source = title, source
    task.batch_size, task.horizon, task.learning_rate = min(batch_size or 32, len(parts[0][0])), horizon, learning_rate
    task.warmup = horizon // 20 if warmup is None else warmup
    task.try_out()
    return task


class ModuleTask(Task):
    """A model that knows nothing of lanes, as a task; made by `from_module`.

    Attributes:
        lanes: "vmap" or "loop": how many lanes are computed at once.
        why: empty, or why it is a loop.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        loss: Loss | None,
        step: Loss | None,
        train: Batch,
        held_out: Batch,
        *,
        name: str,
    ) -> None:
        super().__init__(train, held_out)
        self.name, self.lanes, self.why, self.flops_of_example = name, "vmap", "", 0
        self._make = model
        whole = _Whole(self._made(0), loss, step)
        if lazy := [key for key, p in whole.named_parameters() if nn.parameter.is_lazy(p)]:
            raise ValueError(
                f"{name}: '{lazy[0].removeprefix('model.')}' has no shape yet; give lazy layers their sizes"
            )
        self.parameters = _parameters(whole.model, self._made)
        if not self.parameters:
            raise ValueError(f"{name}: the model has no parameters that require a gradient")
        replace_all_batch_norm_modules_(whole)
        self._training, self._judging = whole, copy.deepcopy(whole).eval()
        trained = {f"model.{p.name}" for p in self.parameters}
        constants = {k: v.detach() for k, v in [*whole.named_parameters(), *whole.named_buffers()] if k not in trained}
        self._names, self._constants = tuple(constants), tuple(constants.values())

    # The contract ---------------------------------------------------------------------------------------------------

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self._losses(self._training, parameters, batch)

    def validation_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """As `Task` has it, in evaluation mode, and in pieces of nearly one size, since batch norm looks at a piece."""
        lanes, count = len(next(iter(parameters.values()))), self.held_out[0].shape[0]
        pieces = max(1, round(count / (4 * self.batch_size)))
        total = torch.zeros(lanes)
        with torch.no_grad():
            for piece in zip(*(x.tensor_split(pieces) for x in self.held_out), strict=True):
                loss = self._losses(self._judging, parameters, tuple(x.expand(lanes, *x.shape) for x in piece))
                total = total.to(loss) + loss * len(piece[0])
        return total / count

    def initial(self, seed: int) -> Tensor:
        values = dict(self._made(seed).named_parameters())
        return torch.cat([values[p.name].detach().float().flatten() for p in self.parameters]).to(self.device)

    def to(self, device: torch.device | str) -> Self:
        moved = super().to(device)
        if moved is not self:  # the parameters are given with each call, but a module may hold more than those
            moved._training, moved._judging = (copy.deepcopy(m).to(device) for m in (self._training, self._judging))
        return moved

    @property
    def flops(self) -> int:
        """Counted by torch, forward and backward, of the products and convolutions that it knows the cost of; at least
        as much as if every matrix was used once an example.
        """
        return max(self.flops_of_example * self.batch_size, super().flops)

    # Lanes ----------------------------------------------------------------------------------------------------------

    def _losses(self, whole: _Whole, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        dtype = next(iter(parameters.values())).dtype
        batch = tuple(x.to(dtype) if x.is_floating_point() else x for x in batch)
        constants = {
            name: x.to(dtype) if x.is_floating_point() else x
            for name, x in zip(self._names, self._constants, strict=True)
        }

        def one(values: Mapping[str, Tensor], *examples: Tensor) -> Tensor:
            named = {f"model.{name}": value for name, value in values.items()}
            with _dropout_from(examples[-1], write_out=self.lanes == "vmap"):
                result: Tensor = functional_call(whole, {**constants, **named}, examples[:-1])
            return result

        if self.lanes == "vmap":
            return vmap(one)(dict(parameters), *batch)
        each = ({name: x[k] for name, x in parameters.items()} for k in range(len(batch[0])))
        return torch.stack([one(values, *(x[k] for x in batch)) for k, values in enumerate(each)])

    def _made(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._make()

    # The trial ------------------------------------------------------------------------------------------------------

    def try_out(self) -> None:
        """Counts the work, settles how lanes are computed, and raises ValueError where the model cannot be a task."""
        if not torch.equal(self.initial(0), self.initial(0)):
            raise ValueError(
                f"{self.name}: the model has other initial values for the same seed of torch; draw by torch"
            )
        flat = torch.stack([self.initial(0), self.initial(1)])
        batch = self.gather(torch.stack([self.batches(0, 1)[0], self.batches(1, 1)[0]]))
        self.lanes = "loop"
        with torch.random.fork_rng(devices=[]):
            with self._watching_state():
                expected = self._trained(flat, batch)
            torch.manual_seed(_SEED)
            again = self._trained(flat, batch)
        if not all(torch.equal(one, other) for one, other in zip(expected, again, strict=True)):
            raise ValueError(
                f"{self.name}: the loss draws random numbers other than by torch's dropout, and differs each"
                " time; put what is drawn into the data, or leave it out"
            )
        with FlopCounterMode(display=False) as counter:
            self._gradient(flat, batch)
        self.flops_of_example = counter.get_total_flops() // (2 * self.batch_size)
        self._choose_lanes(flat, batch, expected)

    def _trained(self, flat: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient and validation loss of some lanes."""
        return *self._gradient(flat, batch), self.validation_loss(self.split(flat))

    def _gradient(self, flat: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        flat = flat.detach().requires_grad_()
        loss = self.loss(self.split(flat), batch)
        (gradient,) = torch.autograd.grad(loss.sum(), flat, materialize_grads=True)
        return loss.detach(), gradient

    @contextmanager
    def _watching_state(self) -> Iterator[None]:
        before = [x.clone() for x in self._constants]
        shape = [tuple(x.shape) for x in self.train[:-1]]
        try:
            yield
        except Exception as error:
            what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise ValueError(
                f"{self.name}: model and loss cannot be run on {shape} cut into batches: {what}"
            ) from error
        for name, old, now in zip(self._names, before, self._constants, strict=True):
            if not torch.equal(old, now):
                raise ValueError(
                    f"{self.name}: '{name.removeprefix('model.')}' changes while the model runs; a loss must depend on"
                    " its arguments alone (running averages of BatchNorm are left out by themselves)"
                )

    def _choose_lanes(self, flat: Tensor, batch: Batch, expected: tuple[Tensor, ...]) -> None:
        self.lanes = "vmap"
        try:
            found = self._trained(flat, batch)
        except Exception as error:  # whatever a model does that vmap cannot follow
            self.why = f"vmap: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            if all(_near(one, other) for one, other in zip(found, expected, strict=True)):
                return
            self.why = "vmap computes something else than the model alone"
        self.lanes = "loop"

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, lanes by {self.lanes}>"


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _AGREES * expected.abs().max())


class _Whole(nn.Module):
    """Model and loss in one module, so that one call of `functional_call` sees the tensors of both."""

    def __init__(self, model: nn.Module, loss: Loss | None, step: Loss | None) -> None:
        super().__init__()
        self.model, self.criterion, self.step = model, loss, step

    def forward(self, *batch: Tensor) -> Tensor:
        if self.step is not None:
            result = self.step(self.model, *batch)
        else:
            assert self.criterion is not None
            result = self.criterion(self.model(batch[0]), *batch[1:])
        if not isinstance(result, Tensor) or result.dim():
            what = f"shape {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"the loss of a batch is {what}, expected one number: its mean over the examples")
        return result


def _parameters(model: nn.Module, made: Callable[[int], nn.Module]) -> tuple[Parameter, ...]:
    """What is trained, with roles as an optimizer finds them that is given the module."""
    roles = {p: group["role"] for group in module_groups(model) for p in group["params"]}

    def drawn(name: str) -> Callable[[torch.Generator], Tensor]:
        def init(generator: torch.Generator) -> Tensor:
            seed = int(torch.randint(2**31, (), generator=generator))
            return dict(made(seed).named_parameters())[name].detach().float()

        return init

    return tuple(
        Parameter(name, tuple(p.shape), roles[p], drawn(name))
        for name, p in model.named_parameters()
        if p.requires_grad
    )


# Data ---------------------------------------------------------------------------------------------------------------


def _collect(source: Source, where: str) -> Batch:
    """All examples, tensors whose first axis counts them, and last the number of each example."""
    if isinstance(source, Tensor):
        parts: tuple[Tensor, ...] = (source,)
    elif isinstance(source, tuple | list):
        parts = tuple(source)
    else:
        loader = source if isinstance(source, DataLoader) else DataLoader(source, batch_size=256)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            parts = _joined([_tensors(batch, where) for batch in loader], where)
    if not parts or not all(isinstance(x, Tensor) and x.dim() for x in parts) or len({len(x) for x in parts}) > 1:
        raise ValueError(f"{where}: expected tensors whose first axes count the same examples")
    if not len(parts[0]):
        raise ValueError(f"{where}: holds no examples")
    return *(x.detach().float() if x.is_floating_point() else x.detach() for x in parts), torch.arange(len(parts[0]))


def _tensors(batch: Any, where: str) -> tuple[Tensor, ...]:
    if isinstance(batch, Mapping):
        batch = batch.values()
    parts = tuple(batch) if isinstance(batch, Iterable) and not isinstance(batch, Tensor) else (batch,)
    if not all(isinstance(x, Tensor) for x in parts):
        kinds = ", ".join(type(x).__name__ for x in parts)
        raise ValueError(f"{where}: a batch holds {kinds}, expected tensors; let the loader's collate_fn make them")
    return parts


def _joined(batches: list[tuple[Tensor, ...]], where: str) -> tuple[Tensor, ...]:
    try:
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{where}: batches do not join to one tensor, are examples of one shape? {error}") from None


def _divided(examples: Batch, share: float, name: str) -> tuple[Batch, Batch]:
    count = len(examples[0])
    held = round(share * count)
    if not 0 < held < count:
        raise ValueError(f"{name}: held_out {share:g} of {count} examples leaves none to train on, or none held out")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED))
    return tuple(x[order[held:]] for x in examples), tuple(x[order[:held]] for x in examples)


# Dropout ------------------------------------------------------------------------------------------------------------


@contextmanager
def _dropout_from(examples: Tensor, *, write_out: bool) -> Iterator[None]:
    """Inside it torch's dropout draws from a hash of the examples' numbers, [B] int64, in place of a generator.

    Torch's own functions are replaced, as its layers, a user's modules and attention all end in them. Attention is
    written out where its dropout needs it, and where `write_out` says so: its fused kernels have no rule for vmap.
    """
    site = 0

    def keep(like: Tensor, shape: torch.Size | tuple[int, ...], p: float) -> Tensor:
        nonlocal site
        site += 1
        count = torch.Size(shape).numel()
        place = _mixed(torch.arange(count, device=like.device) + _mixed(torch.tensor(site, device=like.device)))
        drawn = _mixed(place ^ _mixed(_mixed(examples).sum() & _WORD))
        return (drawn >= round(p * (_WORD + 1))).view(shape).to(like.dtype) / max(1 - p, 1e-12)

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return input * keep(input, input.shape, p) if training and p else input

    def of_features(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not (training and p):
            return input
        return input * keep(input, (*input.shape[:2], *[1] * (input.dim() - 2)), p)

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **more: Any,
    ) -> Tensor:
        if not dropout_p and not write_out:
            return attend(query, key, value, attn_mask, 0.0, is_causal, **more)
        if more.get("enable_gqa"):
            raise ValueError("attention with grouped queries is not supported; repeat keys and values for each query")
        scores = query @ key.mT * (more.get("scale") or query.shape[-1] ** -0.5)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if hidden else scores + attn_mask
        return dropout(scores.softmax(-1), dropout_p, training=dropout_p > 0) @ value

    attend = functional.scaled_dot_product_attention
    fast = torch.backends.mha.get_fastpath_enabled()
    with mock.patch.multiple(
        functional,
        dropout=dropout,
        dropout1d=of_features,
        dropout2d=of_features,
        dropout3d=of_features,
        scaled_dot_product_attention=attention,
    ):
        torch.backends.mha.set_fastpath_enabled(False)  # a fused kernel of nn.TransformerEncoder that has no vmap
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def _mixed(x: Tensor) -> Tensor:
    """A hash of 32-bit words, held in int64 so that no product overflows."""
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & _WORD
    return (x >> 16) ^ x
