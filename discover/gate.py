"""What a proposed program must pass before it is trained, cheapest first.

Dead statements go, then: uses the gradient, well typed, what the space requires of it (`require`, `probes`), not seen
by structure, not seen by behaviour. A program seen before is not trained again: it is a duplicate of the first one. So
is one whose step is a multiple of another, since each candidate is trained at learning rates that suit its step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import dsl
from discover.probes import Probed
from discover.space import Probes, Require
from dsl import Program, RuleError, properties
from dsl.behaviour import Changes, behaviour_hashes, changes, growths
from dsl.dead import strip_dead
from dsl.program import IdleGradientError
from dsl.properties import Properties, hold


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


_REMEMBERED = 20_000
"""Programs; then all are forgotten, and those that come again are examined again."""


class Gate:
    """Knows every program that was let in.

    Args:
        require: properties that a program must have.
        probes: what it must do on a few random gradients.
        probed: does on these gradients what numpy does, faster, or gives None (`discover.probes`); no verdict depends
            on it.
        weight_decay: that rules are trained with; None for their own.
    """

    def __init__(
        self,
        require: Require,
        probes: Probes,
        probed: Callable[[Program], Probed | None] = lambda program: None,
        weight_decay: float | None = None,
    ) -> None:
        self.weight_decay = weight_decay
        self.require, self.probes, self._probed = require, probes, probed
        self._known: dict[Program, New | Rejected] = {}
        """What examining a program found out about it alone, under whatever name it came, as many do."""
        self._structures: dict[str, tuple[int, str]] = {}
        self._behaviours: dict[str, int] = {}

    def examine(self, program: Program) -> New | Duplicate | Rejected:
        """Judges a program, without remembering it."""
        program = strip_dead(program)
        if (known := self._known.get(program.unnamed)) is None:
            self._look_at([program], lambda: None)
            known = self._known[program.unnamed]
        if isinstance(known, Rejected):
            return known
        of, behaviour = self._structures.get(known.structure, (None, known.behaviour))
        of = self._behaviours.get(behaviour) if of is None else of
        if of is not None:
            return Duplicate(program, known.structure, behaviour, of)
        return New(program, known.structure, known.behaviour, known.properties)

    def look_at(self, programs: Sequence[Program], between: Callable[[], None] = lambda: None) -> None:
        """Finds out what can be said of programs by themselves: of many in one pass, in less time than one by one when
        they are examined.

        Args:
            between: is called between programs.
        """
        self._look_at(list(map(strip_dead, programs)), between)

    def _look_at(self, stripped: Sequence[Program], between: Callable[[], None]) -> None:
        unnamed = dict.fromkeys(program.unnamed for program in stripped)
        if new := [program for program in unnamed if program not in self._known]:
            if len(self._known) + len(new) > _REMEMBERED:
                self._known.clear()
            self._known.update(self._alone(new, between))

    def _alone(self, programs: Sequence[Program], between: Callable[[], None]) -> dict[Program, New | Rejected]:
        """The verdicts where nothing was let in before. The hashes come last: about half of all programs need none."""
        verdicts: dict[Program, New | Rejected] = {
            program: Rejected(wrong) for program in programs if (wrong := _ill_formed(program))
        }
        formed = [program for program in programs if program not in verdicts]
        probed, held = [], []
        for program in formed:
            between()
            probed.append(found := self._probed(program))
            held.append(found.held if found else hold(program))
        moving: list[tuple[Program, Properties, Changes]] = []
        for program, found, facts in zip(formed, probed, properties.of_each(formed, held), strict=True):
            if wanting := self._wanting(facts):
                verdicts[program] = Rejected(wanting)
            else:
                between()
                run = found.changes if found else partial(changes, program)
                moving.append((program, facts, run(self.weight_decay, facts.scale)))
        passed = []
        for each, growth in zip(moving, growths([found for _, _, found in moving]), strict=True):
            if growth <= self.probes.max_growth:
                passed.append(each)
            else:
                verdicts[each[0]] = Rejected("grows with time")
        behaviours = behaviour_hashes([program for program, _, _ in passed], [found for _, _, found in passed])
        for (program, facts, _), behaviour in zip(passed, behaviours, strict=True):
            verdicts[program] = New(program, dsl.structure_hash(program), behaviour, facts)
        return verdicts

    def remember(self, candidate: int, structure: str, behaviour: str) -> None:
        """Makes later programs of this structure or behaviour duplicates of the candidate."""
        self._structures.setdefault(structure, (candidate, behaviour))
        self._behaviours.setdefault(behaviour, candidate)

    def forget(self, candidate: int) -> None:
        """Lets be tried again what came to no result by no fault of its own: the candidate, and its duplicates."""
        self._structures = {key: each for key, each in self._structures.items() if each[0] != candidate}
        self._behaviours = {key: each for key, each in self._behaviours.items() if each != candidate}

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
        if not facts.moves or facts.scale < probes.min_update:
            return "does not move"
        if facts.scale > probes.max_update:
            return "moves too far"
        if facts.cosine < probes.min_cosine:
            return "does not follow the gradient"
        if require.odd and not facts.odd:
            return "not odd in the gradient"
        if require.homogeneous and facts.degree is None:
            return "not homogeneous in the gradient"
        if require.homogeneous and facts.tiny_cosine < probes.min_cosine:
            return "turns round at tiny gradients"
        return ""


def _ill_formed(program: Program) -> str:
    """What keeps it from being a rule; empty for nothing."""
    try:
        dsl.check(program)
    except IdleGradientError:
        return "gradient unused"
    except RuleError:
        return "ill typed"
    return ""
