"""A rule as data: slots, hyperparameters and straight-line statements.

A `Program` is what a rule file says and nothing more: it is parsed from text (`dsl.parse`), printed to text
(`dsl.format`), compared and hashed by value, and mutated by building a new one. What it means is in `dsl.graph` and
`dsl.reference`; what is well formed is in `dsl.check`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dsl.ops import OPS
from dsl.types import Extent

ROLES = ("hidden", "embedding", "head", "bias", "norm", "query_key", "vector")
"""What a parameter is for. `hidden` is the default of a matrix, `vector` of anything else."""

LARGEST = 1e300
"""Literals are smaller; a larger one is a mistake, and its products are inf."""

BUILTINS = ("t", "lr_ratio", "place", "examples")
"""Numbers every rule may read: the step, from 1; lr over its initial value; which parameter this is, from 0; how many
examples the gradient is a mean over, which whoever steps the rule must then say."""

GENERATED = frozenset(
    ("torch", "math", "float", "int", "abs", "min", "max", "power", *(h for op in OPS.values() for h in op.helpers))
)
"""Names that generated code uses itself."""

RESERVED: Mapping[str, str] = {
    **dict.fromkeys(sorted(GENERATED), "a name that generated code uses itself"),
    "step": "the count of steps in an optimizer's state",
    "evaluation": "the point to evaluate in an optimizer's state",
    "self": "the optimizer itself",
    "super": "a word of the optimizer's class",
    "rule": "the rule that optim.create is given",
    "params": "the parameters that an optimizer is given",
    "param_names": "a key of PyTorch's parameter groups",
    **dict.fromkeys(
        ("initial_lr", "max_lr", "min_lr", "swa_lr"), "a key that PyTorch's schedulers write into parameter groups"
    ),
    "maximize": "an option of every optimizer",
    "role": "a key of parameter groups: what a parameter is for",
    "reference_lr": "a key of parameter groups: what lr_ratio is taken of",
    "evaluating": "a key of parameter groups: whether parameters are at the point to evaluate",
}
"""Names that neither a slot nor a hyperparameter may have -> what each of them is; `BUILTINS` apart."""


class RuleError(ValueError):
    """A rule that is not well formed.

    Args:
        message: what was wrong, what was expected, what to do.
        line: the line it stands on, from 1; 0 where there is none.
        source: the file, or "NAME.rule" for a program that was not read from one.
    """

    def __init__(self, message: str, line: int = 0, source: str = ""):
        self.message, self.line, self.source = message, line, source
        where = ":".join(str(part) for part in (source, line) if part)
        super().__init__(f"{where}: {message}" if where else message)

    def at(self, source: str) -> RuleError:
        """The same error with the file named."""
        return type(self)(self.message, self.line, source)

    def __reduce__(self) -> tuple[type[RuleError], tuple[str, int, str]]:
        return type(self), (self.message, self.line, self.source)


class IdleGradientError(RuleError):
    """A rule whose new p depends neither on the gradient nor on what a closure says."""


# Expressions ------------------------------------------------------------------------------------------------------


class _Remembers:
    """Room for what is worked out once of a value that never changes: its hash, the names it reads, its text, itself
    without dead statements or without its name. No part of it: not compared, not copied, not pickled (the hash of a
    text differs between processes)."""

    __slots__ = ("_hash", "_reads", "_stripped", "_text", "_unnamed")

    _hash: int
    _reads: frozenset[str]
    _stripped: Any
    _text: str
    _unnamed: Any

    def _remember_hash(self, *parts: object) -> int:
        value = hash(parts)
        object.__setattr__(self, "_hash", value)
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A literal, finite and smaller than LARGEST."""

    value: float

    def __post_init__(self) -> None:
        if not abs(self.value) < LARGEST:
            raise RuleError(f"a literal must be smaller than {LARGEST:g}, not {self.value}")


@dataclass(frozen=True, slots=True)
class Name:
    """The value that a name has where it is read."""

    id: str


@dataclass(frozen=True, slots=True)
class Call(_Remembers):
    """An operator of `dsl.ops` (or, in a wrapper, a rule it was given) applied to its arguments."""

    op: str
    args: tuple[Expr, ...]

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            return self._remember_hash(self.op, self.args)


Expr = Number | Name | Call


# Tests: what a static `if` may ask, known before training --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IsMatrix:
    """True for a parameter of two or more dimensions (a conv kernel counts as out x rest)."""


