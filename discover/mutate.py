"""Small random changes to programs: insert a statement, delete one, change an argument, an operator or a constant.

As in the search for Lion (Chen et al. 2023, arXiv:2302.06675), with one difference: an inserted statement is wired to a
later one at once, since most insertions that are not are dead code (69.8% of statements there).

Programs are flat here: straight lines of statements, each one operator on names and literals (`dsl.flatten`). What
involves the learning rate or the weight decay, and the assignment of p, is the program's *frame*. It is kept, so that
`lr` goes on to mean the size of a step; what flows into the frame may change.

A program with static ifs has a straight line for each kind of parameter (`unfolded`): one of them is changed at a time,
as a program of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from numpy.random import Generator

from discover.chance import pick
from discover.motifs import EVEN, GUARDS, POWERS, preconditioner, quotient
from dsl.check import well_typed
from dsl.dead import strip_dead
from dsl.format import format_assign, format_expr
from dsl.ops import OPS, Op
from dsl.program import Assign, Call, Expr, If, Name, Number, Program, Slot, Statement, names_read, reads
from dsl.types import EXTENTS

_FRAME = ("lr", "weight_decay", "lr_ratio")
_TRIES = 30
_WRAP = 0.6
"""How often an inserted statement works on the very value it is put in front of."""

_STATE = 0.25
"""How often what is inserted is stored in a slot, and so remembered."""

_FIRST = 0.75
"""How often the first straight line of a program with static ifs is the one that is changed: by custom that of hidden
matrices, which is what such a rule is about."""

_WHOLE = {"steps": 6, "rank": 4, "block": 64, "k": 16}
"""Arguments of operators that are whole numbers -> the largest that is tried first."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """Which programs may be reached, and how often each kind of change is tried.

    Attributes:
        operators: names from `dsl.ops`.
        max_statements: of a flat program, frame included; of each of its straight lines where it has static ifs.
        slots: names that state may have; a program has at most these and its ancestor's.
        weights: kind of change ("insert", "delete", "argument", "operator", "constant") -> relative frequency.
        constant_sigma: a constant is multiplied by 2 ** N(0, sigma); where it lies between 0.5 and 1, and so is a rate
            of decay, its distance from 1 is.
        extents: slot -> extent, for those that are not of the parameter's shape.
        guarded: share of inserted divisions that come with a divisor that is never 0.
    """

    operators: tuple[str, ...]
    max_statements: int
    slots: tuple[str, ...]
    weights: Mapping[str, float]
    constant_sigma: float = 1.0
    extents: Mapping[str, str] = field(default_factory=dict)
    guarded: float = 0.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """A changed program and what was changed, in words."""

    program: Program
    change: str


def mutate(
    program: Program,
    grammar: Grammar,
    rng: Generator,
    settle: Callable[[Program], Program | None] | None = None,
    changes: Mapping[str, Change] | None = None,
) -> Mutation:
    """One random change. The result is well typed if the program was.

    Args:
        program: flat; a static if stands alone in its block, as `unfolded` makes it.
        grammar: what may be changed into what.
        rng: the only source of chance.
        settle: what becomes of a changed program, None where it is none; by default dead statements go.
        changes: kind of change -> what makes one; by default `CHANGES`.

    Raises:
        ValueError: a static if among other statements.
    """
    settle, changes = settle or settled, changes or CHANGES
    kinds = list(grammar.weights)
    weights = [grammar.weights[kind] for kind in kinds]
    lines = list(straight_lines(program.body))
    for _ in range(_TRIES):
        path, line = lines[0] if len(lines) == 1 or rng.random() < _FIRST else pick(rng, lines[1:])
        kind = kinds[_choose(weights, rng)]
        mutation = changes[kind](View(program if line is program.body else replace(program, body=line), grammar), rng)
        if mutation is not None and (result := settle(with_line(program, path, mutation.program))) is not None:
            return Mutation(result, mutation.change)
    return Mutation(program, "unchanged")


def random_program(grammar: Grammar, rng: Generator, seedling: Program) -> Mutation:
    """A program grown by insertions alone from a seedling, such as gradient descent: the control of random search."""
    program, wanted = seedling, int(rng.integers(2, max(3, grammar.max_statements - len(seedling.body))))
    for _ in range(wanted):
        grown = _insert(View(program, grammar), rng)
        if grown is not None and (result := settled(grown.program)) is not None:
            program = result
    return Mutation(program, "random")


# Static ifs ---------------------------------------------------------------------------------------------------------

Path = tuple[bool, ...]
"""Which branch of each static if a straight line takes."""


def unfolded(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """The same body with what stands before and after a static if written into both its branches."""
    for index, statement in enumerate(body):
        if isinstance(statement, If):
            before, after = body[:index], body[index + 1 :]
            then, orelse = (unfolded((*before, *block, *after)) for block in (statement.body, statement.orelse))
            return (replace(statement, body=then, orelse=orelse),)
    return body


def straight_lines(body: tuple[Statement, ...]) -> Iterator[tuple[Path, tuple[Statement, ...]]]:
    """The straight lines of an unfolded body, and the way to each.

    Raises:
        ValueError: a static if among other statements, of which no line would be left.
    """
    if len(body) > 1 and any(isinstance(statement, If) for statement in body):
        raise ValueError("a static if stands alone in its block, as `unfolded` makes it; this one does not")
    if body and isinstance(statement := body[0], If):
        for taken, block in ((True, statement.body), (False, statement.orelse)):
            yield from (((taken, *path), line) for path, line in straight_lines(block))
    else:
        yield (), body


def with_line(program: Program, path: Path, changed: Program) -> Program:
    """The program with the straight line at that path as in `changed`, and the slots that it needs."""
    if not path:
        return changed
    known = {slot.name for slot in program.slots}
    new = tuple(slot for slot in changed.slots if slot.name not in known)
    return replace(program, body=_put(program.body, path, changed.body), slots=(*program.slots, *new))


def _put(body: tuple[Statement, ...], path: Path, line: tuple[Statement, ...]) -> tuple[Statement, ...]:
    if not path:
        return line
    statement = body[0]
    assert isinstance(statement, If)
    if path[0]:
        return (replace(statement, body=_put(statement.body, path[1:], line)),)
    return (replace(statement, orelse=_put(statement.orelse, path[1:], line)),)


# A flat program, seen as what may change ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """An argument that may change: of which statement, which argument."""

    statement: int
    argument: int


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What is known of a flat program before anything is changed; a parent is changed again and again.

    Attributes:
        body: its statements; slots: names of its state.
        frame: which statements are the frame.
        scopes: for each place in the body, and its end: names of tensors that may be read there, the frame's left out.
        tensors: arguments that are tensors and may be another tensor; constants: literals that may change.
    """

    body: tuple[Assign, ...]
    slots: tuple[str, ...]
    frame: frozenset[int]
    scopes: tuple[tuple[str, ...], ...]
    tensors: tuple[Place, ...]
    constants: tuple[Place, ...]


