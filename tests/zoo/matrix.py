"""Rules that see a parameter as a matrix.

Most are held to the equations of their papers, written out here on matrices in float64; a conv kernel is seen as
out x rest. Public implementations stand beside where one is to be had; they take matrices alone, and most compute
singular vectors in float32. What is arbitrary is shared: the bits that draws are made of are the language's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_optimizer
import torch
from torch import Tensor

from dsl import numpy_functions
from tests.zoo.case import (
    MATRIX,
    MOMENTS,
    SHAPES,
    VECTOR,
    Case,
    Maker,
    Oracle,
    State,
    by_joint_formula,
    by_optimizer,
)
from tests.zoo.standard import adamw

Update = Callable[..., Tensor]
"""(p, g, state, t, **hyperparameters) -> the new p; `state` holds the parameter's place and role from the start."""

ROLES = (None, None, None, None, "embedding", "head")
MODEL = (*SHAPES, (6, 3), (3, 4))
"""The mixed model with an embedding and a head."""
NEARLY_SQUARE = (MATRIX, (3, 2, 2, 1), VECTOR, (), (6, 3), (3, 4))
"""A first gradient leaves at most one eigenvector of any outer product open, so that none is arbitrary but in sign."""


def on_matrices(update: Update, rest: Update, everywhere: bool = False, roles: tuple[str | None, ...] = ROLES) -> Maker:
    """An oracle from the equations for hidden matrices (with `everywhere` for embeddings and heads too), and those for
    the rest."""

    def maker(params: list[Tensor], lr: float, **hypers: Any) -> Oracle:
        given = roles or (None,) * len(params)
        states: list[State] = [{"place": place, "role": role} for place, role in enumerate(given)]
        t = 0

        def step(grads: list[Tensor], ratio: float) -> None:
            nonlocal t
            t += 1
            for p, g, state in zip(params, grads, states, strict=True):
                matrix = p.ndim > 1 and (everywhere or state["role"] is None)
                x, y = (each.reshape(len(each), -1) if matrix else each for each in (p.detach().clone(), g))
                p.data.copy_((update if matrix else rest)(x, y, state, t, lr=lr * ratio, **hypers).reshape(p.shape))

        return Oracle(step)

    return maker


def mean(state: State, name: str, x: Any, beta: float) -> Any:
    """Moves a running mean that starts at 0, and gives it."""
    state[name] = beta * state.get(name, 0) + (1 - beta) * x
    return state[name]


def apart(
    p: Tensor, g: Tensor, state: State, t: int, *, lr: float, adam_lr_ratio: float, weight_decay: float, **hypers: Any
) -> Tensor:
    """AdamW with a learning rate, and where the rule has them betas, of its own."""
    betas = [hypers.get(f"adam_{name}", hypers.get(name)) for name in ("beta1", "beta2")]
    return adamw(p, g, state, t, lr * adam_lr_ratio, *betas, hypers["eps"], weight_decay)


def hf_adam(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    **_: Any,
) -> Tensor:
    """Adam of the HF lineage: eps before the correction, the decay after the step."""
    u = hf_direction(g, state, t, beta1, beta2, eps)
    return (p - lr * u) * (1 - lr * weight_decay)


def hf_direction(g: Tensor, state: State, t: int, beta1: float, beta2: float, eps: float) -> Tensor:
    m, v = mean(state, "m", g, beta1), mean(state, "v", g**2, beta2)
    return (1 - beta2**t) ** 0.5 / (1 - beta1**t) * m / (v**0.5 + eps)


def nesterov(g: Tensor, state: State, momentum: float) -> Tensor:
    return (1 - momentum) * g + momentum * mean(state, "m", g, momentum)


def quintic(x: Tensor, steps: float) -> Tensor:
    """Muon's orthogonalisation."""
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(int(steps)):
        a = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * a + 2.0315 * a @ a) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


def cubic(x: Tensor, steps: float) -> Tensor:
    x = x / (x.norm() + 1e-7)
    for _ in range(int(steps)):
        x = 0.5 * x @ (3 * torch.eye(x.shape[1], dtype=x.dtype) - x.T @ x)
    return x


# Orthogonalised and normalised momentum -------------------------------------------------------------------------------


def muon_matrix(
    p: Tensor, g: Tensor, state: State, t: int, *, momentum: float, steps: int, lr: float, weight_decay: float, **_: Any
) -> Tensor:
    o = quintic(nesterov(g, state, momentum), steps)
    return p - lr * weight_decay * p - lr * max(1, p.shape[0] / p.shape[1]) ** 0.5 * o


