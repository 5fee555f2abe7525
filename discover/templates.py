"""Templates: spaces whose programs follow from a few choices, as in Neural Optimizer Search.

A template writes a program from the answers to its questions, asked one after the other, so that a later question may
depend on an earlier answer. Who answers is a search: random numbers, or Optuna. The answers are kept in a candidate's
`origin`, as JSON.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.random import Generator

import dsl
from discover.chance import pick
from discover.errors import SpaceError, UserError
from discover.plugins import from_file
from discover.proposers import Context, Proposal, Told
from dsl.parse import suggest
from dsl.program import Call, Expr, Number, Program, map_statements, names_read, reads

Answer = str | float | int
Answers = Mapping[str, Answer]

PREFIX = "choices "


class Choices(Protocol):
    """Answers a template's questions. A question's name is its own: asked twice, it has the same answer."""

    def option(self, name: str, options: Sequence[str]) -> str:
        """One of the options."""
        ...

    def number(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in a range; `log` for one whose order of magnitude is sought."""
        ...

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        ...


class Template(Protocol):
    """Writes programs from choices."""

    def build(self, choose: Choices) -> Program: ...

    def known(self) -> Mapping[str, Answers]:
        """Rules that it can write -> the answers that do: what `--warm-start` may name."""
        ...


def load(name: str, options: Mapping[str, Any]) -> Template:
    """A template by name, or from FILE.py:NAME, made with these options.

    Raises:
        UserError: there is none, or it does not take the options.
    """
    maker = from_file(name, "a template") or BUILT_IN.get(name)
    if maker is None:
        hint = suggest(name, list(BUILT_IN)) or f"; there are {', '.join(BUILT_IN)}, and FILE.py:NAME"
        raise UserError(f"unknown template '{name}'{hint}")
    try:
        return maker(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"template '{name}': {error}") from None


def of_space(context: Context) -> tuple[Template, list[Answers]]:
    """The space's template, and the answers that write the rules to start from; the ancestors' constants where the
    space is none."""
    asked = context.space.template
    if asked is None:
        constants = Constants(context.ancestors)
        return constants, list(constants.known().values())
    template = load(asked.name, asked.options)
    return template, [_answers_for(template, ancestor) for ancestor in context.ancestors]


def _answers_for(template: Template, rule: Program) -> Answers:
    wanted, known = _behaviour(rule), template.known()
    for answers in known.values():
        if _behaviour(template.build(Given(answers))) == wanted:
            return answers
    raise SpaceError(f"the template knows no choices that write '{rule.name}'; it knows those of {', '.join(known)}")


def _behaviour(program: Program) -> str:
    """What the rule does at a learning rate that all share, without weight decay."""
    values = {"lr": 1e-3, "weight_decay": 0.0}
    return dsl.behaviour_hash(program.with_defaults({n: v for n, v in values.items() if n in program.defaults}))


def written(answers: Answers) -> str:
    """Answers as a candidate's origin."""
    return PREFIX + json.dumps(dict(answers))


def read(origin: str) -> dict[str, Answer] | None:
    """The answers that an origin holds; None if it holds none."""
    return json.loads(origin.removeprefix(PREFIX)) if origin.startswith(PREFIX) else None


# Who answers --------------------------------------------------------------------------------------------------------


