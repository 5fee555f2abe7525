"""What a rule may ask for beside a gradient, answered for many lanes at once from a task's loss.

Points and directions are in the rule's own coordinates: where a lane has a parameter scale c and a loss scale s, the
rule sees q = p / c and the loss s * L(c q), and so do its answers.

Letters in shapes: K lanes, N numbers in all parameters of a task, B examples in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from discover.gradient import Gradient
from tasks import Batch, Task
from tasks.layers import drawn_labels


@dataclass(slots=True)
class TaskClosure:
    """Answers the closure operators of the table on one batch; see `dsl.lane_rule.LaneClosure`.

    Attributes:
        task: what is trained.
        gradient: of the same task.
        batch: the examples, [K, B, ...] each, or [1, B, ...] where all lanes see the same.
        points: the parameters of the lanes, [K, N].
        scale: [K, N], or [K, 1] where a lane has one for all its numbers.
        loss_scale: [K, 1].
        seeds: of the lanes; drawn labels depend on a lane's seed and on t.
        t: the step.
    """

    task: Task
    gradient: Gradient
    batch: Batch
    points: Tensor
    scale: Tensor
    loss_scale: Tensor
    seeds: Sequence[int]
    t: int

    def __call__(self, op: str, values: Tensor, *numbers: float | Tensor) -> Tensor:
        """Answers one operator.

        Raises:
            ValueError: the task has no labels that a model could draw (`sampled_grad`).
        """
        gain = self.scale * self.loss_scale
        match op:
            case "grad_at":
                batch = self.batch if len(self.batch[0]) == len(values) else self._whole_batch()
                return self.gradient(values * self.scale, batch)[1] * gain
            case "hvp":
                return self._tiled(self._curvature, self.points * self.scale, values * self.scale) * gain
            case "loss_at":
                return self._tiled(self._loss, values * self.scale) * self.loss_scale.squeeze(1)
            case "sampled_grad":
                return self._tiled(self._sampled, values * self.scale) * gain
            case "clipped_grad":
                limit = torch.as_tensor(numbers[0], dtype=values.dtype, device=values.device)
                limits = limit.reshape(-1, 1).expand(len(values), 1)
                return self._tiled(self._clipped, values * self.scale, gain, limits)
        raise ValueError(f"{op}(...) is a question that no task answers")

    def _whole_batch(self) -> Batch:
        lanes = len(self.points)
        return tuple(x.expand(lanes, *x.shape[1:]) for x in self.batch)

    def _tiled(self, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """The function on as many lanes at once as the gradient takes, filled up, so that a lane's bits depend on no
        other lane."""
        tile, lanes = self.gradient.tile, len(self.points)
        batch = self._whole_batch()
        parts = []
        for start in range(0, lanes, tile):
            rows = [min(row, lanes - 1) for row in range(start, start + tile)]
            parts.append(function(rows, tuple(x[rows] for x in batch), *(x[rows] for x in values))[: lanes - start])
        return torch.cat(parts)

    # Tiles: what each does with lanes `rows`, their batch and values -----------------------------------------------

    def _loss(self, rows: list[int], batch: Batch, flat: Tensor) -> Tensor:
        with torch.no_grad():
            return self.task.loss(self.task.split(flat), batch)

    def _curvature(self, rows: list[int], batch: Batch, flat: Tensor, direction: Tensor) -> Tensor:
        with torch.enable_grad():
            flat = flat.detach().requires_grad_()
            loss = self.task.loss(self.task.split(flat), batch)
            (grad,) = torch.autograd.grad(loss.sum(), flat, create_graph=True)
            (product,) = torch.autograd.grad(grad, flat, direction)
        return product

    def _sampled(self, rows: list[int], batch: Batch, flat: Tensor) -> Tensor:
        generators = [torch.Generator().manual_seed((self.seeds[row] * 1_000_003 + self.t) % 2**63) for row in rows]
        with torch.enable_grad(), drawn_labels(generators) as draws:
            flat = flat.detach().requires_grad_()
            loss = self.task.loss(self.task.split(flat), batch)
            if not draws.made:
                raise ValueError(f"task {self.task.name} has no labels that a model could draw")
            (grad,) = torch.autograd.grad(loss.sum(), flat)
        return grad

    def _clipped(self, rows: list[int], batch: Batch, flat: Tensor, gain: Tensor, limits: Tensor) -> Tensor:
        examples = batch[0].shape[1]
        means = []
        for lane in range(len(flat)):
            with torch.enable_grad():
                own = flat[lane].detach().expand(examples, -1).clone().requires_grad_()
                one = tuple(x[lane].unsqueeze(1) for x in batch)  # each example in a lane of its own
                (grads,) = torch.autograd.grad(self.task.loss(self.task.split(own), one).sum(), own)
            grads = grads * gain[lane]
            norms = torch.linalg.vector_norm(grads, dim=1, keepdim=True)
            means.append((grads * (limits[lane] / norms).clamp(max=1.0)).mean(0))
        return torch.stack(means)
