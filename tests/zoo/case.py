"""What a case of the zoo is: a rule, the independent implementation that it follows, and how both are stepped.

An oracle is made by `by_optimizer` (somebody else's `torch.optim.Optimizer`), `by_formula` or `by_joint_formula` (the
paper's equations, written out here in plain torch). It works on parameters of its own, which start as the rule's do and
see gradients of the same function of parameters and step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import dsl
from discover import optim

STEPS = 50
MATRIX, KERNEL, VECTOR, SCALAR = (4, 3), (3, 2, 2, 2), (5,), ()
SHAPES: tuple[tuple[int, ...], ...] = (MATRIX, KERNEL, VECTOR, SCALAR)
"""The mixed model: what a rule may treat apart is in it."""

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Oracle:
    """An independent implementation at work on its own parameters.

    Attributes:
        step: takes the gradients and the learning rate over its initial value, and steps the parameters in place.
        evaluation: the point to evaluate, for a rule that has one apart from the parameters.
    """

    step: Callable[[list[Tensor], float], None]
    evaluation: Callable[[], list[Tensor]] | None = None


Maker = Callable[..., Oracle]
"""(parameters, **hyperparameters) -> an oracle on these parameters; the hyperparameters are the rule's, all of them."""

Deviations = Generator[float, None, None]
"""The deviation after each step, one step further whenever it is asked."""


# Stepping -----------------------------------------------------------------------------------------------------------


