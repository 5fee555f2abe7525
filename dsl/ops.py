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

from dsl import numpy_functions
from dsl.types import COLS, FULL, GLOBAL, NUMBER, ROWS, SCALAR, MismatchError, Type, broadcast

Law = Callable[..., Type]
Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    Attributes:
        name: as written in a rule, also where it has an infix form.
        params: argument names; `kinds` gives what an argument must be where anything but a value will do
            ("mask", "number" for what must be known before training, "key" for such a number that keys a random
            draw and may differ between lanes, "tensor" for what must not be a number, "scalar", "code").
        law: argument types -> result type; raises MismatchError.
        ref: the meaning, on numpy float64 arrays of the extents' shapes.
        torch: the torch spelling of one tensor; `lanes` on values of extents [K, rows, cols].
        number: the Python spelling where every argument is a number.
        infix: the symbol, and `precedence` as in Python.
        cost: passes over the parameter, for the cost model.
        expand: the definition in the language itself, for an operator that abbreviates others.
        helpers: names of functions in `dsl.torch_functions` that the torch spelling calls.
        combine: how the values of all parameters join ("sum", "amax") where the result is global; the spellings above
            are then one parameter's share. "closure": what whoever steps the rule answers, given the arguments of
            all parameters together; there are no spellings then.
        matrix: needs a matrix, so must stand under `if matrix(p)`.
        view: the result shares the argument's storage.
        commutative: the first two arguments may be swapped.
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
    view: bool = False
    commutative: bool = False
    special: str = ""

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def known_before(self) -> frozenset[int]:
        """Places of arguments that must be one number, known before training."""
        return frozenset(place for place, param in enumerate(self.params) if self.kinds.get(param) == "number")


# Laws -------------------------------------------------------------------------------------------------------------


def _comparison(*types: Type) -> Type:
    return replace(broadcast(*types), mask=True)


def _reduction(result: Type) -> Law:
    def law(*types: Type) -> Type:
        met = broadcast(*types)
        for position, each in enumerate(types):
            if each.scope < SCALAR.scope:
                raise MismatchError(position, f"must be a tensor, but {{}} is {each}")
        if result not in (ROWS, COLS):
            return result
        rows, cols = met.extent
        if "1" in met.extent:
            raise MismatchError(0, f"must be full to have rows and columns, but {{}} is {met}")
        return Type((rows, "1") if result is ROWS else ("1", cols), met.scope)

    return law


def _matmul(a: Type, b: Type) -> Type:
    if a.extent[1] != b.extent[0]:
        raise MismatchError(1, f"does not join: inner sizes differ in {a} @ {b}; transpose one of them")
    return Type((a.extent[0], b.extent[1]), max(a.scope, b.scope))


def _transpose(a: Type) -> Type:
    return Type((a.extent[1], a.extent[0]), a.scope)


def _first(a: Type, *_: Type) -> Type:
    return replace(a, mask=False)


def _square(a: Type, *_: Type) -> Type:
    if a.extent[0] != a.extent[1] or a.extent == SCALAR.extent:
        raise MismatchError(0, f"must be square (rows x rows or cols x cols), but {{}} is {a}")
    return Type(a.extent, a.scope)


def _upright(a: Type, *_: Type) -> Type:
    return Type((_square(a).extent[0], "1"), a.scope)


def _leading(a: Type, *_: Type) -> Type:
    return Type((_square(a).extent[0], "k"), a.scope)


def _thin(a: Type) -> Type:
    return Type(a.extent, a.scope) if a.extent[1] == "k" else _square(a)


def _solve(a: Type, b: Type) -> Type:
    return _matmul(_square(a), b)


def _ordered(a: Type) -> Type:
    if a.extent[1] != "1":
        raise MismatchError(0, f"must be upright, one column, but {{}} is {a}")
    return Type(a.extent, a.scope, code=True)


