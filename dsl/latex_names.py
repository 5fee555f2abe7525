"""What names look like in a formula, and which of a name's values is meant while statements are read in order.

Names carry time: `m_{t-1}` is a slot before this step's assignment, `m_t` after the last one, and what lies between
wears primes. p is written theta, g is g_t, lr eta, weight_decay lambda; what follows an underscore is a subscript.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from dsl.ops import OPS
from dsl.program import BUILTINS, Assign, Call, Expr, If, Name, Program, Statement, assignments
from dsl.types import FULL, NUMBER, MismatchError, Type, broadcast

_KNOWN = {
    "lr": r"\eta",
    "lr_ratio": r"\frac{\eta}{\eta_0}",
    "eps": r"\epsilon",
    "weight_decay": r"\lambda",
    "momentum": r"\mu",
    "examples": "B",
    "ql": "Q_L",
    "qr": "Q_R",
}
_GREEK = re.compile(
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega"
)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A base and its subscripts: theta, or beta with 2 and "decay"."""

    base: str
    below: tuple[str, ...] = ()

    def text(self, time: str = "", primes: int = 0, hat: bool = False) -> str:
        below = ",".join((*self.below, *filter(None, [time])))
        lower = "" if not below else f"_{below}" if len(below) == 1 else f"_{{{below}}}"
        wide = self.base.startswith((r"\mathrm", r"\text"))
        base = (rf"\widehat{{{self.base}}}" if wide else rf"\hat{{{self.base}}}") if hat else self.base
        return base + "'" * max(primes, 0) + lower


def symbol(name: str, upper: bool = False) -> Symbol:
    """How a name of the language is written; `upper` for a matrix, whose single letter is a capital."""
    if name in _KNOWN:
        base, _, below = _KNOWN[name].partition("_") if "frac" not in _KNOWN[name] else (_KNOWN[name], "", "")
        return Symbol(base, (below,) if below else ())
    parts = [part for part in name.split("_") if part]
    for place in (0, len(parts) - 1):  # the part that is a letter of its own; the others say which one
        found = _letter(parts[place])
        if found:
            base, number = found
            rest = [_subscript(part) for at, part in enumerate(parts) if at != place]
            return Symbol(base.upper() if upper and len(base) == 1 else base, (*filter(None, [number]), *rest))
    stem, number = re.fullmatch(r"(.*?)(\d*)", " ".join(parts)).groups()  # type: ignore[union-attr]
    return Symbol(rf"\text{{{stem}}}" if " " in stem else rf"\mathrm{{{stem}}}", (number,) if number else ())


def _letter(part: str) -> tuple[str, str] | None:
    stem, number = re.fullmatch(r"(.*?)(\d*)", part).groups()  # type: ignore[union-attr]
    if stem in _KNOWN and not number and "_" not in _KNOWN[stem]:
        return _KNOWN[stem], ""
    if _GREEK.fullmatch(stem):
        return rf"\{stem}", number
    return (stem, number) if len(stem) == 1 and stem.isalpha() else None


def _subscript(part: str) -> str:
    if part in ("max", "min"):
        return rf"\{part}"
    return part if part.isdigit() or len(part) == 1 else rf"\text{{{part}}}"


