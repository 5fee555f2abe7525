"""What there is to say of each built-in rule on one line: year and source, state, what it needs, what it is like.

`discover list rules` and docs/zoo.md show it. Year and source are read from the first line of the rule's docstring,
which ends "Author et al. YEAR, arXiv:NUMBER.", or with another place of publication.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from dsl import properties
from dsl.graph import lower_all, needs
from dsl.library import load, names
from dsl.ops import OPS
from dsl.program import Program
from dsl.types import EXTENTS

_EXTENTS = {extent: name for name, extent in EXTENTS.items()}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_PAGE = re.compile(r"\b[\w-]+(?:\.[\w-]+)+/[\w./-]*[\w/]")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_ENDS = re.compile(r"(?<!\bal)(?<!\b[A-Z])[.:;]\s+")
"""Ends of sentences and parts of them; "et al." and initials are none."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule comes from.

    Attributes:
        year: of the first of its sources.
        text: author and year, with the place of publication where that is no link.
        link: the address of the last source that has one; empty where none has.
        about: what the rule does: the line without its sources.
    """

    year: int
    text: str
    link: str
    about: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A built-in rule.

    Attributes:
        name: a wrapper with its base: `lookahead(RULE)`.
        kind: "rule", "wrapper", or "own evaluation point" where what to evaluate is not p.
        source: None where the docstring names none.
        state: its slots in order, with their extents where these are not the parameter's shape.
        state_bytes: per element of a float32 matrix of 4096 x 4096; a wrapper's own.
        needs: what must be given to `step` beside the gradient.
        traits: what the rule is like; none for a wrapper, which is like its base.
    """

    name: str
    kind: str
    source: Source | None
    state: tuple[str, ...]
    state_bytes: float
    needs: str
    traits: tuple[str, ...]


def source(doc: str) -> Source | None:
    """The source that the first line of a docstring names; None where there is no year.

    >>> source("Signs. Bernstein et al. 2018, arXiv:1802.04434.")
    Source(year=2018, text='Bernstein et al. 2018', link='https://arxiv.org/abs/1802.04434', about='Signs')
    """
    line = doc.partition("\n")[0].strip()
    plain = _PAGE.sub("", _ARXIV.sub("", line))
    years = _YEAR.findall(plain)
    if not years:
        return None
    parts = _parts(line)
    cited = [part for part in parts if _YEAR.search(_ARXIV.sub("", part))]
    links = [f"https://arxiv.org/abs/{number}" for number in _ARXIV.findall(line)]
    links = links or [f"https://{page}" for page in _PAGE.findall(line)]
    text = "; ".join(_PAGE.sub("", _ARXIV.sub("", part)).strip(" ,.") for part in cited)
    about = line[: line.index(cited[0])].strip(" .:;") if cited else line
    return Source(int(years[0]), text, links[-1] if links else "", about)


def _parts(line: str) -> list[str]:
    parts, start = [], 0
    for end in _ENDS.finditer(line):
        parts.append(line[start : end.start()])
        start = end.end()
    return [*parts, line[start:]]


def entry(name: str) -> Entry:
    """What there is to say of a rule, built in or registered.

    Raises:
        RuleError: there is none of this name, or it is not well formed.
    """
    return _entry(load(name))


@lru_cache(maxsize=512)
def _entry(program: Program) -> Entry:
    alone = program
    if program.rules:
        from dsl.compose import apply

        alone = apply(program, dict.fromkeys(program.rules, load("sgd")))  # sgd has no state and no needs
    facts = properties.of(alone)
    kind = "wrapper" if program.rules else "own evaluation point" if program.result else "rule"
    return Entry(
        name=f"{program.name}(RULE)" if program.rules else program.name,
        kind=kind,
        source=source(program.doc),
        state=tuple(slot.name + _extent(slot.extent, slot.code) for slot in program.slots),
        state_bytes=facts.state_bytes,
        needs=str(needs(alone)),
        traits=() if program.rules else tuple(_traits(facts)),
    )