def _columns_taken(a: Type, order: Type) -> Type:
    if order.extent != (a.extent[1], "1"):
        raise MismatchError(1, f"must order the columns of {a}, but {{}} is {order}")
    return Type(a.extent, a.scope)


def _rows_taken(a: Type, order: Type) -> Type:
    if order.extent != (a.extent[0], "1"):
        raise MismatchError(1, f"must order the rows of {a}, but {{}} is {order}")
    return Type(a.extent, a.scope)


def _flatten(a: Type) -> Type:
    if a.extent != FULL.extent:
        raise MismatchError(0, f"must be full, but {{}} is {a}")
    return Type(("n", "1"), a.scope)


def _unflatten(a: Type, like: Type) -> Type:
    if a.extent != ("n", "1"):
        raise MismatchError(0, f"must be what flatten gives, but {{}} is {a}")
    if like.extent != FULL.extent:
        raise MismatchError(1, f"must be full, but {{}} is {like}")
    return Type(FULL.extent, a.scope)


def _put(a: Type, _: Type, x: Type) -> Type:
    if x.extent != (a.extent[0], "1"):
        raise MismatchError(2, f"must be one column of {a}, but {{}} is {x}")
    return Type(a.extent, max(a.scope, x.scope))


def _column(a: Type, _: Type) -> Type:
    if a.extent[1] == "1":
        raise MismatchError(0, f"must have columns, but {{}} is {a}")
    return Type((a.extent[0], "1"), a.scope)


def _inner(a: Type, b: Type) -> Type:
    if a.extent[0] != b.extent[0]:
        raise MismatchError(1, f"does not join: {b} has not the rows of {a}")
    return Type((a.extent[1], b.extent[1]), GLOBAL.scope)


def _blocks(a: Type, *_: Type) -> Type:
    if a.extent != FULL.extent:
        raise MismatchError(0, f"must be full, but {{}} is {a}")
    return Type(("b", "1"), a.scope)


def _quantize(a: Type, scale: Type, *_: Type) -> Type:
    if scale.extent != _blocks(a).extent:
        raise MismatchError(1, f"must be one value per block, as block_amax gives, but {{}} is {scale}")
    return Type(a.extent, a.scope, code=True)


def _dequantize(codes: Type, scale: Type, *_: Type) -> Type:
    return Type(_quantize(replace(codes, code=False), scale).extent, codes.scope)


def _anywhere(q: Type, *_: Type) -> Type:
    if any(size not in ("1", whole) for size, whole in zip(q.extent, FULL.extent, strict=True)):
        raise MismatchError(0, f"must have the parameter's shape, but {{}} is {q}")
    return FULL


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
_infix("add", "+", 4, "arithmetic", "a plus b.", np.add, commutative=True)
_infix("sub", "-", 4, "arithmetic", "a minus b.", np.subtract)
_infix("mul", "*", 5, "arithmetic", "a times b.", np.multiply, commutative=True)
_infix("div", "/", 5, "arithmetic", "a over b.", np.divide)
_infix("mod", "%", 5, "arithmetic", "The remainder of a over b, of b's sign.", np.remainder, cost=2.0,
       special="nan in torch where a / b overflows")
_infix("pow", "**", 7, "arithmetic", "a to the power b; nan for a negative a and a fractional b.", np.power,
       cost=8.0)
define("neg", "a", "arithmetic", "Minus a.", ref=np.negative, torch="-{0}", number="-{0}", precedence=6)

_mask = {"law": _comparison}
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
       number="{1} if {0} else {2}")
define("every", "k:number new old", "comparison",
       "new at each k-th step (k, 2k, ...), old at the others; what only new needs is computed at those steps alone.",
       expand="where(t % k == 0, new, old)")
define("number", "mask:mask", "comparison", "A mask as 0 and 1; written for you where a value is wanted.",
       law=_first, ref=lambda m: np.multiply(m, 1.0), torch="{0}.to(p.dtype)", number="float({0})")

