"""Evolution against its controls: random programs, hyperparameters alone, best of n, at equal and at more compute.

A claim of a search is made against these (Chen et al. 2023 beat random search and the tuning of hyperparameters at four
times the compute). Prints for each what its incumbent scores on the space's select tasks against compute.

    python -m benchmarks.controls [--space lion_like] [--model-steps 20000000] [--seeds 5] [--control-compute 1 4]

Hours of work; with `--kept FILE` the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import arms
from discover.space import Space

CONTROLS = ("random", "hyperparameters", "best_of_n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="lion_like")
    parser.add_argument("--model-steps", type=int, default=20_000_000, help="of each search at once the compute")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=8, help="of each select task")
    parser.add_argument("--control-compute", type=float, nargs="*", default=[1.0, 4.0])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="a file of what is done; the same command goes on where it was")
    asked = parser.parse_args()
    each = [arms.Arm("evolution", "evolution")]
    each += [
        arms.Arm(f"{control} x{compute:g}", control, compute=compute)
        for control in CONTROLS
        for compute in asked.control_compute
    ]
    arms.run(
        "evolution and its controls",
        Space.load(asked.space),
        each,
        model_steps=asked.model_steps,
        seeds=asked.seeds,
        instances=asked.instances,
        workers=asked.workers,
        kept=asked.kept,
    )


if __name__ == "__main__":
    main()
