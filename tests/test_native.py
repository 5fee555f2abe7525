"""Laws of the C++ interpreter: it follows the reference, a lane minds its own rows, and it says what it cannot do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dsl
from discover import native, native_code
from discover.mutate import CHANGES, Grammar, mutate
from discover.native import NativeRules
from discover.native_code import OPERATIONS, REDUCTIONS, encode
from discover.plan import genotype
from dsl import Program, reference
from dsl.ops import OPS

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

SIZES = (300, 7, 1)
STEPS = 6
HEAD = "def r(p, g, m: zeros, v: zeros, *, lr=0.01, weight_decay=0.1):\n"
RULES = {
    "swap": HEAD + " x = m\n m = v + g\n v = x\n p = p - lr * m",
    "copy p": "def r(p, g, m: like(p), *, lr=0.01):\n m = p\n p = p - lr * g",
    "number into slot": HEAD + " m = t * 0.5\n p = p - lr * (g + m)",
    "norms": HEAD + " m = lerp(m, g, 0.1)\n p = p - lr * m / (norm(m) + mean(square(g)) + 0.1)",
    "nested": HEAD + " x = g / norm(g)\n y = x - mean(x)\n p = p - lr * y / (rms(y) + 0.1)",
    "global": HEAD + " p = p - lr * g * min(1, 1 / global_norm(g)) * rms(p)",
    "global mean": HEAD + " p = p - lr * (g - global_mean(g)) / (global_amax(abs(g)) + amax(g))",
    "cosine": HEAD + " m = lerp(m, g, 0.1)\n p = p - lr * m * cosine(m, g)",
    "of one value": HEAD
    + " x = norm(g)\n y = mean(x) + norm(-x) + sum(x) + amax(x) + global_sum(x)\n p = p - lr * g * y / rms(x)",
    "scalar stored": HEAD + " m = norm(g)\n p = p - lr * g / m",
    "schedule": HEAD + " p = p - lr * where(t < 3, g, sign(g)) * lr_ratio",
    "every": "def r(p, g, slow: like(p), *, lr=0.1, k=2):\n x = p - lr * g\n"
    " slow = every(k, lerp(slow, x, 0.5), slow)\n p = every(k, slow, x)\n return slow",
}


def program_of(name: str) -> Program:
    return dsl.check(dsl.parse(RULES[name])) if name in RULES else dsl.load(name)


def arrays(flat: np.ndarray) -> dict[str, np.ndarray]:
    return {str(i): part for i, part in enumerate(np.split(flat, np.cumsum(SIZES)[:-1]))}


def follow(program: Program, lanes: list[dict[str, float]], seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Parameters after some steps: [K, N] by the C++ and by the reference."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(len(lanes), sum(SIZES))).astype(np.float32)
    grads = rng.normal(size=(STEPS, len(lanes), sum(SIZES))).astype(np.float32)
    ratios = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    code = encode(program)
    assert code is not None
    buffer = torch.from_numpy(start.copy())
    rules = NativeRules([code], [0] * len(lanes), [{**program.defaults, **h} for h in lanes], buffer, SIZES, ratios)
    for t in range(1, STEPS + 1):
        rules.step(buffer, torch.from_numpy(grads[t - 1]), t)
    expected = []
    for lane, hypers in enumerate(lanes):
        states = reference.run(
            program,
            arrays(start[lane].astype(np.float64)),
            [arrays(g[lane].astype(np.float64)) for g in grads],
            hypers=hypers,
            lr_ratio=lambda t: ratios[t - 1],
        )
        expected.append(np.concatenate(list(states[-1].result.values())))
    return rules.evaluation(buffer), np.stack(expected)


@pytest.mark.parametrize(
    "name",
    [
        *RULES,
        "adamw",
        "lion",
        "momentum",
        "adabelief",
        "adan",
        "rmsprop",
        "clip_global(adamw)",
        "ema_nesterov(adamw)",
        "lookahead(adam)",
    ],
)
def test_rule_follows_the_reference(name: str) -> None:
    found, expected = follow(program_of(name), [{"lr": 0.01}, {"lr": 0.003}, {"lr": 0.1}])
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=2e-5)


def test_random_programs_follow_the_reference() -> None:
    operators = tuple(
        n
        for n in (*OPERATIONS, *REDUCTIONS, "rms", "cosine", "debias", "global_norm")
        if n not in ("number", "size", "where", "exp", "pow", "lt", "le", "gt", "ge", "eq", "ne", "mod")
    )
    grammar = Grammar(operators, 26, ("m", "v"), dict.fromkeys(CHANGES, 1.0))
    rng = np.random.default_rng(0)
    followed = 0
    for seed in range(60):
        program = genotype(dsl.load("adamw"))
        for _ in range(6):
            program = mutate(program, grammar, rng).program
        found, expected = follow(program, [{"lr": 1e-3}], seed)
        ordinary = np.isfinite(expected) & (np.abs(expected) < 1e3)
        if ordinary.all():
            close = np.isclose(found.numpy(), expected, rtol=1e-2, atol=1e-2)
            assert close.mean() > 0.99, dsl.format(program)
            followed += 1
    assert followed > 15


@pytest.mark.parametrize("op", OPERATIONS)
def test_operation_agrees_with_reference_on_special_values(op: str) -> None:
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.5, -2.0, 0.25, 3.0, 1e-30, 1e30], np.float32)
    arity = len(OPS[op].params)
    a, b = (x.ravel() for x in np.meshgrid(special, special))
    text = {1: f"{op}(g)", 2: f"{op}(g, m)", 3: f"{op}(g, m, 0.3)"}[arity]
    text = {"clip": "clip(g, -1.5, 0.25)", "where": "where(g > m, g, m)", "number": "number(g > m)"}.get(op, text)
    program = dsl.parse(f"def r(p, g, m: like(p), *, lr=1):\n m = m\n p = 0 * t + {text}")
    code = encode(program)
    assert code is not None
    buffer = torch.from_numpy(b.copy()).unsqueeze(0)
    NativeRules([code], [0], [{"lr": 1.0}], buffer, (len(a),), [1.0]).step(
        buffer, torch.from_numpy(a.copy()).unsqueeze(0), 1
    )
    with np.errstate(all="ignore"):
        inputs = {1: (a,), 2: (a, b), 3: (a, b, np.float32(0.3))}[arity]
        inputs = {"clip": (a, -1.5, 0.25), "where": (a > b, a, b), "number": (a > b,)}.get(op, inputs)
        expected = np.asarray(
            OPS[op].ref(
                *(
                    np.asarray(x, np.float64) if x is not inputs[0] or op not in ("where", "number") else x
                    for x in inputs
                )
            )
        )  # type: ignore[misc]
        expected = expected.astype(np.float32)
    found = buffer[0].numpy()
    known = (
        np.isnan(expected)
        if op == "sign"
        else (~np.isfinite(a) | ~np.isfinite(b))
        if op == "lerp"
        else np.zeros(len(a), bool)
    )
    np.testing.assert_allclose(found[~known], expected[~known], rtol=1e-5)


@pytest.mark.parametrize(("op", "units"), [("exp", 1.0), ("log", 1.0), ("tanh", 1.5), ("sigmoid", 3.0)])
def test_transcendental_functions_are_right_to_the_last_places(op: str, units: float) -> None:
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 2**32, 300_000, np.uint64).astype(np.uint32).view(np.float32)
    usual = [rng.uniform(low, high, 100_000).astype(np.float32) for low, high in ((-1, 1), (-104, 89), (0.5, 2))]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    x = np.concatenate([any_bits, *usual, special])
    code = encode(dsl.parse(f"def r(p, g, *, lr=1.0):\n p = p - lr * {op}(g)"))
    assert code is not None
    buffer = torch.zeros(1, len(x))
    NativeRules([code], [0], [{"lr": 1.0}], buffer, (len(x),), [1.0]).step(buffer, torch.from_numpy(x).unsqueeze(0), 1)
    found = -buffer[0].numpy()
    with np.errstate(all="ignore"):
        true = OPS[op].ref(x.astype(np.float64))  # type: ignore[misc]
        expected = true.astype(np.float32)
    ordinary = np.isfinite(expected) & (np.abs(expected) > np.finfo(np.float32).tiny)
    unit = np.spacing(np.abs(expected[ordinary])).astype(np.float64)
    assert np.max(np.abs(found[ordinary] - true[ordinary]) / unit) < units
    np.testing.assert_allclose(found[~ordinary], expected[~ordinary], rtol=0, atol=np.finfo(np.float32).tiny)


def test_tanh_keeps_the_sign_of_zero() -> None:
    code = encode(dsl.parse("def r(p, g, *, lr=1.0):\n p = p + lr / tanh(g)"))
    assert code is not None
    buffer = torch.zeros(1, 2)
    NativeRules([code], [0], [{"lr": 1.0}], buffer, (2,), [1.0]).step(buffer, torch.tensor([[0.0, -0.0]]), 1)
    assert buffer[0].tolist() == [np.inf, -np.inf]


def test_a_lane_minds_its_own_rows() -> None:
    programs = [dsl.load("adamw"), program_of("global"), program_of("nested"), dsl.load("lion")]
    codes = [code for code in map(encode, programs) if code is not None]
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.normal(size=(8, 308)).astype(np.float32))
    grads = torch.from_numpy(rng.normal(size=(5, 8, 308)).astype(np.float32))
    rows = [0, 0, 1, 1, 2, 2, 3, 3]
    hypers = [{**programs[r].defaults, "lr": 0.01 * (i + 1)} for i, r in enumerate(rows)]
    together = start.clone()
    rules = NativeRules(codes, rows, hypers, together, SIZES, [1.0] * 5)
    kept = torch.tensor([1, 2, 5, 7])
    for t in range(1, 6):
        if t == 3:
            rules.keep(kept)
            together = together[kept]
        rules.step(together, grads[t - 1] if t < 3 else grads[t - 1][kept], t)
    for position, row in enumerate(kept.tolist()):
        alone = start[row : row + 1].clone()
        own = NativeRules([codes[rows[row]]], [0], [hypers[row]], alone, SIZES, [1.0] * 5)
        for t in range(1, 6):
            own.step(alone, grads[t - 1][row : row + 1], t)
        assert torch.equal(alone[0], together[position])


@pytest.mark.parametrize("name", ["muon", "ema_nesterov(muon)", "nadam"])
def test_rules_that_see_matrices_are_left_to_the_generated_code(name: str) -> None:
    assert encode(dsl.load(name)) is None
    assert encode(dsl.parse("def r(p, g, *, lr=1):\n p = p - lr * g / row_norm(g)")) is None


@pytest.mark.parametrize("count", [128, 129, 700])
@pytest.mark.parametrize("name", ["nested", "global mean", "norms"])
def test_a_task_may_have_any_number_of_parameters(name: str, count: int) -> None:
    program, rng = program_of(name), np.random.default_rng(0)
    sizes = [1 + index % 3 for index in range(count)]
    start, grad = (torch.from_numpy(rng.normal(size=(2, sum(sizes))).astype(np.float32)) for _ in range(2))
    code = encode(program)
    assert code is not None
    found = start.clone()
    NativeRules([code], [0, 0], [dict(program.defaults)] * 2, found, sizes, [1.0]).step(found, grad, 1)
    for lane in range(2):
        first, change = (
            {str(i): part.double().numpy() for i, part in enumerate(torch.split(x[lane], sizes))} for x in (start, grad)
        )
        (state,) = reference.run(program, first, [change])
        np.testing.assert_allclose(
            found[lane].numpy(), np.concatenate(list(state.result.values())), rtol=2e-4, atol=2e-5
        )


def chain(count: int, what: str) -> Program:
    """A rule that needs `count` registers ("g * 1.5") or scalars ("norm(g * 1.5)") at once, and adds them up after."""
    made = [f" x{i} = {what.replace('#', str(i + 2))}" for i in range(count)]
    # From both ends alike, so that each of them waits for another.
    used = [f" s = {'s + ' if i else ''}x{i} * x{count - 1 - i}" for i in range(count)]
    return dsl.parse("\n".join(["def r(p, g, *, lr=1):", *made, *used, " p = p - lr * s * g"]))


@pytest.mark.parametrize(
    ("what", "limit"), [("tanh(g * #)", native_code.REGISTERS), ("norm(tanh(g * #))", native_code.SCALARS)]
)
def test_a_rule_beyond_the_limits_is_left_to_the_generated_code(what: str, limit: int) -> None:
    counts = [count for count in range(limit // 4, limit + 8, 3) if encode(chain(count, what)) is not None]
    assert counts
    assert max(counts) < limit
    largest = chain(max(counts), what)
    found, expected = follow(largest, [{"lr": 1e-6}])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_limits_of_both_languages_are_the_same() -> None:
    source = native._SOURCE.read_text()
    assert f"constexpr int kRegisters = {native_code.REGISTERS};" in source
    assert f"constexpr int kScalars = {native_code.SCALARS};" in source


BUFFER = torch.zeros(2, sum(SIZES))
WRONG = {
    "float64": (BUFFER.double(), r"parameters are \[2, 308\], torch.float64 on cpu, expected \[2, 308\], contiguous"),
    "transposed": (torch.zeros(sum(SIZES), 2).T, "not contiguous"),
    "a column too many": (torch.zeros(2, 309), r"parameters are \[2, 309\].*expected \[2, 308\]"),
    "a row too many": (torch.zeros(3, 308), r"parameters are \[3, 308\].*expected \[2, 308\]"),
    "elsewhere": (BUFFER.to("meta"), "on meta, expected"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_what_the_cpp_would_misread_is_refused(wrong: torch.Tensor, message: str) -> None:
    program = dsl.load("adamw")
    code = encode(program)
    assert code is not None
    hypers = [program.defaults] * 2
    with pytest.raises(ValueError, match=message):
        NativeRules([code], [0, 0], hypers, wrong, SIZES, [1.0])
    rules = NativeRules([code], [0, 0], hypers, BUFFER, SIZES, [1.0])
    with pytest.raises(ValueError, match=message):
        rules.step(wrong, BUFFER, 1)
    with pytest.raises(ValueError, match=message.replace("parameters", "gradients")):
        rules.step(BUFFER, wrong, 1)


def test_rows_stepped_a_few_at_a_time_come_to_the_same_bits() -> None:
    programs = [dsl.load(name) for name in ("adamw", "lion", "momentum")]
    codes = [code for code in map(encode, programs) if code is not None]
    rows = [0, 0, 1, 1, 1, 2, 2]
    hypers = [{**programs[row].defaults, "lr": 1e-2 * (1 + place)} for place, row in enumerate(rows)]
    start = torch.randn(len(rows), sum(SIZES), generator=torch.Generator().manual_seed(0))
    at_once, in_parts = start.clone(), start.clone()
    one, other = (NativeRules(codes, rows, hypers, start, SIZES, [1.0] * 4) for _ in range(2))
    for t in range(1, 5):
        gradients = torch.randn(start.shape, generator=torch.Generator().manual_seed(t))
        one.step(at_once, gradients, t)
        for first, last in ((4, 7), (0, 3), (3, 4)):
            other.step(in_parts[first:last], gradients[first:last], t, first)
    assert torch.equal(at_once, in_parts)
    assert torch.equal(one.state, other.state)
    with pytest.raises(ValueError, match=r"parameters are \[3, 308\].*expected \[2, 308\]"):
        one.step(at_once[:3], gradients[:3], 1, 5)
    with pytest.raises(ValueError, match="start is 7, expected a row from 0 to 6"):
        one.step(at_once[:1], gradients[:1], 1, 7)


def test_rows_rules_and_steps_that_are_not_there_are_refused() -> None:
    code = encode(dsl.load("lion"))
    assert code is not None
    hypers = [dsl.load("lion").defaults] * 2
    with pytest.raises(ValueError, match="rows name rule 1, expected 0 to 0"):
        NativeRules([code], [0, 1], hypers, BUFFER, SIZES, [1.0])
    with pytest.raises(ValueError, match="hypers are for 1 rows, expected 2"):
        NativeRules([code], [0, 0], hypers[:1], BUFFER, SIZES, [1.0])
    rules = NativeRules([code], [0, 0], hypers, BUFFER, SIZES, [1.0])
    for t in (0, 2):
        with pytest.raises(ValueError, match=f"step {t}: there are ratios for steps 1 to 1"):
            rules.step(BUFFER, BUFFER, t)


def test_the_tables_of_both_languages_are_in_the_same_order() -> None:
    source = native._SOURCE.read_text()
    assert source.count("case k") == len(OPERATIONS)
    enum = source.split("enum Operation : int32_t {")[1].split("}")[0]
    assert [name.strip().removeprefix("k").lower() for name in enum.split(",")] == [*OPERATIONS]