def muon(p: Tensor, g: Tensor, state: State, t: int, **hypers: Any) -> Tensor:
    """On hidden matrices and vectors, as `by_formula` takes it."""
    if p.ndim < 2:
        return apart(p, g, state, t, **hypers)
    return muon_matrix(p.reshape(len(p), -1), g.reshape(len(p), -1), state, t, **hypers).reshape(p.shape)


def auon(
    p: Tensor, g: Tensor, state: State, t: int, *, momentum: float, lr: float, weight_decay: float, **_: Any
) -> Tensor:
    u = nesterov(g, state, momentum)
    unit = u / (u.norm() + 1e-7)
    brake = (torch.cosh(unit) ** 2).mean().sqrt() + 1e-8
    return (1 - lr * weight_decay) * p - lr * max(1, p.shape[0] / p.shape[1]) ** 0.5 * unit / brake


def namo(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    momentum: float,
    beta2: float,
    eps: float,
    steps: float,
    weight_decay: float,
    clamp: float = 0.0,
    **_: Any,
) -> Tensor:
    """With `clamp`, NAMO-D: one length a column."""
    u = nesterov(g, state, momentum)
    squares = (g**2).sum(0) if clamp else (g**2).sum()
    energy = mean(state, "energy", squares, beta2)
    ratio = ((u**2).sum(0) if clamp else (u**2).sum()) ** 0.5 / (energy**0.5 + eps)
    if clamp:
        middle = float(ratio.mean())
        ratio = ratio.clamp(clamp * middle, middle / clamp)
    alpha = lr * (1 - beta2**t) ** 0.5 / (1 - momentum**t) * ratio
    step = (alpha * 0.2 * max(p.shape) ** 0.5).clamp(max=1)
    return p * (1 - weight_decay * alpha.clamp(max=1)) - step * quintic(u, steps)


def m3(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
    alpha: float,
    chunk: float,
    steps: float,
    weight_decay: float,
) -> Tensor:
    """Kept as the gradients themselves: each of the three sums is written out."""
    orthogonal: Callable[[Tensor], Tensor] = (lambda x: cubic(x, steps)) if p.ndim > 1 else (lambda x: x)
    seen = state.setdefault("seen", [])
    seen.append(g + weight_decay * p)
    done = (t - 1) // int(chunk) * int(chunk)
    u = orthogonal(beta1 * sum(seen))
    if done:
        u = u + alpha * orthogonal(beta3 * sum(seen[:done]))
    return p - lr * u / ((beta2 * sum(x**2 for x in seen)) ** 0.5 + eps)


def delta_momentum(p: Tensor, g: Tensor, state: State, t: int, *, lr: float, momentum: float) -> Tensor:
    forgets = momentum * torch.eye(p.shape[-1], dtype=p.dtype) if p.ndim > 1 else momentum
    if p.ndim > 1:
        forgets = forgets - g.T @ g / (g.norm() + 1e-8) ** 2
    m = state.get("m", torch.zeros_like(p))
    state["m"] = (m @ forgets if p.ndim > 1 else momentum * m) - lr * g
    return p + state["m"]


# Without state --------------------------------------------------------------------------------------------------------


def standardised(g: Tensor) -> Tensor:
    return (g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True, correction=0) + 1e-8)


def swan(
    p: Tensor, g: Tensor, state: State, t: int, *, lr: float, steps: float, weight_decay: float, **_: Any
) -> Tensor:
    return (1 - lr * weight_decay) * p - lr * cubic(standardised(g), steps)


def swan_exactly(p: Tensor, g: Tensor, state: State, t: int, *, lr: float, weight_decay: float, **_: Any) -> Tensor:
    """(x x^T)**-1/2 x by eigenvalues."""
    x = standardised(g)
    values, vectors = torch.linalg.eigh(x @ x.T)
    return (1 - lr * weight_decay) * p - lr * (vectors * values**-0.5 @ vectors.T) @ x


def sinkgd(
    p: Tensor, g: Tensor, state: State, t: int, *, lr: float, iterations: float, weight_decay: float, **_: Any
) -> Tensor:
    rows, cols = g.shape
    for _ in range(int(iterations)):
        g = cols**0.5 * g / g.norm(dim=1, keepdim=True)
        g = rows**0.5 * g / g.norm(dim=0, keepdim=True)
    return (1 - lr * weight_decay) * p - lr * g


def scale(
    p: Tensor, g: Tensor, state: State, t: int, *, lr: float, momentum: float, weight_decay: float, **_: Any
) -> Tensor:
    u = mean(state, "m", g, momentum) if state["role"] == "head" else g
    size = (u**2).mean(0 if state["role"] == "embedding" else 1, keepdim=True) ** 0.5
    return (1 - lr * weight_decay) * p - lr * u / size.clamp(min=1e-8)


