"""Commands about one rule: show, identify, register, export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from discover.cli_options import Json, RuleArgument, print_json
from discover.errors import UserError

if TYPE_CHECKING:
    from dsl.program import Program


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
        print_json(_facts(program) | {"text": _text(program)})
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


def identify(rule: RuleArgument, json: Json = False) -> None:
    """Say which known optimizer a rule equals, or is nearest to.

    Names, the order of statements and constants play no part: constants that are found are reported. How near: the mean
    cosine of the two rules' updates over 24 fixed gradients (1: the same direction at every step; without weight decay,
    known rules with a few memories and limits), and the share of operations that both have.
    """
    program = _composed(_rule(rule))
    from dsl.identify import nearest

    match = nearest(program)
    if json:
        print_json(
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


def register(
    source: Annotated[
        str,
        Argument(
            metavar="RUN_OR_FILE",
            help="A run, a .rule file, RUN@K, or a rule with parentheses: a composition, settings.",
        ),
    ],
    name: Annotated[str, Option(metavar="NAME", help="What to call it.")],
    rank: Annotated[
        int | None, Option(min=1, metavar="N", help="Which place of the run's leaderboard; the first by default.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace a rule registered under this name before.")] = False,
) -> None:
    """Give a rule a name, to be used in any script of yours whose Python has this package.

    Elsewhere use the file that 'discover export' writes.
    """
    from discover.registry import register as keep

    is_rule = source.endswith((".rule", ")")) or "@" in source
    if is_rule and rank is not None:
        raise UserError(f"--rank is for a run, and '{source}' is a rule already; write RUN@{rank}, or leave --rank out")
    program = _rule(source if is_rule else f"{source}@{rank or 1}")
    path = keep(program, name, force=force)
    print(f"registered {path}")
    print(f'use it with: from discover import optim; optim.create("{name}", model.parameters(), lr=...)')


def export(
    rule: RuleArgument,
    output: Annotated[Path, Option("-o", "--out", "--output", metavar="FILE.py", help="The file to write.")],
) -> None:
    """Write a rule as one Python file that needs torch alone."""
    from discover.files import write_whole

    program = _rule(rule)
    if output.is_dir():
        raise UserError(f"'{output}' is a folder; name a file, such as {output / 'my_rule.py'}")
    write_whole(output, _source(program))
    print(f"wrote {output}")


def _rule(text: str) -> Program:
    from discover.rule_names import rule_of

    return rule_of(text)


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
    from discover.length import length
    from dsl import properties
    from dsl.fingerprint import fingerprint
    from dsl.identify import nearest

    program = _composed(program)
    facts, found = properties.of(program), fingerprint(program)
    return {
        "name": program.name,
        "doc": program.doc,
        "hyperparameters": program.defaults,
        "length": length(program),
        "state_bytes": facts.state_bytes,
        **asdict(facts),
        "nearest": str(nearest(program)),
        "structure": found.structure,
        "behaviour": found.behaviour,
    }