def _extent(extent: tuple[str, str], code: bool) -> str:
    name = "codes" if code else _EXTENTS[extent]
    return "" if name == "full" else f":{name}"


def _traits(facts: properties.Properties) -> Iterator[str]:
    if facts.odd:
        yield "odd"
    if facts.degree is not None:
        yield f"degree {facts.degree:g}"
    if facts.elementwise:
        yield "elementwise"
    if not facts.finite_at_zero:
        yield "not finite at zero"


# Groups -----------------------------------------------------------------------------------------------------------

STANDARD = (
    *("sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "rmsprop_centered", "adam", "adamax", "amsgrad"),
    *("adamw", "nadam", "adafactor", "laprop", "lion", "signsgd", "signum"),
)
COMPRESSED = ("adam8bit", "onebit_adam", "efficient_adam", "qadam_ef")
GROUPS = (
    "Standard",
    "Relatives of Adam and of momentum",
    "Compressed",
    "Matrices",
    "Wrappers, which take a rule",
    "With a point of evaluation of their own",
    "More than a gradient",
)


def group(name: str) -> str:
    """The group that a built-in rule is listed in; the first of these that holds."""
    program = load(name)
    standard, relatives, compressed, matrices, wrappers, evaluation, more = GROUPS
    if name in STANDARD:
        return standard
    if name in COMPRESSED:
        return compressed
    if program.rules:
        return wrappers
    if needs(program).closure:
        return more
    if program.result:
        return evaluation
    operators = {OPS[node.op] for graph in lower_all(program).values() for node in graph.nodes if node.op in OPS}
    return matrices if any(op.group in ("matrix", "history") for op in operators) or name in _MATRIX else relatives


_MATRIX = ("auon", "frugal", "scale")
"""Rules for matrices that need no operator on matrices."""


def entries() -> dict[str, list[Entry]]:
    """Every built-in rule, by group."""
    found: dict[str, list[Entry]] = {each: [] for each in GROUPS}
    for name in names():
        found[group(name)].append(entry(name))
    order = {name: place for place, name in enumerate(STANDARD)}
    found[GROUPS[0]].sort(key=lambda each: order[each.name])
    return found


NOT_RULES = {
    "K-FAC (Martens & Grosse 2015, arXiv:1503.05671)": (
        "needs each layer's inputs and the gradients of its outputs; a rule sees parameters and their gradients. "
        "Shampoo and SOAP are what can be had from gradients alone."
    ),
    "DGD, delta gradient descent (Nested Learning, Behrouz et al. 2025)": (
        "its step W (I - x x^T) takes the layer's input x. `delta_momentum` is the same idea on the gradient."
    ),
    "DMGD, deep momentum (Nested Learning)": (
        "its momentum is a small network that is itself trained at every step: a model with an optimizer of its own, "
        "not a tensor for each parameter."
    ),
    "SAF, MESA (Du et al. 2022, arXiv:2205.14083)": (
        "are terms of the loss: the model's outputs of some epochs ago, or those of its running mean, are kept for "
        "each example and compared with the present ones."
    ),
    "ZO2, offloading for training without gradients": (
        "is the mathematics of `mezo`; what is new is when blocks travel between CPU and GPU."
    ),
    "ZeRO, FSDP, offloading, gradient checkpointing": ("say where state and activations are, not what is computed."),
    "Local SGD, DiLoCo": (
        "are several trainings that meet now and then; a rule is one training. Both its outer and its inner step are "
        "rules. `onebit_adam`, `efficient_adam` and `qadam_ef` are one worker's view."
    ),
    "L-BFGS with a line search, trust regions": (
        "ask for the loss until it is low enough: how often depends on values, and a rule is a fixed program. `mfac` "
        "remembers gradients as L-BFGS does, and is one."
    ),
    "Learning-rate schedules": "are the scheduler's: a rule reads `lr` and `lr_ratio`.",
}
"""What is listed among optimizers and is no update rule in this language, with the reason."""
