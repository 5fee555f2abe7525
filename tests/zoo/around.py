"""Every rule that takes a rule, around four bases: its formula, written out around the base's own optimizer.

The base is held to an oracle elsewhere; here it is whatever it is, and what is seen is what the wrapper makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from discover import optim
from tests.zoo import closures
from tests.zoo.case import MOMENTS, Case, Maker, Oracle, by_optimizer, warmed_up
from tests.zoo.closures import beside_the_network, sharp
from tests.zoo.matrix import MUON
from tests.zoo.relatives import clipped_adaptively
from tests.zoo.standard import LION
from tests.zoo.wrappers import clip_all, clip_each, clip_value, ema_nesterov, filtered, grokfast


def own_optimizer(base: str) -> Callable[..., Any]:
    """The rule's own optimizer, whose hyperparameters may have the rule's name in front, as in a composition."""

    def make(params: list[Tensor], **hypers: float) -> Any:
        return optim.create(base, params, **{name.removeprefix(f"{base}_"): value for name, value in hypers.items()})

    return make


# Formulas -------------------------------------------------------------------------------------------------------------


def lookahead(base: Maker) -> Maker:
    def maker(params: list[Tensor], k: float, alpha: float, **hypers: Any) -> Oracle:
        inner, slow, t = base(params, **hypers), [p.detach().clone() for p in params], 0

        def step(grads: list[Tensor], ratio: float) -> None:
            nonlocal t, slow
            t += 1
            inner.step(grads, ratio)
            if t % k == 0:
                slow = [(1 - alpha) * s + alpha * p.detach() for s, p in zip(slow, params, strict=True)]
                for p, s in zip(params, slow, strict=True):
                    p.data.copy_(s)

        return Oracle(step)

    return maker


def schedule_free(base: Maker) -> Maker:
    """The base steps z; x is kept as the weighted sum of all z, and the parameters lie between the two."""

    def maker(params: list[Tensor], beta: float, **hypers: Any) -> Oracle:
        zs = [p.detach().clone() for p in params]
        inner, sums, weights = base(zs, **hypers), [torch.zeros_like(z) for z in zs], [0.0]

        def mean() -> list[Tensor]:
            return [s / sum(weight**2 for weight in weights) for s in sums]

        def step(grads: list[Tensor], ratio: float) -> None:
            weights.append(max(ratio, *weights))
            inner.step(grads, ratio)
            for z, s in zip(zs, sums, strict=True):
                s += weights[-1] ** 2 * z
            for p, x, z in zip(params, mean(), zs, strict=True):
                p.data.copy_(beta * x + (1 - beta) * z)

        return Oracle(step, mean)

    return maker


def decay_l2(base: Maker) -> Maker:
    def maker(params: list[Tensor], weight_decay: float, **hypers: Any) -> Oracle:
        inner = base(params, **hypers)

        def step(grads: list[Tensor], ratio: float) -> None:
            inner.step([g + weight_decay * p.detach() for p, g in zip(params, grads, strict=True)], ratio)

        return Oracle(step)

    return maker


def corrected(change: Callable[..., Tensor], *names: str) -> Callable[[Maker], Maker]:
    """`change(p, u, g, ratio, **hypers)` is the new p where the base alone goes to p - u; `names` are its own."""

    def around(base: Maker) -> Maker:
        def maker(params: list[Tensor], **hypers: Any) -> Oracle:
            own = {name: hypers.pop(name) for name in names}
            inner = base(params, **hypers)

            def step(grads: list[Tensor], ratio: float) -> None:
                before = [p.detach().clone() for p in params]
                inner.step(grads, ratio)
                for p, old, g in zip(params, before, grads, strict=True):
                    p.data.copy_(change(old, old - p.detach(), g, ratio, **own))

            return Oracle(step)

        return maker

    return around


def cautious(p: Tensor, u: Tensor, g: Tensor, ratio: float, *, floor: float) -> Tensor:
    agree = (u * g > 0).double()
    return p - u * agree / max(float(agree.mean()), floor)


def clip_quantile(p: Tensor, u: Tensor, g: Tensor, ratio: float, *, fraction: float) -> Tensor:
    limit = float(torch.quantile(u.abs().flatten(), 1 - fraction))
    return p - u.clamp(-limit, limit)


def decay_decoupled(p: Tensor, u: Tensor, g: Tensor, ratio: float, *, weight_decay: float) -> Tensor:
    return p - u - ratio * weight_decay * p


def decay_cautious(p: Tensor, u: Tensor, g: Tensor, ratio: float, *, weight_decay: float) -> Tensor:
    return torch.where(u * p >= 0, p - u - ratio * weight_decay * p, p - u)


def on_gradients(change: Callable[..., list[Tensor]], *names: str) -> Callable[[Maker], Maker]:
    return lambda base: filtered(base, change, *names)


# Cases ----------------------------------------------------------------------------------------------------------------

_AGC = {"warmup": 6, "relative": 1.02, "absolute": 0.5, "ema": 0.9}
_EMA = {"gamma": 0.9, "beta": 0.6, "warmup": 5, "rest": 20}
WRAPPERS: Mapping[str, tuple[Callable[[Maker], Maker], Mapping[str, float]]] = {
    "cautious": (corrected(cautious, "floor"), {"floor": 0.9}),
    "clip_adaptive": (on_gradients(clipped_adaptively, *_AGC), _AGC),
    "clip_global": (on_gradients(clip_all, "max_norm"), {"max_norm": 1.5}),
    "clip_quantile": (corrected(clip_quantile, "fraction"), {"fraction": 0.33}),
    "clip_tensor": (on_gradients(clip_each, "max_norm"), {"max_norm": 1.5}),
    "clip_value": (on_gradients(clip_value, "limit"), {"limit": 0.7}),
    "decay_cautious": (corrected(decay_cautious, "weight_decay"), {"weight_decay": 0.01}),
    "decay_decoupled": (corrected(decay_decoupled, "weight_decay"), {"weight_decay": 0.01}),
    "decay_l2": (decay_l2, {"weight_decay": 0.3}),
    "ema_nesterov": (ema_nesterov, _EMA),
    "grokfast": (on_gradients(grokfast, "alpha", "lamb"), {"alpha": 0.9, "lamb": 1.3}),
    "lookahead": (lookahead, {"k": 3, "alpha": 0.3}),
    "schedule_free": (schedule_free, {"beta": 0.8}),
}
"""What each makes of an oracle, and its hyperparameters away from their defaults."""
SHARP: Mapping[str, tuple[bool, Mapping[str, float]]] = {"sam": (False, {"rho": 0.3}), "asam": (True, {"rho": 0.3})}
"""Those that ask for a second gradient: whether elements are measured by their own size, and hyperparameters."""
BASES: Mapping[str, Mapping[str, float]] = {
    "sgd": {"lr": 0.1, "weight_decay": 0.2},
    "adamw": MOMENTS,
    "lion": LION,
    "muon": MUON,
}


def case(wrapper: str, base: str) -> Case:
    other = SHARP[wrapper][1] if wrapper in SHARP else WRAPPERS[wrapper][1]
    others = {f"{base}_{name}" if name in other else name: value for name, value in BASES[base].items()}
    make = partial(Case, f"{wrapper}({base})", follows="its formula", other={**others, **other}, steps=30)
    if wrapper in SHARP:
        oracle = sharp(SHARP[wrapper][0], own_optimizer(base))
        return make(oracle=oracle, shapes=closures.SHAPES, run=beside_the_network)
    return make(oracle=WRAPPERS[wrapper][0](by_optimizer(own_optimizer(base))), lr_ratio=warmed_up)


CASES: tuple[Case, ...] = tuple(case(wrapper, base) for wrapper in (*WRAPPERS, *SHARP) for base in BASES)
"""All pairs, with the lr on a schedule where a gradient is all that is asked for."""
