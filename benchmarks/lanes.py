"""Lanes against a plain loop, on one core, side by side in one run.

For each task, model-steps a second of
  loop      torch.optim.AdamW on the same network in torch.nn, one model at a time, as one would write it;
  eager     8 different programs x 8 lanes each by `discover.lanes`, gradients uncompiled, rules as generated PyTorch;
  compiled  the same with compiled gradients and the C++ interpreter of elementwise rules;
  one rule  as compiled, with AdamW in all 64 lanes.
The kinds take turns, several rounds of them, and what is printed is the median of the rounds' ratios to the loop of the
same round: a machine that others use does not change it much. Validation is left out everywhere. With --jax, which
needs the extra `benchmarks`, JAX is a further kind (vmap + scan, AdamW, all on one core), to compare with "one rule".

    python -m benchmarks.lanes [--rounds 5] [--tasks digits_mlp digits_cnn bytes_transformer] [--jax]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import dsl
import tasks
from discover import gradient, lanes
from discover.heap import keep_freed_memory
from tests.twins import TWINS

PROGRAMS = ("adamw", "lion", "momentum", "adam", "adabelief", "signum", "rmsprop", "adan")
BARS = {"digits_mlp": 12.0, "digits_cnn": 4.0, "bytes_transformer": 2.0}
SECONDS = 1.5
"""About how long one kind runs in one round."""


def loop(task: tasks.Task) -> Callable[[int], None]:
    """Steps of one torch.nn model under torch.optim.AdamW, examples gathered as the lanes do."""
    model, loss_of = TWINS[task.name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    index = task.batches(0, 4096)

    def run(steps: int) -> None:
        for t in range(steps):
            optimizer.zero_grad()
            loss_of(model, task.gather(index[t % len(index)])).backward()
            optimizer.step()

    return run


def batch_of_lanes(task: tasks.Task, names: tuple[str, ...], compiled: bool) -> Callable[[int], None]:
    """Steps of 64 lanes: 8 learning rates for each of 8 programs."""
    programs = [dsl.load(name) for name in names]
    each = [lanes.Lane(p, seed=0, hypers={"lr": 1e-4 * (k + 1)}) for p in range(len(programs)) for k in range(8)]
    ready = gradient.build(task, compile=compiled)

    def run(steps: int) -> None:
        training = lanes.Training(task, programs, each, max(steps, 4096), ready, native=compiled, checkpoints=())
        for t in range(1, steps + 1):
            training.step(t)

    return run


def rate(run: Callable[[int], None], models: int) -> tuple[Callable[[], float], int]:
    """A function that measures model-steps a second over about `SECONDS`, after a warm-up that sets the steps."""
    run(3)
    began = time.perf_counter()
    run(10)
    steps = max(5, int(10 * SECONDS / (time.perf_counter() - began)))

    def measure() -> float:
        began = time.perf_counter()
        run(steps)
        return steps * models / (time.perf_counter() - began)

    return measure, steps


def jax_scan() -> tuple[Callable[[], float], float]:
    """The peer: JAX vmap + scan on the digits MLP, 64 models, AdamW, float32, examples gathered from one seed's batches
    as the lanes do, on one core. Compiled beforehand; with how many seconds that took, as it does for each new rule."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp

    task = tasks.load("digits_mlp")
    x, y = (jnp.asarray(part.numpy()) for part in task.train)
    count, steps = 64, 200
    index = jnp.asarray(task.batches(0, steps).numpy())
    start = jnp.asarray(task.initial(0).repeat(count, 1).numpy())
    rates = jnp.asarray([1e-4 * (k % 8 + 1) for k in range(count)], jnp.float32)

    def loss(flat, where):  # type: ignore[no-untyped-def]
        w1, b1, w2, b2 = flat[:2048].reshape(32, 64), flat[2048:2080], flat[2080:2400].reshape(10, 32), flat[2400:]
        logits = jax.nn.relu(x[where] @ w1.T + b1) @ w2.T + b2
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[where][:, None], 1).mean()

    def train(p, lr):  # type: ignore[no-untyped-def]
        def step(carry, now):  # type: ignore[no-untyped-def]
            p, m, v = carry
            t, where = now
            g = jax.grad(loss)(p, where)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - lr * (m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.01 * p)
            return (p, m, v), None

        zero = jnp.zeros_like(p)
        return jax.lax.scan(step, (p, zero, zero), (jnp.arange(1.0, steps + 1), index))[0][0]

    began = time.perf_counter()
    batched = jax.jit(jax.vmap(train)).lower(start, rates).compile()
    compiling = time.perf_counter() - began
    batched(start, rates).block_until_ready()

    def measure() -> float:
        began = time.perf_counter()
        calls = 0
        while time.perf_counter() - began < SECONDS:
            batched(start, rates).block_until_ready()
            calls += 1
        return calls * steps * count / (time.perf_counter() - began)

    return measure, compiling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(BARS), choices=list(TWINS))
    parser.add_argument("--jax", action="store_true", help="also JAX vmap + scan on the digits MLP, if it is installed")
    asked = parser.parse_args()
    if asked.jax:  # its threads would spread over the cores, whatever its flags say
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    compiling = 0.0
    table = Table("task", "loop, steps/s", "eager", "compiled", "one rule", *(["jax"] if asked.jax else []), "bar")
    for name in asked.tasks:
        task = tasks.load(name)
        kinds = {
            "loop": rate(loop(task), 1)[0],
            "eager": rate(batch_of_lanes(task, PROGRAMS, False), 64)[0],
            "compiled": rate(batch_of_lanes(task, PROGRAMS, True), 64)[0],
            "one rule": rate(batch_of_lanes(task, ("adamw",) * 8, True), 64)[0],
        }
        if asked.jax and name == "digits_mlp":
            kinds["jax"], compiling = jax_scan()
        rounds = [{kind: measure() for kind, measure in kinds.items()} for _ in range(asked.rounds)]
        median = {kind: statistics.median(each[kind] for each in rounds) for kind in kinds}
        cells = [f"{median['loop']:,.0f}"]
        for kind in list(kinds)[1:]:
            ratios = sorted(each[kind] / each["loop"] for each in rounds)
            spread = f"{ratios[0]:.1f}-{ratios[-1]:.1f}"
            cells.append(f"{statistics.median(ratios):.1f}x ({spread}), {median[kind]:,.0f}/s")
        cells += [""] if asked.jax and name != "digits_mlp" else []
        table.add_row(name, *cells, f"{BARS[name]:.0f}x" if name in BARS else "")
    Console(width=150).print(table)
    if compiling:
        print(f"jax compiled its rule in {compiling:.1f} s, which each new rule takes; here a new rule takes none")


if __name__ == "__main__":
    main()
