"""What a proposed program must pass before it is trained, cheapest first.

Dead statements go, then: uses the gradient, well typed, not seen by structure, what the space requires of it
(`require`, `probes`), not seen by behaviour. A program seen before is not trained again: it is a duplicate of the
first one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import dsl
from discover.space import Probes, Require
from dsl import Program, RuleError, properties
from dsl.dead import strip_dead
from dsl.properties import Held, Properties
from dsl.reference import Array


@dataclass(frozen=True, slots=True)
class New:
    """A program to train."""

    program: Program
    structure: str
    behaviour: str
    properties: Properties


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A program that does what candidate `of` does."""

    program: Program
    structure: str
    behaviour: str
    of: int


@dataclass(frozen=True, slots=True)
class Rejected:
    reason: str


@dataclass(slots=True)
class _Known:
    """What examining a program found out about it alone; the last three once they were asked for."""

    malformed: str
    structure: str
    facts: Properties | None = None
    wanting: str = ""
    behaviour: str = ""


_REMEMBERED = 20_000
"""Programs; then all are forgotten, and those that come again are examined again."""


def _structure(program: Program) -> tuple[str, str]:
    """What is wrong with it, and its structure; one of them is empty."""
    try:
        return "", dsl.structure_hash(dsl.check(program))
    except RuleError as error:
        return "gradient unused" if "not used" in error.message else "ill typed", ""


class Gate:
    """Knows every program that was let in.

    Args:
        require: properties that a program must have.
        probes: what it must do on a few random gradients.
        run: does on these gradients what numpy does, faster, or gives None (`discover.probes`); no verdict depends on
            it.
    """

    def __init__(
        self,
        require: Require,
        probes: Probes,
        run: Callable[[Program], tuple[Held, Array] | None] = lambda program: None,
    ) -> None:
        self.require, self.probes, self._run = require, probes, run
        self._known: dict[Program, _Known] = {}
        self._structures: dict[str, tuple[int, str]] = {}
        self._behaviours: dict[str, int] = {}

    def examine(self, program: Program) -> New | Duplicate | Rejected:
        """Judges a program, without remembering it."""
        program = strip_dead(program)
        known = self._known_of(program)
        if known.malformed:
            return Rejected(known.malformed)
        if known.structure in self._structures:
            of, behaviour = self._structures[known.structure]
            return Duplicate(program, known.structure, behaviour, of)
        if known.facts is None:
            held, changes = self._run(program) or (None, None)
            known.facts = properties.of(program, held)
            known.wanting = self._wanting(known.facts)
            known.behaviour = "" if known.wanting else dsl.behaviour_hash(program, changes)
        if known.wanting:
            return Rejected(known.wanting)
        if known.behaviour in self._behaviours:
            return Duplicate(program, known.structure, known.behaviour, self._behaviours[known.behaviour])
        return New(program, known.structure, known.behaviour, known.facts)

    def _known_of(self, program: Program) -> _Known:
        """What was found out about the program, under whatever name it came before, as many do."""
        unnamed = program.unnamed
        known = self._known.get(unnamed)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[unnamed] = _Known(*_structure(program))
        return known

    def remember(self, candidate: int, structure: str, behaviour: str) -> None:
        """Makes later programs of this structure or behaviour duplicates of the candidate."""
        self._structures.setdefault(structure, (candidate, behaviour))
        self._behaviours.setdefault(behaviour, candidate)

    def forget(self, candidate: int, structure: str, behaviour: str) -> None:
        """Lets a program be tried again whose candidate came to no result by no fault of its own."""
        if self._structures.get(structure, (None,))[0] == candidate:
            del self._structures[structure]
        if self._behaviours.get(behaviour) == candidate:
            del self._behaviours[behaviour]

    def _wanting(self, facts: Properties) -> str:
        """What the program lacks; empty for nothing."""
        require, probes = self.require, self.probes
        if not facts.finite:
            return "not finite"
        if require.finite_at_zero and not facts.finite_at_zero:
            return "not finite at zero gradient"
        if require.max_slots is not None and facts.slots > require.max_slots:
            return "too many slots"
        if require.max_state_bytes is not None and facts.state_bytes > require.max_state_bytes:
            return "too much state"
        if facts.scale < probes.min_update:
            return "does not move"
        if facts.scale > probes.max_update:
            return "moves too far"
        if facts.cosine < probes.min_cosine:
            return "does not follow the gradient"
        if require.odd and not facts.odd:
            return "not odd in the gradient"
        if require.homogeneous and facts.degree is None:
            return "not homogeneous in the gradient"
        return ""
