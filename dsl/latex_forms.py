"""What each operator looks like in a formula: a table of forms, and how tightly each binds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from dsl.format import format_number
from dsl.latex_names import Names
from dsl.ops import OPS
from dsl.program import Call, Expr, Name, Number

_SUM, _HADAMARD, _PRODUCT, _SIGNED, _POWER, _ATOM = 4, 5, 6, 7, 8, 9
_FRACTIONS = {0.25: "1/4", -0.25: "-1/4", 0.5: "1/2", -0.5: "-1/2"}
_WORDS = (r"\mathrm", r"\text", r"\operatorname")
_ENDS_IN_WORD = re.compile(r"(?<![_{,])\\(mathrm|text)\{[^{}]*\}'*(_(\{[^{}]*\}|.))?$")


def render(expr: Expr, names: Names, precedence: int = 0) -> str:
    """An expression, in brackets where it binds less tightly than what it stands in."""
    text, own = _bare(expr, names)
    return rf"\left({text}\right)" if own < precedence else text


def _bare(expr: Expr, names: Names) -> tuple[str, int]:
    """The text, and how tightly its outermost operator binds."""
    match expr:
        case Number(value):
            return number(value), _SIGNED if value < 0 else _ATOM
        case Name(id):
            return names.read(id), _ATOM
        case Call(op, args) if op in FORMS:
            return FORMS[op](args, names)
        case Call(op, args):
            return _named(op)(args, names)


def number(value: float) -> str:
    """A number: pi by its name, powers of ten as such."""
    if abs(value) == math.pi:
        return r"\pi" if value > 0 else r"-\pi"
    text = format_number(value)
    mantissa, exponent, power = text.partition("e")
    if not exponent:
        return text
    scale = f"10^{{{int(power)}}}"
    return scale if mantissa in ("1", "1.0") else rf"{mantissa.removesuffix('.0')} \cdot {scale}"


def _listed(args: tuple[Expr, ...], names: Names) -> str:
    return ", ".join(render(arg, names) for arg in args)


_Args = tuple[Expr, ...]
_Form = Callable[[_Args, Names], tuple[str, int]]


def _infix(sign: str, own: int, left: int, right: int) -> _Form:
    return lambda a, n: (f"{render(a[0], n, left)} {sign} {render(a[1], n, right)}", own)


def _product(args: _Args, names: Names) -> tuple[str, int]:
    if names.wide(args[0]) and names.wide(args[1]):
        left, right = render(args[0], names, _HADAMARD), render(args[1], names, _HADAMARD + 1)
        return rf"{left} \odot {right}", _HADAMARD
    return _matmul(args, names)


def _matmul(args: _Args, names: Names) -> tuple[str, int]:
    left, right = render(args[0], names, _PRODUCT), render(args[1], names, _PRODUCT + 1)
    return f"{left}{_joint(left, right)}{right}", _PRODUCT


def _joint(left: str, right: str) -> str:
    """What stands between two factors: a dot before a number, a little space beside a word."""
    if right[0].isdigit():
        return r" \cdot "
    return r" \, " if right.startswith(_WORDS) or _ENDS_IN_WORD.search(left) else " "


def _lerp(args: _Args, names: Names) -> tuple[str, int]:
    a, b, weight = args
    match weight:
        case Call("sub", (Number(1), rest)):
            keep, move = render(rest, names, _PRODUCT), f"(1 - {render(rest, names, _SUM + 1)})"
        case Number(value):
            keep, move = number(float(f"{1 - value:.12g}")), number(value)
        case _:
            keep, move = f"(1 - {render(weight, names, _SUM + 1)})", render(weight, names, _PRODUCT)
    return f"{_times(keep, a, names)} + {_times(move, b, names)}", _SUM


def _times(before: str, expr: Expr, names: Names) -> str:
    text = render(expr, names, _PRODUCT + 1)
    dot = before[-1].isdigit() and text[0].isdigit()
    return rf"{before} \cdot {text}" if dot else f"{before}{_joint(before, text)}{text}"


def _debias(args: _Args, names: Names) -> tuple[str, int]:
    """An average corrected for its start: a letter with a hat, which a line of its own explains."""
    average, beta = args
    text = rf"\frac{{{render(average, names)}}}{{1 - {_raised(beta, 't', names)}}}"
    if names.hats is None or not isinstance(average, Name):
        return text, _POWER
    hatted = names.hatted(average.id)
    line = f"{hatted} = {text}"
    if line not in names.hats:
        if any(other.startswith(f"{hatted} = ") for other in names.hats):  # corrected by another rate before
            return text, _POWER
        names.hats.add(line)
        names.pending.append(line)
    return hatted, _ATOM


def _raised(base: Expr, exponent: str, names: Names) -> str:
    text = render(base, names, _ATOM)
    above = exponent if len(exponent) == 1 else f"{{{exponent}}}"
    return f"{{{text}}}^{above}" if "^" in text or "'" in text else f"{text}^{above}"


def _square(args: _Args, names: Names) -> tuple[str, int]:
    elementwise = names.matrices and names.wide(args[0])
    return _raised(args[0], r"\odot 2" if elementwise else "2", names), _POWER


def _power(args: _Args, names: Names) -> tuple[str, int]:
    base, exponent = args
    match exponent:
        case Number(value) if value in _FRACTIONS:
            return _raised(base, _FRACTIONS[value], names), _POWER
    return _raised(base, render(exponent, names), names), _POWER


def _where(args: _Args, names: Names) -> tuple[str, int]:
    return cases(_choices(args, names))


def cases(rows: list[tuple[str, str]]) -> tuple[str, int]:
    """A value for each condition; the last one is for all that is left."""
    lines = [f"{value} & {condition}" for value, condition in rows[:-1]]
    lines.append(rf"{rows[-1][0]} & {rows[-1][1] or chr(92) + 'text{otherwise}'}")
    return rf"\begin{{cases}} {f' {chr(92) * 2} '.join(lines)} \end{{cases}}", _SUM


def _choices(args: _Args, names: Names) -> list[tuple[str, str]]:
    """A choice among values; a choice in its last place goes on in the same list."""
    mask, new, old = args
    rows = [(render(new, names), render(mask, names))]
    match old:
        case Call("where", rest):
            return rows + _choices(rest, names)
    return [*rows, (render(old, names), "")]


def _every(args: _Args, names: Names) -> tuple[str, int]:
    k, new, old = (render(arg, names) for arg in args)
    return cases([(new, rf"t \bmod {k} = 0"), (old, "")])


def _named(op: str) -> _Form:
    """An operator without a form of its own: by its name, rows, columns or all parameters as a subscript."""
    for prefix, below in (("row_", "row"), ("col_", "col"), ("global_", "all")):
        if op.startswith(prefix):
            return _function(rf"\operatorname{{{op.removeprefix(prefix)}}}_\text{{{below}}}")
    return _function(rf"\operatorname{{{op.replace('_', ' ')}}}")


def _function(name: str, below: int | None = None) -> _Form:
    """A function of its arguments; the one numbered `below` is a subscript."""

    def form(args: _Args, names: Names) -> tuple[str, int]:
        rest = [arg for place, arg in enumerate(args) if place != below]
        lower = "" if below is None else f"_{{{render(args[below], names)}}}"
        return rf"{name}{lower}\left({_listed(tuple(rest), names)}\right)", _ATOM

    return form


def _template(form: str, own: int, *needs: int) -> _Form:
    """A text with <0>, <1> for the arguments, each bound as tightly as `needs` says."""

    def made(args: _Args, names: Names) -> tuple[str, int]:
        text = form
        for place, arg in enumerate(args):
            if f"<{place}>" in form:
                text = text.replace(f"<{place}>", render(arg, names, needs[place] if place < len(needs) else 0))
        return text, own

    return made


def _norm(below: str) -> _Form:
    def form(args: _Args, names: Names) -> tuple[str, int]:
        which = below or ("_F" if names.matrices else "")
        return rf"\left\lVert {render(args[0], names)} \right\rVert{which}", _ATOM

    return form


def _size(name: str) -> _Form:
    def form(args: _Args, names: Names) -> tuple[str, int]:
        what = names.plain(args[0].id) if isinstance(args[0], Name) else render(args[0], names)
        return rf"\operatorname{{{name}}}\left({what}\right)", _ATOM

    return form


def _dot(below: str) -> _Form:
    return _template(rf"\left\langle <0>, <1> \right\rangle{below}", _ATOM)


def _neg(args: _Args, names: Names) -> tuple[str, int]:
    return f"-{render(args[0], names, _PRODUCT)}", _SIGNED if isinstance(args[0], Name) else _SUM


_ROW, _COL, _ALL = r"_\text{row}", r"_\text{col}", r"_\text{all}"
_COMPARE = {"lt": "<", "le": r"\le", "gt": ">", "ge": r"\ge", "eq": "=", "ne": r"\ne"}

FORMS: Mapping[str, _Form] = {
    "add": _infix("+", _SUM, _SUM, _SUM),
    "sub": _infix("-", _SUM, _SUM, _SUM + 1),
    "mul": _product,
    "div": _template(r"\frac{<0>}{<1>}", _POWER),
    "mod": _infix(r"\bmod", _HADAMARD, _PRODUCT, _PRODUCT + 1),
    "pow": _power,
    "neg": _neg,
    "abs": _template(r"\left|<0>\right|", _ATOM),
    "square": _square,
    "sqrt": _template(r"\sqrt{<0>}", _ATOM),
    "rsqrt": _template(r"\frac{1}{\sqrt{<0>}}", _POWER),
    "reciprocal": _template(r"\frac{1}{<0>}", _POWER),
    "exp": _template(r"e^{<0>}", _POWER),
    "floor": _template(r"\left\lfloor <0> \right\rfloor", _ATOM),
    "sigmoid": _function(r"\sigma"),
    "number": _template(r"\mathbf{1}\left[<0>\right]", _ATOM),
    "where": _where,
    "every": _every,
    "lerp": _lerp,
    "debias": _debias,
    # over a tensor
    "amax": _function(r"\max"),
    "row_amax": _function(rf"\max{_ROW}"),
    "col_amax": _function(rf"\max{_COL}"),
    "global_amax": _function(rf"\max{_ALL}"),
    "norm": _norm(""),
    "row_norm": _norm(_ROW),
    "col_norm": _norm(_COL),
    "global_norm": _norm(_ALL),
    "dot": _dot(""),
    "row_dot": _dot(_ROW),
    "col_dot": _dot(_COL),
    "global_dot": _dot(_ALL),
    "size": _size("size"),
    "rows": _size("rows"),
    "cols": _size("cols"),
    "quantile": _function(r"\operatorname{quantile}", 1),
    "block_mean": _function(r"\operatorname{mean}", 1),
    "block_amax": _function(r"\max", 1),
    # matrices
    "matmul": _matmul,
    "transpose": _template(r"<0>^\top", _POWER, _ATOM),
    "newton_schulz": _function(r"\operatorname{NS}", 1),
    "newton_schulz_cubic": _function(r"\operatorname{NS}^{(3)}", 1),
    "sinkhorn": _function(r"\operatorname{Sinkhorn}", 1),
    "eye": _template("I", _ATOM),
    "diagonal": _function(r"\operatorname{diag}"),
    "eigenvectors": _function(r"\operatorname{eigvec}"),
    "top_vectors": _function(r"\operatorname{eigvec}", 1),
    "matrix_power": _power,
    "orthonormal": _function(r"\operatorname{orth}"),
    "solve": _template(r"<0>^{-1} <1>", _PRODUCT, _ATOM, _PRODUCT + 1),
    "order": _function(r"\operatorname{argsort}"),
    "take_columns": _template(r"<0>\left[:, <1>\right]", _ATOM, _ATOM),
    "take_rows": _template(r"<0>\left[<1>, :\right]", _ATOM, _ATOM),
    # what is remembered of all parameters
    "flatten": _function(r"\operatorname{vec}"),
    "unflatten": _template(r"\operatorname{vec}^{-1}\left(<0>\right)", _ATOM),
    "column": _template(r"<0>\left[:, <1>\right]", _ATOM, _ATOM),
    "put_column": _template(r"<0>\left[:, <1> \gets <2>\right]", _ATOM, _ATOM),
    "global_inner": _template(r"\sum_\text{all} <0>^\top <1>", _PRODUCT, _ATOM, _PRODUCT + 1),
    # draws
    "gaussian": _template(r"\mathcal{N}\left(0, 1; <1>, <2>\right)", _ATOM),
    "uniform": _template(r"\mathcal{U}\left(0, 1; <1>, <2>\right)", _ATOM),
    "rademacher": _template(r"\mathcal{U}\left(\left\{-1, 1\right\}; <1>, <2>\right)", _ATOM),
    "subset": _template(r"\operatorname{subset}\left(<1>; <2>, <3>\right)", _ATOM),
    # eight bits
    "quantize": _template(r"\operatorname{Q}_8\left(<0>; <1>\right)", _ATOM),
    "dequantize": _template(r"\operatorname{Q}_8^{-1}\left(<0>; <1>\right)", _ATOM),
    # what a closure answers
    "grad_at": _template(r"\nabla \mathcal{L}\left(<0>\right)", _ATOM),
    "hvp": _template(r"\nabla^2 \mathcal{L} \, <0>", _PRODUCT, _PRODUCT + 1),
    "loss_at": _template(r"\mathcal{L}\left(<0>\right)", _ATOM),
    "sampled_grad": _template(r"\nabla \hat{\mathcal{L}}\left(<0>\right)", _ATOM),
    "clipped_grad": _template(
        r"\frac{1}{B} \sum_i \operatorname{clip}_{<1>}\left(\nabla \mathcal{L}_i\left(<0>\right)\right)", _HADAMARD
    ),
    **{name: _function(rf"\{name}") for name in ("log", "tanh", "cos", "cosh", "min", "max")},
    **{name: _infix(sign, _SUM - 1, _SUM, _SUM) for name, sign in _COMPARE.items()},
}

if unknown := FORMS.keys() - OPS.keys():
    raise ValueError(f"a form for {min(unknown)}, which is not in the operators' table")