define("abs", "a", "elementwise", "The absolute value.", ref=np.abs, torch="{0}.abs()", number="abs({0})")
define("sign", "a", "elementwise", "-1, 0 or 1.", ref=np.sign, torch="{0}.sign()",
       number="float(({0} > 0) - ({0} < 0))",
       special="sign(nan) is 0 in torch, nan in the reference")
define("square", "a", "elementwise", "a * a.", ref=np.square, torch="{0}.square()", number="({0}) ** 2")
define("sqrt", "a", "elementwise", "The square root; nan below 0.", ref=np.sqrt, torch="{0}.sqrt()",
       number="math.sqrt({0})", cost=2.0)
define("rsqrt", "a", "elementwise", "1 over the square root.", ref=lambda a: 1 / np.sqrt(a), torch="{0}.rsqrt()",
       number="1 / math.sqrt({0})", cost=2.0)
define("reciprocal", "a", "elementwise", "1 over a.", ref=np.reciprocal, torch="{0}.reciprocal()", number="1 / ({0})")
define("exp", "a", "elementwise", "e to the a.", ref=np.exp, torch="{0}.exp()", number="math.exp({0})", cost=4.0)
define("log", "a", "elementwise", "The natural logarithm; -inf at 0, nan below.", ref=np.log, torch="{0}.log()",
       number="math.log({0})", cost=4.0)
define("tanh", "a", "elementwise", "The hyperbolic tangent.", ref=np.tanh, torch="{0}.tanh()", number="math.tanh({0})",
       cost=6.0)
define("sigmoid", "a", "elementwise", "1 / (1 + e**-a).", ref=lambda a: 1 / (1 + np.exp(-a)),
       torch="{0}.sigmoid()", number="0.5 * (1 + math.tanh(0.5 * ({0})))", cost=6.0)
define("cos", "a", "elementwise", "The cosine of an angle in radians.", ref=np.cos, torch="{0}.cos()",
       number="math.cos({0})", cost=6.0)
define("cosh", "a", "elementwise", "The hyperbolic cosine.", expand="0.5 * (exp(a) + exp(-a))")
define("floor", "a", "elementwise", "The largest whole number that is not larger.", ref=np.floor, torch="{0}.floor()",
       number="float(math.floor({0}))")
define("min", "a b", "elementwise", "The smaller of the two; nan where either is.", ref=np.minimum, commutative=True,
       torch={"tt": "torch.minimum({0}, {1})", "tn": "{0}.clamp(max={1})", "nt": "{1}.clamp(max={0})"},
       number="min({0}, {1})")
define("max", "a b", "elementwise", "The larger of the two; nan where either is.", ref=np.maximum, commutative=True,
       torch={"tt": "torch.maximum({0}, {1})", "tn": "{0}.clamp(min={1})", "nt": "{1}.clamp(min={0})"},
       number="max({0}, {1})")
define("clip", "a low high", "elementwise", "a, brought between low and high.",
       ref=lambda a, low, high: np.minimum(np.maximum(a, low), high),
       torch={"ttt": "torch.clamp({0}, {1}, {2})", "tnn": "{0}.clamp({1}, {2})"},
       number="min(max({0}, {1}), {2})")
define("lerp", "a b w:scalar", "elementwise", "Moves from a towards b by the fraction w: w=0 gives a, w=1 gives b.",
       ref=lambda a, b, w: a + w * (b - a),
       torch={"ttt": "torch.lerp({0}, {1}, {2})", "ttn": "torch.lerp({0}, {1}, {2})"},
       number="{0} + ({2}) * ({1} - ({0}))",
       special="torch.lerp(0, inf, 0.9) is nan, inf in the reference: torch counts from b for w >= 0.5")
define("debias", "m beta:scalar", "elementwise",
       "An average from 0 with rate 1 - beta, corrected for its start: m / (1 - beta**t).",
       expand="m / (1 - beta ** t)")


