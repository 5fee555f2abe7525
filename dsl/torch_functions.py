"""Torch functions that operators call where one expression does not say them; an exported file carries their text."""

from __future__ import annotations

import torch

from dsl.numpy_functions import dynamic_map as dynamic_map  # its text goes into exported files as the others' does


def newton_schulz(x: torch.Tensor, steps: float) -> torch.Tensor:
    """Orthogonalises the last two dimensions of x approximately, by quintic Newton-Schulz steps (Jordan 2024, Muon)."""
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(int(min(max(0, steps), 32))):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
    return x.mT if tall else x


def power(base: torch.Tensor | float, exponent: torch.Tensor | float) -> torch.Tensor:
    """base ** exponent, lane by lane: torch rounds it otherwise in vector registers than in the rest of a row, so that
    in one call a lane's bits would depend on where the lane lies."""
    like = base if isinstance(base, torch.Tensor) else exponent
    assert isinstance(like, torch.Tensor)
    bases, exponents = (x if isinstance(x, torch.Tensor) else like.new_tensor(x) for x in (base, exponent))
    lanes = max((len(x) for x in (bases, exponents) if x.ndim), default=0)
    if not lanes:
        return torch.pow(bases, exponents)
    pairs = zip(*(x.expand(lanes, *x.shape[1:]) for x in (bases, exponents)), strict=True)
    return torch.stack([torch.pow(b, e) for b, e in pairs])


def lane_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in each lane; a vector's product element by element, as torch computes that of one lane alone otherwise
    than that of several."""
    if b.shape[-1] == 1:
        return (a * b.mT).sum(dim=-1, keepdim=True)
    if a.shape[-2] == 1:
        return (a.mT * b).sum(dim=-2, keepdim=True)
    return a @ b


def quantile(a: torch.Tensor, q: float, lanes: bool = False) -> torch.Tensor:
    """The q-quantile of all elements or, with lanes, of the last two dimensions; torch's own refuses more than 16
    million elements."""
    flat = a.flatten(-2) if lanes else a.flatten()
    place = min(max(0.0, q), 1.0) * (flat.shape[-1] - 1)
    low = int(place)
    below, above = (flat.kthvalue(1 + k, dim=-1).values for k in (low, low + (place > low)))
    value = torch.where(above == below, below, below + (above - below) * (place - low))
    value = torch.where(flat.isnan().any(dim=-1), torch.nan, value)
    return value[..., None, None] if lanes else value


def block_mean(a: torch.Tensor, k: float, lanes: bool = False) -> torch.Tensor:
    """For each element the mean of its block of k consecutive ones, in the whole tensor or, with lanes, in the last two
    dimensions."""
    flat = a.flatten(-2) if lanes else a.flatten()
    length = flat.shape[-1]
    size = int(min(max(1, k), length))
    filled = torch.nn.functional.pad(flat, (0, -length % size))
    blocks = filled.view(*flat.shape[:-1], -1, size)
    sums = blocks.sum(dim=-1, keepdim=True)
    means = sums / size
    means[..., -1, :] = sums[..., -1, :] / (length - size * (blocks.shape[-2] - 1))
    return means.expand(blocks.shape).flatten(-2)[..., :length].reshape(a.shape).contiguous()


def newton_schulz_cubic(x: torch.Tensor, steps: float) -> torch.Tensor:
    """Orthogonalises the last two dimensions of x by cubic Newton-Schulz steps, which converge (Bjorck 1971)."""
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(int(min(max(0, steps), 32))):
        x = 1.5 * x - 0.5 * (x @ x.mT) @ x
    return x.mT if tall else x


def sinkhorn(x: torch.Tensor, steps: float) -> torch.Tensor:
    """Brings the root mean square of each row to 1, then of each column, over and over."""
    for _ in range(int(min(max(0, steps), 32))):
        x = x / x.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-30)
        x = x / x.square().mean(dim=-2, keepdim=True).sqrt().clamp(min=1e-30)
    return x


def _widened(a: torch.Tensor) -> torch.Tensor:
    """In a precision that linear algebra knows."""
    return a if a.dtype in (torch.float32, torch.float64) else a.float()


def spectrum(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices, in float32 at least; nan for a matrix that is not
    finite or does not converge, where torch would raise and take its neighbours along."""
    wide = _widened(a)
    finite = wide.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    safe = torch.where(finite, wide, torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device))
    try:
        values, vectors = torch.linalg.eigh(safe)
    except RuntimeError:
        if safe.ndim == 2:
            return torch.full_like(safe[0], torch.nan), torch.full_like(safe, torch.nan)
        found = [spectrum(one) for one in safe]
        values, vectors = (torch.stack(parts) for parts in zip(*found, strict=True))
    return torch.where(finite[..., 0], values, torch.nan), torch.where(finite, vectors, torch.nan)


