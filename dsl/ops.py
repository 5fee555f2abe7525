"""The operators of the language: each once, in one table.

Checker, printer, mutation, reference interpreter, code generator, cost model and the table in docs/language.md all read
the records here; adding an operator is adding one record (and its torch function to `dsl.torch_functions` where one
expression does not say it).

A template is a format string over the arguments. Where the torch spelling depends on which arguments are numbers,
`torch` is a mapping from kinds ("tn": a tensor, then a number) to templates; kinds that are not listed are brought to
tensors first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dsl.types import COLS, FULL, GLOBAL, NUMBER, ROWS, SCALAR, MismatchError, Type, broadcast

Law = Callable[..., Type]
Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    Attributes:
        name: as written in a rule, also where it has an infix form.
        params: argument names; `kinds` gives what an argument must be where anything but a value will do
            ("mask", "number" for what must be known before training, "tensor" for what must not be a number, "scalar").
        law: argument types -> result type; raises MismatchError.
        ref: the meaning, on numpy float64 arrays of the extents' shapes.
        torch: the torch spelling of one tensor; `lanes` on values of extents [K, rows, cols].
        number: the Python spelling where every argument is a number.
        infix: the symbol, and `precedence` as in Python.
        cost: passes over the parameter, for the cost model.
        expand: the definition in the language itself, for an operator that abbreviates others.
        helpers: names of functions in `dsl.torch_functions` that the torch spelling calls.
        combine: how the values of all parameters join ("sum", "amax") where the result is global; the spellings above
            are then one parameter's share.
        matrix: needs a matrix, so must stand under `if matrix(p)`.
        commutative: the first two arguments may be swapped.
        degree: how the result scales when its arguments scale: "linear" (as they do, all alike), "product", "quotient",
            "power" (by the second argument, where that is a literal), "where" and "lerp" (as the two values do), a
            number as text such as "0.5" (that power of the argument's scale; "0" for none), "constant" (the result
            depends on no value), or "bounded" (no rule, unless the arguments do not scale at all).
        parity: what a change of sign of its odd arguments does: "linear" (as they do, all alike), "product" (signs
            multiply), "power", "where", "lerp" and "clip" (as the values do, where the other arguments do not change),
            "odd", "even", "constant", or "none" (no rule, unless no argument changes).
        special: how torch departs from `ref` on special values, where it does.
    """

    name: str
    params: tuple[str, ...]
    group: str
    doc: str
    law: Law
    ref: Callable[..., Any] | None = None
    torch: str | Mapping[str, str] = ""
    lanes: str | None = None
    number: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    infix: str = ""
    precedence: int = 0
    cost: float = 1.0
    expand: str = ""
    helpers: tuple[str, ...] = ()
    combine: str = ""
    matrix: bool = False
    commutative: bool = False
    degree: str = "bounded"
    parity: str = "none"
    special: str = ""

    def __hash__(self) -> int:
        return hash(self.name)


# Laws -------------------------------------------------------------------------------------------------------------


def _comparison(*types: Type) -> Type:
    return replace(broadcast(*types), mask=True)


def _reduction(result: Type) -> Law:
    def law(*types: Type) -> Type:
        met = broadcast(*types)
        for position, each in enumerate(types):
            if each.scope < SCALAR.scope:
                raise MismatchError(position, f"must be a tensor, but {{}} is {each}")
        if result in (ROWS, COLS) and met.extent != FULL.extent:
            raise MismatchError(0, f"must be full to have rows and columns, but {{}} is {met}")
        return result

    return law


def _matmul(a: Type, b: Type) -> Type:
    if a.extent[1] != b.extent[0]:
        raise MismatchError(1, f"does not join: inner sizes differ in {a} @ {b}; transpose one of them")
    return Type((a.extent[0], b.extent[1]), max(a.scope, b.scope))


def _transpose(a: Type) -> Type:
    return Type((a.extent[1], a.extent[0]), a.scope)


def _first(a: Type, *_: Type) -> Type:
    return replace(a, mask=False)


# The table --------------------------------------------------------------------------------------------------------

OPS: dict[str, Op] = {}
INFIX: dict[str, Op] = {}


