"""The command line. A user's mistake is one line on stderr and exit code 2; anything else that goes wrong is a bug, and
shows as one.

What a command needs is imported when it runs, so that help and lists do not wait for torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Exit, Option

from discover.errors import UserError

if TYPE_CHECKING:
    from dsl.program import Program

app = typer.Typer(
    name="discover",
    help="Discovers optimizer update rules for deep learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


class Kind(StrEnum):
    rules = "rules"
    tasks = "tasks"
    spaces = "spaces"
    runs = "runs"


RULE_HELP = "A rule's name, a .rule file, a composition such as 'ema_nesterov(adamw)', or RUN@K (rank K of a run)."
Json = Annotated[bool, Option("--json", help="Print JSON on stdout, and nothing else there.")]
RuleArgument = Annotated[str, Argument(metavar="RULE", help=RULE_HELP)]
RunArgument = Annotated[
    str, Argument(metavar="RUN", help="A run's folder, its name or the beginning of it, or 'last'.")
]
Candidates = Annotated[int | None, Option(min=1, help="Stop when so many candidates have been trained.")]
Time = Annotated[str | None, Option(metavar="DURATION", help="Stop after this time: 90s, 10m, 2h, 1h30m.")]
ModelSteps = Annotated[int | None, Option(min=1, help="Stop after so many training steps of one model.")]
Target = Annotated[float | None, Option(help="Stop when fresh scores let one believe this fitness of a candidate.")]
Plateau = Annotated[int | None, Option(min=1, help="Stop when the best is not bettered by so many candidates.")]
Workers = Annotated[
    int | None,
    Option(
        min=0,
        help="Ray workers; 0 trains in this process. [default: one for each CPU, or all that the cluster has room for]",
        show_default=False,
    ),
]
RayAddress = Annotated[str | None, Option(metavar="ADDRESS", help="Of a Ray cluster to use, or 'auto'.")]
RuntimeEnv = Annotated[
    Path | None,
    Option(
        metavar="FILE.yaml",
        help="How the cluster's workers get the code, as Ray's runtime_env. [default: this installation is shipped]",
        show_default=False,
    ),
]


# Searching ----------------------------------------------------------------------------------------------------------


@app.command()
def search(
    space: Annotated[str, Option(metavar="NAME_OR_YAML", help="The search space: a name, or a YAML file.")],
    algorithm: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="How to propose: evolution, optuna, random, another that is installed, or FILE.py:NAME."
            " [default: the space's]",
            show_default=False,
        ),
    ] = None,
    control: Annotated[
        Control | None, Option(help="Run this control in place of the algorithm, which must beat it.")
    ] = None,
    control_compute: Annotated[
        float | None, Option(min=0, help="Give the control so many times the budget. [default: 1]", show_default=False)
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
    seed: Annotated[int, Option(min=0, help="The same seed gives the same search.")] = 0,
    compile: Annotated[Compile | None, Option(help="Whether gradients are compiled. [default: the space's]")] = None,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="The run's folder. [default: runs/SPACE-TIME-sSEED]")
    ] = None,
    json: Json = False,
) -> None:
    """Search for update rules, until the first of the limits is reached; without one, the space's own budget holds."""
    seconds = _seconds(time)
    if control is not None and algorithm is not None:
        raise UserError("--control and --algorithm exclude each other")
    if control is None and control_compute is not None:
        raise UserError("--control-compute is for a control; give --control too")
    if control_compute == 0:
        raise UserError("--control-compute must be more than 0")
    from discover import calibration, runs, session
    from discover.watch import watch

    configuration = session.configure(
        space,
        algorithm=algorithm,
        seed=seed,
        candidates=candidates,
        seconds=seconds,
        model_steps=model_steps,
        target=target,
        plateau=plateau,
        control=control,
        control_compute=control_compute or 1.0,
        warm_start=warm_start or (),
        workers=workers,
        ray_address=ray_address,
        runtime_env=_runtime_env(runtime_env, ray_address),
        compile=compile,
        own_tasks=task or (),
    )
    if trust := calibration.line(space, configuration.space):
        print(trust, file=sys.stderr if json else sys.stdout)
    with runs.create(configuration, out=out, command=["discover", *sys.argv[1:]]) as run:
        try:
            watch(run, json)
        except UserError:  # no Ray cluster there, say
            run.remove_if_empty()
            raise


