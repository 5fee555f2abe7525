"""What a rule may ask for beside a gradient, answered by the closure that its user gives to `step`.

The protocol is PyTorch's own as far as that goes. `closure()` is what every `torch.optim.Optimizer.step` takes: it
clears the gradients, computes the loss of the present batch, calls `backward()` and returns the loss. It is called as
often as the rule needs it, each time with the parameters where the rule wants them; afterwards parameters and gradients
are as they were. What a rule asks for decides what else the closure must be able to do:

- `grad_at(q)`: nothing more.
- `hvp(z)`: its gradients can be differentiated once more. Either it always calls `backward(create_graph=True)`, or it
  takes `create_graph=False` and passes that on to `backward()`: it is then called once more, with True, at the steps
  that need it, which is the cheaper way for a rule that asks at every tenth step.
- `loss_at(q)`, in a rule that asks for no gradient (MeZO): it leaves `backward()` out; it is called without autograd.
- `sampled_grad(q)`: it takes `sample=False`; called with True, its labels are drawn from the model's own prediction.
- `clipped_grad(q, max_norm)`: it takes `examples=False`; called with True, it returns the loss of each example,
  [examples], and leaves `backward()` out.

A rule that reads the number of examples has it from `step(closure, examples=...)`. What is random in a batch (dropout)
is the closure's own: what must be the same in all its calls is for it to hold still.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dsl.graph import Needs

_AT_ONCE = 32
"""Examples whose gradients are in memory together."""


def calls_backward(asks: Needs) -> bool:
    """Whether the closure of a rule calls `backward()`: whether any gradient is read or asked for."""
    return asks.gradient or bool({"grad_at", "sampled_grad"} & set(asks.closure))


class Closure:
    """Answers closure operators for some parameters, in one step.

    Args:
        rule: what asks, for messages: "optimizer 'sam'".
        closure: the user's.
        params: the parameters, in the order of all values below.
        takes_gradient: whether the closure calls `backward()`.
        maximize: for each parameter, whether it goes up; answers are then negated.
        examples: what a mean over examples is divided by; how many there are, if None.

    Raises:
        ValueError: there is no parameter: the closure left no gradient, or none requires one.
    """

    def __init__(
        self,
        rule: str,
        closure: Callable[..., Any],
        params: Sequence[Tensor],
        *,
        takes_gradient: bool,
        maximize: Sequence[bool],
        examples: float | None = None,
    ) -> None:
        self.rule, self.closure, self.params = rule, closure, list(params)
        self.takes_gradient, self.examples = takes_gradient, examples
        self.signs = [-1.0 if each else 1.0 for each in maximize]
        self.grads = self.curved = [p.grad for p in params]
        self.loss: Any = None
        """The first loss that an answer needed; what `step` returns where it did not call the closure itself."""
        if not self.params:
            cause = "its closure must call loss.backward()" if takes_gradient else "none requires a gradient"
            raise ValueError(f"{rule} finds no parameter to step: {cause}")

    def __call__(self, op: str, values: Sequence[Tensor | None], *numbers: float) -> list[Tensor] | Tensor:
        """One answer: a tensor of each parameter's shape, or one value for `loss_at`.

        Args:
            op: the closure operator.
            values: its first argument for each parameter; None stands for p itself, for `hvp` for zero.
            numbers: its other arguments.

        Raises:
            ValueError: the closure does not do what the operator needs.
        """
        match op:
            case "grad_at":
                answer = self._gradients(op, values)
            case "sampled_grad":
                answer = self._gradients(op, values, sample=True)
            case "hvp":
                answer = self._curvature(values)
            case "loss_at":
                if len(set(self.signs)) > 1:
                    raise ValueError(f"{self.rule} asks for loss_at(...): maximize must be the same for all parameters")
                return self.signs[0] * self._loss(values)
            case "clipped_grad":
                answer = self._clipped(values, float(numbers[0]))
            case _:
                raise ValueError(f"{self.rule} asks for {op}(...), which no closure answers")
        return [-value if sign < 0 else value for value, sign in zip(answer, self.signs, strict=True)]

    def release(self) -> None:
        """Lets go of the gradients' graphs, which `create_graph` made."""
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = None if grad is None else grad.detach()

    # Answers ------------------------------------------------------------------------------------------------------

    def _gradients(self, op: str, values: Sequence[Tensor | None], **how: bool) -> list[Tensor]:
        with self._at(values), torch.enable_grad():
            self._call(op, **how)
            grads = [p.grad for p in self.params]
        if all(grad is None for grad in grads):
            when = "".join(f", also with {word}=True" for word in how)
            raise ValueError(f"{self.rule} asks for {op}(...): its closure must call loss.backward(){when}")
        return [
            torch.zeros_like(p) if grad is None else grad.detach() for p, grad in zip(self.params, grads, strict=True)
        ]

    def _curvature(self, values: Sequence[Tensor | None]) -> list[Tensor]:
        pairs = zip(self._differentiable(), values, strict=True)
        known = [(grad, z) for grad, z in pairs if grad is not None and grad.requires_grad and z is not None]
        found = torch.autograd.grad(
            [grad for grad, _ in known],
            self.params,
            [z.reshape(grad.shape) for grad, z in known],
            retain_graph=True,
            allow_unused=True,
        )
        return [
            torch.zeros_like(p) if each is None else each.detach() for p, each in zip(self.params, found, strict=True)
        ]

    def _differentiable(self) -> list[Tensor | None]:
        """The gradients at p as functions of p."""
        grads = self.curved
        if not any(grad is not None and grad.requires_grad for grad in grads) and self._takes("create_graph"):
            with self._at([None] * len(self.params)), torch.enable_grad():
                self._call("hvp", create_graph=True)
                grads = self.curved = [p.grad for p in self.params]
        if not any(grad is not None and grad.requires_grad for grad in grads):
            raise ValueError(
                f"{self.rule} asks for hvp(...): its closure must call loss.backward(create_graph=True); or take "
                f"create_graph, as 'def closure(create_graph=False)', and pass it on to backward (a loss that is "
                f"linear in all parameters has no curvature and looks the same)"
            )
        return grads

    def _loss(self, values: Sequence[Tensor | None]) -> Tensor:
        with self._at(values), torch.set_grad_enabled(self.takes_gradient):
            try:
                loss = self._call("loss_at")
            except RuntimeError as error:
                if self.takes_gradient or "does not require grad" not in str(error):
                    raise
                raise ValueError(
                    f"{self.rule} asks for loss_at(...) alone: its closure returns the loss and leaves backward() out"
                ) from error
        if not isinstance(loss, Tensor | float | int) or (isinstance(loss, Tensor) and loss.numel() != 1):
            what = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(f"{self.rule} asks for loss_at(...): its closure must return the loss, not {what}")
        return torch.as_tensor(loss, dtype=None if isinstance(loss, Tensor) else torch.float64).detach().reshape(())

    def _clipped(self, values: Sequence[Tensor | None], max_norm: float) -> list[Tensor]:
        expected = (
            f"{self.rule} asks for clipped_grad(...): closure(examples=True) must return the loss of each example, "
            f"a tensor [examples], and leave backward() out"
        )
        sums = [torch.zeros_like(p) for p in self.params]
        with self._at(values), torch.enable_grad():
            try:
                losses = self._call("clipped_grad", examples=True)
                if not isinstance(losses, Tensor) or losses.ndim != 1 or not losses.requires_grad:
                    raise ValueError(expected)
                for some in torch.split(torch.eye(len(losses), dtype=losses.dtype, device=losses.device), _AT_ONCE):
                    if len(some):
                        self._add_clipped(sums, losses, some, max_norm)
            except RuntimeError as error:
                if "implicitly created only for scalar" in str(error) or "backward through the graph" in str(error):
                    raise ValueError(expected) from error
                raise
        self.loss = losses.detach().mean()
        return [total / (self.examples or len(losses)) for total in sums]

    def _add_clipped(self, sums: list[Tensor], losses: Tensor, which: Tensor, max_norm: float) -> None:
        """Adds the clipped gradients of some examples, `which` [some, examples] choosing them."""
        found = torch.autograd.grad(
            losses, self.params, which, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
        kept = [(total, each) for total, each in zip(sums, found, strict=True) if each is not None]
        squares = [each.reshape(len(each), -1).square().sum(1).to(losses.device, losses.dtype) for _, each in kept]
        scale = (max_norm / torch.stack(squares).sum(0).sqrt()).clamp(max=1.0)
        for total, each in kept:
            total += torch.tensordot(scale.to(each.device, each.dtype), each, 1)

    # The user's closure -------------------------------------------------------------------------------------------

    def _call(self, op: str, **how: bool) -> Any:
        for word in how:
            if not self._takes(word):
                raise ValueError(
                    f"{self.rule} asks for {op}(...): its closure must take {word}, as 'def closure({word}=False)'"
                )
        loss = self.closure(**how)
        self.loss = loss if self.loss is None else self.loss
        return loss

    def _takes(self, word: str) -> bool:
        try:
            inspect.signature(self.closure).bind(**{word: True})
        except TypeError:
            return False
        return True

    @contextmanager
    def _at(self, values: Sequence[Tensor | None]) -> Iterator[None]:
        """The parameters at other values and without gradients; both are as they were afterwards.

        Values are written past autograd's eyes, so that a graph which was made at p still holds there.
        """
        moved = [(p, value) for p, value in zip(self.params, values, strict=True) if value is not None]
        before = [p.detach().clone() for p, _ in moved]
        kept = [p.grad for p in self.params]
        try:
            for p, value in moved:
                p.data.copy_(value.reshape(p.shape))
            for p in self.params:
                p.grad = None
            yield
        finally:
            for (p, _), old in zip(moved, before, strict=True):
                p.data.copy_(old)
            for p, grad in zip(self.params, kept, strict=True):
                p.grad = grad