# Shampoo and its basis ------------------------------------------------------------------------------------------------


def power(a: Tensor, exponent: float) -> Tensor:
    u, s, vh = torch.linalg.svd(a)
    return u * s**exponent @ vh


def shampoo(p: Tensor, g: Tensor, state: State, t: int, *, lr: float, eps: float) -> Tensor:
    if p.ndim < 2:
        state["v"] = state.get("v", eps) + g**2
        return p - lr * g / state["v"] ** 0.5
    rows, cols = (eps * torch.eye(n, dtype=p.dtype) for n in p.shape)
    state["l"] = state.get("l", rows) + g @ g.T
    state["r"] = state.get("r", cols) + g.T @ g
    left = state["l"].diagonal().diag() if state["role"] else state["l"]
    return p - lr * power(left, -0.25) @ g @ power(state["r"], -0.25)


def soap(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    frequency: float,
    weight_decay: float,
) -> Tensor:
    whole = p.ndim > 1
    sides = [side for side, kept in (("l", whole and not state["role"]), ("r", whole)) if kept]
    if t > 1:
        left, right = state.get("ql"), state.get("qr")

        def turned(x: Tensor, back: bool = False) -> Tensor:
            x = x if left is None else (left if back else left.T) @ x
            return x if right is None else x @ (right.T if back else right)

        k = t - 1
        m, v = mean(state, "m", g, beta1), mean(state, "v", turned(g) ** 2, beta2)
        u = turned(turned(m) / (v**0.5 + eps), back=True)
        p = (p - lr * (1 - beta2**k) ** 0.5 / (1 - beta1**k) * u) * (1 - lr * weight_decay)
    for side in sides:
        outer = mean(state, side, g @ g.T if side == "l" else g.T @ g, beta2)
        if t == 1:
            state["q" + side] = torch.linalg.eigh(outer).eigenvectors.flip(1)
        elif (t - 1) % frequency == 0:
            q = state["q" + side]
            best = torch.einsum("ij,ik,kj->j", q, outer, q).sort(descending=True).indices
            state["v"] = state["v"].index_select(0 if side == "l" else 1, best)
            state["q" + side] = torch.linalg.qr(outer @ q[:, best]).Q
    return p


# Low rank -------------------------------------------------------------------------------------------------------------


def conda(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    frequency: float,
    weight_decay: float,
) -> Tensor:
    m = mean(state, "m", g, beta1)
    if (t - 1) % frequency == 0:
        u, _, vh = torch.linalg.svd(m, full_matrices=False)
        tall = m.shape[0] >= m.shape[1]
        state["q"] = (torch.eye(len(m), dtype=p.dtype), vh.T) if tall else (u, torch.eye(m.shape[1], dtype=p.dtype))
    left, right = state["q"]
    v = mean(state, "v", (left.T @ g @ right) ** 2, beta2)
    u = left @ (left.T @ m @ right / (v**0.5 + eps)) @ right.T
    return (p - lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) * u) * (1 - lr * weight_decay)


def galore(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    rank: float,
    frequency: float,
    scale: float,
    weight_decay: float,
) -> Tensor:
    tall = g.shape[0] >= g.shape[1]
    if (t - 1) % frequency == 0:
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        q = (vh.T if tall else u)[:, : int(rank)]
        state["q"] = q * q.gather(0, q.abs().argmax(0, keepdim=True)).sign()  # as the language has them
    q = state["q"]
    low = hf_direction(g @ q if tall else q.T @ g, state, t, beta1, beta2, eps)
    return (p - lr * scale * (low @ q.T if tall else q @ low)) * (1 - lr * weight_decay)


def projection(place: int, rows: int, cols: int, seed: float, key: float) -> Tensor:
    """The language's own gaussian draws, as rows x cols."""
    return torch.tensor(numpy_functions.draw_gaussian(np.zeros((rows, cols)), seed, key, place))


