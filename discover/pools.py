"""What `discover.cluster` knows of workers and of the units that they have, in the order in which they are wanted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from discover.workers import Request, Work

AHEAD = 2
"""Units that an actor has at a time, the one in work included."""


@dataclass(slots=True, eq=False)
class Job:
    """A unit until it is done."""

    key: Hashable
    unit: Work
    order: int
    number: int
    attempts: int = 0
    running: int = 0
    """How many actors have it."""
    over: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """An actor and the jobs it has, in order: the first is in work since `since`, the others wait inside the actor."""

    actor: Any
    pool: Pool
    jobs: deque[tuple[Any, Job]] = field(default_factory=deque)
    since: float = 0.0
    ready: bool = False
    gone: bool = False
    node: str = ""
    process: int = 0
    code: str = ""

    def begin(self) -> None:
        """Its first unit, if it has one, is in work from now on."""
        self.since = time.monotonic()
        self.pool.busy.pop(self, None)
        if self.jobs:
            self.pool.busy[self] = None


@dataclass(slots=True, eq=False)
class Pool:
    """The workers of one kind, and what waits for them."""

    request: Request
    wanted: int
    workers: dict[Worker, None] = field(default_factory=dict)
    busy: dict[Worker, None] = field(default_factory=dict)
    """Those that have units, the one first that has been at its own the longest."""
    loads: tuple[dict[Worker, None], ...] = field(default_factory=lambda: tuple({} for _ in range(AHEAD + 1)))
    """By how many units they have; in each the one first that has had as many the longest."""
    waiting: list[tuple[int, int, Job]] = field(default_factory=list)
    failures: int = 0
    """Workers that did not start since one last did."""
    rests_until: float = 0.0
    """When another one may be asked for."""
    mean: float = 0.0
    """Seconds of a unit, the latest counting most."""

    def beyond(self, seconds: float) -> list[Worker]:
        """Who has been at a unit for longer than that."""
        before = time.monotonic() - seconds
        return list(takewhile(lambda each: each.since < before, self.busy))