class Given:
    """Known answers; a question that is not among them is an error of the template's."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def option(self, name: str, options: Sequence[str]) -> str:
        return str(self.answers[name])

    def number(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.answers[name])

    def whole(self, name: str, low: int, high: int) -> int:
        return int(self.answers[name])


class Drawn:
    """Random answers, remembered."""

    def __init__(self, rng: Generator) -> None:
        self.rng = rng
        self.answers: dict[str, Answer] = {}

    def option(self, name: str, options: Sequence[str]) -> str:
        return str(self.answers.setdefault(name, pick(self.rng, options)))

    def number(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        ends = np.log([low, high]) if log else np.array([low, high])
        drawn = self.rng.uniform(*ends)
        return float(self.answers.setdefault(name, float(np.exp(drawn) if log else drawn)))

    def whole(self, name: str, low: int, high: int) -> int:
        return int(self.answers.setdefault(name, int(self.rng.integers(low, high + 1))))


class RandomChoices:
    """The control of random answers; what was found so far has no influence."""

    def __init__(self, context: Context) -> None:
        self.template, _ = of_space(context)

    def propose(self, rng: Generator) -> Proposal:
        drawn = Drawn(rng)
        program = self.template.build(drawn)
        return Proposal(program, (), written(drawn.answers))

    def tell(self, told: Told) -> None:
        pass


# The templates ------------------------------------------------------------------------------------------------------


class Constants:
    """Programs that differ in their constants alone: each literal of an ancestor that is not 0 or 1 may be moved by
    `factor` either way, and a rate of decay in its distance from 1."""

    def __init__(self, ancestors: Sequence[Program], factor: float = 10.0) -> None:
        self.factor = factor
        self.ancestors = {f"{index} {program.name}": program for index, program in enumerate(ancestors)}

    def build(self, choose: Choices) -> Program:
        name = choose.option("rule", list(self.ancestors))
        return self._moved(name, choose)

    def known(self) -> dict[str, Answers]:
        found: dict[str, Answers] = {}
        for name, program in self.ancestors.items():
            answers: dict[str, Answer] = {"rule": name}
            for number, value in enumerate(_constants(program)):
                answers[f"{name} {number}"] = _distance(value)
            found[name] = answers
        return found

    def _moved(self, name: str, choose: Choices) -> Program:
        numbers = itertools.count()
        program = self.ancestors[name]

        def move(expr: Expr) -> Expr:
            match expr:
                case Call(op, args):
                    return Call(op, tuple(move(arg) for arg in args))
                case Number(value) if _moves(value):
                    distance = _distance(value)
                    high = distance * self.factor if distance == abs(value) else min(distance * self.factor, 1.0)
                    moved = choose.number(f"{name} {next(numbers)}", distance / self.factor, high, log=True)
                    moved = float(f"{moved:.4g}")
                    if distance != abs(value):
                        return Number(float(f"{1.0 - moved:.12g}"))
                    return Number(moved if value > 0 else -moved)
            return expr

        body = map_statements(
            program.body,
            lambda s: (s,) if names_read(s.value) & {"lr", "weight_decay"} else (replace(s, value=move(s.value)),),
        )
        return replace(program, body=body)


def _constants(program: Program) -> list[float]:
    found: list[float] = []

    def look(expr: Expr) -> None:
        if isinstance(expr, Call):
            for arg in expr.args:
                look(arg)
        elif isinstance(expr, Number) and _moves(expr.value):
            found.append(expr.value)

    for statement in dsl.program.assignments(program.body):
        if not reads(statement) & {"lr", "weight_decay"}:
            look(statement.value)
    return found


def _moves(value: float) -> bool:
    return value not in (0.0, 1.0, -1.0)


def _distance(value: float) -> float:
    return float(f"{1.0 - value:.12g}") if 0.5 < value < 1.0 else abs(value)


class NeuralOptimizerSearch:
    """Updates as a tree of two operands, a unary function on each, and a binary one (Bello et al. 2017,
    arXiv:1709.07417): b(u1(op1), u2(op2)), with a second such tree on top whose operand may be the first.

    As published but for noise and dropout, which draw random numbers, x ** y, which is seldom finite, and schedules,
    which are the task's here. Slots are the averages of g, g ** 2 and g ** 3, at rates 0.9, 0.999 and 0.999.
    """

    OPERANDS: ClassVar[dict[str, str]] = {
        "g": "g",
        "g2": "square(g)",
        "g3": "g * square(g)",
        "m": "m",
        "v": "v",
        "c": "c",
        "sign g": "sign(g)",
        "sign m": "sign(m)",
        "one": "1",
        "two": "2",
        "p 1e-4": "1e-4 * p",
        "p 1e-3": "1e-3 * p",
        "p 1e-2": "1e-2 * p",
        "p 1e-1": "1e-1 * p",
        "adam": "debias(m, 0.9) / (sqrt(debias(v, 0.999)) + 1e-8)",
        "rmsprop": "g / (sqrt(v) + 1e-8)",
    }
    UNARY: ClassVar[dict[str, str]] = {
        "x": "{}",
        "-x": "-({})",
        "exp": "exp({})",
        "log abs": "log(abs({}))",
        "sqrt abs": "sqrt(abs({}))",
        "clip 1e-5": "clip({}, -1e-5, 1e-5)",
        "clip 1e-4": "clip({}, -1e-4, 1e-4)",
        "clip 1e-3": "clip({}, -1e-3, 1e-3)",
        "sign": "sign({})",
    }
    BINARY: ClassVar[dict[str, str]] = {
        "+": "({}) + ({})",
        "-": "({}) - ({})",
        "*": "({}) * ({})",
        "/": "({}) / (({}) + 1e-8)",
        "left": "{}",
    }

    def __init__(self, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth must be 1 or more, not {depth}")
        self.depth = depth

    def build(self, choose: Choices) -> Program:
        lines, operands = [], dict(self.OPERANDS)
        for level in range(1, self.depth + 1):
            binary = choose.option(f"b{level}", list(self.BINARY))
            sides = []
            for side in (1, 2)[: 1 if binary == "left" else 2]:
                which = choose.option(f"op{level}{side} of {len(operands)}", list(operands))
                unary = choose.option(f"u{level}{side}", list(self.UNARY))
                sides.append(self.UNARY[unary].format(operands[which]))
            lines.append(f"u{level} = {self.BINARY[binary].format(*sides)}")
            operands[f"u{level}"] = f"u{level}"
        body = ["m = lerp(m, g, 0.1)", "v = lerp(v, square(g), 0.001)", "c = lerp(c, g * square(g), 0.001)", *lines]
        head = "def nos(p, g, m: zeros, v: zeros, c: zeros, *, lr=1e-3, weight_decay=0.0):"
        frame = ["p = p * (1 - lr * weight_decay)", f"p = p - lr * u{self.depth}"]
        return dsl.parse("\n    ".join([head, *body, *frame]) + "\n")

    def known(self) -> dict[str, Answers]:
        def tree(*answers: tuple[str, ...]) -> dict[str, Answer]:
            found: dict[str, Answer] = {}
            count = len(self.OPERANDS)
            for level in range(1, self.depth + 1):
                binary, *sides = answers[level - 1] if level <= len(answers) else ("left", f"u{level - 1}", "x")
                found[f"b{level}"] = binary
                for side, (which, unary) in enumerate(zip(sides[::2], sides[1::2], strict=True), start=1):
                    found[f"op{level}{side} of {count}"] = which
                    found[f"u{level}{side}"] = unary
                count += 1
            return found

        one_level: dict[str, Answers] = {
            "adamw": tree(("left", "adam", "x")),
            "adam": tree(("left", "adam", "x")),
            "sgd": tree(("left", "g", "x")),
            "signsgd": tree(("left", "sign g", "x")),
            "signum": tree(("left", "sign m", "x")),
        }
        if self.depth < 2:
            return one_level
        powersign = tree(("*", "sign g", "x", "sign m", "x"), ("*", "u1", "exp", "g", "x"))
        addsign = tree(("*", "sign g", "x", "sign m", "x"), ("*", "u1", "x", "g", "x"))
        return {**one_level, "powersign": powersign, "g_times_agreement": addsign}


class Wrappers:
    """Wrappers around a known rule: which, in which order, and their settings and the rule's.

    Every hyperparameter but lr and weight_decay is a question: within its range where the rule gives one; a number
    between 0.5 and 1 by its distance from 1, any other by a factor of 3 either way; a whole number stays, as one that
    counts steps.

    Args:
        bases: rules to wrap.
        wrappers: rules that take one rule.
        depth: how many at most.
    """

    def __init__(self, bases: Sequence[str], wrappers: Sequence[str], depth: int = 2) -> None:
        for names, takes in ((bases, 0), (wrappers, 1)):
            if not names:
                raise ValueError("bases and wrappers must name a rule each, at least")
            for name in names:
                if len(_loaded(name).rules) != takes:
                    raise ValueError(f"'{name}' takes {len(_loaded(name).rules)} rules, expected {takes}")
        self.bases, self.wrappers, self.depth = tuple(bases), tuple(wrappers), depth

    def build(self, choose: Choices) -> Program:
        rule = choose.option("base", self.bases)
        around = [choose.option(f"wrapper {number}", ("none", *self.wrappers)) for number in range(1, self.depth + 1)]
        for wrapper in around:
            rule = rule if wrapper == "none" else f"{wrapper}({rule})"
        program = _loaded(rule)
        values = {}
        for hyper in program.hypers:
            question = f"{rule} {hyper.name}"
            if hyper.name.split("_")[-1] in ("lr", "decay"):
                continue
            if hyper.range is not None:
                value = choose.number(question, hyper.range.low, hyper.range.high, log=hyper.range.log)
            elif hyper.default == int(hyper.default):
                continue
            elif 0.5 < hyper.default < 1.0:
                away = 1.0 - hyper.default
                value = 1.0 - choose.number(f"{rule} 1 - {hyper.name}", away / 3, min(away * 3, 0.9), log=True)
            elif hyper.default > 0:
                value = choose.number(question, hyper.default / 3, hyper.default * 3, log=True)
            else:
                continue
            values[hyper.name] = float(f"{value:.4g}")
        return program.with_defaults(values)

    def known(self) -> dict[str, Answers]:
        found: dict[str, Answers] = {}
        nothing: dict[str, Answer] = {f"wrapper {number}": "none" for number in range(1, self.depth + 1)}
        for base in self.bases:
            defaults = _Defaults({"base": base, **nothing}, _loaded(base))
            self.build(defaults)
            found[base] = defaults.answers
        for base, wrapper in itertools.product(self.bases, self.wrappers if self.depth else ()):
            chosen = {"base": base, **nothing, "wrapper 1": wrapper}
            defaults = _Defaults(chosen, _loaded(f"{wrapper}({base})"))
            self.build(defaults)
            found[f"{wrapper}({base})"] = defaults.answers
        return found


class _Defaults:
    """Answers a question about a hyperparameter with the rule's own value."""

    def __init__(self, chosen: Answers, program: Program) -> None:
        self.answers: dict[str, Answer] = dict(chosen)
        self._defaults = program.defaults

    def option(self, name: str, options: Sequence[str]) -> str:
        return str(self.answers[name])

    def number(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value = self._defaults[name.rpartition(" ")[2]]
        if " 1 - " in name:
            value = float(f"{1.0 - value:.12g}")
        return float(self.answers.setdefault(name, value))

    def whole(self, name: str, low: int, high: int) -> int:
        return int(self.number(name, low, high))


@lru_cache(maxsize=1024)
def _loaded(rule: str) -> Program:
    return dsl.load(rule)


BUILT_IN: dict[str, Callable[..., Template]] = {"nos": NeuralOptimizerSearch, "wrappers": Wrappers}
