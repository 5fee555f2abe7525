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


class Algorithm(StrEnum):
    evolution = "evolution"
    random = "random"


class Compile(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


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
Workers = Annotated[
    int | None,
    Option(min=0, help="Ray workers; 0 trains in this process. [default: one for each CPU]", show_default=False),
]
RayAddress = Annotated[str | None, Option(metavar="ADDRESS", help="Of a Ray cluster to use, or 'auto'.")]


# Searching ----------------------------------------------------------------------------------------------------------


@app.command()
def search(
    space: Annotated[str, Option(metavar="NAME_OR_YAML", help="The search space: a name, or a YAML file.")],
    algorithm: Annotated[Algorithm | None, Option(help="How to propose. [default: the space's]")] = None,
    candidates: Candidates = None,
    time: Time = None,
    workers: Workers = None,
    ray_address: RayAddress = None,
    task: Annotated[
        list[str] | None, Option(metavar="TASK", help="Search on this task (a name or FILE.py:NAME); may be repeated.")
    ] = None,
    seed: Annotated[int, Option(min=0, help="The same seed gives the same search.")] = 0,
    compile: Annotated[Compile | None, Option(help="Whether gradients are compiled. [default: the space's]")] = None,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="The run's folder. [default: runs/SPACE-TIME-sSEED]")
    ] = None,
    json: Json = False,
) -> None:
    """Search for update rules. Without --time or --candidates, the space's own budget holds."""
    seconds = _seconds(time)
    from discover import runs, session
    from discover.watch import watch

    configuration = session.configure(
        space,
        algorithm=algorithm,
        seed=seed,
        candidates=candidates,
        seconds=seconds,
        workers=workers,
        ray_address=ray_address,
        compile=compile,
        own_tasks=task or (),
    )
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
    workers: Workers = None,
    ray_address: RayAddress = None,
    json: Json = False,
) -> None:
    """Go on with a search where it stopped: to the end of its budget, or with a new one.

    --candidates counts all sessions together, --time this one.
    """
    seconds = _seconds(time)
    from discover import runs
    from discover.watch import watch

    with runs.resume(run, candidates=candidates, seconds=seconds, workers=workers, ray_address=ray_address) as resumed:
        watch(resumed, json)


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
    """Say which known optimizer a rule equals, or is nearest to."""
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


# Lists --------------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(what: Annotated[Kind, Argument(help="What to list.")], json: Json = False) -> None:
    """List rules, tasks, search spaces or runs."""
    rows = _LISTS[what]()
    if json:
        _print_json(rows)
    elif not rows:
        print(f"no {what} yet")
    else:
        from rich.console import Console

        from discover.console import rows_table

        Console().print(rows_table(rows[0], ([str(value) for value in row.values()] for row in rows)))


def _rules() -> list[dict[str, Any]]:
    import dsl
    from dsl.library import registered_names

    rows = []
    for kind, names in (("built in", dsl.names()), ("registered", registered_names())):
        for name in names:
            try:
                program = dsl.load(name)
            except dsl.RuleError as error:
                rows.append({"rule": name, "kind": kind, "about": f"cannot be read: {error}"})
                continue
            about = program.doc.partition("\n")[0]
            rows.append({"rule": f"{name}(RULE)" if program.rules else name, "kind": kind, "about": about})
    return rows


def _tasks() -> list[dict[str, Any]]:
    import tasks

    rows = []
    for name in tasks.names():
        task = tasks.load(name)
        try:
            reference = tasks.reference(name) or "none"
        except ValueError as error:
            raise UserError(str(error)) from None
        rows.append(
            {
                "task": name,
                "parameters": task.size,
                "batch": task.batch_size,
                "steps": task.horizon,
                "reference": reference,
            }
        )
    return rows


def _spaces() -> list[dict[str, Any]]:
    from discover import space

    return [{"space": name, "about": space.Space.load(name).description} for name in space.names()]


def _runs() -> list[dict[str, Any]]:
    from discover import runs

    return [runs.describe(folder) for folder in runs.folders()]


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