class Names:
    """Which value of a name is meant, while statements are read in order."""

    def __init__(self, program: Program) -> None:
        self.state = {"p", *(slot.name for slot in program.slots)}
        self.last = assigned(program.body)
        self.now: Counter[str] = Counter()
        self.types: dict[str, Type] = {"p": FULL, "g": FULL}
        self.types |= dict.fromkeys((*program.defaults, *BUILTINS), NUMBER)
        self.types |= {slot.name: Type(slot.extent, code=slot.code) for slot in program.slots}
        self.aliases: dict[str, tuple[str, str]] = {}
        self.hats: set[str] | None = set()
        """Averages whose correction has a line of its own; None where there is no room for such lines."""
        self.pending: list[str] = []
        """Lines that must stand before the one being written."""
        self.symbols = self._symbols(program)
        self.matrices = any(
            isinstance(part, Call) and OPS[part.op].matrix and OPS[part.op].group == "matrix"
            for each in assignments(program.body)
            for part in _parts(each.value)
        )

    def _symbols(self, program: Program) -> dict[str, Symbol]:
        """A symbol for each name, none of them twice: a name whose symbol is taken is written out."""
        upper = {slot.name for slot in program.slots if "1" not in slot.extent and slot.extent != FULL.extent}
        names = dict.fromkeys(("p", *self.state, *program.defaults, *BUILTINS, *self.last))
        found = {"p": Symbol(r"\theta" if "theta" not in names else "w"), "g": Symbol("g")}
        taken = set(found.values())
        for name in sorted(names.keys() - found.keys(), key=lambda name: (len(name), name)):
            each = symbol(name, name in upper)
            if each in taken:
                each = Symbol(rf"\text{{{name.replace('_', ' ')}}}")
            taken.add(each)
            found[name] = each
        return found

    # Reading ------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> str:
        return self.aliases[name][0] if name in self.aliases else self._at(name)

    def hatted(self, name: str) -> str:
        """The name as an average that has been corrected for its start."""
        return self.aliases[name][1] if name in self.aliases else self._at(name, hat=True)

    def plain(self, name: str) -> str:
        """The name without time, where only its shape counts."""
        return self.symbols[name].text() if name in self.symbols else self.read(name)

    def _at(self, name: str, hat: bool = False) -> str:
        version = self.now[name]
        if name == "g":
            return self.symbols[name].text("t", version, hat)
        if name not in self.state:
            return self.symbols[name].text("", version - 1, hat)
        if version == 0:
            return self.symbols[name].text("t-1", 0, hat)
        return self.symbols[name].text("t", 0 if version == self.last[name] else version, hat)

    def infer(self, expr: Expr) -> Type | None:
        """The type of an expression; None where it is not well formed."""
        match expr:
            case Name(id):
                return self.types.get(id, FULL)
            case Call(op, args):
                types = [self.infer(arg) for arg in args]
                known = [type for type in types if type is not None]
                try:
                    return OPS[op].law(*known) if len(known) == len(types) else None
                except MismatchError:
                    return None
        return NUMBER

    def wide(self, expr: Expr) -> bool:
        """Whether it is more than one value per tensor."""
        type = self.infer(expr)
        return type is not None and not type.is_number and type.extent != ("1", "1")

    # Writing ------------------------------------------------------------------------------------------------------

    def assign(self, name: str, value: Expr | None, skip: int = 0) -> str:
        if value is not None and (type := self.infer(value)) is not None and name not in self.state:
            self.types[name] = type if name not in self.types or not self.wide(Name(name)) else self._met(name, type)
        self.aliases.pop(name, None)
        self.now[name] += 1 + skip
        return self._at(name)

    def _met(self, name: str, type: Type) -> Type:
        try:
            return broadcast(self.types[name], type)
        except MismatchError:
            return type

    def alias(self, name: str, other: str) -> None:
        """From here on the name is only another word for the other's present value."""
        self.types[name] = self.types.get(other, FULL)
        self.aliases[name] = self.read(other), self.hatted(other)


def is_alias(statement: Statement, names: Names) -> bool:
    """Whether a statement only gives a value one more name."""
    if not isinstance(statement, Assign) or not isinstance(statement.value, Name):
        return False
    return statement.target not in names.state and statement.target != "g"


def assigned(body: tuple[Statement, ...]) -> Counter[str]:
    """How often each name is assigned on the way through; an if counts as its longer branch."""
    counts: Counter[str] = Counter()
    for statement in body:
        if isinstance(statement, Assign):
            counts[statement.target] += 1
        elif isinstance(statement, If):
            counts += assigned(statement.body) | assigned(statement.orelse)
    return counts


def _parts(expr: Expr) -> Iterable[Expr]:
    yield expr
    if isinstance(expr, Call):
        for arg in expr.args:
            yield from _parts(arg)