def define(name: str, params: str, group: str, doc: str, law: Law = broadcast, **facts: Any) -> None:
    """Adds an operator. `params` is "a b k:number": names, with the kind after a colon where not any value will do.

    Raises:
        ValueError: a second definition of the same name.
    """
    if name in OPS:
        raise ValueError(f"operator '{name}' is already defined")
    pairs = [param.partition(":") for param in params.split()]
    kinds = {param: kind for param, _, kind in pairs if kind}
    op = Op(name, tuple(param for param, _, _ in pairs), group, doc, law, kinds=kinds, **facts)
    OPS[name] = op
    if op.infix:
        INFIX[op.infix] = op


def _infix(
    name: str, symbol: str, precedence: int, group: str, doc: str, ref: Callable[..., Any], **facts: Any
) -> None:
    form = f"{{0}} {symbol} {{1}}"
    define(name, "a b", group, doc, infix=symbol, precedence=precedence, ref=ref, torch=form, number=form, **facts)


# fmt: off
_infix("add", "+", 4, "arithmetic", "a plus b.", np.add, commutative=True, degree="linear", parity="linear")
_infix("sub", "-", 4, "arithmetic", "a minus b.", np.subtract, degree="linear", parity="linear")
_infix("mul", "*", 5, "arithmetic", "a times b.", np.multiply, commutative=True, degree="product", parity="product")
_infix("div", "/", 5, "arithmetic", "a over b.", np.divide, degree="quotient", parity="product")
_infix("mod", "%", 5, "arithmetic", "The remainder of a over b, of b's sign.", np.remainder, cost=2.0,
       special="nan in torch where a / b overflows")
_infix("pow", "**", 7, "arithmetic", "a to the power b; nan for a negative a and a fractional b.", np.power,
       cost=8.0, degree="power", parity="power")
define("neg", "a", "arithmetic", "Minus a.", ref=np.negative, torch="-{0}", number="-{0}", precedence=6,
       degree="linear", parity="linear")

_mask = {"law": _comparison, "degree": "0"}
_infix("lt", "<", 3, "comparison", "Mask: a less than b.", np.less, **_mask)
_infix("le", "<=", 3, "comparison", "Mask: a at most b.", np.less_equal, **_mask)
_infix("gt", ">", 3, "comparison", "Mask: a greater than b.", np.greater, **_mask)
_infix("ge", ">=", 3, "comparison", "Mask: a at least b.", np.greater_equal, **_mask)
_infix("eq", "==", 3, "comparison", "Mask: a equal to b.", np.equal, commutative=True, **_mask)
_infix("ne", "!=", 3, "comparison", "Mask: a not equal to b.", np.not_equal, commutative=True, **_mask)
define("where", "mask:mask a b", "comparison", "a where the mask holds, b elsewhere.", ref=np.where,
       torch={"ttt": "torch.where({0}, {1}, {2})", "ttn": "torch.where({0}, {1}, {2})",
              "tnt": "torch.where({0}, {1}, {2})", "ntt": "{1} if {0} else {2}",
              "ntn": "{1} if {0} else {2}", "nnt": "{1} if {0} else {2}"},
       number="{1} if {0} else {2}", degree="where", parity="where")
define("every", "k:number new old", "comparison",
       "new at each k-th step (k, 2k, ...), old at the others; what only new needs is computed at those steps alone.",
       expand="where(t % k == 0, new, old)")
define("number", "mask:mask", "comparison", "A mask as 0 and 1; written for you where a value is wanted.",
       law=_first, ref=lambda m: np.multiply(m, 1.0), torch="{0}.to(p.dtype)", number="float({0})", degree="0")

define("abs", "a", "elementwise", "The absolute value.", ref=np.abs, torch="{0}.abs()", number="abs({0})",
       degree="linear", parity="even")
define("sign", "a", "elementwise", "-1, 0 or 1.", ref=np.sign, torch="{0}.sign()",
       number="float(({0} > 0) - ({0} < 0))", degree="0", parity="odd",
       special="sign(nan) is 0 in torch, nan in the reference")
define("square", "a", "elementwise", "a * a.", ref=np.square, torch="{0}.square()", number="({0}) ** 2",
       degree="2", parity="even")
define("sqrt", "a", "elementwise", "The square root; nan below 0.", ref=np.sqrt, torch="{0}.sqrt()",
       number="math.sqrt({0})", cost=2.0, degree="0.5")