def _over(function: Callable[..., Any], axes: int | tuple[int, int]) -> Callable[..., Any]:
    return lambda a: function(a, axis=axes, keepdims=True)


def _norm(a: Array, axis: Any, keepdims: bool) -> Any:
    return np.sqrt(np.sum(np.square(a), axis=axis, keepdims=keepdims))


def _of_all(a: Type, *_: Type) -> Type:
    return _reduction(SCALAR)(a)


def _quantile(a: Array, q: float) -> Array:
    ordered = np.sort(np.reshape(a, (*np.shape(a)[:-2], -1)), axis=-1)  # nan comes last
    place = min(max(0.0, q), 1.0) * (ordered.shape[-1] - 1)
    below, above = ordered[..., int(place)], ordered[..., int(np.ceil(place))]
    value = np.where(above == below, below, below + (above - below) * (place - int(place)))
    return np.where(np.isnan(ordered[..., -1]), np.nan, value)[..., None, None]


def _block_mean(a: Array, k: float) -> Array:
    flat = np.reshape(a, (*np.shape(a)[:-2], -1))
    size = int(min(max(1, k), flat.shape[-1]))
    blocks = np.split(flat, range(size, flat.shape[-1], size), axis=-1)
    means = [np.broadcast_to(np.mean(block, axis=-1, keepdims=True), block.shape) for block in blocks]
    return np.reshape(np.concatenate(means, axis=-1), np.shape(a))


_axes: Any
for _prefix, _kept, _of, _axes, _dim in (
    ("", SCALAR, "of all elements", (-2, -1), "dim=(-2, -1), keepdim=True"),
    ("row_", ROWS, "of each row", -1, "dim=-1, keepdim=True"),
    ("col_", COLS, "of each column", -2, "dim=-2, keepdim=True"),
):
    _law, _tensor, _comma = _reduction(_kept), "" if not _prefix else _dim, "" if not _prefix else f", {_dim}"
    define(f"{_prefix}sum", "a:tensor", "reduction", f"The sum {_of}.", _law, ref=_over(np.sum, _axes),
           torch=f"{{0}}.sum({_tensor})", lanes=f"{{0}}.sum({_dim})")
    define(f"{_prefix}mean", "a:tensor", "reduction", f"The mean {_of}.", _law, ref=_over(np.mean, _axes),
           torch=f"{{0}}.mean({_tensor})", lanes=f"{{0}}.mean({_dim})")
    define(f"{_prefix}norm", "a:tensor", "reduction", f"The Euclidean norm {_of}.", _law, ref=_over(_norm, _axes),
           torch=f"torch.linalg.vector_norm({{0}}{_comma})", lanes=f"torch.linalg.vector_norm({{0}}, {_dim})")
    define(f"{_prefix}amax", "a:tensor", "reduction", f"The largest {_of}.", _law, ref=_over(np.amax, _axes),
           torch=f"{{0}}.amax({_tensor})", lanes=f"{{0}}.amax({_dim})")
    define(f"{_prefix}dot", "a:tensor b:tensor", "reduction", f"The sum of products {_of}.", _law,
           expand=f"{_prefix}sum(a * b)")
    define(f"{_prefix}rms", "a:tensor", "reduction", f"The root of the mean square {_of}.", _law,
           expand=f"sqrt({_prefix}mean(square(a)))")
    define(f"{_prefix}std", "a:tensor", "reduction", f"The standard deviation {_of}, over n and not n - 1.", _law,
           expand=f"sqrt({_prefix}mean(square(a - {_prefix}mean(a))))")
    define(f"{_prefix}cosine", "a:tensor b:tensor", "reduction",
           f"The cosine similarity {_of}; 0 where either is zero.", _law,
           expand=f"{_prefix}sum(a * b) / max({_prefix}norm(a) * {_prefix}norm(b), 1e-30)")
