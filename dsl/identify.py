"""Which known rule a program is, or is nearest to.

A program is a known rule if it does the same on fixed inputs (`dsl.behaviour`), or if it has the rule's shape and the
constants found in it, put into the known rule, make it do the same or read the same: then those constants are reported.
(What a rule does in the null space of its matrices, as SOAP does, rounding decides, and rounding goes by the order of
statements.) Known are the
built-in rules, and every wrapper among them on every other rule, or on a wrapper on it.

Otherwise two figures say how near it comes. The known rule with the largest similarity is named; among those that come
within `AS_NEAR` of it, the one that shares most:

- *similarity*, how alike they step: both run over the same 24 fixed gradients with p held and without weight decay; it
  is the mean cosine of their updates over steps, for a matrix and a vector together. 1 is the same direction at every
  step, 0 nothing in common. Gradients differ in size from element to element by up to a factor of 100 and are half
  noise, so that rules that normalise, and those that average, are told apart. Known rules are tried at their default
  hyperparameters and with shorter memories and other limits (`SETTINGS`), since by these a rule goes elsewhere and is
  called the same. The length of steps plays no part.
- *shared*, how alike they are written: the share of operations, each counted with what its arguments are, that both
  have in common; names, constants and the order of statements play no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import product

import numpy as np

from dsl.behaviour import Surrogate, behaviour_hash, column, generic
from dsl.canonical import HOLE, shape_hash, simplified
from dsl.compose import apply
from dsl.constants import constants
from dsl.flatten import with_literals
from dsl.graph import CONSTANT, INPUT, Graph, lower, lower_all
from dsl.library import load, names
from dsl.ops import OPS
from dsl.parse import definition
from dsl.program import BUILTINS, Call, Facts, Name, Program, Slot, assignments, expressions
from dsl.reference import Array, Machine
from dsl.types import SIZED_BY

AS_NEAR = 0.03
"""Of similarity: by so little, what two rules do is not told apart, and how they are written decides."""

SETTINGS: Mapping[str, tuple[float, ...]] = {
    "momentum": (0.5, 0.8),
    "beta1": (0.5, 0.8),
    "limit": (0.3, 3.0, 10.0),
}
"""Hyperparameters, and values of them that known rules are tried at beside their defaults to see how near they are: how
much an average keeps from step to step; and where an element is clipped, on gradients of a mean size of 2.6."""

STEPS = 24
ROWS, COLS = 6, 4
_MARKS = ("global", "closure", "random", "eight bits", "history", "matrix")
_STABLE = (
    *("sign", "exp", "log", "tanh", "sigmoid", "cos", "floor", "min", "max", "clip"),
    *("sum", "row_sum", "col_sum", "mean", "amax", "quantile", "block_mean"),
)
"""Operators, and groups of them, that programs of one shape all have or all have not."""


@dataclass(frozen=True, slots=True)
class Match:
    """A known rule and how near it is.

    Attributes:
        name: the known rule; for a wrapper, with the base it was tried on.
        similarity: mean cosine of the updates, from -1 to 1.
        exact: the program is the known rule, with the hyperparameters in `hypers`.
        hypers: the known rule's hyperparameters that are not at their defaults: where exact, those of the program; else
            those, of `SETTINGS`, with which it is nearest.
        but_for_decay: not exact, but equal to the known rule once both have their weight decay at 0.
        shared: the share of operations that both have in common, from 0 to 1.
    """

    name: str
    similarity: float
    exact: bool
    hypers: Mapping[str, float] = field(default_factory=dict)
    but_for_decay: bool = False
    shared: float = 1.0

    def __str__(self) -> str:
        if self.but_for_decay:
            return f"is {self.name} but for its weight decay"
        values = ", ".join(f"{name}={value:g}" for name, value in self.hypers.items())
        known = self.name + (f" with {values}" if values else "")
        if self.exact:
            return f"is {known}"
        return f"new; nearest is {known} (similarity {self.similarity:.3f}), {self.shared:.0%} of operations shared"


def nearest(program: Program, gradients: float | None = None) -> Match:
    """The known rule that a program is, or is nearest to.

    Args:
        gradients: the mean absolute gradient that the program meets where it is used, to which the fixed ones are
            scaled for it (known rules keep theirs); None for those as they are, 2.6.

    Raises:
        RuleError: the program is not well formed.
    """
    behaviour, shape, traits = behaviour_hash(program), shape_hash(program), _traits(program)
    for name in _zoo():
        if _behaviour(name) == behaviour:
            return Match(name, 1.0, True)
    alike = [name for name in _zoo() if _traits(_program(name)) == traits]
    for name in alike:
        if (values := _same(program, shape, behaviour, _forms(name))) is not None:
            return Match(name, 1.0, True, values)
    for name, composed in _compositions(traits):
        if (values := _same(program, shape, behaviour, ((shape_hash(composed), composed),))) is not None:
            return Match(name, 1.0, True, values)
    decay_free = _without_decay(program)
    still, still_shape = behaviour_hash(decay_free), shape_hash(decay_free)
    for name in alike:
        forms = tuple((known, _without_decay(form)) for known, form in _forms(name))
        if _still(name) == still or _same(decay_free, still_shape, still, forms) is not None:
            return Match(name, 1.0, False, but_for_decay=True)
    scale = 1.0 if gradients is None else gradients / _probe()[2]
    directions, operations = _directions(program, scale), _operations(program)
    shared = {name: _share(operations, _written(name)) for name in _zoo()}
    found = [
        Match(each.name, _similarity(directions, each.directions), False, each.hypers, shared=shared[each.name])
        for each in _neighbours()
    ]
    most = max(match.similarity for match in found)
    near = [match for match in found if match.similarity >= most - AS_NEAR]
    return max(near, key=lambda match: (match.shared, match.similarity))


# What is known ----------------------------------------------------------------------------------------------------


@cache
def _zoo() -> tuple[str, ...]:
    """Every built-in rule, wrappers on adamw; then wrappers on momentum, and last on sgd, of which one may do
    nothing."""
    wrappers = [name for name in names() if load(name).rules]
    return (
        *(f"{name}(adamw)" if name in wrappers else name for name in names()),
        *(f"{name}({base})" for base in ("momentum", "sgd") for name in wrappers),
    )


@cache
def _program(name: str) -> Program:
    return load(name)


@cache
def _behaviour(name: str) -> str:
    return behaviour_hash(_program(name))


@cache
def _still(name: str) -> str:
    return behaviour_hash(_without_decay(_program(name)))


@cache
def _written(name: str) -> Counter[str]:
    return _operations(_program(name))


@cache
def _forms(name: str) -> tuple[tuple[str, Program], ...]:
    """How a known rule may be written, each with its shape: as it is; without its decay; without all that its defaults
    switch off. Constants of 0 and 1 are not found in a program once algebra is done with them."""
    program = _program(name)
    defaults = program.defaults
    forms = [program]
    for off in ({"weight_decay": 0.0}, {name: value for name, value in defaults.items() if value in (0, 1)}):
        written = off.keys() & defaults.keys() - {"lr", *SIZED_BY.values()}
        if written:
            forms.append(with_literals(program.with_defaults({n: off[n] for n in written}), defaults.keys() - written))
    return tuple({shape_hash(form): form for form in forms}.items())


def _without_decay(program: Program) -> Program:
    return program.with_defaults({"weight_decay": 0.0}) if "weight_decay" in program.defaults else program


def _same(
    program: Program, shape: str, behaviour: str, forms: tuple[tuple[str, Program], ...]
) -> dict[str, float] | None:
    """A known rule's hyperparameters, where not at their defaults, with which it does what this program does."""
    for known, form in forms:
        if known == shape and (values := constants(program, form, behaviour)) is not None:
            decays = forms[0][1].defaults.get("weight_decay", 0.0) != 0
            return {"weight_decay": 0.0, **values} if decays and "weight_decay" not in form.defaults else values
    return None


