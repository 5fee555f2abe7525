"""Program to formula: what a paper would print, in LaTeX that KaTeX and MathJax understand too.

A line for each statement; a static if is a choice of values where each branch gives one and the same name its value,
else its branches stand one under the other. An average that is corrected for its start wears a hat and has a line that
says so. `dsl.latex_names` says how names look, `dsl.latex_forms` how operators do.
"""

from __future__ import annotations

from collections import Counter

from dsl.latex_forms import cases, render
from dsl.latex_names import Names, assigned, is_alias
from dsl.program import (
    And,
    Assign,
    Call,
    HasRole,
    If,
    IsMatrix,
    IsTall,
    Name,
    Not,
    Or,
    Program,
    Statement,
    Test,
    assignments,
    expressions,
    reads,
)

_ROLES = {
    "hidden": "hidden",
    "embedding": "an embedding",
    "head": "the head",
    "bias": "a bias",
    "norm": "a norm",
    "query_key": "a query or key",
    "vector": "a vector",
}


def latex(program: Program) -> str:
    """The program as a formula, a line for each statement.

    >>> import dsl
    >>> print(latex(dsl.load("lion")))
    \\begin{aligned}
    u &= \\operatorname{sign}\\left(\\beta_1 m_{t-1} + (1 - \\beta_1) g_t\\right) \\\\
    m_t &= \\beta_2 m_{t-1} + (1 - \\beta_2) g_t \\\\
    \\theta_t &= \\theta_{t-1} - \\eta \\left(u + \\lambda \\theta_{t-1}\\right)
    \\end{aligned}
    """
    names = Names(program)
    lines = _block(program.body, names, "", {"p", program.result or "p"}, Counter())
    if program.result:
        lines.append(rf"&\text{{evaluated at }} {names.read(program.result)}")
    return "\n".join([r"\begin{aligned}", *(f"{line} \\\\" for line in lines[:-1]), lines[-1], r"\end{aligned}"])


def _block(body: tuple[Statement, ...], names: Names, indent: str, later: set[str], skips: Counter[str]) -> list[str]:
    """The lines of a block.

    Args:
        later: names that are read after it.
        skips: versions that it leaves out, as the other branch assigns a name more often.
    """
    lines: list[str] = []
    for place, statement in enumerate(body):
        after = later | _read(body[place + 1 :])
        if isinstance(statement, If):
            lines += _choice(statement, names, indent, after)
        elif not indent and is_alias(statement, names):
            assert isinstance(statement.value, Name)
            names.alias(statement.target, statement.value.id)
        else:
            lines += _assignment(statement, names, indent, skips.pop(statement.target, 0))
    return lines


def _assignment(statement: Assign, names: Names, indent: str, skip: int) -> list[str]:
    value = _value(statement, names)
    target = names.assign(statement.target, statement.value, skip)
    before, names.pending = names.pending, []
    return [_line(text, indent) for text in (*before, f"{target} = {value}")]


def _value(statement: Assign, names: Names) -> str:
    text = render(statement.value, names)
    type = names.infer(statement.value)
    plain = type is not None and type.mask and not isinstance(statement.value, Name)
    return rf"\mathbf{{1}}\left[{text}\right]" if plain else text


def _line(text: str, indent: str) -> str:
    """A line; those of a branch are indented, the others stand under each other at the equals sign."""
    target, _, value = text.partition(" = ")
    return f"&{indent}{text}" if indent else f"{target} &= {value}"


# Static ifs -----------------------------------------------------------------------------------------------------------


def _choice(statement: If, names: Names, indent: str, later: set[str]) -> list[str]:
    before = names.now.copy()
    both = assigned(statement.body) | assigned(statement.orelse)
    known = before.keys() | names.state | names.aliases.keys() | {"g"}
    if (target := _single(statement, known & later)) is not None:
        return _one_value(statement, target, names, indent)
    kept = {name for name in both if name in later and name in known}
    lines: list[str] = []
    hats, aliases = names.hats, dict(names.aliases)
    for word, branch in ((f"if {_test(statement.test)}:", statement.body), ("otherwise:", statement.orelse)):
        mine = assigned(branch)
        missing = sorted(name for name in kept if not mine[name])
        if not branch and not missing:
            continue
        names.now, names.hats, names.aliases = before.copy(), set(hats or ()), dict(aliases)
        lines.append(rf"&{indent}\text{{{word}}}")
        inner = indent + r"\quad "
        lines += _block(branch, names, inner, later, both - mine)
        for name in missing:
            value = names.read(name)
            lines.append(_line(f"{names.assign(name, Name(name), both[name] - 1)} = {value}", inner))
    names.now, names.hats = before + both, hats
    names.aliases = {name: alias for name, alias in aliases.items() if name not in both}
    return lines


def _single(statement: If, kept: set[str]) -> str | None:
    """The one name that each branch gives a value, in one statement that needs no line before it; a branch that gives
    none leaves it as it was, which counts where somebody reads it."""
    targets = set()
    for branch in _branches(statement):
        if len(branch) > 1 or any(not isinstance(each, Assign) or _large(each) for each in branch):
            return None
        targets |= {each.target for each in branch if isinstance(each, Assign)}
    target = targets.pop() if len(targets) == 1 else None
    missing = not all(_branches(statement))
    return target if target is not None and (not missing or target in kept) else None


def _branches(statement: If) -> list[tuple[Statement, ...]]:
    """Its branches in order, those of an if in the place of the last one among them."""
    match statement.orelse:
        case (If() as inner,):
            return [statement.body, *_branches(inner)]
    return [statement.body, statement.orelse]


def _tests(statement: If) -> list[Test]:
    match statement.orelse:
        case (If() as inner,):
            return [statement.test, *_tests(inner)]
    return [statement.test]


def _large(statement: Assign) -> bool:
    """Whether its value is a choice itself, or needs a line before it."""
    parts = list(expressions(statement.value))
    choice = isinstance(statement.value, Call) and statement.value.op in ("where", "every")
    return choice or any(isinstance(part, Call) and part.op == "debias" for part in parts)


def _one_value(statement: If, target: str, names: Names, indent: str) -> list[str]:
    values = [
        _value(branch[0], names) if branch and isinstance(branch[0], Assign) else names.read(target)
        for branch in _branches(statement)
    ]
    conditions = [rf"\text{{if {_test(test)}}}" for test in _tests(statement)]
    text, _ = cases(list(zip(values, [*conditions, ""], strict=True)))
    given = next(each.value for each in assignments((statement,)))
    return [_line(f"{names.assign(target, given)} = {text}", indent)]


def _read(body: tuple[Statement, ...]) -> set[str]:
    return {name for statement in assignments(body) for name in reads(statement)}


def _test(test: Test) -> str:
    match test:
        case IsMatrix():
            return "a matrix"
        case IsTall():
            return "at least as tall as wide"
        case HasRole(role):
            return _ROLES[role]
        case Not(inner):
            return f"not {_test(inner)}"
        case And(tests):
            return " and ".join(map(_test, tests))
        case Or(tests):
            return " or ".join(map(_test, tests))
