"""Program to text, the inverse of `dsl.parse`: `parse(format(p)) == p` for every program."""

from __future__ import annotations

import re

from dsl.ops import OPS
from dsl.parse import docstring_text
from dsl.program import (
    And,
    Assign,
    Call,
    Expr,
    HasRole,
    If,
    IsMatrix,
    IsTall,
    Name,
    Not,
    Number,
    Or,
    Program,
    Range,
    Slot,
    Statement,
    Test,
)
from dsl.types import EXTENTS

_EXTENT_NAMES = {extent: name for name, extent in EXTENTS.items()}
_ATOM = 9
_UNARY = 6
_POWER = 7


def format(program: Program) -> str:
    """Prints a program as a rule file, ready to be parsed, read and committed."""
    head = [
        "p",
        "g",
        *(f"{slot.name}: {_slot(slot)}" for slot in program.slots),
        *(f"{rule}: rule" for rule in program.rules),
    ]
    if program.hypers:
        head.append("*")
    for hyper in program.hypers:
        default = format_number(hyper.default)
        head.append(f"{hyper.name}: {_range(hyper.range)} = {default}" if hyper.range else f"{hyper.name}={default}")
    lines = [f"def {program.name}({', '.join(head)}):"]
    if program.doc:
        lines += _docstring(program.doc)
    lines += _block(program.body, "    ")
    if program.result:
        lines.append(f"    return {program.result}")
    return "\n".join(lines) + "\n"


def _docstring(doc: str) -> list[str]:
    escaped = re.sub(r'"(?="|\Z)', r"\"", doc.replace("\\", "\\\\"))
    escaped = "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)
    first, *rest = (f"    {line}" if line else "" for line in escaped.split("\n"))
    if docstring_text(doc.replace("\n", "\n    ")) != doc:  # its own indentation shows only below the quotes
        return ['    """', first, *rest, '    """']
    opened = f'    """{first.strip()}'
    return [opened, *rest, '    """'] if rest else [f'{opened}"""']


def _slot(slot: Slot) -> str:
    if slot.init == "p":
        return "like(p)"
    if slot.code:
        assert not isinstance(slot.init, str)
        return f"codes({format_number(slot.init)})"
    init = {0.0: "zeros", 1.0: "ones"}.get(slot.init) if not isinstance(slot.init, str) else slot.init
    extent = _EXTENT_NAMES[slot.extent]
    if extent == "full" and init:
        return init
    if extent == "scalar" or init is None:
        assert not isinstance(slot.init, str)
        init = format_number(slot.init)
    return f"{extent}({init})"


def _range(range: Range) -> str:
    return f"{'log' if range.log else 'linear'}({format_number(range.low)}, {format_number(range.high)})"


def _block(body: tuple[Statement, ...], indent: str) -> list[str]:
    lines = []
    for statement in body:
        match statement:
            case Assign():
                lines.append(f"{indent}{format_assign(statement)}")
            case If(test, body, orelse):
                lines.append(f"{indent}if {format_test(test)}:")
                lines += _block(body, indent + "    ")
                if orelse:
                    lines.append(f"{indent}else:")
                    lines += _block(orelse, indent + "    ")
    return lines or [f"{indent}pass"]


def format_assign(statement: Assign) -> str:
    """Prints an assignment; it remembers its text, since a changed program has most of its statements from another."""
    try:
        return statement._text
    except AttributeError:
        text = f"{statement.target} = {format_expr(statement.value)}"
        object.__setattr__(statement, "_text", text)
        return text


def format_test(test: Test, inside: str = "") -> str:
    match test:
        case IsMatrix():
            return "matrix(p)"
        case IsTall():
            return "tall(p)"
        case HasRole(role):
            return f"role({role!r})"
        case Not(inner):
            return f"not {format_test(inner, 'not')}"
        case And(tests):
            text = " and ".join(format_test(each, "and") for each in tests)
            return f"({text})" if inside else text
        case Or(tests):
            text = " or ".join(format_test(each, "or") for each in tests)
            return f"({text})" if inside else text


def format_number(value: float) -> str:
    """The shortest text that reads back as the same number; whole numbers without a point."""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return repr(float(value)).replace("e-0", "e-").replace("e+", "e")


def format_expr(expr: Expr, precedence: int = 0) -> str:
    """Prints an expression, in parentheses where it stands inside an operator that binds more tightly."""
    match expr:
        case Number(value):
            text, own = format_number(value), _UNARY if value < 0 or str(value).startswith("-") else _ATOM
        case Name(id):
            text, own = id, _ATOM
        case Call("neg", (arg,)):
            if isinstance(arg, Number):
                return f"neg({format_expr(arg)})"
            text, own = f"-{format_expr(arg, _UNARY)}", _UNARY
        case Call(name, args):
            op = OPS.get(name)
            if op is None or not op.infix:
                return f"{name}({', '.join(format_expr(arg) for arg in args)})"
            own = op.precedence
            left, right = (own + 1, _UNARY) if own == _POWER else (own, own + 1)
            if own == 3:
                left = own + 1
            text = f"{format_expr(args[0], left)} {op.infix} {format_expr(args[1], right)}"
    return f"({text})" if own < precedence else text