# Compositions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Traits:
    """What programs of one shape have in common at a glance: their state, and operators that algebra leaves alone."""

    state: tuple[str, ...]
    marks: frozenset[str]

    def __add__(self, other: _Traits) -> _Traits:
        return _Traits(tuple(sorted(self.state + other.state)), self.marks | other.marks)

    def __bool__(self) -> bool:
        return bool(self.state or self.marks)


def _compositions(traits: _Traits) -> Iterator[tuple[str, Program]]:
    """Wrappers on rules, and on wrappers on rules, that have these traits."""
    wrappers = {name: _wrapper_traits(name) for name in names() if load(name).rules}
    bases = {name: _traits(_program(name)) for name in names() if not load(name).rules}
    for outer, mine in wrappers.items():
        for base, rest in bases.items():
            if mine + rest == traits:
                yield f"{outer}({base})", _composed(outer, load(base))
    telling = {name: mine for name, mine in wrappers.items() if mine}  # without traits, there are too many to try
    for outer, mine in telling.items():
        for inner, theirs in telling.items():
            for base, rest in bases.items():
                if mine + theirs + rest == traits:
                    yield f"{outer}({inner}({base}))", _composed(outer, _composed(inner, load(base)))


def _composed(wrapper: str, base: Program) -> Program:
    return apply(load(wrapper), {load(wrapper).rules[0]: base})


@lru_cache(maxsize=256)
def _traits(program: Program) -> _Traits:
    graphs = list({id(graph): graph for graph in lower_all(program).values()}.values())
    live = {name for graph in graphs for name in (*graph.inputs, *graph.outputs)}
    return _Traits(
        _state(slot for slot in program.slots if slot.name in live),
        _marks(node.op for graph in graphs for node in graph.nodes),
    )


