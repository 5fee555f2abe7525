"""Commands that tune and compare: reference, compare, calibrate, promote, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from discover.cli_options import RULE_HELP, Json, Prune, Pruner, RayAddress, RunArgument, RuntimeEnv, Workers, staff_of


def reference(
    task: Annotated[
        list[str] | None,
        Argument(metavar="TASK", help="Built-in names, or FILE.py:NAME; by default all built-in ones."),
    ] = None,
    trials: Annotated[
        int | None,
        Option(metavar="N", help="Settings in the first grid, learning rates times 3 weight decays; by default 27."),
    ] = None,
    tuning_seeds: Annotated[int | None, Option(metavar="N", help="Seeds to tune on; by default 16.")] = None,
    seeds: Annotated[
        int | None, Option(metavar="N", help="Fresh seeds to score the best setting on; by default 32.")
    ] = None,
    device: Annotated[str, Option(metavar="DEVICE", help="Where to train, as torch names it.")] = "cpu",
    out: Annotated[
        Path | None,
        Option(metavar="FILE", help="Where to store; by default with the package, and a task of your own nowhere."),
    ] = None,
    json: Json = False,
) -> None:
    """Tune AdamW on tasks, and store what it reaches on fresh seeds as their reference."""
    from discover.reference import GridBudget, run

    asked = {"trials": trials, "tuning_seeds": tuning_seeds, "fresh_seeds": seeds}
    budget = GridBudget(**{name: value for name, value in asked.items() if value is not None})
    run(task or (), budget, device=device, out=out, as_json=json)


def compare(
    rule: Annotated[
        list[str],
        Argument(metavar="RULE...", help=f"{RULE_HELP} Or an optimizer class: module:Class, or FILE.py:Class."),
    ],
    task: Annotated[
        list[str] | None,
        Option(
            metavar="TASK",
            help="Compare on this task (a name or FILE.py:NAME, both with (OPTION=VALUE, ...)); may be repeated. By"
            " default on four that take seconds.",
        ),
    ] = None,
    trials: Annotated[int | None, Option(metavar="N", help="Settings that each tuning tries; by default 20.")] = None,
    seeds: Annotated[
        int | None, Option(metavar="N", help="Fresh seeds on each task, for all tunings together; by default 24.")
    ] = None,
    tunings: Annotated[
        int | None,
        Option(metavar="N", help="How often each rule is tuned, so that the luck of tuning is seen; by default 6."),
    ] = None,
    tuning_seeds: Annotated[
        int | None, Option(metavar="N", help="Seeds that each setting is tried on; by default 2.")
    ] = None,
    steps: Annotated[
        int | None, Option(metavar="N", help="Steps of each training; by default each task's horizon.")
    ] = None,
    baseline: Annotated[
        str | None, Option(metavar="RULE", help="What the others are compared with; by default adamw.")
    ] = None,
    target: Annotated[
        float | None,
        Option(metavar="LOSS", help="Show how many steps each rule needs to this held-out loss.", show_default=False),
    ] = None,
    tune_all: Annotated[
        bool, Option("--tune-all", help="Tune all hyperparameters, not lr and weight decay alone.")
    ] = False,
    prune: Pruner = Prune.none,
    storage: Annotated[
        str | None, Option(metavar="URL", help="Optuna storage of the studies; by default a file of the user's.")
    ] = None,
    device: Annotated[str, Option(metavar="DEVICE", help="Where to train, as torch names it.")] = "cpu",
    seed: Annotated[int, Option(min=0, metavar="N", help="The same seed gives the same comparison.")] = 0,
    out: Annotated[
        Path | None,
        Option(metavar="DIR", help="Folder for compare.json and compare.png; by default runs/compare-TIME."),
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    runtime_env: RuntimeEnv = None,
    json: Json = False,
) -> None:
    """Compare rules fairly: all tuned with one budget, scored on fresh seeds, with intervals."""
    from discover.compare import Options, run

    asked = {"trials": trials, "seeds": seeds, "tunings": tunings, "tuning_seeds": tuning_seeds}
    given = {name: value for name, value in asked.items() if value is not None}
    options = Options(**given, steps=steps, seed=seed, own=tune_all, pruner=prune.value, device=device, target=target)
    command = ["discover", *sys.argv[1:]]
    staff = staff_of(workers, ray_address, runtime_env)
    run(
        *(rule, task or (), options),
        baseline=baseline,
        storage=storage,
        staff=staff,
        out=out,
        as_json=json,
        command=command,
    )


def calibrate(
    space: Annotated[str, Option(metavar="NAME_OR_YAML", help="The search space: a name, or a YAML file.")],
    trials: Annotated[int | None, Option(metavar="N", help="Settings that each tuning tries; by default 12.")] = None,
    seeds: Annotated[
        int | None,
        Option(metavar="N", help="Fresh seeds on each task, for all four tunings of a rule together; by default 8."),
    ] = None,
    prune: Pruner = Prune.none,
    storage: Annotated[
        str | None, Option(metavar="URL", help="Optuna storage of the studies; by default a file of the user's.")
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    runtime_env: RuntimeEnv = None,
    json: Json = False,
) -> None:
    """Measure how far a space's proxies can be trusted: do they order known rules as its select tasks do?"""
    from discover.calibrate import Options, run

    asked = {"trials": trials, "seeds": seeds}
    options = Options(**{name: value for name, value in asked.items() if value is not None}, pruner=prune.value)
    staff = staff_of(workers, ray_address, runtime_env)
    run(space, options, storage=storage, staff=staff, as_json=json, command=["discover", *sys.argv[1:]])