define("size", "a:tensor", "reduction", "How many elements the tensor has.", lambda a: SCALAR,
       ref=lambda a: np.full((1, 1), float(np.shape(a)[-2] * np.shape(a)[-1])),
       torch="{0}.new_tensor({0}.numel())", lanes="{0}.new_full(({0}.shape[0], 1, 1), {0}[0].numel())",
       cost=0.0)

define("quantile", "a:tensor q:number", "reduction",
       "What the share q (0 to 1) of all elements lies below, interpolated linearly between neighbours.",
       _of_all, ref=_quantile, torch="quantile({0}, {1})", lanes="quantile({0}, {1}, lanes=True)",
       helpers=("quantile",), cost=8.0)
define("block_mean", "a:tensor k:number", "reduction",
       "For each element the mean of its block: k consecutive elements, at least one; the last block may be shorter.",
       _first, ref=_block_mean, torch="block_mean({0}, {1})", lanes="block_mean({0}, {1}, lanes=True)",
       helpers=("block_mean",), cost=2.0)

_all, _both = _reduction(GLOBAL), "dim=(-2, -1), keepdim=True"
define("global_sum", "a:tensor", "global", "The sum of all elements of all parameters.", _all,
       ref=_over(np.sum, (-2, -1)), torch="{0}.sum()", lanes=f"{{0}}.sum({_both})", combine="sum")
define("global_amax", "a:tensor", "global", "The largest element of all parameters.", _all,
       ref=_over(np.amax, (-2, -1)), torch="{0}.amax()", lanes=f"{{0}}.amax({_both})", combine="amax")
define("global_mean", "a:tensor", "global", "The mean of all elements of all parameters.", _all,
       expand="global_sum(a) / global_sum(size(a))")
define("global_norm", "a:tensor", "global", "The Euclidean norm over all parameters.", _all,
       expand="sqrt(global_sum(square(a)))")
define("global_dot", "a:tensor b:tensor", "global", "The sum of products over all parameters.", _all,
       expand="global_sum(a * b)")


define("matmul", "a:tensor b:tensor", "matrix", "The product of two matrices.", _matmul, ref=np.matmul,
       torch="{0} @ {1}", lanes="lane_product({0}, {1})", helpers=("lane_product",), infix="@", precedence=5,
       cost=8.0, matrix=True)
define("transpose", "a:tensor", "matrix", "Rows as columns.", _transpose, ref=lambda a: np.swapaxes(a, -1, -2),
       torch="{0}.mT", cost=0.0, matrix=True, view=True)
define("newton_schulz", "a:tensor steps:number", "matrix",
       "The nearest semi-orthogonal matrix, roughly: quintic Newton-Schulz steps, 0 to 32 of them (Jordan 2024, Muon).",
       _first, ref=numpy_functions.newton_schulz, torch="newton_schulz({0}, {1})", helpers=("newton_schulz",),
       cost=60.0, matrix=True)

define("newton_schulz_cubic", "a:tensor steps:number", "matrix",
       "The nearest semi-orthogonal matrix by cubic Newton-Schulz steps, which converge: 0 to 32 (Bjorck 1971).",
       _first, ref=numpy_functions.newton_schulz_cubic, torch="newton_schulz_cubic({0}, {1})",
       helpers=("newton_schulz_cubic",), cost=40.0, matrix=True)
define("polar", "a:tensor", "matrix", "The nearest semi-orthogonal matrix, exactly, by singular values.", _first,
       ref=numpy_functions.polar, torch="polar({0})", helpers=("_widened", "polar"), cost=200.0, matrix=True)
define("sinkhorn", "a:tensor steps:number", "matrix",
       "Each row, then each column brought to root mean square 1, `steps` times (0 to 32).", _first,
       ref=numpy_functions.sinkhorn, torch="sinkhorn({0}, {1})", helpers=("sinkhorn",), cost=20.0, matrix=True)