def apollo(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    frequency: float,
    scale: float,
    seed: float,
    weight_decay: float,
    rank: float | None = None,
) -> Tensor:
    """Without `rank`, APOLLO-Mini: rank 1 and one length for the whole matrix."""
    tall, small = g.shape[0] >= g.shape[1], min(g.shape)
    k = min(int(rank), small) if rank else 1
    if (t - 1) % frequency == 0:
        shape = (1, small) if not rank and tall else (small, k)
        state["q"] = projection(state["place"], *shape, seed, t).reshape(small, k) / k**0.5
    low = g @ state["q"] if tall else state["q"].T @ g
    m, v = mean(state, "m", low, beta1), mean(state, "v", low**2, beta2)
    n = m / (v**0.5 + eps)
    along = (1 if tall else 0) if rank else (0, 1)
    u = g * torch.linalg.vector_norm(n, dim=along, keepdim=True)
    u = u / (torch.linalg.vector_norm(low, dim=along, keepdim=True) + 1e-8)
    if t > 1:
        u = u / max(1.0, float(u.norm() / (state["size"] + 1e-8)) / 1.01)
    state["size"] = u.norm()
    u = u * scale**0.5
    return (p - lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) * u) * (1 - lr * weight_decay)


def frugal(
    p: Tensor,
    g: Tensor,
    state: State,
    t: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    density: float,
    frequency: float,
    seed: float,
    weight_decay: float,
) -> Tensor:
    """The moments are of the chosen columns alone."""
    k = (t - 1) % int(frequency) + 1
    if k == 1:
        like = np.zeros((1, p.shape[1]))
        state["at"] = torch.tensor(numpy_functions.draw_subset(like, density, seed, t, state["place"])[0])
        state["inner"] = {}
    at = state["at"]
    new = p * (1 - lr * weight_decay) - lr * g.sign()
    new[:, at] = adamw(p[:, at], g[:, at], state["inner"], k, lr, beta1, beta2, eps, weight_decay)
    return new


def in_full(p: Tensor, g: Tensor, state: State, t: int, **hypers: float) -> Tensor:
    names = ("lr", "beta1", "beta2", "eps", "weight_decay")
    return adamw(p, g, state, t, **{name: hypers[name] for name in names})


# The whole model ------------------------------------------------------------------------------------------------------


def mfac(
    ps: list[Tensor],
    gs: list[Tensor],
    state: State,
    t: int,
    *,
    lr: float,
    momentum: float,
    history: float,
    damp: float,
    weight_decay: float,
) -> list[Tensor]:
    """By a solve in as many unknowns as the model has parameters."""
    whole = torch.cat([(g + weight_decay * p).flatten() for p, g in zip(ps, gs, strict=True)])
    past = state["past"] = [*state.get("past", []), whole][-int(history) :]
    fisher = damp * torch.eye(len(whole), dtype=whole.dtype) + sum(torch.outer(x, x) for x in past) / history
    v = mean(state, "v", torch.linalg.solve(fisher, whole), momentum)
    return [p - lr * part.reshape(p.shape) for p, part in zip(ps, v.split([p.numel() for p in ps]), strict=True)]


# Public implementations -----------------------------------------------------------------------------------------------

FLAT = (MATRIX, (3, 4), (5, 5), VECTOR)
SINGULAR = "their singular vectors are computed in float32"


def named(make: Callable[..., Any], **names: str) -> Callable[..., torch.optim.Optimizer]:
    """The maker with beta1 and beta2 as `betas`, and the rule's names for others exchanged for its own."""

    def made(params: list[Tensor], **hypers: Any) -> torch.optim.Optimizer:
        if "beta1" in hypers:
            hypers["betas"] = (hypers.pop("beta1"), hypers.pop("beta2"))
        return make(params, **{names.get(name, name): value for name, value in hypers.items()})

    return made


def galore_groups(params: list[Tensor], rank: float, frequency: float, scale: float, **hypers: Any) -> Any:
    low = {"rank": int(rank), "update_proj_gap": frequency, "scale": scale, "projection_type": "std"}
    groups = [{"params": [p for p in params if p.ndim == 2], **low}, {"params": [p for p in params if p.ndim < 2]}]
    return named(pytorch_optimizer.GaLore)(groups, **hypers)


