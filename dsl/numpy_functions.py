"""The meaning of operators that one numpy expression does not say: float64, on the last two of any number of axes."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _norm(a: Array) -> Array:
    return np.asarray(np.sqrt(np.sum(np.square(a), axis=(-2, -1), keepdims=True)))


def newton_schulz(a: Array, steps: float) -> Array:
    x = a / (_norm(a) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(int(min(max(0, steps), 32))):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
    return np.asarray(x.mT if tall else x)


def newton_schulz_cubic(a: Array, steps: float) -> Array:
    x = a / (_norm(a) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(int(min(max(0, steps), 32))):
        x = 1.5 * x - 0.5 * (x @ x.mT) @ x
    return np.asarray(x.mT if tall else x)


def sinkhorn(a: Array, steps: float) -> Array:
    x = np.asarray(a)
    for _ in range(int(min(max(0, steps), 32))):
        x = x / np.maximum(np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True)), 1e-30)
        x = x / np.maximum(np.sqrt(np.mean(np.square(x), axis=-2, keepdims=True)), 1e-30)
    return x


def _finite(a: Array) -> Array:
    return np.asarray(np.isfinite(a).all(axis=(-2, -1), keepdims=True))


def _spectrum(a: Array) -> tuple[Array, Array]:
    finite = _finite(a)
    values, vectors = np.linalg.eigh(np.where(finite, a, np.eye(np.shape(a)[-1])))
    return np.where(finite[..., 0], values, np.nan), np.where(finite, vectors, np.nan)


def eigenvectors(a: Array) -> Array:
    vectors = _spectrum(a)[1][..., ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=-2, keepdims=True), axis=-2)
    return np.where(largest < 0, -vectors, vectors)


def top_vectors(a: Array, rank: float) -> Array:
    return eigenvectors(a)[..., : int(rank)]


def matrix_power(a: Array, exponent: float) -> Array:
    values, vectors = _spectrum(a)
    least = np.abs(values[..., -1:]) * (np.finfo(np.float64).eps * np.shape(a)[-1])
    powers = np.power(np.maximum(values, least), exponent)
    return np.asarray((vectors * powers[..., None, :]) @ vectors.mT)


def orthonormal(a: Array) -> Array:
    finite = _finite(a)
    q, r = np.linalg.qr(np.where(finite, a, 0.0))
    signs = np.where(np.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return np.where(finite, q * signs[..., None, :], np.nan)


def polar(a: Array) -> Array:
    finite = _finite(a)
    u, _, vh = np.linalg.svd(np.where(finite, a, 0.0), full_matrices=False)
    return np.where(finite, u @ vh, np.nan)


def solve(a: Array, b: Array) -> Array:
    finite = _finite(a)
    safe = np.where(finite, a, np.eye(np.shape(a)[-1]))
    try:
        return np.where(finite, np.linalg.solve(safe, b), np.nan)
    except np.linalg.LinAlgError:  # one is singular
        if safe.ndim == 2:
            return np.full(np.shape(b), np.nan)
        both = np.broadcast_to(b, (*safe.shape[:-2], *np.shape(b)[-2:]))
        return np.stack([solve(one, other) for one, other in zip(np.asarray(a), both, strict=True)])


def order(a: Array) -> Array:
    falling = np.argsort(-np.asarray(a), axis=-2, kind="stable")
    lost = np.take_along_axis(np.isnan(a), falling, axis=-2)  # numpy has nan last, torch first
    return np.take_along_axis(falling, np.argsort(~lost, axis=-2, kind="stable"), axis=-2).astype(np.float64)


def take_columns(a: Array, order: Array) -> Array:
    index = np.asarray(order).astype(np.int64).mT
    return np.take_along_axis(a, np.broadcast_to(index, (*np.shape(a)[:-1], index.shape[-1])), axis=-1)


def take_rows(a: Array, order: Array) -> Array:
    index = np.asarray(order).astype(np.int64)
    return np.take_along_axis(a, np.broadcast_to(index, (*index.shape[:-1], np.shape(a)[-1])), axis=-2)


def put_column(a: Array, column: float, x: Array) -> Array:
    result = np.array(np.broadcast_to(a, np.broadcast_shapes(np.shape(a), (*np.shape(x)[:-1], np.shape(a)[-1]))))
    result[..., int(column)] = x[..., 0]
    return result


# Draws --------------------------------------------------------------------------------------------------------------

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: Array) -> Array:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def draw_bits(like: Array, *keys: float) -> Array:
    rows, cols = np.shape(like)[-2:]
    with np.errstate(over="ignore"):
        state = np.asarray(np.uint64(0))
        for key in keys:
            state = _mixed(state + np.uint64(int(key) % 2**64) + _GOLDEN)
        counter = np.arange(1, rows * cols + 1, dtype=np.uint64).reshape(rows, cols)
        bits = _mixed(_mixed(state + counter * _GOLDEN)) >> np.uint64(1)
    return np.broadcast_to(bits, np.shape(like))


def draw_uniform(like: Array, seed: float, key: float, place: float) -> Array:
    return (draw_bits(like, seed, key, place) >> np.uint64(10)).astype(np.float64) * 2.0**-53


def draw_gaussian(like: Array, seed: float, key: float, place: float) -> Array:
    first, second = (
        (draw_bits(like, seed, key, place, half) >> np.uint64(10)).astype(np.float64) * 2.0**-53 for half in (1.0, 2.0)
    )
    return np.asarray(np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second))


def draw_rademacher(like: Array, seed: float, key: float, place: float) -> Array:
    return (draw_bits(like, seed, key, place) >> np.uint64(62)).astype(np.float64) * 2.0 - 1.0


def draw_subset(like: Array, density: float, seed: float, key: float, place: float) -> Array:
    bits = draw_bits(like, seed, key, place)
    flat = bits.reshape(*bits.shape[:-2], -1)
    count = min(max(1, round(float(density) * flat.shape[-1])), flat.shape[-1])
    threshold = np.sort(flat, axis=-1)[..., count - 1, None, None]
    return np.asarray(bits <= threshold)


# Eight bits ---------------------------------------------------------------------------------------------------------


def _in_blocks(a: Array, block: float) -> Array:
    flat = np.reshape(a, (*np.shape(a)[:-2], -1))
    size = int(block)
    rest = [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % size)]
    return np.pad(flat, rest).reshape(*flat.shape[:-1], -1, size)


def _whole(blocks: Array, shape: tuple[int, ...]) -> Array:
    flat = blocks.reshape(*blocks.shape[:-2], -1)[..., : shape[-2] * shape[-1]]
    return np.asarray(flat.reshape(*flat.shape[:-1], *shape[-2:]))


def block_amax(a: Array, block: float) -> Array:
    return np.asarray(_in_blocks(a, block).max(-1, keepdims=True))


def dynamic_map(signed: float) -> list[float]:
    """The 256 values that eight bits stand for, ascending: seven decades with ever more values each, 0 and 1 (Dettmers
    et al. 2021, arXiv:2110.02861, section 1.3)."""
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade if signed else 2 ** (decade + 1)
        middles = [0.1 + 0.9 * (i + 0.5) / count for i in range(count)]
        values += [10.0 ** (decade - 6) * middle for middle in middles]
        values += [-(10.0 ** (decade - 6)) * middle for middle in middles] if signed else []
    return sorted(values)


def quantize(a: Array, scale: Array, block: float, signed: float) -> Array:
    values = np.array(dynamic_map(signed))
    shares = _in_blocks(a, block) / np.where(scale > 0, scale, 1.0)
    codes = np.searchsorted((values[1:] + values[:-1]) / 2, shares)
    return _whole(codes.astype(np.float64), np.shape(a))


def dequantize(codes: Array, scale: Array, block: float, signed: float) -> Array:
    values = np.array(dynamic_map(signed))[np.asarray(codes).astype(np.int64)]
    return _whole(_in_blocks(values, block) * scale, np.shape(codes))