@app.command()
def resume(
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
    seconds = _seconds(time)
    from discover import runs
    from discover.watch import watch

    with runs.resume(
        run,
        candidates=candidates,
        seconds=seconds,
        model_steps=model_steps,
        target=target,
        plateau=plateau,
        workers=workers,
        ray_address=ray_address,
        runtime_env=_runtime_env(runtime_env, ray_address),
    ) as resumed:
        watch(resumed, json)


def _runtime_env(path: Path | None, ray_address: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    if ray_address is None:
        raise UserError("--runtime-env is for the workers of a cluster; give its --ray-address too")
    from discover.environment import read_environment

    return read_environment(path)


def _seconds(time: str | None) -> float | None:
    from discover.durations import parse_duration

    return None if time is None else parse_duration(time)


# Rules --------------------------------------------------------------------------------------------------------------


@app.command()
def show(
    rule: RuleArgument,
    latex: Annotated[bool, Option("--latex", help="As a formula.")] = False,
    code: Annotated[bool, Option("--code", help="As PyTorch code.")] = False,
    properties: Annotated[bool, Option("--properties", help="Facts about it.")] = False,
    json: Json = False,
) -> None:
    """Show a rule as text, formula, code or facts."""
    if latex + code + properties + json > 1:
        raise UserError("--latex, --code, --properties and --json exclude each other")
    program = _rule(rule)
    if json:
        _print_json(_facts(program) | {"text": _text(program)})
    elif properties:
        for name, value in _facts(program).items():
            print(f"{name:<16}{value}")
    elif latex:
        from dsl.latex import latex as formula

        print(formula(_composed(program)))
    elif code:
        print(_source(program), end="")
    else:
        print(_text(program), end="")


@app.command()
def identify(rule: RuleArgument, json: Json = False) -> None:
    """Say which known optimizer a rule equals, or is nearest to.

    Names, the order of statements and constants play no part: constants that are found are reported. How near: the mean
    cosine of the two rules' updates over 24 fixed gradients (1: the same direction at every step; at default
    hyperparameters, without weight decay, nothing tuned), and the share of operations that both have.
    """
    program = _composed(_rule(rule))
    from dsl.identify import nearest

    match = nearest(program)
    if json:
        _print_json(
            {
                "rule": program.name,
                "nearest": match.name,
                "exact": match.exact,
                "but_for_decay": match.but_for_decay,
                "similarity": match.similarity,
                "shared": match.shared,
                "hyperparameters": dict(match.hypers),
            }
        )
    else:
        print(f"{program.name}: {match}")


@app.command()
def register(
    source: Annotated[str, Argument(metavar="RUN_OR_FILE", help="A run, a .rule file, or RUN@K.")],
    name: Annotated[str, Option(help="What to call it.")],
    rank: Annotated[int, Option(min=1, help="Which place of the run's leaderboard.")] = 1,
    force: Annotated[bool, Option("--force", help="Replace a rule registered under this name before.")] = False,
) -> None:
    """Give a rule a name that works in any script on this machine."""
    from discover.registry import register as keep

    program = _rule(source if source.endswith(".rule") or "@" in source else f"{source}@{rank}")
    path = keep(program, name, force=force)
    print(f"registered {path}")
    print(f'use it with: from discover import optim; optim.create("{name}", model.parameters(), lr=...)')


@app.command()
def export(
    rule: RuleArgument,
    output: Annotated[Path, Option("-o", "--output", metavar="FILE.py", help="The file to write.")],
) -> None:
    """Write a rule as one Python file that needs torch alone."""
    from discover.files import write_whole

    program = _rule(rule)
    if output.is_dir():
        raise UserError(f"'{output}' is a folder; name a file, such as {output / 'my_rule.py'}")
    write_whole(output, _source(program))
    print(f"wrote {output}")


def _rule(rule: str) -> Program:
    if "@" in rule and not rule.endswith(".rule"):
        from discover.runs import rule_of

        return rule_of(rule)
    import dsl

    return dsl.load(rule)


def _composed(program: Program) -> Program:
    """The program, or what a wrapper is to a user: an error that says how to give it a rule."""
    import dsl

    return dsl.check(program)


def _text(program: Program) -> str:
    import dsl

    return dsl.format(program)


def _source(program: Program) -> str:
    from discover.export import source

    return source(_composed(program))


def _facts(program: Program) -> dict[str, Any]:
    from dsl import properties
    from dsl.fingerprint import fingerprint
    from dsl.identify import nearest
    from dsl.program import assignments

    program = _composed(program)
    facts, found = properties.of(program), fingerprint(program)
    return {
        "name": program.name,
        "doc": program.doc,
        "hyperparameters": program.defaults,
        "length": sum(1 for _ in assignments(program.body)),
        "state_bytes": facts.state_bytes,
        **asdict(facts),
        "nearest": str(nearest(program)),
        "structure": found.structure,
        "behaviour": found.behaviour,
    }


# Tasks --------------------------------------------------------------------------------------------------------------


@app.command()
def reference(
    task: Annotated[
        list[str] | None,
        Argument(metavar="TASK", help="Built-in names, or FILE.py:NAME; by default all built-in ones."),
    ] = None,
    trials: Annotated[
        int | None, Option(help="Settings in the first grid, learning rates times 3 weight decays; by default 27.")
    ] = None,
    tuning_seeds: Annotated[int | None, Option(help="Seeds to tune on; by default 16.")] = None,
    seeds: Annotated[int | None, Option(help="Fresh seeds to score the best setting on; by default 32.")] = None,
    out: Annotated[
        Path | None,
        Option(metavar="FILE", help="Where to store; by default with the package, and a task of your own nowhere."),
    ] = None,
    json: Json = False,
) -> None:
    """Tune AdamW on tasks, and store what it reaches on fresh seeds as their reference."""
    from discover.reference import Budget, run

    asked = {"trials": trials, "tuning_seeds": tuning_seeds, "fresh_seeds": seeds}
    budget = Budget(**{name: value for name, value in asked.items() if value is not None})
    run(task or (), budget, out=out, as_json=json)


@app.command()
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
    trials: Annotated[int | None, Option(help="Settings that each tuning tries; by default 20.")] = None,
    seeds: Annotated[
        int | None, Option(help="Fresh seeds on each task, for all tunings together; by default 24.")
    ] = None,
    tunings: Annotated[
        int | None, Option(help="How often each rule is tuned, so that the luck of tuning is seen; by default 6.")
    ] = None,
    tuning_seeds: Annotated[int | None, Option(help="Seeds that each setting is tried on; by default 2.")] = None,
    steps: Annotated[int | None, Option(help="Steps of each training; by default each task's horizon.")] = None,
    baseline: Annotated[
        str | None, Option(metavar="RULE", help="What the others are compared with; by default adamw.")
    ] = None,
    tune_all: Annotated[
        bool, Option("--tune-all", help="Tune all hyperparameters, not lr and weight decay alone.")
    ] = False,
    prune: Annotated[
        Prune, Option(help="Drop trials before their end: median, those worse than most at a quarter or half of it.")
    ] = Prune.none,
    storage: Annotated[
        str | None, Option(metavar="URL", help="Optuna storage of the studies; by default a file of the user's.")
    ] = None,
    device: Annotated[str, Option(help="Where to train, as torch names it.")] = "cpu",
    seed: Annotated[int, Option(min=0, help="The same seed gives the same comparison.")] = 0,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Folder for compare.json and compare.png. [default: runs/compare-TIME]")
    ] = None,
    json: Json = False,
) -> None:
    """Compare rules fairly: all tuned with one budget, scored on fresh seeds, with intervals."""
    from discover.compare import Options, run

    asked = {"trials": trials, "seeds": seeds, "tunings": tunings, "tuning_seeds": tuning_seeds}
    given = {name: value for name, value in asked.items() if value is not None}
    options = Options(**given, steps=steps, seed=seed, own=tune_all, pruner=prune.value, device=device)
    command = ["discover", *sys.argv[1:]]
    run(rule, task or (), options, baseline=baseline, storage=storage, out=out, as_json=json, command=command)