@cache
def _wrapper_traits(name: str) -> _Traits:
    program = load(name)
    calls = [part for each in assignments(program.body) for part in expressions(each.value) if isinstance(part, Call)]
    return _Traits(
        _state(program.slots),
        _marks(op for call in calls if call.op in OPS for op in _primitive(call.op)),
    )


def _state(slots: Iterable[Slot]) -> tuple[str, ...]:
    return tuple(sorted(f"{slot.extent} {slot.init} {slot.code}" for slot in slots))


def _marks(found: Iterable[str]) -> frozenset[str]:
    names = {name.replace("norm", "sum") if name in ("norm", "row_norm", "col_norm") else name for name in found}
    return frozenset(name for name in names if name in _STABLE or (name in OPS and OPS[name].group in _MARKS))


@cache
def _primitive(name: str) -> frozenset[str]:
    """The operators that one which abbreviates others stands for."""
    op = OPS[name]
    if not op.expand:
        return frozenset({name})
    parts = expressions(definition(op.expand)({param: Name(param) for param in op.params}))
    return frozenset(found for part in parts if isinstance(part, Call) for found in _primitive(part.op))


# Nearness ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Neighbour:
    """A known rule with some hyperparameters beside its defaults, and how it steps."""

    name: str
    hypers: Mapping[str, float]
    directions: Array


@cache
def _neighbours() -> tuple[_Neighbour, ...]:
    """Every known rule at its defaults and at all combinations of `SETTINGS` with them."""
    found = []
    for name in _zoo():
        program = _program(name)
        some = [hyper for hyper in SETTINGS if hyper in program.defaults]
        for values in product(*((program.defaults[hyper], *SETTINGS[hyper]) for hyper in some)):
            hypers = {k: v for k, v in zip(some, values, strict=True) if v != program.defaults[k]}
            found.append(_Neighbour(name, hypers, _directions(program.with_defaults(hypers))))
    return tuple(found)


def _directions(program: Program, scale: float = 1.0) -> Array:
    """Updates of unit length [step, 2 * elements], those of a matrix beside those of a vector; 0 where not finite."""
    kinds = (Facts(True, "hidden"), Facts(False, "vector"))
    p, gradients, _ = _probe()
    gradients = scale * gradients
    held = [p, column(p)]
    machine = Machine([lower(program, facts) for facts in kinds], held, program.slots, _without_decay(program).defaults)
    curvature = generic(22, (ROWS, COLS))
    surrogate = Surrogate(machine, [curvature, column(curvature)])
    steps = []
    for step in range(STEPS):
        for unit, start in zip(machine.units, held, strict=True):
            unit.p = start
        surrogate.step([gradients[step], column(gradients[step])], step + 1, 1.0, 1.0)
        steps.append([_unit(start - unit.p) for unit, start in zip(machine.units, held, strict=True)])
    return np.asarray(steps)


def _unit(update: Array) -> Array:
    with np.errstate(all="ignore"):
        length = np.sqrt(np.sum(update**2))
        unit: Array = np.nan_to_num(update / length, nan=0.0, posinf=0.0, neginf=0.0)
        return unit.ravel()


def _similarity(a: Array, b: Array) -> float:
    return float(np.mean(np.sum(a * b, axis=-1)))


@cache
def _probe() -> tuple[Array, Array, float]:
    """Parameters, gradients of each step, and the mean of their absolute values."""
    numbers = generic(21, (3 + STEPS, ROWS, COLS))
    sizes = 10.0 ** np.clip(numbers[0], -1.0, 1.0)
    gradients = sizes * np.sqrt(0.5) * (numbers[2] + numbers[3:])
    return numbers[1], gradients, float(np.mean(np.abs(gradients)))


def _operations(program: Program) -> Counter[str]:
    """The operations of a matrix's and a vector's graph, each with what its arguments are; alone, too."""
    found: Counter[str] = Counter()
    graphs = simplified(program, {})
    for facts in (Facts(True, "hidden"), Facts(False, "vector")):
        graph = graphs[facts]
        words = [_word(graph, index) for index in range(len(graph.nodes))]
        for index, node in enumerate(graph.nodes):
            if node.op in OPS and words[index] != HOLE:
                args = [words[arg] for arg in node.args]
                found[node.op] += 1
                found[f"{node.op}({', '.join(sorted(args) if OPS[node.op].commutative else args)})"] += 1
        for name, index in graph.outputs.items():
            found[f"{'p' if name == 'p' else 'state'} = {words[index]}"] += 1
    return found


def _word(graph: Graph, index: int) -> str:
    """What a value is, seen by who uses it: an operator, an input, state of some extent, or a constant."""
    node = graph.nodes[index]
    if node.op != INPUT:
        return HOLE if node.op == CONSTANT else node.op
    name = str(node.payload)
    if name in ("p", "g", *BUILTINS, "lr"):
        return name
    return HOLE if node.type.is_number else f"state {node.type.extent}"


def _share(a: Counter[str], b: Counter[str]) -> float:
    return (a & b).total() / max(1, (a | b).total())
