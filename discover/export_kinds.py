"""The kinds of parameters that an exported file tells apart, and how its text says which is which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsl.codegen import Barrier, Code, generate
from dsl.codegen_numbers import literal
from dsl.codegen_print import Function
from dsl.program import ROLES, Facts, HasRole, IsTall, Program, Slot, questions
from dsl.types import EXTENTS

Cell = tuple[str, str | None]
"""A side and a role that the rule may ask for; no role is the usual one."""

_SHAPES = {"matrix": (2, 2), "tall": (2, 1), "wide": (1, 2), "vector": (2,)}
_SIDES = {
    frozenset({"matrix"}): "p.ndim >= 2",
    frozenset({"tall", "wide"}): "p.ndim >= 2",
    frozenset({"vector"}): "p.ndim < 2",
    frozenset({"tall"}): "p.ndim >= 2 and p.shape[0] ** 2 >= p.numel()",
    frozenset({"wide"}): "p.ndim >= 2 and p.shape[0] ** 2 < p.numel()",
    frozenset({"tall", "vector"}): "(p.ndim < 2 or p.shape[0] ** 2 >= p.numel())",
    frozenset({"wide", "vector"}): "(p.ndim < 2 or p.shape[0] ** 2 < p.numel())",
}
_FULL = EXTENTS["full"]


@dataclass(frozen=True, slots=True)
class Kind:
    """Parameters that have code of their own.

    Attributes:
        code: their code.
        cells: which parameters these are.
        names: the name of each of its functions in the file, in order.
    """

    code: Code
    cells: frozenset[Cell]
    names: tuple[str, ...]

    @property
    def vectors(self) -> bool:
        return any(side == "vector" for side, _ in self.cells)

    @property
    def matrices(self) -> bool:
        return any(side != "vector" for side, _ in self.cells)

    def name(self, function: Function) -> str:
        return self.names[self.code.functions.index(function)]

    def barrier(self, level: int) -> Barrier | None:
        """Its shares of a level, if it has any."""
        return next((barrier for barrier in self.code.barriers if barrier.level == level), None)

    @property
    def rows(self) -> str:
        """The line that says how many rows such a parameter has."""
        if not self.vectors:
            return "rows = p.shape[0]"
        return "rows = p.shape[0] if p.ndim >= 2 else p.numel()" if self.matrices else "rows = p.numel()"

    def initial(self) -> list[str]:
        """Lines that make its state, with p and group at hand."""
        symbols = {symbol for slot in self.code.slots if self._shaped(slot) for symbol in slot.extent}
        lines = [self.rows] if symbols & {"r", "c", "k"} else []
        if "k" in symbols:
            lines.append('rank = min(int(group["rank"]), rows, p.numel() // rows)')
        return lines + [f'state["{slot.name}"] = {self._first(slot)}' for slot in self.code.slots]

    def _shaped(self, slot: Slot) -> bool:
        return self.code.matrix and slot.extent != _FULL

    def _first(self, slot: Slot) -> str:
        if slot.extent == _FULL:
            memory = ", memory_format=torch.contiguous_format" if self.code.matrix else ""
            if slot.init == "p":
                return f"p.detach().clone({memory[2:]})"
            memory = (", dtype=torch.uint8" if slot.code else "") + memory
            if slot.init == 0:
                return f"torch.zeros_like(p{memory})"
            return f"torch.full_like(p, {literal(_number(slot))}{memory})"
        if slot.init == "eye":
            return f"torch.eye({_size(slot.extent[0])}, dtype=p.dtype, device=p.device)"
        sizes = ", ".join(_size(symbol) for symbol in slot.extent) if self.code.matrix else ""
        if slot.init == 0:
            return f"p.new_zeros({sizes or '()'})"
        return f"p.new_full(({sizes}), {literal(_number(slot))})"


def _number(slot: Slot) -> float:
    assert not isinstance(slot.init, str)
    return slot.init


def _size(symbol: str) -> str:
    return {
        "r": "rows",
        "c": "p.numel() // rows",
        "1": "1",
        "n": "p.numel()",
        "k": "rank",
        "h": 'int(group["history"])',
        "b": '-(-p.numel() // int(group["block"]))',
    }[symbol]


# Which there are ----------------------------------------------------------------------------------------------------


def roles(program: Program) -> list[str]:
    """The roles that a rule asks for."""
    found = {test.role for test in questions(program.body) if isinstance(test, HasRole)}
    return [role for role in ROLES if role in found]


def kinds(program: Program) -> list[Kind]:
    """The kinds of parameters that have different code; the one with the most cases last, for an `else`.

    Raises:
        RuleError: the program is not well formed.
    """
    tall = any(isinstance(test, IsTall) for test in questions(program.body))
    codes: dict[object, Code] = {}
    found: dict[object, set[Cell]] = {}
    for side in (*(("tall", "wide") if tall else ("matrix",)), "vector"):
        for role in (None, *roles(program)):
            code = generate(program, Facts.of(_SHAPES[side], role))
            same = (code.matrix, code.evaluation, code.slots, code.source, tuple(b.totals for b in code.barriers))
            codes.setdefault(same, code)
            found.setdefault(same, set()).add((side, role))
    order = sorted(found, key=lambda same: len(found[same]))
    names = _names([codes[same] for same in order], _suffixes([found[same] for same in order]))
    return [Kind(codes[same], frozenset(found[same]), each) for same, each in zip(order, names, strict=True)]


def _suffixes(cells: list[set[Cell]]) -> list[str]:
    """What to call each kind: by its usual parameters, else by its roles; the last is the rest."""
    if len(cells) == 1:
        return [""]
    words: list[str] = []
    for each in cells[:-1]:
        usual = [side for side, role in sorted(each, key=str) if role is None]
        asked = dict.fromkeys(str(role) for _, role in sorted(each, key=str))
        word = "_".join(usual or asked)
        words.append(f"_{word}" if f"_{word}" not in words else f"_{word}_{len(words)}")
    return [*words, "_rest"]


def _names(codes: list[Code], suffixes: list[str]) -> list[tuple[str, ...]]:
    """A name for each function of each kind: the same text has one name, and where all share it a plain one."""
    texts: dict[tuple[str, ...], list[int]] = {}
    for number, code in enumerate(codes):
        for function in code.functions:
            texts.setdefault((function.name, function.source), []).append(number)
    return [
        tuple(
            function.name + (suffixes[users[0]] if len(users) < len(codes) else "")
            for function in code.functions
            for users in [texts[function.name, function.source]]
        )
        for code in codes
    ]


def functions(kinds: Iterable[Kind]) -> dict[str, Function]:
    """Every function of the file by its name there, in the order in which the kinds come."""
    return {name: function for kind in kinds for name, function in zip(kind.names, kind.code.functions, strict=True)}


# Which is which -----------------------------------------------------------------------------------------------------


def condition(some: Iterable[Kind], all_kinds: Iterable[Kind]) -> str:
    """A test of p and group that holds for the parameters of some kinds alone; empty where it is all of them."""
    cells = {cell for kind in some for cell in kind.cells}
    everything = {cell for kind in all_kinds for cell in kind.cells}
    roles = sorted({role for _, role in everything if role is not None})
    by_roles: dict[frozenset[str | None], set[str]] = {}
    for side in sorted({side for side, _ in cells}):
        mine = frozenset(role for where, role in cells if where == side)
        by_roles.setdefault(mine, set()).add(side)
    sides = {side for side, _ in everything}
    tests = [
        " and ".join(filter(None, (_SIDES[frozenset(which)] if which != sides else "", _asked(mine, roles))))
        for mine, which in by_roles.items()
    ]
    return " or ".join(tests)


def _asked(mine: frozenset[str | None], roles: list[str]) -> str:
    """A test of the role: one of `mine`, where None stands for all that the rule does not ask for."""
    chosen = [role for role in roles if (role in mine) != (None in mine)]
    if not chosen:
        return ""
    if len(chosen) == 1:
        return f'group["role"] {"!=" if None in mine else "=="} "{chosen[0]}"'
    listed = ", ".join(f'"{role}"' for role in chosen)
    return f'group["role"] {"not in" if None in mine else "in"} ({listed})'