def parameters(seed: int = 0, shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def gradients(params: Iterable[Tensor], t: int) -> list[Tensor]:
    """Of a noisy, badly scaled quadratic, so that parameters and moments matter and signs change."""
    generator = torch.Generator().manual_seed(1000 + t)
    return [
        (p.detach() * (1 + i) + 0.7 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for i, p in enumerate(params)
    ]


def deviation(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest difference, over the size of the parameter; inf where either is not finite."""
    found = [
        float(((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).detach()) for a, b in zip(mine, theirs, strict=True)
    ]
    return max(each if each == each else float("inf") for each in found)


def constant(t: int) -> float:
    """The learning rate over its initial value, where there is no schedule."""
    return 1.0


def warmed_up(t: int) -> float:
    """A schedule: up to 1 at step 10, then down."""
    return min(1.0, t / 10) * (1 - t / 80)


@contextmanager
def scalars_in_float64() -> Iterator[None]:
    """For oracles that keep a number of their own in the default type, such as torch.optim.NAdam."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def side_by_side(case: Case, hypers: Mapping[str, float], theirs_are: Mapping[str, float]) -> Deviations:
    """Steps the rule and its oracle; the deviation after each step, at the evaluation point too where there is one."""
    with scalars_in_float64():
        mine, theirs = parameters(shapes=case.shapes), parameters(shapes=case.shapes)
        opt = optim.create(case.rule, case.groups(mine), **hypers)
        oracle = case.oracle(theirs, **theirs_are)
        for t in range(1, case.steps + 1):
            for p, g in zip(mine, case.gradients(mine, t), strict=True):
                p.grad = g
            for group in opt.param_groups:
                group["lr"] = hypers["lr"] * case.lr_ratio(t)
            opt.step()
            oracle.step(case.gradients(theirs, t), case.lr_ratio(t))
            found = deviation(mine, theirs)
            if oracle.evaluation is not None:
                opt.eval()
                found = max(found, deviation(mine, oracle.evaluation()))
                opt.train()
            yield found


# Cases --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A rule and what it must follow.

    Attributes:
        rule: a name or a composition.
        oracle: makes the independent implementation.
        follows: what that is, in words: "torch.optim.AdamW", "equations (23)", "its formula".
        other: hyperparameters away from the defaults; the rule is followed at the defaults too.
        changed: hyperparameters that must leave their defaults for fifty small steps to see anything (an interval of
            500 steps, a warm-up); they hold in both runs, `other` over them.
        tolerance: the largest deviation, relative to the size of the parameter.
        note: why the tolerance is wider than 1e-9, or what was done to the oracle; a wider one must have a note, and
            the rule another case that is followed to 1e-9.
        shapes, roles: the parameters and their roles, one each (None for the default).
        lr_ratio: step -> the learning rate over its initial value.
        gradients: (parameters, step) -> their gradients.
        steps: how many.
        run: (case, the rule's hyperparameters, the oracle's) -> the deviation after each step; another one for a rule
            that needs more than gradients.
    """

    rule: str
    oracle: Maker
    follows: str
    other: Mapping[str, float] = field(default_factory=dict)
    changed: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 1e-9
    note: str = ""
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    roles: tuple[str | None, ...] = ()
    lr_ratio: Callable[[int], float] = constant
    gradients: Callable[[list[Tensor], int], list[Tensor]] = gradients
    steps: int = STEPS
    run: Callable[[Case, Mapping[str, float], Mapping[str, float]], Deviations] = side_by_side

    def groups(self, params: list[Tensor]) -> list[dict[str, Any]]:
        roles = self.roles or (None,) * len(params)
        return [{"params": [p], "role": role} for p, role in zip(params, roles, strict=True)]

    def hypers(self, other: bool) -> dict[str, float]:
        return {**dsl.load(self.rule).defaults, **self.changed, **(self.other if other else {})}

    def deviations(self, other: bool) -> list[float]:
        """The deviation after each step, at the defaults or away from them."""
        hypers = self.hypers(other)
        return list(self.run(self, hypers, hypers))

    def sees(self, name: str) -> bool:
        """Whether the case breaks once the rule, and not the oracle, has a hyperparameter back at its default."""
        hypers = self.hypers(True)
        wrong = {**hypers, name: dsl.load(self.rule).defaults[name]}
        if wrong == hypers:
            return False
        with closing(self.run(self, wrong, hypers)) as found:
            return any(each >= self.tolerance for each in found)


# Oracles ------------------------------------------------------------------------------------------------------------


def by_optimizer(make: Callable[..., torch.optim.Optimizer]) -> Maker:
    """An oracle from `make(parameters, **hyperparameters)`, a PyTorch optimizer.

    One with `train()` and `eval()` is asked for its evaluation point as well.
    """

    def maker(params: list[Tensor], **hypers: Any) -> Oracle:
        opt: Any = make(params, **hypers)
        initial = [group.get("lr") for group in opt.param_groups]
        if hasattr(opt, "train"):
            opt.train()

        def step(grads: list[Tensor], ratio: float) -> None:
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            if ratio != 1:
                for group, lr in zip(opt.param_groups, initial, strict=True):
                    group["lr"] = lr * ratio
            opt.step()

        def evaluation() -> list[Tensor]:
            opt.eval()
            point = [p.detach().clone() for p in params]
            opt.train()
            return point

        return Oracle(step, evaluation if hasattr(opt, "eval") else None)

    return maker


def by_formula(update: Callable[..., Tensor], roles: Sequence[str | None] = ()) -> Maker:
    """An oracle from `update(p, g, state, t, **hypers)`, which gives the new p and keeps what it must in `state`.

    With `roles` (one for each parameter) it is also given `role`.
    """

    def maker(params: list[Tensor], lr: float, **hypers: Any) -> Oracle:
        states: list[State] = [{} for _ in params]
        extra: list[dict[str, Any]] = [{"role": role} for role in roles] or [{} for _ in params]
        t = 0

        def step(grads: list[Tensor], ratio: float) -> None:
            nonlocal t
            t += 1
            for p, g, state, each in zip(params, grads, states, extra, strict=True):
                p.data.copy_(update(p.data.clone(), g, state, t, lr=lr * ratio, **hypers, **each))

        return Oracle(step)

    return maker


def by_joint_formula(update: Callable[..., list[Tensor]]) -> Maker:
    """An oracle from `update(ps, gs, state, t, **hypers)` over all parameters, for rules with a global value."""

    def maker(params: list[Tensor], lr: float, **hypers: Any) -> Oracle:
        state: State = {}
        t = 0

        def step(grads: list[Tensor], ratio: float) -> None:
            nonlocal t
            t += 1
            new = update([p.data.clone() for p in params], grads, state, t, lr=lr * ratio, **hypers)
            for p, x in zip(params, new, strict=True):
                p.data.copy_(x)

        return Oracle(step)

    return maker


def as_matrices(make: Maker) -> Maker:
    """The same oracle on kernels seen as out x rest, for one that takes matrices only or factors kernels otherwise."""

    def maker(params: list[Tensor], **hypers: Any) -> Oracle:
        views = [p.detach().view(len(p), -1) if p.ndim > 2 else p.detach() for p in params]
        oracle = make([view.requires_grad_() for view in views], **hypers)
        evaluation = oracle.evaluation

        def step(grads: list[Tensor], ratio: float) -> None:
            oracle.step([g.reshape(v.shape) for g, v in zip(grads, views, strict=True)], ratio)

        def evaluated() -> list[Tensor]:
            assert evaluation is not None
            return [x.view(p.shape) for x, p in zip(evaluation(), params, strict=True)]

        return Oracle(step, evaluated if evaluation else None)

    return maker


def betas(make: Callable[..., Any], *names: str, **fixed: Any) -> Callable[..., Any]:
    """The maker with beta1, beta2 ... as torch's `betas`."""
    names = names or ("beta1", "beta2")
    return lambda params, **hypers: make(params, betas=tuple(hypers.pop(name) for name in names), **hypers, **fixed)


MOMENTS = {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}
"""Of Adam and its relatives, away from everybody's defaults."""
