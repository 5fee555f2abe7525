"""What pruners save, and what they cost: `python -m benchmarks.pruners [--tunings 12] [--seed 0]`.

AdamW and SGD with momentum are tuned several times on small tasks, with each pruner and without any, on the same seeds
and the same first settings; each tuning's best setting is scored on fresh seeds. Shown are the steps of the trials,
relative to those without a pruner, and how much worse the scores are, with the standard error over tunings. Wilcoxon's
pruner, which needs tuning seeds, is compared with none on as many.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

import tasks
from discover.contenders import contender
from discover.pruners import Pruner
from discover.storage import Store
from discover.studies import TuningBudget
from discover.trainers import Ground
from discover.tuning import tune
from discover.verdict import log_losses

TASKS = ("digits_mlp", "digits_spikes", "diabetes_regression", "bytes_mlp")
RULES = ("adamw", "momentum")
TRIALS, FRESH = 20, 8
SETTINGS: dict[int, tuple[Pruner, ...]] = {2: ("none", "median", "hyperband"), 6: ("none", "wilcoxon")}
"""Tuning seeds -> pruners."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tunings", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    studies = range(100 * options.seed, 100 * options.seed + options.tunings)
    rows: dict[str, list[tuple[float, np.ndarray]]] = {}
    for task in TASKS:
        ground = Ground(tasks.load(task))
        for rule in RULES:
            for seeds, pruners in SETTINGS.items():
                for pruner in pruners:
                    budget = TuningBudget(TRIALS, seeds, FRESH, pruner=pruner)
                    found = tune(contender(rule), ground, budget, studies, Store(None))
                    steps = sum(each.model_steps - FRESH * ground.steps for each in found)
                    logs = log_losses(found).mean(axis=1)
                    if pruner == "none":
                        full, reference = steps, logs
                    part, gap = steps / full, logs - reference
                    rows.setdefault(f"{pruner}, {seeds} tuning seeds", []).append((part, gap))
                    print(f"{task}: {rule}, {pruner}, {seeds} seeds: {part:.2f} of the steps, {gap.mean():+.4f} nats")
    for name, some in rows.items():
        gaps = np.mean([gap for _, gap in some], axis=0)
        shown = {
            "pruner": name,
            "steps": round(float(np.mean([part for part, _ in some])), 3),
            "nats worse": round(float(gaps.mean()), 4),
            "standard error": round(float(gaps.std(ddof=1) / len(gaps) ** 0.5), 4),
        }
        print(json.dumps(shown))


if __name__ == "__main__":
    main()