@lru_cache(maxsize=4096)
def anatomy(program: Program) -> Anatomy:
    body = tuple(s for s in program.body if isinstance(s, Assign))
    slots = tuple(slot.name for slot in program.slots)
    frame = _frame(body)
    scopes = _scopes(program, body, slots, frame)
    arguments = [(Place(i, position), arg) for i, s in enumerate(body) for position, arg in enumerate(_args(s))]
    tensors = tuple(
        place
        for place, arg in arguments
        if isinstance(arg, Name) and arg.id in scopes[place.statement]
        if not (place.statement in frame and arg.id == "p")
    )
    constants = tuple(place for place, arg in arguments if isinstance(arg, Number) and place.statement not in frame)
    return Anatomy(body, slots, frame, scopes, tensors, constants)


def _frame(body: Sequence[Assign]) -> frozenset[int]:
    held, frame = set(_FRAME), set()
    for index, statement in enumerate(body):
        if statement.target == "p" or reads(statement) & held:
            frame.add(index)
            if statement.target not in ("p", "g"):
                held.add(statement.target)
    return frozenset(frame)


def _scopes(
    program: Program, body: Sequence[Assign], slots: Sequence[str], frame: frozenset[int]
) -> tuple[tuple[str, ...], ...]:
    hidden = {*_FRAME, *(body[index].target for index in frame)} - {"p", "g"}
    numbers = {"t", "lr_ratio", *program.defaults}
    names = dict.fromkeys(name for name in ("g", "p", *slots) if name not in hidden)
    scopes = [tuple(names)]
    for statement in body:
        value = statement.value
        if names_read(value) <= numbers or (isinstance(value, Call) and OPS[value.op].group == "shape"):
            numbers.add(statement.target)
        elif statement.target not in hidden:
            names[statement.target] = None
        scopes.append(tuple(names))
    return tuple(scopes)


