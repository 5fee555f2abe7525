"""What commands share: options, and what they mean."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from discover.errors import UserError

if TYPE_CHECKING:
    from discover.budget import Budget
    from discover.workshop import Staff


class Control(StrEnum):
    random = "random"
    hyperparameters = "hyperparameters"
    best_of_n = "best_of_n"


class Compile(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


class Prune(StrEnum):
    none = "none"
    median = "median"
    hyperband = "hyperband"
    wilcoxon = "wilcoxon"


class Kind(StrEnum):
    rules = "rules"
    tasks = "tasks"
    spaces = "spaces"
    runs = "runs"


RULE_HELP = (
    "A rule's name, a .rule file, RUN@K (rank K of a run), a composition such as 'ema_nesterov(adamw)'; each with"
    " settings if need be, 'muon(adam_lr_ratio=1)'."
)
Json = Annotated[bool, Option("--json", help="Print JSON on stdout, and nothing else there.")]
RuleArgument = Annotated[str, Argument(metavar="RULE", help=RULE_HELP)]
RunArgument = Annotated[
    str, Argument(metavar="RUN", help="A run's folder, its name or the beginning of it, or 'last'.")
]
Candidates = Annotated[int | None, Option(min=1, metavar="N", help="Stop when so many candidates have been trained.")]
Time = Annotated[str | None, Option(metavar="DURATION", help="Stop after this time: 90s, 10m, 2h, 1h30m.")]
ModelSteps = Annotated[int | None, Option(min=1, metavar="N", help="Stop after so many training steps of one model.")]
Target = Annotated[
    float | None,
    Option(
        metavar="FITNESS",
        help="Stop when a candidate's confirmed fitness, discounted for few scores, reaches this.",
    ),
]
Plateau = Annotated[
    int | None,
    Option(min=1, metavar="N", help="Stop after this many candidates without a better confirmed one."),
]
Workers = Annotated[
    int | None,
    Option(
        min=0,
        metavar="N",
        help="Ray workers; 0 trains in this process; by default one for each CPU, or all that the cluster"
        " has room for.",
        show_default=False,
    ),
]
RayAddress = Annotated[
    str | None, Option(metavar="ADDRESS", help="The Ray cluster to use: HOST:PORT, or 'auto' on one of its machines.")
]
Pruner = Annotated[
    Prune,
    Option(
        metavar="PRUNER",
        help="Drop trials before their end: none; median, those worse than most at a quarter or half of it; hyperband,"
        " all but a third at a ninth and a third of it; wilcoxon, those worse by a test over tuning seeds (5 or more).",
    ),
]
RuntimeEnv = Annotated[
    Path | None,
    Option(
        metavar="FILE.yaml",
        help="How the cluster's workers get the code, as Ray's runtime_env; by default this installation is shipped.",
        show_default=False,
    ),
]


def environment_of(path: Path | None, ray_address: str | None, workers: int | None) -> dict[str, Any] | None:
    """How the cluster's workers get the code. Raises UserError where what is said of workers contradicts itself."""
    if ray_address is not None and workers == 0:
        raise UserError("--workers 0 trains in this process, --ray-address on a cluster; give one of the two")
    if path is None:
        return None
    if ray_address is None:
        raise UserError("--runtime-env is for the workers of a cluster; give its --ray-address too")
    from discover.environment import read_environment

    return read_environment(path)


def staff_of(workers: int | None, ray_address: str | None, runtime_env: Path | None) -> Staff:
    """Who trains, with the defaults of a search."""
    from discover.workshop import Staff

    environment = environment_of(runtime_env, ray_address, workers)
    count = len(os.sched_getaffinity(0)) if workers is None and ray_address is None else workers
    return Staff(count, ray_address, environment)


def budget_of(
    time: str | None, candidates: int | None, model_steps: int | None, target: float | None, plateau: int | None
) -> Budget:
    """When a search ends. Raises UserError for a time that is none, or a target that is not finite."""
    from discover.budget import Budget
    from discover.durations import parse_duration

    if time is not None:
        parse_duration(time)
    if target is not None and not math.isfinite(target):
        raise UserError(f"--target {target} is not a fitness; give a number")
    return Budget(time=time, candidates=candidates, model_steps=model_steps, target=target, plateau=plateau)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> dict[str, Any]:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)
