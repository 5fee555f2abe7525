"""Program to formula: what a paper would print, in LaTeX that KaTeX and MathJax understand too.

Names carry time: `m_{t-1}` is a slot before this step's assignment, `m_t` after the last one, and what lies between
wears primes. p is written theta, g is g_t, lr eta, weight_decay lambda.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

from dsl.format import format_number
from dsl.ops import OPS
from dsl.program import And, Assign, Call, Expr, HasRole, IsMatrix, Name, Not, Number, Or, Program, Statement, Test

_SUM, _PRODUCT, _SIGNED, _POWER, _ATOM = 4, 5, 6, 7, 9

_SYMBOLS = {
    **{"g": "g_t", "t": "t", "lr": r"\eta", "lr_ratio": r"\eta/\eta_0", "eps": r"\epsilon"},
    **{"weight_decay": r"\lambda", "momentum": r"\mu"},
}
_GREEK = re.compile(
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega"
)
_COMPARE = {"lt": "<", "le": r"\le", "gt": ">", "ge": r"\ge", "eq": "=", "ne": r"\ne"}
_NORMS = {"norm": "{}", "row_norm": r"{}_\text{row}", "col_norm": r"{}_\text{col}", "global_norm": r"{}_\text{all}"}


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
    names = _Names(program)
    lines = _block(program.body, names, "")
    if program.result:
        lines.append(rf"\text{{result}} &= {names.read(program.result)}")
    return "\n".join([r"\begin{aligned}", *(f"{line} \\\\" for line in lines[:-1]), lines[-1], r"\end{aligned}"])


# Names in time ------------------------------------------------------------------------------------------------------


class _Names:
    """Which value of a name is meant, while statements are read in order."""

    def __init__(self, program: Program) -> None:
        self.state = {"p", *(slot.name for slot in program.slots)}
        self.last = _assigned(program.body)
        self.now: Counter[str] = Counter()
        self.parameter = r"\theta" if "theta" not in self.state | self.last.keys() else "w"

    def read(self, name: str) -> str:
        return self._at(name, self.now[name])

    def assign(self, name: str, skip: int = 0) -> str:
        self.now[name] += 1 + skip
        return self.read(name)

    def _at(self, name: str, version: int) -> str:
        if name not in self.state:
            return _marked(_symbol(name), "", version - 1)
        symbol = self.parameter if name == "p" else _symbol(name)
        if version == 0:
            return _marked(symbol, "t-1", 0)
        return _marked(symbol, "t", 0 if version == self.last[name] else version)


def _assigned(body: tuple[Statement, ...]) -> Counter[str]:
    """How often each name is assigned on the way through; an if counts as its longer branch."""
    counts: Counter[str] = Counter()
    for statement in body:
        if isinstance(statement, Assign):
            counts[statement.target] += 1
        else:
            counts += _assigned(statement.body) | _assigned(statement.orelse)
    return counts


def _symbol(name: str) -> str:
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    stem, number = re.fullmatch(r"(.*?)_?(\d*)", name).groups()  # type: ignore[union-attr]
    base = rf"\{stem}" if _GREEK.fullmatch(stem) else stem if len(stem) == 1 else _text("mathrm", stem)
    return f"{base}_{{{number}}}" if len(number) > 1 else f"{base}_{number}" if number else base


def _marked(symbol: str, time: str, primes: int) -> str:
    base, _, index = symbol.partition("_")
    both = ",".join(part for part in (index.strip("{}"), time) if part) if not base.startswith(r"\mathrm") else time
    if base.startswith(r"\mathrm"):
        base = symbol
    lower = f"_{{{both}}}" if len(both) > 1 else f"_{both}" if both else ""
    return base + "'" * max(primes, 0) + lower


def _text(style: str, text: str) -> str:
    return rf"\{style}{{{text.replace('_', chr(92) + '_')}}}"


# Statements ---------------------------------------------------------------------------------------------------------


def _block(body: tuple[Statement, ...], names: _Names, indent: str, skips: Counter[str] | None = None) -> list[str]:
    """The lines of a block. `skips` are versions that it leaves out, as the other branch assigns a name more often."""
    lines: list[str] = []
    for statement in body:
        if isinstance(statement, Assign):
            value = _expr(statement.value, names)
            skip = skips.pop(statement.target, 0) if skips else 0
            target = names.assign(statement.target, skip)
            lines.append(f"&{indent}{target} = {value}" if indent else f"{target} &= {value}")
            continue
        before = names.now.copy()
        both = _assigned(statement.body) | _assigned(statement.orelse)
        for word, branch in ((f"if {_test(statement.test)}:", statement.body), ("otherwise:", statement.orelse)):
            if branch:
                names.now = before.copy()
                lines.append(rf"&{indent}\text{{{word}}}")
                lines += _block(branch, names, indent + r"\quad ", both - _assigned(branch))
        names.now = before + both
    return lines


def _test(test: Test) -> str:
    match test:
        case IsMatrix():
            return "a matrix"
        case HasRole(role):
            return f"of role {role}".replace("_", r"\_")
        case Not(inner):
            return f"not {_test(inner)}"
        case And(tests):
            return " and ".join(map(_test, tests))
        case Or(tests):
            return " or ".join(map(_test, tests))


# Expressions --------------------------------------------------------------------------------------------------------


def _expr(expr: Expr, names: _Names, precedence: int = 0) -> str:
    text, own = _bare(expr, names)
    return rf"\left({text}\right)" if own < precedence else text


def _bare(expr: Expr, names: _Names) -> tuple[str, int]:
    """The text, and how tightly its outermost operator binds."""
    match expr:
        case Number(value):
            return _number(value), _SIGNED if value < 0 else _ATOM
        case Name(id):
            return names.read(id), _ATOM
        case Call(op, args) if op in _FORMS:
            return _FORMS[op](args, names)
        case Call(op, args):
            return rf"{_text('operatorname', op)}\left({_listed(args, names)}\right)", _ATOM


def _number(value: float) -> str:
    text = format_number(value)
    mantissa, exponent, power = text.partition("e")
    if not exponent:
        return text
    scale = f"10^{{{int(power)}}}"
    return scale if mantissa in ("1", "1.0") else rf"{mantissa.removesuffix('.0')} \cdot {scale}"


def _listed(args: tuple[Expr, ...], names: _Names) -> str:
    return ", ".join(_expr(arg, names) for arg in args)


_Args = tuple[Expr, ...]
_Form = Callable[[_Args, _Names], tuple[str, int]]


def _infix(symbol: str, own: int, left: int, right: int) -> _Form:
    return lambda a, n: (f"{_expr(a[0], n, left)} {symbol} {_expr(a[1], n, right)}", own)


def _product(args: _Args, names: _Names) -> tuple[str, int]:
    left, right = _expr(args[0], names, _PRODUCT), _expr(args[1], names, _PRODUCT + 1)
    dot = r" \cdot " if right[0].isdigit() else " "
    return f"{left}{dot}{right}", _PRODUCT


def _lerp(args: _Args, names: _Names) -> tuple[str, int]:
    a, b, weight = args
    match weight:
        case Call("sub", (Number(1), rest)):
            keep, move = _expr(rest, names, _PRODUCT), f"(1 - {_expr(rest, names, _SUM + 1)})"
        case Number(value):
            keep, move = _number(float(f"{1 - value:.12g}")), _number(value)
        case _:
            keep, move = f"(1 - {_expr(weight, names, _SUM + 1)})", _expr(weight, names, _PRODUCT)
    return f"{keep} {_factor(keep, a, names)} + {move} {_factor(move, b, names)}", _SUM


def _factor(before: str, expr: Expr, names: _Names) -> str:
    text = _expr(expr, names, _PRODUCT + 1)
    return rf"\cdot {text}" if before[-1].isdigit() and text[0].isdigit() else text


def _debias(args: _Args, names: _Names) -> tuple[str, int]:
    return rf"\frac{{{_expr(args[0], names)}}}{{1 - {_raised(args[1], 't', names)}}}", _POWER


def _raised(base: Expr, exponent: str, names: _Names) -> str:
    text = _expr(base, names, _ATOM)
    above = exponent if len(exponent) == 1 else f"{{{exponent}}}"
    return f"{{{text}}}^{above}" if "^" in text else f"{text}^{above}"


def _where(args: _Args, names: _Names) -> tuple[str, int]:
    mask, new, old = (_expr(arg, names) for arg in args)
    return rf"\begin{{cases}} {new} & {mask} \\ {old} & \text{{otherwise}} \end{{cases}}", _SUM


def _every(args: _Args, names: _Names) -> tuple[str, int]:
    k, new, old = (_expr(arg, names) for arg in args)
    return rf"\begin{{cases}} {new} & t \bmod {k} = 0 \\ {old} & \text{{otherwise}} \end{{cases}}", _SUM


def _function(name: str) -> _Form:
    return lambda a, n: (rf"\{name}\left({_listed(a, n)}\right)", _ATOM)


def _norm(form: str) -> _Form:
    return lambda a, n: (form.replace("{}", rf"\left\lVert {_expr(a[0], n)} \right\rVert"), _ATOM)


_FORMS: Mapping[str, _Form] = {
    "add": _infix("+", _SUM, _SUM, _SUM),
    "sub": _infix("-", _SUM, _SUM, _SUM + 1),
    "mul": _product,
    "div": lambda a, n: (rf"\frac{{{_expr(a[0], n)}}}{{{_expr(a[1], n)}}}", _POWER),
    "mod": _infix(r"\bmod", _PRODUCT, _PRODUCT, _PRODUCT + 1),
    "matmul": lambda a, n: (f"{_expr(a[0], n, _PRODUCT)} {_expr(a[1], n, _PRODUCT + 1)}", _PRODUCT),
    "pow": lambda a, n: (_raised(a[0], _expr(a[1], n), n), _POWER),
    "neg": lambda a, n: (f"-{_expr(a[0], n, _PRODUCT)}", _SIGNED if isinstance(a[0], Name) else _SUM),
    "abs": lambda a, n: (rf"\left|{_expr(a[0], n)}\right|", _ATOM),
    "square": lambda a, n: (_raised(a[0], "2", n), _POWER),
    "sqrt": lambda a, n: (rf"\sqrt{{{_expr(a[0], n)}}}", _ATOM),
    "rsqrt": lambda a, n: (rf"\frac{{1}}{{\sqrt{{{_expr(a[0], n)}}}}}", _POWER),
    "reciprocal": lambda a, n: (rf"\frac{{1}}{{{_expr(a[0], n)}}}", _POWER),
    "exp": lambda a, n: (rf"e^{{{_expr(a[0], n)}}}", _POWER),
    "transpose": lambda a, n: (rf"{_expr(a[0], n, _ATOM)}^\top", _POWER),
    "number": lambda a, n: (rf"\left[{_expr(a[0], n)}\right]", _ATOM),
    "where": _where,
    "every": _every,
    "lerp": _lerp,
    "debias": _debias,
    **{name: _function(name) for name in ("log", "tanh", "min", "max")},
    **{name: _infix(symbol, _SUM - 1, _SUM, _SUM) for name, symbol in _COMPARE.items()},
    **{name: _norm(form) for name, form in _NORMS.items()},
}

assert _FORMS.keys() <= OPS.keys(), "a form for an operator that is not in the table"
