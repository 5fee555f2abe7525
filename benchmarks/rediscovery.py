"""Whether a search from plain gradient descent finds what is best where that is known.

Tasks of `benchmarks.planted`, each with the known rules that suit it. First these rules and others are scored there, so
that what is planted is seen to be so; then evolution starts from sgd, once for each seed, and what it found is named by
`dsl.identify` and scored beside them on fresh instances.

    python -m benchmarks.rediscovery [--model-steps 3000000] [--seeds 5] [--tasks heavy_tails ...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import dsl
from benchmarks import arms
from discover.space import Space
from dsl.flatten import tidy
from dsl.identify import nearest

PLANTED = {
    "heavy_tails": ("HeavyTails", ("sign", "signsgd", "signum", "lion", "clip")),
    "ill_conditioned": ("IllConditioned", ("momentum", "nesterov", "nadam", "ema_nesterov", "sgd_ll", "optimistic")),
    "sparse": ("Sparse", ("adagrad", "rmsprop", "adam", "nadam", "adabelief", "laprop", "diffgrad")),
}
"""Task -> its class, and how the names of rules begin that belong to the family that is best there."""

KNOWN = ("sgd", "momentum", "nesterov", "signsgd", "signum", "adagrad", "rmsprop", "adamw")

SPACE = """
name: rediscovery
ancestor: sgd
operators: [add, sub, mul, div, abs, sign, square, sqrt, max, min, clip, lerp, debias, norm]
slots: [m, v]
max_statements: 16
evolution: {{population: 60, tournament: 3}}
proposals_per_generation: 96
require: {{odd: true, homogeneous: false, finite_at_zero: true, max_slots: 2}}
tasks: {{search: ['{task}']}}
learning_rates: {{points: 7, factor: 2.5}}
score_limits: [-2.0, 3.0]
loss_scales: [1.0, 1.0]
parameter_scales: [1.0, 1.0]
rungs: [{{tasks: ['{task}'], steps: 1.0, seeds: 2}}]
confirm: {{every: 2, top: 4, most: 8}}
compile: never
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-steps", type=int, default=3_000_000, help="of each search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=16, help="fresh ones, to score what was found")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tasks", nargs="*", choices=PLANTED, default=list(PLANTED))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    for name in asked.tasks:
        kind, family = PLANTED[name]
        task = f"{Path(__file__).with_name('planted.py')}:{kind}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rediscovery.yaml"
            path.write_text(SPACE.format(task=task))
            space = Space.load(str(path))
        known = arms.scores([dsl.format(dsl.load(rule)) for rule in KNOWN], space, [task], asked.instances, 1000)
        places = sorted(zip(KNOWN, known, strict=True), key=lambda each: -each[1])
        console.print(f"{name}: {', '.join(f'{rule} {value:+.3f}' for rule, value in places)}", highlight=False)
        table = Table("seed", "score", "nearest known rule", "of the family", "found", "seconds")
        hits = 0
        for seed in range(asked.seeds):
            arm = arms.Arm("evolution", "evolution")
            found = arms.search(
                space, arm, model_steps=asked.model_steps, seed=seed, shares=(1.0,), workers=asked.workers
            )
            (text,) = found.incumbents
            if text is None:
                table.add_row(str(seed), "none", "", "no", "", f"{found.seconds:.0f}")
                continue
            (value,) = arms.scores([text], space, [task], asked.instances, 1000)
            program = dsl.parse(text)
            match = nearest(program)
            hit = match.name.startswith(family)
            hits += hit
            body = "; ".join(dsl.format(tidy(program)).splitlines()[1:])
            shown = " ".join(body.split())
            cells = (f"{value:+.3f}", str(match), "yes" if hit else "no", shown, f"{found.seconds:.0f}")
            table.add_row(str(seed), *cells)
        console.print(table)
        console.print(f"{hits} of {asked.seeds} of the family ({', '.join(family)})", highlight=False)


if __name__ == "__main__":
    main()
