"""Whether a search from plain gradient descent finds what is best where that is known.

Tasks of `benchmarks.planted`, each with the known rules that suit it. First these rules and others are tuned there, so
that what is planted is seen to be so; then evolution starts from sgd, once for each seed. What it found counts if
`dsl.identify`, on gradients of the size that it meets there, names a rule of the family with a similarity of at least
0.8, and if it does better, on fresh instances, than every tuned rule outside of the family.

    python -m benchmarks.rediscovery [--model-steps 10000000] [--seeds 10] [--first 0] [--tasks heavy_tails ...]

With `--kept FILE` the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import dsl
import tasks
from benchmarks import arms, evidence
from discover import optim
from discover.space import Space
from dsl.flatten import tidy
from dsl.identify import nearest


@dataclass(frozen=True, slots=True)
class Planted:
    """What is planted.

    Attributes:
        task: a class of `benchmarks.planted`.
        family: how the names of the rules begin that are best there.
        losses, parameters: between what factors each instance draws one for its loss, and for its parameters.
    """

    task: str
    family: tuple[str, ...]
    losses: tuple[float, float] = (1.0, 1.0)
    parameters: tuple[float, float] = (1.0, 1.0)

    def has(self, name: str) -> bool:
        """Whether a known rule is of the family, or one that a wrapper is on."""
        return any(part.startswith(self.family) for part in re.findall(r"\w+", name))


PLANTED: Mapping[str, Planted] = {
    "heavy_tails": Planted("HeavyTails", ("signsgd", "signum", "lion", "clip")),
    "ill_conditioned": Planted(
        "IllConditioned",
        ("momentum", "nesterov", "nadam", "ema_nesterov", "sgd_ll", "optimistic"),
        parameters=(0.1, 10.0),
    ),
    "sparse": Planted(
        "Sparse",
        (
            *("adagrad", "adadelta", "rmsprop", "adam", "amsgrad", "nadam", "adabelief", "laprop", "diffgrad", "adan"),
            *("am_adamw", "exadam", "mars_adamw", "onebit_adam", "schedule_free_adamw", "sophia", "spam"),
        ),
        losses=(1.0, 625.0),
        parameters=(0.1, 10.0),
    ),
}
"""The factors' middle brings a task's mean gradient to the size of the constants that programs draw, some 0.01 to 3.
Where the best family is one of steps that do not depend on the gradient's size they range far: otherwise a search fits
constants to the one size that it meets, such as |g| + 0.9 or sign(g) + 0.3 * g, and leaves the family for what is
better at that size alone. Where it is one that does not depend on the parameters' size, their unit is another each
time: the optimum is where it is, and a search learns from p how far it is away, which is not what is planted."""

ALIKE = 0.8
"""The least similarity with which a name says something."""

RATES = tuple(10.0 ** (power / 4) for power in range(-24, 13))
"""Learning rates at which a found rule is trained once more, to see what gradients it meets at the best of them."""

KNOWN: Mapping[str, Mapping[str, Sequence[float]]] = {
    "sgd": {},
    "momentum": {"momentum": (0.5, 0.8, 0.9, 0.95, 0.98)},
    "nesterov": {"momentum": (0.5, 0.8, 0.9, 0.95, 0.98)},
    "signsgd": {},
    "signum": {"momentum": (0.5, 0.8, 0.9)},
    "lion": {},
    "adagrad": {},
    "rmsprop": {"beta2": (0.9, 0.99, 0.999)},
    "adam": {"beta1": (0.0, 0.5, 0.9), "beta2": (0.9, 0.99, 0.999)},
    "adamax": {"beta1": (0.0, 0.5, 0.9), "beta2": (0.9, 0.99, 0.999)},
    "adabelief": {"beta1": (0.5, 0.9)},
}
"""Known rules, and the settings that are tried of each."""

TUNED = {"points": 25, "factor": 1.8}
"""Learning rates at which all is scored: six orders of magnitude."""

LIMITS = (-8.0, 8.0)

SPACE = """
name: rediscovery
ancestor: sgd
operators: [add, sub, mul, div, abs, sign, square, sqrt, max, min, clip, lerp]
slots: [m, v]
max_statements: 16
mutation: {{guarded: 0.5}}
evolution: {{population: 100, tournament: 3}}
proposals_per_generation: 96
require: {{odd: true, homogeneous: false, finite_at_zero: true, max_slots: 2}}
tasks: {{search: ['{task}']}}
learning_rates: {{points: 5, factor: 3.0}}
score_limits: [-6.0, 6.0]
loss_scales: {losses}
parameter_scales: {parameters}
rungs: [{{tasks: ['{task}'], steps: 1.0, seeds: 1}}]
confirm: {{every: 2, top: 4, most: 8}}
compile: always
"""


def tuned(space: Space, task: str, instances: int) -> dict[str, float]:
    """The score of each known rule at the best of its settings, best first."""
    texts = {
        rule: [
            dsl.format(dsl.load(rule).with_defaults(dict(zip(settings, values, strict=True))))
            for values in product(*settings.values())
        ]
        for rule, settings in KNOWN.items()
    }
    found = iter(score([text for mine in texts.values() for text in mine], space, task, instances))
    best = {rule: max(next(found) for _ in mine) for rule, mine in texts.items()}
    return dict(sorted(best.items(), key=lambda each: -each[1]))


def score(texts: Sequence[str], space: Space, task: str, instances: int) -> list[float]:
    return arms.scores(texts, space.changed({"learning_rates": TUNED}), [task], instances, 1000, LIMITS)


def gradients_met(program: dsl.Program, task: tasks.Task, scale: float, seed: int = 0) -> float:
    """The mean absolute gradient, of the loss times `scale`, in a training at the best of `RATES`."""
    flat, index = task.initial(seed), task.batches(seed, task.horizon)
    decay_free = program.with_defaults({"weight_decay": 0.0}) if "weight_decay" in program.defaults else program
    ends = []
    for rate in RATES:
        parameters = {name: part.clone().requires_grad_() for name, part in task.split(flat[None]).items()}
        optimizer, sizes = optim.create(decay_free, list(parameters.values())), []
        for step in range(task.horizon):
            optimizer.param_groups[0]["lr"] = rate * task.lr_ratio(step + 1)
            loss = scale * task.loss(parameters, task.gather(index[step][None])).sum()
            found = torch.autograd.grad(loss, list(parameters.values()))
            for part, grad in zip(parameters.values(), found, strict=True):
                part.grad = grad
            sizes += [grad.abs().mean().item() for grad in found]
            optimizer.step()
        end = task.validation_loss({name: part.detach() for name, part in parameters.items()}).item()
        ends.append((end if math.isfinite(end) else math.inf, math.fsum(sizes) / len(sizes)))
    return min(ends)[1]


def load(planted: Planted, task: str) -> Space:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rediscovery.yaml"
        path.write_text(SPACE.format(task=task, losses=list(planted.losses), parameters=list(planted.parameters)))
        return Space.load(str(path))


def search(space: Space, done: evidence.Evidence, *, model_steps: int, seed: int, workers: int) -> arms.Found:
    """A search from sgd, if it is not done already; what scores are made of it is cheap, and is made again."""
    arm, shares = arms.Arm("evolution", "evolution"), (1.0,)
    what = evidence.search(space, arm.algorithm, model_steps=model_steps, seed=seed, shares=shares)
    if (line := done.find(what)) is None:
        found = arms.search(space, arm, model_steps=model_steps, seed=seed, shares=shares, workers=workers)
        line = done.keep(what, arm=arm.name, seed=seed, found=asdict(found))
    return arms.Found(**line["found"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-steps", type=int, default=10_000_000, help="of each search")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--instances", type=int, default=16, help="fresh ones, to score what was found")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tasks", nargs="*", choices=PLANTED, default=list(PLANTED))
    parser.add_argument("--kept", type=Path, help="a file of what is done; the same command goes on where it was")
    asked = parser.parse_args()
    done = evidence.Evidence(asked.kept)
    torch.set_num_threads(1)
    console = Console(width=150)
    for name in asked.tasks:
        planted = PLANTED[name]
        task = f"{Path(__file__).with_name('planted.py')}:{planted.task}"
        space = load(planted, task)
        known = tuned(space, task, asked.instances)
        bar = max(value for rule, value in known.items() if not planted.has(rule))
        console.print(f"{name}: {', '.join(f'{rule} {value:+.2f}' for rule, value in known.items())}", highlight=False)
        table = Table("seed", "score", "nearest known rule", "found", "trained", "seconds", "counts")
        hits = 0
        for seed in range(asked.first, asked.first + asked.seeds):
            found = search(space, done, model_steps=asked.model_steps, seed=seed, workers=asked.workers)
            (text,) = found.incumbents
            spent = (str(found.trained), f"{found.seconds:.0f}")
            if text is None:
                table.add_row(str(seed), "none", "", "", *spent, "no")
                continue
            (value,) = score([text], space, task, asked.instances)
            program = dsl.parse(text)
            match = nearest(program, gradients_met(program, tasks.load(task), math.sqrt(math.prod(planted.losses))))
            hit = planted.has(match.name) and match.similarity >= ALIKE and value > bar
            hits += hit
            body = "; ".join(dsl.format(tidy(program)).splitlines()[1:])
            shown = " ".join(body.split())
            table.add_row(str(seed), f"{value:+.2f}", str(match), shown, *spent, "yes" if hit else "no")
            console.print(f"seed {seed}: {value:+.2f}, {match}: {shown}", highlight=False)
        console.print(table)
        console.print(
            f"{name}: {hits} of {asked.seeds} are of the family ({', '.join(planted.family)}) and above {bar:+.2f}, the"
            " best tuned rule outside of it",
            highlight=False,
        )
    for line in done.said():
        console.print(line, highlight=False)


if __name__ == "__main__":
    main()