define("eye", "a:tensor", "matrix", "The identity, as large as the square matrix a.", _square,
       ref=lambda a: np.broadcast_to(np.eye(np.shape(a)[-1]), np.shape(a)),
       torch="torch.eye({0}.shape[-1], dtype={0}.dtype, device={0}.device).expand_as({0}).contiguous()",
       cost=1.0, matrix=True)
define("diagonal", "a:tensor", "matrix", "The diagonal of a square matrix, upright.", _upright,
       ref=lambda a: np.diagonal(a, axis1=-2, axis2=-1)[..., None],
       torch="{0}.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)", cost=0.0, view=True, matrix=True)
_spectral = {"matrix": True, "cost": 300.0}
define("eigenvectors", "a:tensor", "matrix",
       "The eigenvectors of a symmetric matrix as columns, the largest eigenvalue first; the largest element of each "
       "is positive.", _square,
       ref=numpy_functions.eigenvectors, torch="eigenvectors({0})", helpers=("_widened", "spectrum", "eigenvectors"),
       **_spectral)
define("top_vectors", "a:tensor rank:number", "matrix",
       "The `rank` first of them: rank is the rule's hyperparameter of that name.", _leading,
       ref=numpy_functions.top_vectors, torch="top_vectors({0}, {1})",
       helpers=("_widened", "spectrum", "eigenvectors", "top_vectors"), **_spectral)
define("matrix_power", "a:tensor exponent:number", "matrix",
       "A positive semi-definite matrix to a real power, such as -1/4 for its inverse fourth root.", _square,
       ref=numpy_functions.matrix_power, torch="matrix_power({0}, {1})",
       helpers=("power", "_widened", "spectrum", "matrix_power"), **_spectral)
define("orthonormal", "a:tensor", "matrix",
       "The orthonormal factor of the QR decomposition; the triangular one has no negative diagonal.", _thin,
       ref=numpy_functions.orthonormal, torch="orthonormal({0})", helpers=("_widened", "orthonormal"), cost=100.0,
       matrix=True)
define("solve", "a:tensor b:tensor", "matrix", "x with a x = b, for a square matrix a.", _solve,
       ref=numpy_functions.solve, torch="solve({0}, {1})", helpers=("_widened", "solve"), cost=50.0)
define("order", "a:tensor", "matrix",
       "The places of the elements of an upright vector, the largest first (nan before).", _ordered,
       ref=numpy_functions.order, torch="{0}.argsort(dim=-2, descending=True, stable=True)", matrix=True)
define("take_columns", "a:tensor order:code", "matrix", "a's columns in an order.", _columns_taken,
       ref=numpy_functions.take_columns,
       torch="{0}.gather(-1, {1}.mT.expand_as({0}))", matrix=True)
define("take_rows", "a:tensor order:code", "matrix", "a's rows in an order.", _rows_taken,
       ref=numpy_functions.take_rows, torch="{0}.gather(-2, {1}.expand_as({0}))", matrix=True)

define("flatten", "a:tensor", "history", "All elements upright, row by row.", _flatten,
       ref=lambda a: np.reshape(a, (*np.shape(a)[:-2], -1, 1)), torch="{0}.flatten(-2).unsqueeze(-1)",
       cost=0.0, view=True)
define("unflatten", "a:tensor like:tensor", "history", "The inverse: in the shape of `like`.", _unflatten,
       ref=lambda a, like: np.reshape(a, (*np.shape(a)[:-2], *np.shape(like)[-2:])),
       torch="{0}.reshape({1}.shape)", cost=0.0, view=True)
define("put_column", "a:tensor column:number x:tensor", "history", "a with one column, counted from 0, replaced by x.",
       _put, ref=numpy_functions.put_column, torch="put_column({0}, {1}, {2})", helpers=("put_column",), cost=2.0)
