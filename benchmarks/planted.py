"""Tasks made so that a known kind of rule is best, to see whether a search from plain gradient descent finds it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from numpy.random import default_rng
from torch import Tensor

from tasks import Task
from tasks.task import Batch, Parameter

_DIM = 64
_EXAMPLES = 2048
_DEGREES = 1.2
_ABSENT = 0.01


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Regression(Task):
    """1/2 |R x - d|^2 over a vector x; each kind has its own R and d."""

    parameters = (Parameter.normal("x", (_DIM,), "vector", 1e-2),)
    horizon = 100
    warmup = 0
    learning_rate = 0.1
    root: Tensor

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x, (d,) = parameters["x"], batch
        residual = (x @ self.root.to(x.dtype)).unsqueeze(1) - d.to(x.dtype)
        half: Tensor = 0.5 * residual.square()
        return half.sum(2).mean(1)

    @property
    def flops(self) -> int:
        return 4 * _DIM * _DIM + 6 * self.batch_size * _DIM


class HeavyTails(_Regression):
    """Gradients with noise that has no variance (Student's t of `_DEGREES`), so that a mean of them is no estimate:
    what bounds or ignores their size is best, sign or clipping. The held-out example has no noise."""

    name = "heavy_tails"
    title = "quadratic, gradient noise without variance"
    source = "generated, fixed seed"
    batch_size = 4

    def __init__(self) -> None:
        optimum = _normal(1, _DIM)
        # a normal variable over the root of a gamma one of shape nu / 2 and mean 1 is Student's t of nu degrees
        gamma = default_rng(3).gamma(_DEGREES / 2, 2 / _DEGREES, (_EXAMPLES, _DIM))
        noise = _normal(4, _EXAMPLES, _DIM) / torch.from_numpy(gamma).sqrt()
        self.root = torch.eye(_DIM)
        super().__init__(((optimum + noise).float(),), (optimum.float().unsqueeze(0),))

    def validation_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return super().validation_loss(parameters) + 1e-6  # positive, as losses must be


class IllConditioned(_Regression):
    """No noise, condition number 1000, no axis special: momentum, or Nesterov's, is best."""

    name = "ill_conditioned"
    title = "quadratic of condition number 1000 without noise"
    source = "generated, fixed seed"
    batch_size = 1

    def __init__(self) -> None:
        basis, _ = torch.linalg.qr(_normal(5, _DIM, _DIM))
        eigenvalues = torch.logspace(3, 0, _DIM, dtype=torch.float64)
        root = basis * eigenvalues.sqrt() @ basis.mT
        optimum = basis @ (eigenvalues**-0.25 * _normal(6, _DIM))
        self.root = root.float()
        d = (root @ optimum).float().unsqueeze(0)
        super().__init__((d,), (d,))

    def validation_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return super().validation_loss(parameters) + 1e-6


class Sparse(Task):
    """Least squares with sparse features of many sizes: feature i shows up in a share f_i of the examples, from all of
    them down to one in 100, and is then s_i, from 0.1 to 10 whatever its share; y = sum of the weights of those that
    are there, times their sizes, with a little noise. The held-out examples show each weight alone, once: the rare and
    the small matter as much as the others. What is absent is noise, a hundredth of what is present, so that no gradient
    is exactly 0: searches found rules that knew absent features by that, as no known rule does.

    What an example says of a weight comes with f_i and s_i, so one step size for all weights is either too long for the
    common and large features or too short for the rare and small ones, and so is a rule that divides by |g| plus a
    constant: features of one size, as they were, let a search fit that constant to them and leave the family. Sign
    rules step alike for all, but no less where a weight is nearly right. Step sizes of each weight's own, by the size
    of its gradients so far, are best, as in AdaGrad (Duchi et al. 2011, JMLR 12, made for this), RMSprop and Adam. The
    learning rate is constant, so that nothing but the rule shortens steps.
    """

    name = "sparse"
    title = "least squares with sparse features, rare and common, large and small"
    source = "generated, fixed seed"
    parameters = (Parameter.normal("x", (_DIM,), "vector", 1e-2),)
    batch_size = 32
    horizon = 100
    warmup = 0
    learning_rate = 0.1

    def __init__(self) -> None:
        shares = torch.logspace(0, -2, _DIM, dtype=torch.float64)
        generator = torch.Generator().manual_seed(8)
        sizes = 10 ** (2 * torch.rand(_DIM, generator=generator, dtype=torch.float64) - 1)
        features = (torch.rand(_EXAMPLES, _DIM, generator=generator, dtype=torch.float64) < shares).double()
        features = (features + _ABSENT * _normal(10, _EXAMPLES, _DIM)) * sizes
        weights = _normal(7, _DIM)
        targets = features @ weights + 0.1 * _normal(9, _EXAMPLES)
        super().__init__((features.float(), targets.float()), (torch.eye(_DIM), weights.float()))

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        x, (features, targets) = parameters["x"], batch
        residual = (features.to(x.dtype) @ x.unsqueeze(2)).squeeze(2) - targets.to(x.dtype)
        half: Tensor = 0.5 * residual.square()
        return half.mean(1)

    def validation_loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return super().validation_loss(parameters) + 1e-6

    def lr_ratio(self, t: int, horizon: int | None = None) -> float:
        return 1.0

    @property
    def flops(self) -> int:
        return 6 * self.batch_size * _DIM


if __name__ == "__main__":
    print("a library: the tasks that `python -m benchmarks.rediscovery` searches on")
