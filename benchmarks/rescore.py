"""What is left of a run's first places on instances that the run never saw, beside known optimizers.

Trains the first places of a run's leaderboard, and some known rules, on fresh instances of every task of its search
and select sets, each at the learning rates of the search and read off at the interpolated best one, AdamW
beside them. Prints for each rule and task the mean score, log(AdamW's loss / its own), over the instances, and over the
search tasks the weighted mean with its standard error. Nothing is chosen by these numbers, so nothing flatters them.

    python -m benchmarks.rescore RUN [--top 5] [--instances 16] [--rules lion nadam ...]
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from numpy.random import default_rng
from rich.console import Console
from rich.table import Table

import dsl
import tasks
from discover import native, runs
from discover.archive import Archive
from discover.evaluate import Entry, Grid, Unit, draw_instance, evaluate, interpolated_best, score
from discover.manifest import read_manifest
from dsl import Program, properties

STREAM = 2
"""Of the run's seed; the search draws its proposals and instances from 0 and 1."""

LIMITS = (-2.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--instances", type=int, default=16)
    parser.add_argument("--rules", nargs="*", default=["nadam", "adabelief", "momentum", "lion", "signum"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = runs.find(asked.run)
    configuration = read_manifest(folder).configuration
    space = configuration.space
    with Archive.read(folder / runs.ARCHIVE) as archive:
        places = archive.leaderboard(asked.top)
    rules: dict[str, Program] = {"adamw": dsl.load("adamw")}
    rules |= {f"rank {each.rank}": dsl.parse(each.candidate.text) for each in places}
    rules |= {name: dsl.load(name) for name in asked.rules}
    facts = {name: properties.of(program) for name, program in rules.items()}
    unit_scale = facts["adamw"].scale
    entries = tuple(
        Entry(index, dsl.format(rules[name]), facts[name].scale / unit_scale, facts[name].degree or 0.0)
        for index, name in enumerate(rules)
    )
    grid = Grid(space.learning_rates.points, space.learning_rates.factor)
    rng = default_rng([configuration.seed, STREAM])
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in rules}
    for task in (*space.tasks.search, *space.tasks.select):
        for _ in range(asked.instances):
            horizon = tasks.load(task).horizon
            instance = draw_instance(
                task,
                horizon,
                space.loss_scales,
                space.parameter_scales,
                rng,
                tensor_scales=space.tensor_scales,
                batch_scales=space.batch_scales,
            )
            unit = Unit(instance, entries, grid, unit_scale, space.weight_decay, True, native.available())
            best = [interpolated_best(o.learning_rates, o.losses) for o in evaluate(unit).outcomes]
            reference = best[0]
            if reference is None:
                continue
            for name, own in zip(rules, best, strict=True):
                value = score(own[1], reference[1], LIMITS) if own else LIMITS[0]
                scores[name].setdefault(task, []).append(value)
    table = Table("rule", "weighted mean", *space.tasks.search, *(f"({task})" for task in space.tasks.select))
    total = math.fsum(space.weights.get(task, 1.0) for task in space.tasks.search)
    for name, by_task in scores.items():
        means = {task: statistics.mean(values) for task, values in by_task.items()}
        errors = {task: statistics.stdev(values) / math.sqrt(len(values)) for task, values in by_task.items()}
        shares = {task: space.weights.get(task, 1.0) / total for task in space.tasks.search}
        mean = math.fsum(share * means[task] for task, share in shares.items())
        error = math.sqrt(math.fsum((share * errors[task]) ** 2 for task, share in shares.items()))
        cells = (f"{means[task]:+.3f} ±{errors[task]:.3f}" for task in by_task)
        table.add_row(name, f"{mean:+.4f} ±{error:.4f}", *cells)
    console = Console(width=170)
    console.print(table)
    for each in places:
        console.print(f"rank {each.rank}, {runs.fitness_in_words(each)}", highlight=False)
        console.print(dsl.format(dsl.tidy(dsl.parse(each.candidate.text))), highlight=False, markup=False)


if __name__ == "__main__":
    main()
