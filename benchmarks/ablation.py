"""What each part of the search is worth: the search as the space has it, without a part, or with one that it has not.

Parts of it: the cache, hurdles, confirmed candidates that join anew. Not in it: what has been published for evolution
beside (`benchmarks.devices`, `benchmarks.crossover`, `benchmarks.drift`), guarded quotients; and what is drawn for a
task's instances: lengths, scales of single tensors, batch sizes, and, which are on, scales of loss and parameters. The
scores are on select tasks with these two scales and no other, so what an arm of these gains is transfer. "dead
statements" has neutral drift too, and is to be compared with that arm. What shows no gain here leaves the engine, but
for the cache, without which half of what is trained is trained again.

    python -m benchmarks.ablation [--space lion_like] [--model-steps 20000000] [--seeds 5] [--arms "no cache" ...]

Hours of work; with `--kept FILE`, which may be that of `benchmarks.controls`, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import arms
from discover.space import Space


def parts(space: Space) -> dict[str, arms.Arm]:
    rungs = [rung.model_dump() for rung in space.rungs]
    every = [
        arms.Arm("as it is"),
        arms.Arm("no cache", changes={"cache": False}),
        arms.Arm("no hurdles", changes={"rungs": [{**rung, "keep": 1.0} for rung in rungs]}),
        arms.Arm("none rejoin", changes={"evolution": {"rejoin": False}}),
        _own("4 islands", "devices.py:Islands", islands=4, migrate_every=200, migrants=2),
        _own("restarts", "devices.py:Restarts", restart_after=3000),  # of some 20,000 that join in 10M model steps
        _own("tuned elites", "devices.py:TunedElites", share=0.1, top=4),
        _own("neutral drift", "devices.py:NeutralDrift"),
        _own("dead statements", "drift.py:Drift"),
        _own("crossover", "crossover.py:Crossover"),
        arms.Arm("guarded quotients", changes={"mutation": {"guarded": 0.5}}),
        arms.Arm("random lengths", changes={"step_scales": (0.5, 2.0)}),
        arms.Arm("tensor scales", changes={"tensor_scales": (0.1, 10.0)}),
        arms.Arm("batch sizes", changes={"batch_scales": (0.25, 4.0)}),
        arms.Arm("no scales", changes={"loss_scales": (1.0, 1.0), "parameter_scales": (1.0, 1.0)}),
    ]
    return {arm.name: arm for arm in every}


def _own(name: str, proposer: str, **settings: float) -> arms.Arm:
    """An arm whose proposer stands beside this module."""
    return arms.Arm(name, algorithm=str(Path(__file__).with_name(proposer)), changes={"proposer": settings})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="lion_like")
    parser.add_argument("--model-steps", type=int, default=20_000_000, help="of each search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--instances", type=int, default=8, help="of each select task")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="a file of what is done; the same command goes on where it was")
    parser.add_argument("--arms", nargs="*", help="these alone; by default all")
    asked = parser.parse_args()
    space = Space.load(asked.space)
    known = parts(space)
    if unknown := sorted({*(asked.arms or ())} - set(known)):
        parser.error(f"unknown arm '{unknown[0]}'; there are {', '.join(known)}")
    arms.run(
        "ablation",
        space,
        [known[name] for name in asked.arms or known],
        model_steps=asked.model_steps,
        seeds=asked.seeds,
        instances=asked.instances,
        workers=asked.workers,
        kept=asked.kept,
    )


if __name__ == "__main__":
    main()
