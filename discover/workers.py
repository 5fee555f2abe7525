"""Who trains: units of work go in, results come out in whatever order they are done.

`InProcess` trains in this process, for debugging and for tests; `discover.cluster` has the Ray workers.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import torch

from discover.records import Incident

WORKER_LOST: Final = "worker lost"
TIMED_OUT: Final = "timed out"
OUT_OF_MEMORY: Final = "out of memory"
"""Why a unit has no result."""

FAULTY: Final = "the engine stumbled over a program: {}; the others of that unit are trained without it"
"""A note."""

UNBOUNDED: Final = 2**50
"""Bytes that are no bound."""

Request = tuple[tuple[str, float], ...]
"""What Ray sets aside for a worker: name and quantity, sorted by name. Equal requests are one kind of worker."""


class Work(Protocol):
    """What a Ray worker is given, such as a unit of a search: data that travel, and do what they say where they arrive.

    Attributes:
        request: what the worker is to have.
        twice: whether a second worker may do it too, where the first is far too slow; the first result counts.
    """

    @property
    def request(self) -> Request: ...

    @property
    def twice(self) -> bool: ...

    def moved(self, here: Callable[[str], str]) -> Self:
        """The same where files lie elsewhere: `here` spells "FILE.py:NAME" as the worker's machine does."""

    def carry_out(self) -> Any:
        """Does it, in this process. A str as its result says why there is none."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a unit, or of other work: its result, or why there is none."""

    key: Hashable
    result: Any
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Crew:
    """What workers are wanted.

    Attributes:
        count: of each kind; 0 for this process; None for as many as the cluster has room for, now and later.
        address: of a running Ray cluster ("auto" for the one on this machine); None for a private one here.
        time_limit: seconds that a unit may take before its worker is killed.
        memory: bytes that a unit may take beyond what its worker had before.
        requests: the kinds of worker that units ask for.
        files: path -> content of the user's files that tasks are read from.
        runtime_env: how the workers of a cluster get the code, in Ray's words; None ships this very installation's.
        again: how one goes on where the cluster is gone.
    """

    count: int | None
    address: str | None = None
    time_limit: float = 600.0
    memory: int = 8 * 10**9
    requests: tuple[Request, ...] = ((("CPU", 1.0),),)
    files: Mapping[str, bytes] | None = None
    runtime_env: Mapping[str, Any] | None = None
    again: str = "what is absorbed is kept, 'discover resume RUN' goes on when it is back"


class Workers(Protocol):
    """A place to train units.

    Attributes:
        notes: lines for the user that came up meanwhile; whoever reads them takes them out.
        incidents: what befell the workers, for the archive; the same.
        room: how many workers of each kind there could be now.
    """

    notes: deque[str]
    incidents: deque[Incident]
    room: dict[Request, int]

    def submit(self, key: Hashable, unit: Work, order: int = 0) -> None:
        """Takes a unit, or other work; those of a lower `order` go first."""

    def next(self, wait: bool = True) -> Done | None:
        """A unit that is done. Waits for one, for some time only: None then; at once if `wait` is false."""

    def present(self) -> float:
        """Seconds that workers were there and ready since this was last asked, summed over them."""

    def close(self) -> None: ...


class InProcess:
    """Trains each unit here when its result is asked for."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.notes: deque[str] = deque()
        self.incidents: deque[Incident] = deque()
        self.room: dict[Request, int] = defaultdict(lambda: 1)
        self._waiting: list[tuple[int, int, Hashable, Work]] = []
        self._submitted = 0
        self._present = 0.0

    def submit(self, key: Hashable, unit: Work, order: int = 0) -> None:
        self._submitted += 1
        heapq.heappush(self._waiting, (order, self._submitted, key, unit))

    def next(self, wait: bool = True) -> Done | None:
        if not wait or not self._waiting:
            return None
        *_, key, unit = heapq.heappop(self._waiting)
        result = unit.carry_out()
        if isinstance(result, str):
            self.notes.append(FAULTY.format(result))
            self.incidents.append(Incident("fault", f"{unit}: {result}", getattr(key, "generation", None)))
            return Done(key, None, result)
        self._present += result.load_seconds + result.seconds
        return Done(key, result)

    def present(self) -> float:
        """Here the only worker is there when it trains."""
        seconds, self._present = self._present, 0.0
        return seconds

    def close(self) -> None:
        self._waiting.clear()


def start(crew: Crew) -> Workers:
    """Workers: Ray actors, or this process for a count of 0, where nothing can stop a unit that hangs.

    Raises:
        ClusterError: no cluster at the address.
    """
    if crew.count == 0:
        return InProcess()
    from discover.cluster import RayWorkers

    return RayWorkers(crew)
