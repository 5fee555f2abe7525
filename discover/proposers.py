"""Proposers as plug-ins: what one must do, what it is given, and where it is found.

A proposer is asked for programs and told what became of them. It is made by a *factory*, `factory(context)`, which is
found by name among the entry points of the group `optimizer_discovery.proposers`, where ours stand too, or as
FILE.py:NAME. `discover.testing.ProposerContract` holds every proposer to what is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, distributions
from typing import Any, Protocol, cast, runtime_checkable

from numpy.random import Generator

from discover.errors import UserError
from discover.mutate import Grammar
from discover.plugins import from_file
from discover.space import Space
from dsl.parse import suggest
from dsl.program import Program

GROUP = "optimizer_discovery.proposers"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A program to try, the candidates it was made from, and how, in words.

    `origin` is kept in the archive and told again: what a proposer must remember of a proposal goes there.
    """

    program: Program
    parents: tuple[int, ...]
    origin: str


@dataclass(frozen=True, slots=True)
class Told:
    """A proposal that passed the gate.

    Attributes:
        id: the proposal's number.
        original: the candidate whose fitness is its own: itself, or for a duplicate the one that it repeats. It is not
            in `Context.fitness` where it failed.
        program: as it was trained, without dead statements.
        parents, origin: as proposed.
        properties: facts found by analysis, as `dsl.properties.Properties.plain`; empty for a duplicate.
    """

    id: int
    original: int
    program: Program
    parents: tuple[int, ...]
    origin: str
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """What a proposer is given at its start. The mappings are the search's own: read them, they grow.

    Attributes:
        space: the search space; `space.proposer` holds settings for a proposer of one's own.
        ancestors: the rules to start from, flat, hyperparameters other than lr and weight_decay as literals.
        grammar: how programs may change, for `discover.mutate`.
        fitness: candidate -> what its scores let one expect, higher is better, 0 is tuned AdamW; the ancestors are -1,
            -2, ... One score is drawn towards the usual one of today (`discover.standing`), so it changes, and most
            when a candidate is scored again; compare candidates by it, at the same time.
        confirmed: candidate -> its scores on fresh instances, which had no part in choosing it.
        elites: candidate -> text of its program, for those that reached the last rung.
    """

    space: Space
    ancestors: tuple[Program, ...]
    grammar: Grammar
    fitness: Mapping[int, float]
    confirmed: Mapping[int, Sequence[float]]
    elites: Mapping[int, str]


class Proposer(Protocol):
    """Ask and tell over programs.

    `propose` changes nothing: what it gives depends on the generator and on what was told, or a search could not be
    resumed, since a resumed search tells everything again and asks for nothing that the archive holds. The same
    proposal may come again and again; the gate turns it away, or calls it a duplicate.
    """

    def propose(self, rng: Generator) -> Proposal:
        """A program to try. Chance comes from `rng` alone."""
        ...

    def tell(self, told: Told) -> None:
        """What passed the gate, in order of proposal, a generation at a time. What the gate rejected is not told."""
        ...


@runtime_checkable
class Attentive(Proposer, Protocol):
    """A proposer that wants to know whose fitness has changed as well."""

    def confirm(self, candidates: Sequence[int]) -> None:
        """Candidates that were scored again, in order, when `Context` has it and their generation has been told. All of
        them were told before."""
        ...


Factory = Callable[[Context], Proposer]


def names() -> list[str]:
    """The proposers that are installed."""
    return sorted(_installed())


def load(name: str) -> Factory:
    """The factory of a proposer.

    Args:
        name: of an entry point, or FILE.py:NAME. The file is executed.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    if (own := from_file(name, "an algorithm")) is not None:
        return own
    found = _installed()
    if name not in found:
        there = ", ".join(sorted(found)) or "none; install this package again: pip install -e ."
        hint = suggest(name, sorted(found)) or f"; there are {there}; your own is written FILE.py:NAME"
        raise UserError(f"unknown algorithm '{name}'{hint}")
    try:
        return cast(Factory, found[name].load())
    except (ImportError, AttributeError) as error:
        raise UserError(f"algorithm '{name}' ({found[name].value}) cannot be imported: {error}") from None


def _installed() -> dict[str, EntryPoint]:
    """From all that is installed. A folder of metadata beside the code, left by an earlier build, hides nothing here,
    as it would from `entry_points`, which reads one folder for each package."""
    points = (point for each in distributions() for point in each.entry_points.select(group=GROUP))
    return {point.name: point for point in points}