def eigenvectors(a: torch.Tensor) -> torch.Tensor:
    """The eigenvectors of symmetric matrices as columns, the largest eigenvalue first, each with its largest element
    positive, so that no library decides about the sign."""
    vectors = spectrum(a)[1].flip(-1)
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors).to(a.dtype)


def top_vectors(a: torch.Tensor, rank: float) -> torch.Tensor:
    """The eigenvectors of the `rank` largest eigenvalues of symmetric matrices as columns, the largest first."""
    return eigenvectors(a)[..., : int(rank)]


def matrix_power(a: torch.Tensor, exponent: float) -> torch.Tensor:
    """Positive semi-definite matrices to a real power; eigenvalues below rounding count as what rounding leaves."""
    values, vectors = spectrum(a)
    least = values[..., -1:].abs() * (torch.finfo(values.dtype).eps * a.shape[-1])
    values = torch.maximum(values, least)
    raised = power(values, exponent) if values.ndim > 1 else values.pow(exponent)
    return (vectors * raised.unsqueeze(-2) @ vectors.mT).to(a.dtype)


def orthonormal(a: torch.Tensor) -> torch.Tensor:
    """The orthonormal factor of the QR decomposition whose triangular factor has no negative diagonal; nan where a is
    not finite."""
    wide = _widened(a)
    finite = wide.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    q, r = torch.linalg.qr(torch.where(finite, wide, 0.0))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    return torch.where(finite, q * signs.unsqueeze(-2), torch.nan).to(a.dtype)


