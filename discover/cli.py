"""The command line. A user's mistake is one line on stderr and exit code 2; anything else that goes wrong is a bug, and
shows as one.

What a command needs is imported when it runs, so that help and lists do not wait for torch.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import metadata
from typing import Annotated, Any

import typer
from typer import Exit, Option

from discover.cli_judge import calibrate, compare, promote, reference, verify
from discover.cli_lists import compare_runs, list_, report
from discover.cli_rules import export, identify, register, show
from discover.cli_search import resume, search
from discover.errors import HaltedError, LostClusterError, UserError, stopped

DISTRIBUTION = "optimizer-discovery"

app = typer.Typer(
    name="discover",
    help="Discovers optimizer update rules for deep learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _stoppable(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, which says that Ctrl-C stopped it: typer would end it without a word."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except KeyboardInterrupt:
            raise HaltedError("stopped") from None

    return run


def _help(command: Callable[..., Any]) -> str:
    """Its docstring with each paragraph on a line: typer would keep the lines of all but the first as they are."""
    return "\n\n".join(" ".join(each.split()) for each in inspect.cleandoc(command.__doc__ or "").split("\n\n"))


def _print_version(asked: bool) -> None:
    if not asked:
        return
    try:
        print(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
    except metadata.PackageNotFoundError:
        raise UserError(f"{DISTRIBUTION} is not installed here, and has no version; pip install -e .") from None
    raise Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """What stands before a command."""


for command in (
    search,
    resume,
    show,
    identify,
    register,
    export,
    reference,
    compare,
    calibrate,
    promote,
    verify,
    report,
):
    app.command(help=_help(command))(_stoppable(command))
app.command("compare-runs", help=_help(compare_runs))(_stoppable(compare_runs))
app.command("list", help=_help(list_))(_stoppable(list_))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code: 0 done (or stopped, with a line that says how to go on with what is kept), 2 a
    mistake of the user's, 130 stopped by a second Ctrl-C, or by one before there was any work in hand.
    """
    try:
        from dsl.program import RuleError
    except KeyboardInterrupt:
        return stopped()
    try:
        code = app(args=argv, prog_name="discover", standalone_mode=False)
    except HaltedError as error:
        return stopped(str(error))
    except LostClusterError as error:
        _refuse(str(error))
        sys.stdout.flush()
        os._exit(2)  # Ray, which waits for the cluster, would crash, or take a minute and end with a code of its own
    except (UserError, RuleError) as error:
        return _refuse(str(error))
    except typer.TyperException as error:
        if not (message := error.format_message().replace("Value error, ", "")):
            return 0  # 'discover' alone has printed its help
        context = getattr(error, "ctx", None)  # what is wrong on the command line knows where
        return _refuse(f"{message.removesuffix('.')}; see '{context.command_path if context else 'discover'} --help'")
    except (Exit, typer.Abort):
        return 1
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    print(f"discover: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
