"""What a search tells its consumers. The engine yields these; printing, drawing and counting happen outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from discover.budget import UNLIMITED, Budget
from discover.records import GenerationRecord, Ranked, Totals


@dataclass(frozen=True, slots=True)
class Started:
    """Comes first, once, before the archive is absorbed and workers are started.

    Attributes:
        workers: how many; 0 for this process, None for all that a cluster has room for.
        generations: how many the archive holds already; 0 for a new run.
        compiled_from: task -> the first generation whose gradients run compiled; None for never.
        budget: when it ends.
    """

    space: str
    algorithm: str
    seed: int
    workers: int | None
    generations: int = 0
    compiled_from: Mapping[str, int | None] = field(default_factory=dict)
    budget: Budget = UNLIMITED


@dataclass(frozen=True, slots=True)
class Notice:
    """One line worth knowing once: no compiler found, a worker was lost and its unit runs again, compiling now."""

    text: str


@dataclass(frozen=True, slots=True)
class GenerationDone:
    """A generation is in the archive.

    Attributes:
        totals: of the whole run, this generation included.
        best: the head of the leaderboard.
        elapsed: seconds of searching in this session, from the first proposal.
        front: how many confirmed candidates no other of them beats in fitness, state and operations at once.
    """

    record: GenerationRecord
    totals: Totals
    best: Ranked | None
    elapsed: float
    front: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """Comes last, once.

    Attributes:
        totals: of the whole run, earlier sessions included.
        elapsed: seconds of searching in this session; `proposed` and `trained` are what it did in them.
        ended: which limit ended it, in words; empty where it was asked to stop before one did.
        leaderboard: the first places.
        incidents: what befell workers and driver, kind -> how often, earlier sessions included.
        front: the confirmed that no other beats in fitness, state and operations at once, then those not confirmed that
            would join them (`discover.front`).
    """

    totals: Totals
    elapsed: float
    proposed: int
    trained: int
    ended: str
    leaderboard: tuple[Ranked, ...]
    incidents: Mapping[str, int] = field(default_factory=dict)
    front: tuple[Ranked, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether it was asked to stop before a limit was reached."""
        return not self.ended


Event = Started | Notice | GenerationDone | Finished