def polar(a: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrix: U V^T of the singular value decomposition; nan where a is not finite."""
    wide = _widened(a)
    finite = wide.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    u, _, vh = torch.linalg.svd(torch.where(finite, wide, 0.0), full_matrices=False)
    return torch.where(finite, u @ vh, torch.nan).to(a.dtype)


def put_column(a: torch.Tensor, column: float, x: torch.Tensor) -> torch.Tensor:
    """a with one column replaced."""
    a = a.clone()
    a[..., int(column)] = x[..., 0]
    return a


# Draws: a number at random is a function of its keys, so that any state of a training says what comes next -----------


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap around."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _mixed_number(x: int) -> int:
    """The same of a Python number, as an int64."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    x ^= x >> 31
    return x - (x >> 63 << 64)


def draw_bits(like: torch.Tensor, *keys: float | torch.Tensor, elements: tuple[int, ...]) -> torch.Tensor:
    """63 random bits for each element, as int64: a function of the keys and of the element's position alone."""
    state: int | torch.Tensor = 0
    for key in keys:
        if isinstance(key, torch.Tensor) or isinstance(state, torch.Tensor):
            whole = key.to(torch.int64) if isinstance(key, torch.Tensor) else torch.tensor(int(key), device=like.device)
            state = _mixed(whole + state + -0x61C8864680B583EB)
        else:
            state = _mixed_number(state + int(key) - 0x61C8864680B583EB)
    size = 1
    for length in elements:
        size *= length
    counter = torch.arange(1, size + 1, dtype=torch.int64, device=like.device).view(elements)
    return (_mixed(_mixed(counter * -0x61C8864680B583EB + state)) >> 1) & 0x7FFFFFFFFFFFFFFF


def draw_uniform(
    like: torch.Tensor, seed: float | torch.Tensor, key: float | torch.Tensor, place: float, lanes: bool = False
) -> torch.Tensor:
    """Independent draws between 0 and 1, of like's shape; with lanes, of its last two dimensions."""
    bits = draw_bits(like, seed, key, place, elements=tuple(like.shape[-2:] if lanes else like.shape))
    return ((bits >> 10).double() * 2.0**-53).to(like.dtype).expand(like.shape).contiguous()


def draw_gaussian(
    like: torch.Tensor, seed: float | torch.Tensor, key: float | torch.Tensor, place: float, lanes: bool = False
) -> torch.Tensor:
    """Independent draws of mean 0 and variance 1 (Box and Muller 1958), of like's shape or, with lanes, of its last two
    dimensions."""
    elements = tuple(like.shape[-2:] if lanes else like.shape)
    radius, angle = ((draw_bits(like, seed, key, place, half, elements=elements) >> 10).double() for half in (1.0, 2.0))
    radius = (-2.0 * torch.log1p(-radius * 2.0**-53)).sqrt()
    return (radius * torch.cos(angle * (2.0**-52 * torch.pi))).to(like.dtype).expand(like.shape).contiguous()


def draw_rademacher(
    like: torch.Tensor, seed: float | torch.Tensor, key: float | torch.Tensor, place: float, lanes: bool = False
) -> torch.Tensor:
    """Independent draws of 1 and -1, of like's shape or, with lanes, of its last two dimensions."""
    bits = draw_bits(like, seed, key, place, elements=tuple(like.shape[-2:] if lanes else like.shape))
    return ((bits >> 62) * 2 - 1).to(like.dtype).expand(like.shape).contiguous()


def draw_subset(
    like: torch.Tensor,
    density: float,
    seed: float | torch.Tensor,
    key: float | torch.Tensor,
    place: float,
    lanes: bool = False,
) -> torch.Tensor:
    """True for a random choice of round(density * elements) elements, at least one."""
    elements = tuple(like.shape[-2:] if lanes else like.shape)
    bits = draw_bits(like, seed, key, place, elements=elements)
    flat = bits.flatten(-len(elements)) if elements else bits.reshape(1)
    count = min(max(1, round(density * flat.shape[-1])), flat.shape[-1])
    threshold = flat.kthvalue(count, dim=-1, keepdim=True).values
    return (flat <= threshold).view(bits.shape).expand(like.shape).contiguous()


# Eight bits -----------------------------------------------------------------------------------------------------------


def in_blocks(a: torch.Tensor, block: float) -> torch.Tensor:
    """Matrices as blocks of consecutive elements, the last filled up with zeros: [..., rows, cols] to
    [..., blocks, block]."""
    flat = a.flatten(-2)
    size = int(block)
    padded = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % size))
    return padded.view(*flat.shape[:-1], -1, size)


def block_amax(a: torch.Tensor, block: float) -> torch.Tensor:
    """The largest element of each block: [..., rows, cols] to [..., blocks, 1]."""
    return in_blocks(a, block).amax(-1, keepdim=True)


def codebook(signed: float, like: torch.Tensor, _known: dict[object, torch.Tensor] = {}) -> torch.Tensor:  # noqa: B006
    """The dynamic map in like's dtype, where like is; made once for each."""
    key = (bool(signed), like.dtype, like.device)
    if key not in _known:
        _known[key] = torch.tensor(dynamic_map(signed), dtype=like.dtype, device=like.device)
    return _known[key]


def quantize(a: torch.Tensor, scale: torch.Tensor, block: float, signed: float) -> torch.Tensor:
    """For each element the place in the dynamic map of what is nearest to it over its block's scale."""
    values = codebook(signed, a)
    edges = (values[1:] + values[:-1]) / 2
    shares = in_blocks(a, block) / torch.where(scale > 0, scale, 1.0)
    codes = torch.bucketize(shares.contiguous(), edges).to(torch.uint8)
    return codes.flatten(-2)[..., : a.shape[-2] * a.shape[-1]].view(a.shape)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, block: float, signed: float) -> torch.Tensor:
    """What codes stand for, times the scale of each one's block."""
    values = codebook(signed, scale)
    whole = in_blocks(values[codes.long()], block) * scale
    return whole.flatten(-2)[..., : codes.shape[-2] * codes.shape[-1]].view(codes.shape)


def solve(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x with a x = b; nan for a matrix a that is not finite, or singular."""
    wide = _widened(a)
    finite = wide.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    eye = torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device)
    x, failed = torch.linalg.solve_ex(torch.where(finite, wide, eye), b.to(wide.dtype))
    return torch.where(finite & (failed == 0)[..., None, None], x, torch.nan).to(a.dtype)