define("rsqrt", "a", "elementwise", "1 over the square root.", ref=lambda a: 1 / np.sqrt(a), torch="{0}.rsqrt()",
       number="1 / math.sqrt({0})", cost=2.0, degree="-0.5")
define("reciprocal", "a", "elementwise", "1 over a.", ref=np.reciprocal, torch="{0}.reciprocal()", number="1 / ({0})",
       degree="-1", parity="odd")
define("exp", "a", "elementwise", "e to the a.", ref=np.exp, torch="{0}.exp()", number="math.exp({0})", cost=4.0)
define("log", "a", "elementwise", "The natural logarithm; -inf at 0, nan below.", ref=np.log, torch="{0}.log()",
       number="math.log({0})", cost=4.0)
define("tanh", "a", "elementwise", "The hyperbolic tangent.", ref=np.tanh, torch="{0}.tanh()", number="math.tanh({0})",
       cost=6.0, parity="odd")
define("sigmoid", "a", "elementwise", "1 / (1 + e**-a).", ref=lambda a: 1 / (1 + np.exp(-a)),
       torch="{0}.sigmoid()", number="0.5 * (1 + math.tanh(0.5 * ({0})))", cost=6.0)
define("min", "a b", "elementwise", "The smaller of the two; nan where either is.", ref=np.minimum, commutative=True,
       torch={"tt": "torch.minimum({0}, {1})", "tn": "{0}.clamp(max={1})", "nt": "{1}.clamp(max={0})"},
       number="min({0}, {1})", degree="linear")
define("max", "a b", "elementwise", "The larger of the two; nan where either is.", ref=np.maximum, commutative=True,
       torch={"tt": "torch.maximum({0}, {1})", "tn": "{0}.clamp(min={1})", "nt": "{1}.clamp(min={0})"},
       number="max({0}, {1})", degree="linear")
define("clip", "a low high", "elementwise", "a, brought between low and high.",
       ref=lambda a, low, high: np.minimum(np.maximum(a, low), high),
       torch={"ttt": "torch.clamp({0}, {1}, {2})", "tnn": "{0}.clamp({1}, {2})"},
       number="min(max({0}, {1}), {2})", degree="linear", parity="clip")
define("lerp", "a b w:scalar", "elementwise", "Moves from a towards b by the fraction w: w=0 gives a, w=1 gives b.",
       ref=lambda a, b, w: a + w * (b - a),
       torch={"ttt": "torch.lerp({0}, {1}, {2})", "ttn": "torch.lerp({0}, {1}, {2})"},
       number="{0} + ({2}) * ({1} - ({0}))", degree="lerp", parity="lerp",
       special="torch.lerp(0, inf, 0.9) is nan, inf in the reference: torch counts from b for w >= 0.5")
define("debias", "m beta:scalar", "elementwise",
       "An average from 0 with rate 1 - beta, corrected for its start: m / (1 - beta**t).",
       expand="m / (1 - beta ** t)")


def _over(function: Callable[..., Any], axes: int | tuple[int, int]) -> Callable[..., Any]:
    return lambda a: function(a, axis=axes, keepdims=True)


def _norm(a: Array, axis: Any, keepdims: bool) -> Any:
    return np.sqrt(np.sum(np.square(a), axis=axis, keepdims=keepdims))