define("column", "a:tensor column:number", "history", "One of a's columns, counted from 0.", _column,
       ref=lambda a, column: np.asarray(a)[..., int(column), None], torch="{0}[..., int({1})].unsqueeze(-1)", cost=0.0)
define("global_inner", "a:tensor b:tensor", "history", "a^T b, summed over all parameters.", _inner,
       ref=lambda a, b: np.swapaxes(a, -1, -2) @ b, torch="{0}.mT @ {1}", combine="sum", cost=8.0)

for _name, _doc, _params, _law in (
    ("uniform", "Draws between 0 and 1 in the shape of a", "", _first),
    ("gaussian", "Draws of mean 0 and variance 1 in the shape of a", "", _first),
    ("rademacher", "Draws of 1 and -1 in the shape of a", "", _first),
    ("subset", "Mask: a random choice of the given share of a's elements, at least one", "density:number ",
     _comparison),
):
    _passed = ", ".join(["a", *_params.partition(":")[:1]]).rstrip(", ")
    _slots = ", ".join(f"{{{i}}}" for i in range(4 + bool(_params)))
    define(_name, f"a:tensor {_params}seed:key key:key", "random",
           f"{_doc}; a function of seed, key, the parameter and the element.", _law,
           expand=f"draw_{_name}({_passed}, seed, key, place)")
    define(f"draw_{_name}", f"a:tensor {_params}seed:key key:key place:key", "random",
           f"{_name} with the parameter's number said; written for you.", _law,
           ref=getattr(numpy_functions, f"draw_{_name}"), torch=f"draw_{_name}({_slots})",
           lanes=f"draw_{_name}({_slots}, lanes=True)", cost=12.0,
           helpers=("_mixed", "_mixed_number", "draw_bits", f"draw_{_name}"))

_eight = ("dynamic_map", "codebook", "in_blocks")
define("block_amax", "a:tensor block:number", "eight bits", "The largest of each block of consecutive elements.",
       _blocks, ref=numpy_functions.block_amax, torch="block_amax({0}, {1})", helpers=("in_blocks", "block_amax"))
define("quantize", "a:tensor scale:tensor block:number signed:number", "eight bits",
       "a in eight bits: for each element the nearest of 256 values between -1 (0 where not signed) and 1, times its "
       "block's scale (Dettmers et al. 2021).",
       _quantize, ref=numpy_functions.quantize, torch="quantize({0}, {1}, {2}, {3})", helpers=(*_eight, "quantize"),
       cost=6.0)
define("dequantize", "codes:code scale:tensor block:number signed:number", "eight bits", "What the codes stand for.",
       _dequantize, ref=numpy_functions.dequantize, torch="dequantize({0}, {1}, {2}, {3})",
       helpers=(*_eight, "dequantize"), cost=4.0)

_closure = {"combine": "closure", "cost": 30.0}
define("grad_at", "q", "closure", "The gradient at q, on the same batch.", _anywhere, **_closure)
define("hvp", "z", "closure", "The Hessian at p times z, on the same batch.", _anywhere, **_closure)
define("loss_at", "q", "closure", "The loss at q, on the same batch.", lambda q: GLOBAL, **_closure)
define("sampled_grad", "q", "closure", "The gradient at q, of labels that the model itself draws.", _anywhere,
       **_closure)
define("clipped_grad", "q max_norm:number", "closure",
       "The mean over examples of their own gradients at q, each scaled down to at most this norm over all parameters.",
       _anywhere, **_closure)

define("rows", "a:tensor", "shape", "How many rows it has, as a number.", lambda a: NUMBER,
       ref=lambda a: float(np.shape(a)[-2]), torch="{0}.shape[-2]", cost=0.0, matrix=True)
define("cols", "a:tensor", "shape", "How many columns it has, as a number.", lambda a: NUMBER,
       ref=lambda a: float(np.shape(a)[-1]), torch="{0}.shape[-1]", cost=0.0, matrix=True)
# fmt: on