class View:
    """A program, and what may be changed in it into what."""

    def __init__(self, program: Program, grammar: Grammar):
        self.program, self.grammar, self.anatomy = program, grammar, anatomy(program)
        self.body, self.slots = self.anatomy.body, self.anatomy.slots
        self.frame, self.scopes = self.anatomy.frame, self.anatomy.scopes

    def args(self, index: int) -> tuple[Expr, ...]:
        return _args(self.body[index])

    def tensor_places(self) -> Sequence[Place]:
        return self.anatomy.tensors

    def constant_places(self) -> Sequence[Place]:
        return self.anatomy.constants

    def with_body(self, body: Sequence[Assign], change: str) -> Mutation | None:
        if len(body) > self.grammar.max_statements:
            return None
        used = {s.target for s in body}.union(*map(reads, body))
        slots = tuple(slot for slot in self.program.slots if slot.name in used)
        declared = {slot.name for slot in slots}
        slots += tuple(
            Slot(name, EXTENTS[self.grammar.extents.get(name, "full")])
            for name in self.grammar.slots
            if name in used and name not in declared
        )
        return Mutation(self.program.with_body(tuple(body), slots), change)

    def with_arg(self, place: Place, arg: Expr, change: str) -> Mutation | None:
        body = list(self.body)
        body[place.statement] = replaced(body[place.statement], place.argument, arg)
        return self.with_body(body, change)

    def with_inserted(self, place: Place, lines: Sequence[Assign]) -> Mutation | None:
        """With statements in front of a place, where the last one's value is read instead."""
        body = list(self.body)
        body[place.statement] = replaced(body[place.statement], place.argument, Name(lines[-1].target))
        body[place.statement : place.statement] = lines
        return self.with_body(body, f"insert {'; '.join(map(_text, lines))}")

    def fresh(self) -> str:
        return next(self.fresh_names())

    def fresh_names(self) -> Iterator[str]:
        taken = {"p", "g", *self.slots, *self.grammar.slots, *self.program.defaults, *(s.target for s in self.body)}
        return (name for n in range(1, 1000) if (name := f"x{n}") not in taken)


def replaced(statement: Assign, argument: int, arg: Expr) -> Assign:
    if not isinstance(statement.value, Call):
        return Assign(statement.target, arg, statement.line)
    args = statement.value.args
    value = Call(statement.value.op, (*args[:argument], arg, *args[argument + 1 :]))
    return Assign(statement.target, value, statement.line)


# The changes ------------------------------------------------------------------------------------------------------


def _insert(view: View, rng: Generator) -> Mutation | None:
    """A new statement in front of one that reads its target: a temporary, or a slot, declared by that if need be."""
    op = OPS[pick(rng, view.grammar.operators)]
    places = view.tensor_places()
    if not places:
        return None
    place = pick(rng, places)
    index, current = place.statement, view.args(place.statement)[place.argument]
    if op.name == "matmul":
        lines = preconditioner(current, view.scopes[index], view.grammar.extents, view.fresh_names(), rng)
        return view.with_inserted(place, lines)
    if op.name == "div" and _guards(view.grammar) and rng.random() < view.grammar.guarded:
        lines = quotient(current, view.scopes[index], view.grammar.operators, view.fresh_names(), rng)
        return view.with_inserted(place, lines)
    given: list[Expr] = [current] if rng.random() < _WRAP else []
    target = view.fresh()
    if view.grammar.slots and rng.random() < _STATE:
        target = pick(rng, view.grammar.slots)
        if len(op.params) > 1 and Name(target) not in given:
            given.insert(0, Name(target))
    statement = Assign(target, _random_call(op, view.scopes[index], rng, given))
    return view.with_inserted(place, [statement])


def _guards(grammar: Grammar) -> bool:
    """Whether the grammar asks for safe quotients and has what they are made of."""
    return grammar.guarded > 0 and all(any(name in grammar.operators for name in names) for names in (EVEN, GUARDS))


def _delete(view: View, rng: Generator) -> Mutation | None:
    removable = [index for index in range(len(view.body)) if index not in view.frame]
    if not removable:
        return None
    index = pick(rng, removable)
    gone = view.body[index]
    body = [*view.body[:index], *view.body[index + 1 :]]
    if gone.target not in view.slots:
        inherited = [arg for arg in view.args(index) if isinstance(arg, Name) and arg.id in view.scopes[index]]
        if not inherited:
            return None
        heir = pick(rng, inherited)
        for later in range(index, len(body)):
            for position, arg in enumerate(_args(body[later])):
                if isinstance(arg, Name) and arg.id == gone.target:
                    body[later] = replaced(body[later], position, heir)
            if body[later].target in (gone.target, heir.id):
                break
    return view.with_body(body, f"delete {_text(gone)}")


