"""How a rule is asked for, taken apart: `ema_nesterov(muon(adam_lr_ratio=1), gamma=0.9)`.

Before the parentheses stands what is asked for: a name, a `.rule` file, or whatever else the reader of the text can
find. In them stand rules, for a rule that takes rules, and settings: other defaults for its hyperparameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dsl.parse import MAX_DEPTH, read_number, suggest
from dsl.program import Call, Expr, Hyper, Name, Number, Program, RuleError, assignments, expressions
from dsl.types import size_of

_SETTING = re.compile(r"([A-Za-z_]\w*)\s*=(?!=)\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Spelling:
    """A rule as it is asked for, its last parentheses taken apart.

    Attributes:
        what: stands before the last parentheses; the whole text where there are none.
        rules: as they stand in the parentheses.
        settings: hyperparameter -> its new default.
    """

    what: str
    rules: tuple[str, ...]
    settings: Mapping[str, float]


def parts(text: str) -> Spelling:
    """Takes the last parentheses off.

    >>> parts("ema_nesterov(muon(adam_lr_ratio=1), gamma=0.9)")
    Spelling(what='ema_nesterov', rules=('muon(adam_lr_ratio=1)',), settings={'gamma': 0.9})

    Raises:
        RuleError: parentheses that do not match, or something in them that is neither a rule nor `name=number`.
    """
    text = text.strip()
    if not text.endswith(")"):
        return Spelling(text, (), {})
    start = _opening(text)
    rules: list[str] = []
    settings: dict[str, float] = {}
    for item in _items(text[start + 1 : -1]):
        if (setting := _SETTING.fullmatch(item)) is None:
            if not item or read_number(item) is not None:
                raise RuleError(f"'{text}' is not a rule; write a rule, or name=number, in place of '{item}'")
            rules.append(item)
            continue
        name, value = setting[1], read_number(setting[2])
        if value is None:
            raise RuleError(f"{text}: {name}={setting[2]}: a hyperparameter is set to a number, {name}=0.9 for example")
        if name in settings:
            raise RuleError(f"{text}: '{name}' is given twice")
        settings[name] = value
    return Spelling(text[:start].strip(), tuple(rules), settings)


def renamed(text: str, change: Callable[[str], str]) -> str:
    """The same with other names in it, or files; the rest stays as it is.

    >>> renamed("ema_nesterov(mine.rule(beta=0.9), gamma=0.9)", str.upper)
    'EMA_NESTEROV(MINE.RULE(beta=0.9), gamma=0.9)'
    """
    text = text.strip()
    if not text.endswith(")"):
        return change(text)
    start = _opening(text)
    items = [item if _SETTING.fullmatch(item) else renamed(item, change) for item in _items(text[start + 1 : -1])]
    return f"{renamed(text[:start], change)}({', '.join(items)})"


def with_settings(program: Program, settings: Mapping[str, float], text: str) -> Program:
    """The program with other defaults; the rest is the same.

    Args:
        text: where the settings stand, for messages.

    Raises:
        RuleError: there is no such hyperparameter, or the number is outside of the range that the rule declares; 0 is
            always a weight decay. Without a range, the rate of an average is at least 0 and less than 1. One that gives
            a state its shape takes whole numbers from 1.
    """
    averages = rates(program)
    for name, value in settings.items():
        hyper = next((each for each in program.hypers if each.name == name), None)
        if hyper is None:
            known = list(program.defaults)
            raise RuleError(
                f"{text}: rule '{program.name}' has no hyperparameter '{name}'{suggest(name, known)};"
                f" it has {', '.join(known) or 'none'}"
            )
        if not _allowed(hyper, value):
            assert hyper.range is not None
            raise RuleError(
                f"{text}: {name}={value:g} is outside of the range that rule '{program.name}' declares,"
                f" {hyper.range.low:g} to {hyper.range.high:g}"
            )
        if hyper.range is None and name in averages and not 0 <= value < 1:
            raise RuleError(
                f"{text}: {name}={value:g}: in rule '{program.name}' it says how much of an average stays, at least 0"
                f" and less than 1"
            )
    result = program.with_defaults(settings)
    try:
        for slot in result.slots:
            for symbol in slot.extent:
                size_of(symbol, 1, 1, result.defaults)
    except ValueError as error:
        raise RuleError(f"{text}: {error}") from None
    return result


def _allowed(hyper: Hyper, value: float) -> bool:
    if hyper.range is None or value == hyper.default or (hyper.name == "weight_decay" and value == 0):
        return True
    return hyper.range.low <= value <= hyper.range.high


def rates(program: Program) -> frozenset[str]:
    """Hyperparameters with a default in [0, 1) that say how much of an average stays: at 1 it never moves or nothing is
    forgotten, and above that it grows without bound.

    They are known by what is done with them: `lerp(m, g, 1 - h)`, `debias(m, h)`, `h ** t`, or `h * m` in a line that
    gives the slot `m`. Not by a default near 1, which a distance, a factor or a limit may have as well.
    """
    slots, found = {slot.name for slot in program.slots}, set[Expr]()
    for line in assignments(program.body):
        for each in expressions(line.value):
            match each:
                case Call("lerp", (_, _, Call("sub", (Number(1.0), rate)))):
                    found.add(rate)
                case Call("debias", (_, rate)) | Call("pow", (rate, Name("t"))):
                    found.add(rate)
                case Call("mul", (one, other)) if line.target in slots and Name(line.target) in (one, other):
                    found |= {one, other}
    return frozenset(hyper.name for hyper in program.hypers if Name(hyper.name) in found and 0 <= hyper.default < 1)


def _opening(text: str) -> int:
    """Where the parenthesis stands that the last one closes."""
    if text.count("(") > MAX_DEPTH:
        raise RuleError(f"'{text[:40]}...' is not a rule: more than {MAX_DEPTH} parentheses")
    depth = 0
    for place in range(len(text) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(text[place], 0)
        if depth == 0 and text[:place].strip():
            return place
    raise RuleError(f"'{text}' is not a rule: its parentheses do not match")


def _items(text: str) -> list[str]:
    """What stands between commas outside of parentheses; nothing in nothing."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            found.append(text[start:place].strip())
            start = place + 1
    return [*found, text[start:].strip()] if text.strip() else []