@dataclass(frozen=True, slots=True)
class IsTall:
    """True for a parameter with at least as many rows as columns, such as a vector."""


@dataclass(frozen=True, slots=True)
class HasRole:
    role: str


@dataclass(frozen=True, slots=True)
class Not:
    test: Test


@dataclass(frozen=True, slots=True)
class And:
    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class Or:
    tests: tuple[Test, ...]


Test = IsMatrix | IsTall | HasRole | Not | And | Or


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one parameter before training; decides every static `if`."""

    matrix: bool
    role: str
    tall: bool = True

    @classmethod
    def of(cls, shape: Sequence[int], role: str | None = None) -> Facts:
        """What is known of a parameter of this shape."""
        matrix = len(shape) >= 2
        tall = not matrix or shape[0] >= math.prod(shape[1:])
        return cls(matrix, role or ("hidden" if matrix else "vector"), tall)

    def decide(self, test: Test) -> bool:
        match test:
            case IsMatrix():
                return self.matrix
            case IsTall():
                return self.tall
            case HasRole(role):
                return self.role == role
            case Not(inner):
                return not self.decide(inner)
            case And(tests):
                return all(self.decide(each) for each in tests)
            case Or(tests):
                return any(self.decide(each) for each in tests)


# Statements -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assign(_Remembers):
    target: str
    value: Expr
    line: int = field(default=0, compare=False)

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            return self._remember_hash(self.target, self.value)


@dataclass(frozen=True, slots=True)
class If:
    test: Test
    body: tuple[Statement, ...]
    orelse: tuple[Statement, ...] = ()
    line: int = field(default=0, compare=False)


Statement = Assign | If


# Declarations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slot:
    """A state tensor: `extent` relative to the parameter, `init` a number, `eye` or `p` (a copy of the parameter).

    `code` says that it is kept in eight bits, as `quantize` makes them.
    """

    name: str
    extent: Extent
    init: float | str = 0.0
    code: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """Where a hyperparameter is searched; `log` on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, slots=True)
class Hyper:
    name: str
    default: float
    range: Range | None = None


@dataclass(frozen=True, slots=True)
class Program(_Remembers):
    """An optimizer's update rule.

    Attributes:
        name: the rule's name, an identifier.
        slots: state, in order of declaration.
        hypers: hyperparameters with defaults, in order.
        body: statements; they run in order, and reading a slot before its assignment reads last step's value.
        result: name of the value to evaluate and save where that is not `p`.
        rules: names of parameters that stand for other rules (a wrapper); empty in a program that can run.
        doc: the docstring.
    """

    name: str
    slots: tuple[Slot, ...]
    hypers: tuple[Hyper, ...]
    body: tuple[Statement, ...]
    result: str | None = None
    rules: tuple[str, ...] = ()
    doc: str = ""

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            return self._remember_hash(self.name, self.slots, self.hypers, self.body, self.result, self.rules, self.doc)

    @property
    def unnamed(self) -> Program:
        """The same without its name and its docstring: what it does, and many programs of a search have in common."""
        try:
            known: Program | None = self._unnamed
            return self if known is None else known
        except AttributeError:
            result = Program("", self.slots, self.hypers, self.body, self.result, self.rules)
            object.__setattr__(result, "_unnamed", None)  # itself: a reference to it would be a cycle
            object.__setattr__(self, "_unnamed", result)
            return result

    def renamed(self, name: str) -> Program:
        """The same under another name."""
        return Program(name, self.slots, self.hypers, self.body, self.result, self.rules, self.doc)

    def with_body(self, body: tuple[Statement, ...], slots: tuple[Slot, ...]) -> Program:
        """The same with other statements and state."""
        return Program(self.name, slots, self.hypers, body, self.result, self.rules, self.doc)

    @property
    def defaults(self) -> dict[str, float]:
        return {hyper.name: hyper.default for hyper in self.hypers}

    def with_defaults(self, values: Mapping[str, float]) -> Program:
        """The same program with other default values. Raises RuleError for a name that is no hyperparameter."""
        unknown = set(values) - set(self.defaults)
        if unknown:
            raise RuleError(
                f"rule '{self.name}' has no hyperparameter '{min(unknown)}'; it has {', '.join(self.defaults)}"
            )
        return replace(self, hypers=tuple(replace(h, default=values.get(h.name, h.default)) for h in self.hypers))


