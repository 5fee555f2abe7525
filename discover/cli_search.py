"""`discover search` and `discover resume`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from typer import Context, Option

from discover.cli_options import (
    Candidates,
    Compile,
    Control,
    Json,
    ModelSteps,
    Plateau,
    RayAddress,
    RunArgument,
    RuntimeEnv,
    Target,
    Time,
    Workers,
    budget_of,
    environment_of,
)
from discover.errors import HaltedError, UserError


def search(
    context: Context,
    space: Annotated[str, Option(metavar="NAME_OR_YAML", help="The search space: a name, or a YAML file.")],
    algorithm: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="How to propose: evolution, optuna, random, another that is installed, or FILE.py:NAME; by default as"
            " the space says.",
            show_default=False,
        ),
    ] = None,
    control: Annotated[
        Control | None,
        Option(
            metavar="NAME",
            help="Run a baseline search instead: random, hyperparameters or best_of_n; a useful algorithm must beat"
            " it.",
        ),
    ] = None,
    control_compute: Annotated[
        float | None,
        Option(
            min=0,
            metavar="X",
            help="Multiply the control's time, candidates and model steps by this; by default 1.",
            show_default=False,
        ),
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        Option(metavar="RULE", help="Start from this rule, not from the space's ancestor; may be repeated."),
    ] = None,
    candidates: Candidates = None,
    time: Time = None,
    model_steps: ModelSteps = None,
    target: Target = None,
    plateau: Plateau = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    runtime_env: RuntimeEnv = None,
    task: Annotated[
        list[str] | None,
        Option(
            metavar="TASK",
            help="Search on this task (a name or FILE.py:NAME, both with (OPTION=VALUE, ...)); may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, Option(min=0, metavar="N", help="The same seed gives the same search.")] = 0,
    compile: Annotated[
        Compile | None, Option(help="Whether gradients are compiled; by default as the space says.")
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="The run's folder; by default runs/SPACE-TIME-sSEED.")
    ] = None,
    json: Json = False,
) -> None:
    """Search for update rules, until the first of the limits is reached; without one, the space's own budget holds."""
    budget = budget_of(time, candidates, model_steps, target, plateau)
    if control is not None and algorithm is not None:
        raise UserError("--control and --algorithm exclude each other")
    if control is None and control_compute is not None:
        raise UserError("--control-compute is for a control; give --control too")
    if control_compute is not None and not 0 < control_compute < math.inf:
        raise UserError("--control-compute must be more than 0, and finite")
    with _beginning():
        from discover import calibration, runs, session
        from discover.watch import watch

        configuration = session.configure(
            space,
            algorithm=algorithm,
            seed=seed,
            budget=budget,
            control=control,
            control_compute=control_compute or 1.0,
            warm_start=warm_start or (),
            workers=workers,
            ray_address=ray_address,
            runtime_env=environment_of(runtime_env, ray_address, workers),
            compile=compile,
            own_tasks=task or (),
        )
        for line in session.left_out(space, configuration):
            print(line, file=sys.stderr if json else sys.stdout)
        if trust := calibration.line(space, configuration.space):
            print(trust, file=sys.stderr if json else sys.stdout)
    with runs.create(configuration, out=out, command=_again(context)) as run:
        try:
            watch(run, json)
        except UserError:  # no Ray cluster there, say
            run.remove_if_empty()
            raise


def resume(
    context: Context,
    run: RunArgument,
    candidates: Candidates = None,
    time: Time = None,
    model_steps: ModelSteps = None,
    target: Target = None,
    plateau: Plateau = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    runtime_env: RuntimeEnv = None,
    json: Json = False,
) -> None:
    """Go on with a search where it stopped: to the end of its budget, or with a new one.

    --time counts this session, the other limits all sessions together. Any limit given replaces the whole budget.
    """
    budget = budget_of(time, candidates, model_steps, target, plateau)
    with _beginning():
        from discover import runs
        from discover.watch import watch

        environment = environment_of(runtime_env, ray_address, workers)
        folder = runs.find(run)
        opened = runs.resume(
            str(folder),
            budget=budget,
            workers=workers,
            ray_address=ray_address,
            runtime_env=environment,
            command=_again(context, run=folder),
        )
    with opened as resumed:
        watch(resumed, json)


def _again(context: Context, **instead: Path) -> list[str]:
    """The command that is carried out, as it can be given again in any folder: files by their absolute paths.

    Args:
        instead: values of parameters in place of those that were typed.
    """
    words = ["discover", str(context.info_name)]
    for parameter in context.command.params:
        option = [parameter.opts[0]] if parameter.param_type_name == "option" else []
        value = (context.params | instead)[str(parameter.name)]
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is True:
                words += option
            elif each is not None and each is not False:
                words += [*option, _anywhere(each)]
    return words


def _anywhere(value: object) -> str:
    from discover.own_files import anchored

    text = str(value)
    if isinstance(value, Path) or text.endswith((".yaml", ".yml")):
        return str(Path(text).absolute())
    return str(anchored(text, Path.cwd()))


@contextmanager
def _beginning() -> Iterator[None]:
    """While nothing is searched yet, Ctrl-C ends the command at once, and says that there is nothing to lose."""
    try:
        yield
    except KeyboardInterrupt:
        raise HaltedError("stopped before the search began; nothing is lost") from None
