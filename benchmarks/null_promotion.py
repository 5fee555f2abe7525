"""How often promotion is fooled: rules that are AdamW in disguise, promoted against AdamW.

    python -m benchmarks.null_promotion --candidates 40

Disguises: statements in another order, operators written out (g * g, m + w * (g - m), bias correction by hand), eps
up to ten times larger or smaller, rates up to a fifth larger or smaller; then constants are lifted and tuned, as those
of AdamW are. None is better than AdamW, so each that passes is a mistake, and any mistake at all may happen in a share
`error_rate` of such contests. For comparison: how many would be called better by a t-test over the fresh seeds of one
tuning, and over those of all tunings, as if seeds were independent.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

import dsl
from discover import named_tasks, statistics
from discover.contenders import RuleContender, contender
from discover.contest import ContestTerms, hold, wins
from discover.keeper import Keeper
from discover.manifest import versions
from discover.promotion_keys import least_tunings
from discover.storage import Store
from discover.verdict import log_losses
from discover.workshop import Workshop
from dsl import Program
from dsl.lift import lift

FORMS_M = ("lerp(m, g, {w})", "m + {w} * (g - m)", "(1 - {w}) * m + {w} * g")
FORMS_V = ("lerp(v, square(g), {w})", "lerp(v, g * g, {w})", "v + {w} * (square(g) - v)")
FORMS_STEP = (
    "debias(m, {b1}) / (sqrt(debias(v, {b2})) + {eps})",
    "m / (1 - {b1} ** t) / (sqrt(v / (1 - {b2} ** t)) + {eps})",
    "debias(m, {b1}) / (sqrt(debias(v, {b2}) + {eps2}) + {eps})",
)
FORMS_DECAY = ("p = p * (1 - lr * weight_decay)", "p = p - lr * weight_decay * p")


def disguised(number: int, rng: np.random.Generator) -> Program:
    """AdamW as nobody would recognise it by its text."""
    w1, w2 = 0.1 * 1.2 ** rng.uniform(-1, 1), 0.001 * 1.2 ** rng.uniform(-1, 1)
    eps = 1e-8 * 10 ** rng.uniform(-1, 1)
    w1, w2 = round(w1, 6), round(w2, 8)
    values = {"b1": f"{1 - w1:.6g}", "b2": f"{1 - w2:.8g}", "eps": f"{eps:.3g}", "eps2": f"{eps**2:.3g}"}
    moments = [f"m = {str(rng.choice(FORMS_M)).format(w=w1)}", f"v = {str(rng.choice(FORMS_V)).format(w=w2)}"]
    rng.shuffle(moments)
    lines = [*moments, f"u = {str(rng.choice(FORMS_STEP)).format(**values)}"]
    decay = str(rng.choice(FORMS_DECAY))
    lines.insert(int(rng.integers(0, 4)), decay)
    body = "\n".join(f"    {line}" for line in [*lines, "p = p - lr * u"])
    text = f"def disguise_{number}(p, g, m: zeros, v: zeros, *, lr=0.001, weight_decay=0.01):\n{body}\n"
    return dsl.check(lift(dsl.parse(text)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--task", action="append", help="may be repeated; by default two small ones")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--fresh", type=int, default=4)
    parser.add_argument("--most", type=int, default=20, help="tunings")
    parser.add_argument("--error-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", help="an Optuna storage; by default nothing is kept")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(asked.seed)
    candidates = [RuleContender(f"disguise_{n}", disguised(n, rng)) for n in range(asked.candidates)]
    names = asked.task or ["diabetes_regression", "breast_cancer"]
    terms = ContestTerms(
        name="null",
        tasks={named_tasks.load(name).spelling: asked.steps for name in names},
        trials=asked.trials,
        tuning_seeds=1,
        fresh=asked.fresh,
        least=least_tunings(asked.error_rate, asked.candidates),
        most=asked.most,
        error_rate=asked.error_rate,
        own=True,
        first=100 * asked.seed,
    )
    began = time.perf_counter()
    store = Store(asked.storage)
    contest = hold(terms, candidates, [contender("adamw")], Workshop(store, Keeper(store.folder), say=print))
    store.close()
    p = contest.p
    one, every = 0, 0
    for name in contest.candidates:
        gaps = np.mean(
            [log_losses(row[name]) - log_losses(row["adamw"][: len(row[name])]) for row in contest.results.values()],
            axis=0,
        )
        one += int(statistics.paired_test(gaps[0]) <= 2 * asked.error_rate and gaps[0].mean() < 0)
        every += int(statistics.paired_test(gaps.ravel()) <= 2 * asked.error_rate and gaps.mean() < 0)
    found = {
        "promoted": len(contest.passed),
        "candidates": len(p),
        "error_rate": asked.error_rate,
        "alone": sum(value <= asked.error_rate for value in p.values()),
        "smallest_p": min(p.values()),
        "tunings_won": round(float(np.mean([each for name in p for each in wins(contest.results, name, "adamw")])), 3),
        "by_seeds_of_one_tuning": one,
        "by_seeds_of_all_tunings": every,
        "terms": {"tasks": dict(terms.tasks), "trials": terms.trials, "fresh": terms.fresh, "seed": asked.seed},
        "tunings": [terms.least, terms.most],
        "model_steps": contest.model_steps,
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
