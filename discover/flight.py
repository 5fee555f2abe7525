"""The generations in flight: proposed or, where the archive has them, replayed; trained by a crew; in order again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from discover.archive import Archive
from discover.clock import Clock
from discover.events import Notice
from discover.generation import Live
from discover.progress import Progress
from discover.workers import Done, Workers


class Flight:
    """The generations in flight, the oldest in front, and the crew that trains them.

    Args:
        archive: what it holds now is replayed: its generations are never in flight.
        reached: which limit allows no other generation, in words; empty where all do.

    Attributes:
        ended: the first that it gave.
    """

    def __init__(
        self, progress: Progress, archive: Archive, crew: Workers, clock: Clock, reached: Callable[[], str]
    ) -> None:
        self._progress, self._crew, self._clock, self._reached = progress, crew, clock, reached
        self._stored, self._ahead = archive.totals().generations, archive.generations()
        self._generations: deque[Live] = deque()
        self.ended = ""

    def __bool__(self) -> bool:
        return bool(self._generations)

    @property
    def front(self) -> Live:
        return self._generations[0]

    def launch(self, number: int) -> None:
        """Proposes a generation, or remembers it if the archive holds it already. Once none is allowed, there is no
        other: what is in flight then may better the best, but generations have no gaps."""
        if number < self._stored:
            self._progress.remember(next(self._ahead))
            return
        self.ended = self.ended or self._reached()
        if self.ended:
            return
        with self._clock("propose"):
            live = self._progress.propose(number, self._clock, self._take_in_what_is_done)
        self._generations.append(live)
        with self._clock("absorb"):
            for key, unit in live.start():
                self._crew.submit(key, unit, number)

    def land(self) -> Live:
        """Takes out the oldest."""
        return self._generations.popleft()

    def take_in(self, done: Done) -> None:
        """Gives a unit's end to its generation, and what that makes possible to the crew."""
        with self._clock("absorb"):
            if done.result is not None:
                self._crew.notes.extend(done.result.notes)
                self._clock.add("train", done.result.seconds)
                self._clock.add("load", done.result.load_seconds)
            live = next(each for each in self._generations if each.number == done.key.generation)  # type: ignore[attr-defined]
            for key, unit in live.record(done):
                self._crew.submit(key, unit, live.number)

    def _take_in_what_is_done(self) -> None:
        while (done := self._crew.next(wait=False)) is not None:
            self.take_in(done)


class Journal:
    """Keeps in the archive what befell the workers, the last of it when all ends, however it ends; and gives what is to
    be said of them, each line once."""

    def __init__(self, crew: Workers, archive: Archive, clock: Clock) -> None:
        self._crew, self._archive, self._clock = crew, archive, clock
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._keep()

    def notices(self) -> Iterator[Notice]:
        """Keeps what befell them since, and gives what is new."""
        with self._clock("store"):
            self._keep()
        while self._crew.notes:
            if (note := self._crew.notes.popleft()) not in self._said:
                self._said.add(note)
                yield Notice(note)

    def _keep(self) -> None:
        if incidents := self._crew.incidents:
            self._archive.log([incidents.popleft() for _ in range(len(incidents))])