@app.command()
def calibrate(
    space: Annotated[str, Option(metavar="NAME_OR_YAML", help="The search space: a name, or a YAML file.")],
    trials: Annotated[int | None, Option(help="Settings that each tuning tries; by default 12.")] = None,
    seeds: Annotated[
        int | None, Option(help="Fresh seeds on each task, for all four tunings of a rule together; by default 8.")
    ] = None,
    storage: Annotated[
        str | None, Option(metavar="URL", help="Optuna storage of the studies; by default a file of the user's.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure how far a space's proxies can be trusted: do they order known rules as its select tasks do?"""
    from discover.calibrate import Options, run

    asked = {"trials": trials, "seeds": seeds}
    options = Options(**{name: value for name, value in asked.items() if value is not None})
    run(space, options, storage=storage, as_json=json, command=["discover", *sys.argv[1:]])


# Promoting ----------------------------------------------------------------------------------------------------------


@app.command()
def promote(
    run: RunArgument,
    top: Annotated[
        int | None, Option(min=1, help="How many candidates take part. [default: the space's]", show_default=False)
    ] = None,
    storage: Annotated[
        str | None, Option(metavar="URL", help="Optuna storage of the studies; by default a file of the user's.")
    ] = None,
    json: Json = False,
) -> None:
    """Promote the best of a run: tune, compare on select tasks, simplify, touch the final tasks once, certify."""
    from discover.promote import run as carry_out

    carry_out(run, top=top, storage=storage, as_json=json)


@app.command()
def verify(
    certificate: Annotated[Path, Argument(metavar="CERTIFICATE", help="A certificate.json, or a run's folder.")],
    sample: Annotated[
        int | None,
        Option(min=1, help="How many runs to train again. [default: all]", show_default=False),
    ] = None,
    seed: Annotated[int, Option(min=0, help="Which ones.")] = 0,
    json: Json = False,
) -> None:
    """Train a certificate's runs again, and say whether it holds: exit code 0, or 1 if it does not."""
    from discover.verify import run as check

    if code := check(certificate, sample=sample, seed=seed, as_json=json):
        raise Exit(code)


# Reports ------------------------------------------------------------------------------------------------------------


@app.command()
def report(
    run: RunArgument,
    out: Annotated[
        Path | None,
        Option("-o", "--out", metavar="FILE.html", help="The file. [default: report.html in the run's folder]"),
    ] = None,
    json: Json = False,
) -> None:
    """Write a run as one HTML page, also while it is searching."""
    from discover import report as reporting

    reporting.run(run, out=out, as_json=json)


@app.command("compare-runs")
def compare_runs(
    run: Annotated[
        list[str], Argument(metavar="RUN...", help="Runs' folders, names or beginnings of them, or 'last'.")
    ],
    json: Json = False,
) -> None:
    """Show runs side by side: fitness over compute, funnel, best rules. Seeds of one search are taken together."""
    from discover import report_runs

    report_runs.run(run, as_json=json)


# Lists --------------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(what: Annotated[Kind, Argument(help="What to list.")], json: Json = False) -> None:
    """List rules, tasks, search spaces or runs.

    Of a rule: its state (with extents other than the parameter's shape), in bytes per element of a 4096 x 4096 matrix;
    what it is (odd: the opposite gradient gives the opposite step; degree k: c times the gradient gives c**k times the
    step; elementwise); what opt.step needs beside gradients. A wrapper's are its own.

    Of a space: how far its proxies agree with its select tasks on the order of known rules (Spearman, 95 % interval),
    and at what part of their cost; see discover calibrate.
    """
    rows = _LISTS[what]()
    if json:
        _print_json(rows)
    elif not rows:
        print(f"no {what} yet")
    else:
        from rich.console import Console

        from discover.console import rows_table

        columns = [name for name in rows[0] if name not in _JSON_ALONE.get(what, ())]
        Console().print(rows_table(columns, ([str(row[name]) for name in columns] for row in rows)))


def _rules() -> list[dict[str, Any]]:
    import dsl
    from dsl import zoo
    from dsl.library import registered_names

    rows = []
    for registered, names in ((False, dsl.names()), (True, registered_names())):
        for name in names:
            row: dict[str, Any] = dict.fromkeys(("rule", "year", "state", "bytes", "is", "needs", "kind"), "")
            row |= {"rule": name, "kind": "registered" if registered else "rule"}
            rows.append(row)
            try:
                entry = zoo.entry(name)
            except dsl.RuleError as error:
                row["is"] = row["about"] = f"cannot be read: {error}"
                continue
            found = entry.source
            row |= {"rule": entry.name if not registered else name, "year": found.year if found else ""}
            row |= {"state": " ".join(entry.state), "bytes": entry.state_bytes}
            row |= {"is": ", ".join(entry.traits), "needs": entry.needs}
            row |= {"kind": "registered" if registered else entry.kind}
            row |= {"about": dsl.load(name).doc.partition("\n")[0], "source": found.text if found else ""}
            row["link"] = found.link if found else ""
    return rows


def _tasks() -> list[dict[str, Any]]:
    import tasks

    rows = []
    for name in tasks.names():
        row: dict[str, Any] = dict.fromkeys(("task", "class", "parameters", "batch", "steps", "flops", "reference"), "")
        row["task"] = name
        rows.append(row)
        try:
            task = tasks.load(name)
        except ValueError as error:  # its data come with a package that is not installed
            row["reference"] = str(error)
            continue
        row |= {"class": task.size_class, "parameters": task.size, "batch": task.batch_size, "steps": task.horizon}
        row["flops"] = float(f"{task.training_flops:.2g}")
        try:
            row["reference"] = tasks.reference(name) or "none"
        except ValueError as error:
            raise UserError(str(error)) from None
    return rows


def _spaces() -> list[dict[str, Any]]:
    from discover import calibration, space

    rows = []
    for name in space.names():
        loaded = space.Space.load(name)
        short, long = calibration.brief(name, loaded), calibration.line(name, loaded)
        rows.append({"space": name, "about": loaded.description, "proxies agree": short, "calibration": long})
    return rows


def _runs() -> list[dict[str, Any]]:
    from discover import runs

    return [runs.describe(folder) for folder in runs.folders()]


_JSON_ALONE = {Kind.rules: ("about", "source", "link"), Kind.spaces: ("calibration",)}
"""What a list says to machines only: too long for a line."""

_LISTS: dict[Kind, Callable[[], list[dict[str, Any]]]] = {
    Kind.rules: _rules,
    Kind.tasks: _tasks,
    Kind.spaces: _spaces,
    Kind.runs: _runs,
}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> dict[str, Any]:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)


# Errors -------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code: 0 done (an interrupted search included), 2 a mistake of the user's, 130 stopped by
    a second Ctrl-C.
    """
    from dsl.program import RuleError

    try:
        code = app(args=argv, prog_name="discover", standalone_mode=False)
    except (UserError, RuleError) as error:
        return _refuse(str(error))
    except typer.TyperException as error:
        if not (message := error.format_message().replace("Value error, ", "")):
            return 0  # 'discover' alone has printed its help
        return _refuse(f"{message.removesuffix('.')}; see 'discover --help'")
    except (Exit, typer.Abort):
        return 1
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    print(f"discover: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
