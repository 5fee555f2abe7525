"""Simplifies a winner: statements that are not needed go, constants get few digits, and then it is named.

Everything is measured on select tasks against the winner itself, never against what is left of it so far, so that many
small losses cannot add up unseen. No change may cost what short trainings do not show: finite steps at zero gradients,
oddness, homogeneity. A change stays if it is shown to cost less than a margin (a non-inferiority test over
tunings), or if it changes nothing that the rule does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

import dsl
from discover import statistics
from discover.contenders import RuleContender
from discover.contest import Contest, ContestTerms, Results, differences, hold
from discover.mutate import Path, straight_lines, unfolded, with_line
from discover.verdict import percent
from discover.workshop import Workshop
from dsl import Program, properties
from dsl.behaviour import behaviour_hash
from dsl.canonical import GIVEN
from dsl.dead import strip_dead
from dsl.flatten import flatten, fresh_names, tidy
from dsl.format import format_expr, format_test
from dsl.graph import lower_all
from dsl.ops import OPS
from dsl.parse import definition
from dsl.program import BUILTINS, Assign, Call, Expr, If, Name, Number, RuleError, Statement, map_names, reads

DIGITS = (1, 2, 3)
"""To how many digits constants are rounded, the fewest first."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A change that was tried.

    Attributes:
        change: in words.
        difference: mean log loss relative to the winner's; None where nothing was trained.
        p: of "worse by the margin or more".
        kept: whether the rule was changed so.
    """

    change: str
    difference: float | None
    p: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Simplified:
    """What is left of a winner, and all that was tried.

    Attributes:
        contest: of every variant that was trained, as a candidate, against the winner: a record; nobody passes in it.
        contenders: the winner, and these variants.
    """

    program: Program
    trials: tuple[Trial, ...]
    contest: Contest
    contenders: tuple[RuleContender, ...]


def simplify(winner: Program, terms: ContestTerms, margin: float, workshop: Workshop) -> Simplified:
    """Simplifies a program.

    Args:
        winner: with its tuned constants as defaults; lr and weight decay are tuned for every variant alike.
        terms: where and on what budget; `error_rate` is that of each test.
        margin: nats of log loss that a change may cost, more than 0.
        workshop: where it is trained.

    Returns:
        The simplest program found; its hyperparameters are the winner's, less those that went.
    """
    judge = _Judge(winner, terms, margin, workshop)
    current, left = winner, removals(winner)
    while (found := next(left, None)) is not None:
        if judge.keeps(*found, current):
            current = found[1]
            left = removals(current)
    for digits in DIGITS:
        variant = rounded(current, digits)
        if variant == current:
            break
        if judge.keeps(f"constants to {digits} digit{'s' if digits > 1 else ''}", variant, current):
            current = variant
            break
    names = tuple(one.name for one in judge.variants)
    contest = Contest(terms, names, (judge.winner.name,), results=judge.results)
    return Simplified(current, tuple(judge.trials), contest, (judge.winner, *judge.variants))


class _Judge:
    """Tries variants, each once: what failed against the winner fails whatever else has gone since."""

    def __init__(self, winner: Program, terms: ContestTerms, margin: float, workshop: Workshop) -> None:
        self.winner = RuleContender("winner", winner)
        self.terms, self.margin, self.workshop = terms, margin, workshop
        self.trials: list[Trial] = []
        self.variants: list[RuleContender] = []
        self.results: Results = {}
        self._failed: set[str] = set()
        self._virtues = _virtues(winner)

    def keeps(self, words: str, variant: Program, current: Program) -> bool:
        if words in self._failed:
            return False
        if _behaviour(variant) == _behaviour(current):
            self.trials.append(Trial(words, None, 0.0, True))
            return True
        if lost := sorted(self._virtues - _virtues(variant)):
            self.trials.append(Trial(f"{words}: not {lost[0]} then", None, 1.0, False))
            self._failed.add(words)
            return False
        one = RuleContender(f"variant {len(self.variants) + 1}", variant)
        contest = hold(self.terms, [one], [self.winner], self.workshop)
        self.variants.append(one)
        for task, row in contest.results.items():
            self.results.setdefault(task, {}).update(row)
        found = differences(contest.results, one.name, self.winner.name)
        p = statistics.non_inferiority(found, self.margin)
        kept = p <= self.terms.error_rate
        self.trials.append(Trial(words, float(found.mean()), p, kept))
        size = percent(float(found.mean()))
        self.workshop.say(f"{words}: {'goes' if kept else 'stays'} (loss {size} in the mean of tunings, p = {p:.2g})")
        if not kept:
            self._failed.add(words)
        return kept


def _behaviour(program: Program) -> str:
    """With weight decay, whatever it was tuned to: a rule keeps its decay."""
    return behaviour_hash(program.with_defaults({name: 0.1 for name in GIVEN[1:] if name in program.defaults}))


def _virtues(program: Program) -> set[str]:
    """What short trainings on a few tasks would let go, and users need."""
    found = properties.of(program)
    named = {
        "finite at zero gradient": found.finite_at_zero,
        "odd in the gradient": found.odd,
        "homogeneous in the gradient": found.degree is not None,
    }
    return {name for name, has in named.items() if has}


def removals(program: Program) -> Iterator[tuple[str, Program]]:
    """The program without a state that never leaves its start, then less one operation each: its value is replaced by
    one of its arguments, later statements first.

    Left out are operations on lr and weight decay, and what would not be a rule any more: not well formed, or without
    its gradient. Where a program has static ifs, each of its straight lines is gone through as a program of its own.
    """
    flat = flatten(program)
    flat = _apart(replace(flat, body=unfolded(flat.body)))
    seen: set[str] = set()
    for path, line in straight_lines(flat.body):
        for words, changed in _at_rest(flat, [each for each in line if isinstance(each, Assign)]):
            variant = _usable(with_line(flat, path, replace(flat, body=changed)))
            if variant is not None and _behaviour(variant) == _behaviour(program):
                yield _where(flat.body, path) + words, variant
    for path, line in straight_lines(flat.body):
        where = _where(flat.body, path)
        for words, changed in _shorter(flat, [each for each in line if isinstance(each, Assign)]):
            variant = _usable(with_line(flat, path, replace(flat, body=changed)))
            if variant is not None and (text := dsl.format(variant)) not in seen:
                seen.add(text)
                yield where + words, variant


def _apart(program: Program) -> Program:
    """The program with temporaries of each straight line under names of their own, so that `tidy` can put them away."""
    kept, taken = {"p", "g", *(slot.name for slot in program.slots)}, set[str]()
    free = fresh_names(program)
    for path, line in list(straight_lines(program.body)):
        body = [each for each in line if isinstance(each, Assign)]
        mine = {each.target for each in body} - kept
        own = {name: next(free) for name in sorted(mine & taken)}
        taken |= mine
        names = {old: Name(new) for old, new in own.items()}
        renamed = [
            replace(each, target=own.get(each.target, each.target), value=_put(each.value, names)) for each in body
        ]
        program = with_line(program, path, replace(program, body=tuple(renamed)))
    return program


def _at_rest(flat: Program, body: Sequence[Assign]) -> Iterator[tuple[str, tuple[Assign, ...]]]:
    """A straight line without each of its states that start as a number and provably stay at it, and with what follows
    from that."""
    for slot in flat.slots:
        if not isinstance(slot.init, float | int) or not any(slot.name in {s.target, *reads(s)} for s in body):
            continue
        known: dict[str, Expr] = {slot.name: Number(float(slot.init))}
        left, rests = [], True
        for statement in body:
            value = _folded(_put(statement.value, known))
            if statement.target == slot.name:
                rests = rests and value == known[slot.name]
                continue
            known.pop(statement.target, None)
            if isinstance(value, Number) and statement.target not in {"p", *(each.name for each in flat.slots)}:
                known[statement.target] = value
            left.append(replace(statement, value=value))
        if rests:
            yield f"{slot.name} stays at {slot.init:g}", tuple(left)


def _put(expr: Expr, known: Mapping[str, Expr]) -> Expr:
    return map_names(expr, lambda name: known.get(name, Name(name)))


def _of_zeros(expr: Expr) -> Any:
    """What an expression is where every name in it stands for a matrix of zeros."""
    match expr:
        case Number(value):
            return value
        case Call(name, args):
            op = OPS[name]
            if op.expand:
                return _of_zeros(definition(op.expand)(dict(zip(op.params, args, strict=True))))
            assert op.ref is not None
            return op.ref(*map(_of_zeros, args))
    return np.zeros((2, 2))


@cache
def _of_nothing() -> frozenset[str]:
    """Operators that make 0 of 0: of those of one argument whichever do, and some of several, whatever the others are
    but for a divisor of 0: whoever folds them compares what the rule does then."""
    with np.errstate(all="ignore"):
        of_one = [
            name
            for name, op in OPS.items()
            if len(op.params) == 1 and op.combine != "closure" and not np.any(_of_zeros(Call(name, (Name("a"),))))
        ]
    return frozenset((*of_one, "div", "mod", "debias", "sinkhorn", "newton_schulz", "newton_schulz_cubic"))


def _folded(expr: Expr) -> Expr:
    """Without what adds 0, and 0 for what is made of it."""
    if not isinstance(expr, Call):
        return expr
    nothing = [isinstance(arg, Number) and arg.value == 0.0 for arg in expr.args]
    match expr.op, nothing:
        case "add", [True, _]:
            return expr.args[1]
        case "add" | "sub", [_, True]:
            return expr.args[0]
        case "mul" | "matmul", [True, _] | [_, True]:
            return Number(0.0)
        case op, [True, *_] if op in _of_nothing():
            return Number(0.0)
        case "lerp", [True, _, _]:
            return Call("mul", (expr.args[2], expr.args[1]))
        case "lerp", [_, True, _]:
            return Call("mul", (Call("sub", (Number(1.0), expr.args[2])), expr.args[0]))
    return expr


def _where(body: tuple[Statement, ...], path: Path) -> str:
    """The way to a straight line, in words."""
    if not path:
        return ""
    statement = body[0]
    assert isinstance(statement, If)
    test, block = format_test(statement.test), statement.body if path[0] else statement.orelse
    return f"{test if path[0] else f'not ({test})'}: {_where(block, path[1:])}"


def _shorter(flat: Program, body: Sequence[Assign]) -> Iterator[tuple[str, tuple[Assign, ...]]]:
    """A straight line less one operation each."""
    bound, numbers = _bound(body), _numbers(flat, body)
    for index in reversed(range(len(body))):
        statement = body[index]
        if index in bound or not isinstance(statement.value, Call):
            continue
        for arg in statement.value.args:
            if not isinstance(arg, Name) or arg.id in numbers or arg.id == statement.target:
                continue
            shown, less = _shown(flat, statement.value, body), _shown(flat, arg, body)
            yield f"{shown} -> {less}", (*body[:index], replace(statement, value=arg), *body[index + 1 :])


def _bound(body: Sequence[Assign]) -> set[int]:
    """Statements that lr or weight decay enter, and those that change p."""
    carriers, found = set(GIVEN), set()
    for index, statement in enumerate(body):
        if isinstance(statement.value, Call) and reads(statement) & carriers:
            found.add(index)
            if statement.target != "p":
                carriers.add(statement.target)
        elif statement.target == "p":
            found.add(index)
        else:
            carriers.discard(statement.target)
    return found


def _numbers(program: Program, body: Sequence[Assign]) -> set[str]:
    """Names that stand for constants: hyperparameters, the step, and what is computed of these alone."""
    found = {*program.defaults, *BUILTINS}
    for statement in body:
        if reads(statement) <= found:
            found.add(statement.target)
    return found


def _usable(program: Program) -> Program | None:
    """The program without what it does not need any more; None where it is no rule."""
    try:
        found = dsl.check(tidy(strip_dead(program, hypers=True)))
        graphs = lower_all(found)
    except RuleError:
        return None
    uses = all(any(node.payload == "g" for node in graph.nodes) for graph in graphs.values())
    return found if uses else None


def _shown(program: Program, expr: Expr, body: Sequence[Assign]) -> str:
    """An expression of the flat program with its temporaries written out where they are short."""
    named = {"p", "g", *program.defaults, *(slot.name for slot in program.slots)}
    values = {s.target: s.value for s in body if s.target not in named}

    def full(each: Expr, depth: int) -> Expr:
        if isinstance(each, Name) and each.id in values and depth:
            return full(values[each.id], depth - 1)
        return Call(each.op, tuple(full(a, depth) for a in each.args)) if isinstance(each, Call) else each

    return format_expr(full(expr, 4))


def rounded(program: Program, digits: int) -> Program:
    """The program with its hyperparameters' defaults, but for lr and weight decay, to so many digits."""
    values = {h.name: float(f"{h.default:.{digits}g}") for h in program.hypers if h.name not in GIVEN}
    changed = program.with_defaults(values)
    return replace(
        changed,
        hypers=tuple(
            replace(h, range=replace(h.range, low=min(h.range.low, h.default), high=max(h.range.high, h.default)))
            if h.range and h.name in values
            else h
            for h in changed.hypers
        ),
    )
