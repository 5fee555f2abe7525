"""The types of the language: extents relative to the parameter seen as a matrix of rows x cols.

The law of a well-formed expression, in prose. A value has an extent `(rows, cols)`, each of them a size known by a
symbol: the parameter's rows, its columns, one, or one of the few others in `SIZES`. Element-wise operators broadcast:
two sizes meet if they are equal or one of them is one. A reduction makes sizes one. A product of matrices joins inner
sizes that are equal. Beside the extent a value has a *scope*: a `number` is known before any tensor is touched
(literals, hyperparameters, t, lr), a `global` is one value over all parameters (a global norm), a `tensor` belongs to
one parameter. A comparison gives a *mask*, which counts as 0 or 1 wherever a value is wanted. A vector is a column of n
rows, and nothing that treats it as a matrix is allowed. A *code* is a value that means something only to the operators
that take codes: eight bits that stand for a number, places in an order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

Extent = tuple[str, str]
"""Two sizes, as symbols of `SIZES`."""

SIZES = {
    "r": "rows",
    "c": "cols",
    "1": "1",
    "n": "all elements",
    "k": "rank",
    "h": "history",
    "b": "blocks",
}
"""Symbol -> how it is called. The last three follow from a hyperparameter of the rule: `rank` (at most the parameter's
rows and columns), `history`, and `block`, elements to a block."""

SIZED_BY = {"k": "rank", "h": "history", "b": "block"}
"""Symbol -> the hyperparameter that a rule must have which uses it."""

EXTENTS: dict[str, Extent] = {
    "full": ("r", "c"),
    "rows": ("r", "1"),
    "cols": ("1", "c"),
    "left": ("r", "r"),
    "right": ("c", "c"),
    "flipped": ("c", "r"),
    "scalar": ("1", "1"),
    "rows_rank": ("r", "k"),
    "cols_rank": ("c", "k"),
    "rank_cols": ("k", "c"),
    "history": ("n", "h"),
    "blocks": ("b", "1"),
}
_NAMES = {extent: name for name, extent in EXTENTS.items()} | {("c", "1"): "columns upright", ("1", "r"): "rows lying"}
_MEANING = {
    "full": "the parameter's shape",
    "rows": "one value per row",
    "cols": "one value per column",
    "left": "rows x rows",
    "right": "cols x cols",
    "flipped": "the parameter's shape transposed",
    "scalar": "one value per tensor",
    "history": "one column of all elements for each remembered step",
    "blocks": "one value per block",
}


def size_of(symbol: str, rows: int, cols: int, hypers: Mapping[str, float]) -> int:
    """A size in numbers, for a parameter of rows x cols.

    Raises:
        ValueError: the hyperparameter that gives it is not a whole number from 1.
    """
    if symbol in SIZED_BY:
        name = SIZED_BY[symbol]
        value = hypers[name]
        if not isinstance(value, int | float) or value < 1 or value != int(value):
            raise ValueError(f"{name} gives the state its shape: expected a whole number from 1 for all, not {value}")
        number = int(value)
        return {"k": min(number, rows, cols), "h": number, "b": -(-rows * cols // number)}[symbol]
    return {"r": rows, "c": cols, "1": 1, "n": rows * cols}[symbol]


class Scope(IntEnum):
    NUMBER = 0
    GLOBAL = 1
    TENSOR = 2


@dataclass(frozen=True, slots=True)
class Type:
    extent: Extent
    scope: Scope = Scope.TENSOR
    mask: bool = False
    code: bool = False

    @property
    def is_number(self) -> bool:
        return self.scope is Scope.NUMBER

    @property
    def elementwise(self) -> bool:
        """Whether the value lives on the parameter's own elements or is a number: needs no view as a matrix."""
        return self.is_number or self.extent == EXTENTS["full"]

    def __str__(self) -> str:
        if self.scope is Scope.NUMBER:
            return "a number"
        if self.scope is Scope.GLOBAL:
            return "global (one value over all parameters)"
        name = _NAMES.get(self.extent) or " x ".join(SIZES[symbol] for symbol in self.extent)
        meaning = _MEANING.get(name)
        text = f"{name} ({meaning})" if meaning else name
        return f"codes, {text}" if self.code else text


FULL = Type(EXTENTS["full"])
ROWS = Type(EXTENTS["rows"])
COLS = Type(EXTENTS["cols"])
LEFT = Type(EXTENTS["left"])
RIGHT = Type(EXTENTS["right"])
SCALAR = Type(EXTENTS["scalar"])
GLOBAL = Type(EXTENTS["scalar"], Scope.GLOBAL)
NUMBER = Type(EXTENTS["scalar"], Scope.NUMBER)


class MismatchError(ValueError):
    """Types that do not fit: which argument (from 0), and why; "{}" in the reason stands for the argument's text."""

    def __init__(self, argument: int, reason: str):
        super().__init__(reason)
        self.argument = argument


def broadcast(*types: Type) -> Type:
    """The type of an element-wise operator's result. Raises MismatchError where sizes do not meet."""
    first = types[0]
    for position, each in enumerate(types):
        if each.code:
            raise MismatchError(position, f"is no number to compute with: {{}} is {each}")
    if not first.mask and all(other == first for other in types[1:]):
        return first
    (rows, cols), scope = first.extent, first.scope
    for position, other in enumerate(types[1:], start=1):
        r, c = other.extent
        if (rows != r and "1" not in (rows, r)) or (cols != c and "1" not in (cols, c)):
            raise MismatchError(position, f"does not broadcast: {{}} is {other}, beside {Type((rows, cols), scope)}")
        rows, cols, scope = (r if rows == "1" else rows), (c if cols == "1" else cols), max(scope, other.scope)
    return Type((rows, cols), scope)


def fits(value: Type, place: Type) -> bool:
    """Whether a value may be stored in a place of the given type, broadcasting included."""
    if value.code or place.code:
        return value.code == place.code and value.extent == place.extent
    return value.scope <= place.scope and all(
        mine in (theirs, "1") for mine, theirs in zip(value.extent, place.extent, strict=True)
    )