_axes: Any
for _prefix, _kept, _of, _axes, _dim in (
    ("", SCALAR, "of all elements", (-2, -1), "dim=(-2, -1), keepdim=True"),
    ("row_", ROWS, "of each row", -1, "dim=-1, keepdim=True"),
    ("col_", COLS, "of each column", -2, "dim=-2, keepdim=True"),
):
    _law, _tensor, _comma = _reduction(_kept), "" if not _prefix else _dim, "" if not _prefix else f", {_dim}"
    define(f"{_prefix}sum", "a:tensor", "reduction", f"The sum {_of}.", _law, ref=_over(np.sum, _axes),
           torch=f"{{0}}.sum({_tensor})", lanes=f"{{0}}.sum({_dim})", degree="linear", parity="linear")
    define(f"{_prefix}mean", "a:tensor", "reduction", f"The mean {_of}.", _law, ref=_over(np.mean, _axes),
           torch=f"{{0}}.mean({_tensor})", lanes=f"{{0}}.mean({_dim})", degree="linear", parity="linear")
    define(f"{_prefix}norm", "a:tensor", "reduction", f"The Euclidean norm {_of}.", _law, ref=_over(_norm, _axes),
           torch=f"torch.linalg.vector_norm({{0}}{_comma})", lanes=f"torch.linalg.vector_norm({{0}}, {_dim})",
           degree="linear", parity="even")
    define(f"{_prefix}amax", "a:tensor", "reduction", f"The largest {_of}.", _law, ref=_over(np.amax, _axes),
           torch=f"{{0}}.amax({_tensor})", lanes=f"{{0}}.amax({_dim})", degree="linear")
    define(f"{_prefix}dot", "a:tensor b:tensor", "reduction", f"The sum of products {_of}.", _law,
           expand=f"{_prefix}sum(a * b)")
    define(f"{_prefix}rms", "a:tensor", "reduction", f"The root of the mean square {_of}.", _law,
           expand=f"sqrt({_prefix}mean(square(a)))")
    define(f"{_prefix}cosine", "a:tensor b:tensor", "reduction",
           f"The cosine similarity {_of}; 0 where either is zero.", _law,
           expand=f"{_prefix}sum(a * b) / max({_prefix}norm(a) * {_prefix}norm(b), 1e-30)")
define("size", "a:tensor", "reduction", "How many elements the tensor has.", lambda a: SCALAR,
       ref=lambda a: np.full((1, 1), float(np.shape(a)[-2] * np.shape(a)[-1])),
       torch="{0}.new_tensor({0}.numel())", lanes="{0}.new_full(({0}.shape[0], 1, 1), {0}[0].numel())",
       cost=0.0, degree="constant", parity="constant")

_all, _both = _reduction(GLOBAL), "dim=(-2, -1), keepdim=True"
define("global_sum", "a:tensor", "global", "The sum of all elements of all parameters.", _all,
       ref=_over(np.sum, (-2, -1)), torch="{0}.sum()", lanes=f"{{0}}.sum({_both})", combine="sum",
       degree="linear", parity="linear")
define("global_amax", "a:tensor", "global", "The largest element of all parameters.", _all,
       ref=_over(np.amax, (-2, -1)), torch="{0}.amax()", lanes=f"{{0}}.amax({_both})", combine="amax",
       degree="linear")
define("global_mean", "a:tensor", "global", "The mean of all elements of all parameters.", _all,
       expand="global_sum(a) / global_sum(size(a))")
define("global_norm", "a:tensor", "global", "The Euclidean norm over all parameters.", _all,
       expand="sqrt(global_sum(square(a)))")
define("global_dot", "a:tensor b:tensor", "global", "The sum of products over all parameters.", _all,
       expand="global_sum(a * b)")


def _newton_schulz(a: Array, steps: float) -> Array:
    x = a / (np.sqrt(np.sum(np.square(a), axis=(-2, -1), keepdims=True)) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(int(min(max(0, steps), 32))):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * (s @ s)) @ x
    return np.asarray(x.mT if tall else x)


define("matmul", "a:tensor b:tensor", "matrix", "The product of two matrices.", _matmul, ref=np.matmul,
       torch="{0} @ {1}", infix="@", precedence=5, cost=8.0, matrix=True, degree="product", parity="product")
define("transpose", "a:tensor", "matrix", "Rows as columns.", _transpose, ref=lambda a: np.swapaxes(a, -1, -2),
       torch="{0}.mT", cost=0.0, matrix=True, degree="linear", parity="linear")
define("newton_schulz", "a:tensor steps:number", "matrix",
       "The nearest semi-orthogonal matrix, roughly: quintic Newton-Schulz steps, 0 to 32 of them (Jordan 2024, Muon).",
       _first, ref=_newton_schulz, torch="newton_schulz({0}, {1})", helpers=("newton_schulz",), cost=60.0, matrix=True,
       degree="0", parity="odd")

define("rows", "a:tensor", "shape", "How many rows it has, as a number.", lambda a: NUMBER,
       ref=lambda a: float(np.shape(a)[-2]), torch="{0}.shape[-2]", cost=0.0, matrix=True, degree="0", parity="even")
define("cols", "a:tensor", "shape", "How many columns it has, as a number.", lambda a: NUMBER,
       ref=lambda a: float(np.shape(a)[-1]), torch="{0}.shape[-1]", cost=0.0, matrix=True, degree="0", parity="even")
# fmt: on