def whole_steps(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, frequency, **hypers: make(params, frequency=int(frequency), **hypers)


_NORM = {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.2, "adam_lr_ratio": 0.3}
_NAMO = {**_NORM, "beta2": 0.9, "eps": 1e-3, "steps": 3, "adam_beta1": 0.8, "adam_beta2": 0.9}
MUON = {**MOMENTS, **_NORM, "beta2": 0.9, "steps": 3}
_LOW = {**MOMENTS, "frequency": 7}
_SOAP = {**_LOW, "beta2": 0.9}
_APOLLO = {**_LOW, "scale": 2.5, "seed": 3}
_MODEL: dict[str, Any] = {"shapes": MODEL, "roles": ROLES}
_EQUATIONS = "its equations"
_AUTHORS = "apollo_torch 1.0.3, given these draws, stays within 2e-15 of the rule; it needs transformers to be imported"

CASES: tuple[Case, ...] = (
    Case(
        "muon",
        on_matrices(muon_matrix, apart),
        _EQUATIONS,
        MUON,
        **_MODEL,
    ),
    Case("auon", on_matrices(auon, apart), _EQUATIONS, {**MOMENTS, **_NORM, "beta2": 0.9}, **_MODEL),
    Case("namo", on_matrices(namo, apart), _EQUATIONS, _NAMO, **_MODEL),
    Case("namo_d", on_matrices(namo, apart), _EQUATIONS, {**_NAMO, "clamp": 0.9}, **_MODEL),
    Case("soap", on_matrices(soap, soap, True), _EQUATIONS, _SOAP, shapes=NEARLY_SQUARE, roles=ROLES),
    Case(
        "soap",
        by_optimizer(whole_steps(named(pytorch_optimizer.SOAP, frequency="precondition_frequency"))),
        "pytorch_optimizer.SOAP",
        _SOAP,
        tolerance=1e-4,
        note="its bases are computed in float32",
        shapes=FLAT,
    ),
    Case("shampoo", on_matrices(shampoo, shampoo, True), _EQUATIONS, {"lr": 0.02, "eps": 1e-2}, **_MODEL),
    Case(
        "shampoo",
        by_optimizer(named(pytorch_optimizer.Shampoo, eps="matrix_eps")),
        "pytorch_optimizer.Shampoo",
        {"lr": 0.02, "eps": 1e-2},
        shapes=FLAT[:3],
    ),
    Case("conda", on_matrices(conda, hf_adam), _EQUATIONS, _LOW, **_MODEL),
    Case(
        "conda",
        by_optimizer(named(pytorch_optimizer.Conda, frequency="update_proj_gap")),
        "pytorch_optimizer.Conda",
        {**MOMENTS, "frequency": 1},
        tolerance=1e-4,
        note=f"{SINGULAR}, and at steps 1, frequency, 2 frequency ..., which meet the rule's where it is 1",
        shapes=FLAT,
    ),
    Case("galore", on_matrices(galore, hf_adam), _EQUATIONS, {**_LOW, "rank": 2, "scale": 0.7}, **_MODEL),
    Case(
        "galore",
        by_optimizer(galore_groups),
        "pytorch_optimizer.GaLore",
        {**MOMENTS, "scale": 0.7},
        {"rank": 2},
        tolerance=1e-4,
        note=f"{SINGULAR}; found once, as the moments see their signs",
        shapes=FLAT,
    ),
    Case("apollo", on_matrices(apollo, hf_adam), _EQUATIONS, _APOLLO, {"rank": 2}, note=_AUTHORS, **_MODEL),
    Case("apollo_mini", on_matrices(apollo, hf_adam), _EQUATIONS, _APOLLO, note=_AUTHORS, **_MODEL),
    Case("frugal", on_matrices(frugal, in_full), _EQUATIONS, {**_LOW, "density": 0.6, "seed": 3}, **_MODEL),
    Case(
        "swan",
        on_matrices(swan, apart),
        _EQUATIONS,
        {**MOMENTS, "lr": 0.03, "steps": 4, "adam_lr_ratio": 0.3},
        **_MODEL,
    ),
    Case(
        "swan",
        on_matrices(swan_exactly, apart, roles=()),
        "its equations with an exact inverse root",
        MOMENTS,
        {"steps": 32},
        shapes=((3, 5), (3, 2, 2, 2), VECTOR),
    ),
    Case(
        "sinkgd", on_matrices(sinkgd, apart), _EQUATIONS, {**MOMENTS, "iterations": 2, "adam_lr_ratio": 0.3}, **_MODEL
    ),
    Case("scale", on_matrices(scale, apart, True), _EQUATIONS, {**MOMENTS, **_NORM}, **_MODEL),
    Case(
        "mfac",
        by_joint_formula(mfac),
        "its equations, solved densely",
        {"lr": 0.02, "momentum": 0.7, "history": 5, "damp": 0.1, "weight_decay": 0.1},
    ),
    Case(
        "delta_momentum",
        on_matrices(delta_momentum, delta_momentum, True),
        _EQUATIONS,
        {"lr": 0.05, "momentum": 0.7},
        **_MODEL,
    ),
    Case(
        "m3",
        on_matrices(m3, m3, True),
        _EQUATIONS,
        {**MOMENTS, "beta3": 0.8, "alpha": 0.6, "chunk": 7, "steps": 5},
        {"chunk": 20},
        note="nested_learning 0.2.0 stays within 1e-10 of the rule: its 1e-7 beside a norm is eps",
        **_MODEL,
    ),
)