def _argument(view: View, rng: Generator) -> Mutation | None:
    places = view.tensor_places()
    if not places:
        return None
    place = pick(rng, places)
    old = view.args(place.statement)[place.argument]
    assert isinstance(old, Name)
    others = [name for name in view.scopes[place.statement] if name != old.id]
    if not others:
        return None
    new = Name(pick(rng, others))
    return view.with_arg(place, new, f"argument {_text(view.body[place.statement])}: {format_expr(old)} -> {new.id}")


def _operator(view: View, rng: Generator) -> Mutation | None:
    calls = [i for i in range(len(view.body)) if i not in view.frame and isinstance(view.body[i].value, Call)]
    if not calls:
        return None
    index = pick(rng, calls)
    call = view.body[index].value
    assert isinstance(call, Call)
    old = OPS[call.op]
    alike = [n for n in view.grammar.operators if n != call.op and _shape(OPS[n]) == _shape(old)]
    if not alike:
        return None
    new = pick(rng, alike)
    body = list(view.body)
    body[index] = replace(body[index], value=Call(new, call.args))
    return view.with_body(body, f"operator {_text(view.body[index])}: {call.op} -> {new}")


def _constant(view: View, rng: Generator) -> Mutation | None:
    places = view.constant_places()
    if not places:
        return None
    place = pick(rng, places)
    old = view.args(place.statement)[place.argument]
    assert isinstance(old, Number)
    if _is_whole(view.body[place.statement].value, place.argument):
        new = max(1.0, old.value + (1.0 if rng.random() < 0.5 else -1.0))
    else:
        new = perturbed(old.value, view.grammar.constant_sigma, rng)
    return view.with_arg(place, Number(new), f"constant {_text(view.body[place.statement])}: {old.value:g} -> {new:g}")


Change = Callable[[View, Generator], Mutation | None]

CHANGES: dict[str, Change] = {
    "insert": _insert,
    "delete": _delete,
    "argument": _argument,
    "operator": _operator,
    "constant": _constant,
}


def perturbed(value: float, sigma: float, rng: Generator) -> float:
    """A constant near `value`; it, or its distance from 1, has four significant digits."""
    factor = 2.0 ** rng.normal(0.0, sigma)
    if 0.5 < value < 1.0:
        return float(f"{1.0 - _rounded(min((1.0 - value) * factor, 1.0)):.12g}")
    return _rounded(rng.normal() if value == 0.0 else value * factor)


def _rounded(value: float) -> float:
    return float(f"{min(max(value, -1e12), 1e12):.4g}")


def _random_call(op: Op, tensors: Sequence[str], rng: Generator, given: Sequence[Expr]) -> Call:
    """The operator on random tensors and literals; what is given takes the places of the first tensors."""
    args: list[Expr] = []
    waiting = list(given)
    for param in op.params:
        kind = op.kinds.get(param, "value")
        if param in _WHOLE:
            args.append(Number(float(rng.integers(1, _WHOLE[param] + 1))))
        elif param == "exponent":
            args.append(Number(pick(rng, POWERS)))
        elif kind in ("number", "scalar"):
            args.append(Number(float(f"{rng.uniform(0.01, 0.99):.3g}")))
        elif waiting:
            args.append(waiting.pop(0))
        elif kind == "value" and args and rng.random() < 0.3:
            args.append(Number(float(f"{rng.normal():.3g}")))
        else:
            args.append(Name(pick(rng, tensors)))
    if len(args) > 1 and not op.kinds and rng.random() < 0.5:
        args.reverse()
    return Call(op.name, tuple(args))


def _is_whole(value: Expr, argument: int) -> bool:
    return isinstance(value, Call) and OPS[value.op].params[argument] in _WHOLE


def _shape(op: Op) -> tuple[str, ...]:
    return tuple(op.kinds.get(param, "value") for param in op.params)


def _args(statement: Assign) -> tuple[Expr, ...]:
    return statement.value.args if isinstance(statement.value, Call) else (statement.value,)


def _choose(weights: Sequence[float], rng: Generator) -> int:
    point = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return index
    return len(weights) - 1


def settled(program: Program) -> Program | None:
    """The program without dead statements; None if it is ill typed."""
    program = strip_dead(program)
    return program if well_typed(program) else None


_text = format_assign