def misnamed(slots: Sequence[Slot], hypers: Sequence[Hyper], rules: Sequence[str] = ()) -> tuple[str, str] | None:
    """The first declared name that cannot be used, and what is wrong with it; None where all are fine."""
    own = [*(slot.name for slot in slots), *(hyper.name for hyper in hypers)]
    names = ["p", "g", *own, *rules]
    assigned = {*names} - {hyper.name for hyper in hypers}
    for name in names:
        if names.count(name) > 1:
            return name, f"'{name}' is declared twice"
        if name in BUILTINS:
            return name, f"'{name}' is built in and cannot be declared"
        if name in OPS and name in assigned:
            return name, f"'{name}' is an operator and cannot be declared"
        if name in RESERVED and name in own:
            return name, f"'{name}' is {RESERVED[name]}; choose another name"
    return None


# Walking ----------------------------------------------------------------------------------------------------------


def assignments(body: tuple[Statement, ...]) -> Iterator[Assign]:
    """Every assignment, those of both branches of an `if` included, in order."""
    for statement in body:
        if isinstance(statement, If):
            yield from assignments(statement.body)
            yield from assignments(statement.orelse)
        else:
            yield statement


def expressions(expr: Expr) -> Iterator[Expr]:
    """The expression and all its parts, arguments before the call that takes them."""
    if isinstance(expr, Call):
        for arg in expr.args:
            yield from expressions(arg)
    yield expr


def names_read(expr: Expr) -> frozenset[str]:
    if isinstance(expr, Call):
        try:
            return expr._reads
        except AttributeError:
            reads = frozenset().union(*(names_read(arg) for arg in expr.args if not isinstance(arg, Number)))
            object.__setattr__(expr, "_reads", reads)
            return reads
    return frozenset((expr.id,)) if isinstance(expr, Name) else frozenset()


def reads(statement: Assign) -> frozenset[str]:
    """The names that its value is made from."""
    try:
        return statement._reads
    except AttributeError:
        found = names_read(statement.value)
        object.__setattr__(statement, "_reads", found)
        return found


def tests(body: tuple[Statement, ...]) -> Iterator[Test]:
    for statement in body:
        if isinstance(statement, If):
            yield statement.test
            yield from tests(statement.body)
            yield from tests(statement.orelse)


def specialize(body: tuple[Statement, ...], facts: Facts) -> tuple[Assign, ...]:
    """The straight line that is left of the body for one kind of parameter."""
    line: list[Assign] = []
    for statement in body:
        if isinstance(statement, If):
            line.extend(specialize(statement.body if facts.decide(statement.test) else statement.orelse, facts))
        else:
            line.append(statement)
    return tuple(line)


USUAL = (Facts(True, "hidden"), Facts(False, "vector"))
"""What there is of every program: a matrix and a vector."""


def all_facts(program: Program) -> tuple[Facts, ...]:
    """One `Facts` for every kind of parameter that the program may treat differently, the matrix first."""
    atoms = list(questions(program.body))
    if not atoms:
        return USUAL
    roles = {test.role for test in atoms if isinstance(test, HasRole)}
    kinds = list(USUAL)
    kinds += [Facts(matrix, role) for role in ROLES if role in roles for matrix in (True, False)]
    if any(isinstance(test, IsTall) for test in atoms):
        kinds += [replace(kind, tall=False) for kind in kinds if kind.matrix]
    return tuple(dict.fromkeys(kinds))


def questions(body: tuple[Statement, ...]) -> Iterator[Test]:
    """Every question that the static ifs ask, taken apart: IsMatrix, IsTall and HasRole."""
    stack = list(tests(body))
    while stack:
        test = stack.pop()
        match test:
            case Not(inner):
                stack.append(inner)
            case And(inners) | Or(inners):
                stack.extend(inners)
            case _:
                yield test


def map_statements(
    body: tuple[Statement, ...], change: Callable[[Assign], tuple[Statement, ...]]
) -> tuple[Statement, ...]:
    """The body with each assignment replaced by what `change` makes of it."""
    result: list[Statement] = []
    for statement in body:
        if isinstance(statement, If):
            result.append(
                replace(
                    statement,
                    body=map_statements(statement.body, change),
                    orelse=map_statements(statement.orelse, change),
                )
            )
        else:
            result.extend(change(statement))
    return tuple(result)


def map_names(expr: Expr, change: Callable[[str], Expr]) -> Expr:
    """The expression with each name replaced by what `change` makes of it."""
    match expr:
        case Name(id):
            return change(id)
        case Call(op, args):
            return Call(op, tuple(map_names(arg, change) for arg in args))
        case _:
            return expr