def promote(
    run: RunArgument,
    task: Annotated[
        list[str] | None,
        Option(
            metavar="TASK",
            help="One more rung on this task (a name or FILE.py:NAME, both with (OPTION=VALUE, ...)), after those of"
            " the space and as large as the last of them; may be repeated.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        Option(
            min=1,
            metavar="N",
            help="How many candidates take part; by default as many as the space says.",
            show_default=False,
        ),
    ] = None,
    prune: Annotated[
        Prune | None,
        Option(
            metavar="PRUNER",
            help="How trials are dropped before their end: none, median, hyperband or wilcoxon, as in 'discover compare"
            " --help'; by default as the space says.",
            show_default=False,
        ),
    ] = None,
    space: Annotated[
        str | None,
        Option(
            metavar="NAME|FILE.yaml",
            help="A space whose promote section, select and final tasks to go by; by default the run's own.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        str | None, Option(metavar="URL", help="Optuna storage of the studies; by default a file of the user's.")
    ] = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    runtime_env: RuntimeEnv = None,
    json: Json = False,
) -> None:
    """Promote the best of a run: tune, compare on select tasks, simplify, touch the final tasks once, certify."""
    from discover.promote import run as carry_out

    staff = staff_of(workers, ray_address, runtime_env)
    carry_out(
        run,
        top=top,
        pruner=None if prune is None else prune.value,
        by=space,
        own_tasks=task or (),
        storage=storage,
        staff=staff,
        as_json=json,
        given={
            "storage": storage,
            "workers": workers,
            "ray-address": ray_address,
            "runtime-env": None if runtime_env is None else str(runtime_env.absolute()),
        },
    )


def verify(
    certificate: Annotated[
        str,
        Argument(
            metavar="RUN_OR_FILE",
            help="A run that was promoted: its folder, name, or the beginning of it, or 'last'. Or a certificate.json.",
        ),
    ],
    sample: Annotated[
        int | None,
        Option(min=1, metavar="N", help="How many runs to train again; by default all.", show_default=False),
    ] = None,
    tune: Annotated[int, Option(min=0, metavar="N", help="How many tunings to do again, with all their trials.")] = 3,
    seed: Annotated[int, Option(min=0, metavar="N", help="Draws which runs and tunings.")] = 0,
    workers: Workers = None,
    ray_address: RayAddress = None,
    runtime_env: RuntimeEnv = None,
    json: Json = False,
) -> None:
    """Check a certificate: recompute it, train its runs again, say whether it holds.

    Exit code 0 if it holds, 1 if not, 2 if it cannot be checked, 130 if stopped.
    """
    from discover.verify import run as check

    staff = staff_of(workers, ray_address, runtime_env)
    if code := check(certificate, sample=sample, tune=tune, seed=seed, staff=staff, as_json=json):
        raise Exit(code)
