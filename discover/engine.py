"""The search: propose, gate, train, absorb, again.

Several generations are in flight at a time, always the same number: generation n is proposed when generation n - lag
has been absorbed and no later one has. So what is proposed depends on the seed alone, workers are busy while the driver
thinks, and a resumed search, which absorbs its archive anew, goes on as if it had never stopped. Units of an earlier
generation go first: it ends, and the next is proposed, while the units of the later one are trained.
"""

from __future__ import annotations

import gc
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Self

from discover import workers as workers_module
from discover.archive import Archive
from discover.budget import EXHAUSTED, UNLIMITED, Budget
from discover.errors import RunError
from discover.events import Event, Finished, GenerationDone, Notice
from discover.front import front
from discover.generation import Live
from discover.plan import Plan
from discover.progress import Progress
from discover.workers import Crew, Done, Workers

COLLECT_SECONDS = 30.0
"""Between two searches for cycles in memory."""

PLACES = 10
"""How long the leaderboard at the end is."""


def search(
    plan: Plan,
    archive: Archive,
    *,
    workers: int | None,
    ray_address: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    budget: Budget = UNLIMITED,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Searches until a budget is used or it is asked to stop, from wherever the archive ends.

    Args:
        plan: the space and all choices that results depend on.
        archive: of the run, open for writing; what it holds is absorbed first.
        workers, ray_address, runtime_env: as `count`, `address` and `runtime_env` of a `Crew`.
        budget: when it ends.
        stop: asked after each unit; the generations in flight are dropped, nothing absorbed is lost. When a budget is
            used they are brought to their end instead.

    Yields:
        A GenerationDone for each generation that is in the archive, a Notice for each thing worth knowing, Finished.

    Raises:
        ClusterError: no cluster at the address, or it is gone; ArchiveError: the disk is full or gone; RunError: our
            code stumbles over every program.
    """
    progress = Progress(plan)
    stored, ahead = archive.totals().generations, archive.generations()
    clock = _Clock()
    said: set[str] = set()
    asked = _crew(plan, workers, ray_address, runtime_env)
    with _collecting_rarely() as collect, closing(workers_module.start(asked)) as crew, _logged(crew, archive) as log:
        flight = _Flight(crew, clock)
        began, first = time.monotonic(), archive.totals()
        interrupted = over = False

        def launch(number: int) -> None:
            """Proposes a generation, or remembers it if the archive holds it already. Once none is allowed, there is no
            other: what is in flight then may better the best, but generations have no gaps."""
            nonlocal over
            if number < stored:
                progress.remember(next(ahead))
                return
            over = over or not budget.allows(progress, time.monotonic() - began)
            if over:
                return
            with clock("propose"):
                live = progress.propose(number, clock, flight.take_in_what_is_done)
            flight.start(live)

        def notices() -> Iterator[Notice]:
            with clock("store"):
                log()
            while crew.notes:
                if (note := crew.notes.popleft()) not in said:
                    said.add(note)
                    yield Notice(note)

        for number in range(plan.space.lag):
            launch(number)
        for generation in archive.generations():
            with clock("absorb"):
                progress.absorb(generation)
            launch(generation.record.number + plan.space.lag)
        while flight:
            if flight.front.done:
                live = flight.pop()
                with clock("absorb"):
                    generation = live.result()
                    progress.absorb(generation)
                clock.add("present", crew.present())
                seconds_by_phase = clock.take()
                with clock("store"):
                    archive.commit_generation(generation, seconds=seconds_by_phase)
                    best = next(iter(archive.leaderboard(1)), None)
                with clock("report"):
                    yield GenerationDone(generation.record, archive.totals(), best, time.monotonic() - began)
                if progress.fault:
                    raise RunError(f"no program could be trained: {progress.fault}")
                with clock("absorb"):
                    collect()
                launch(live.number + plan.space.lag)
                continue
            with clock("training" if workers == 0 else "idle"):
                done = crew.next()
            if done is not None:
                flight.take_in(done)
            yield from notices()
            if stop():
                interrupted = True
                break
        yield from notices()
        if progress.barren >= EXHAUSTED:
            yield Notice(
                f"nothing new in {progress.barren} generations: the space is exhausted, or its gate lets none in"
            )
        clock.add("present", crew.present())
        totals = archive.totals()
        yield Finished(
            replace(totals, seconds=clock.added_to(totals.seconds)),
            time.monotonic() - began,
            totals.proposed - first.proposed,
            totals.trained - first.trained,
            interrupted,
            archive.leaderboard(PLACES),
            Counter(incident.kind for incident in archive.incidents()),
            front(archive),
        )


@contextmanager
def _collecting_rarely() -> Iterator[Callable[[], None]]:
    """Holds off Python's search for cycles, and gives what does it where it is time to, among what is new since then.
    Programs and values are trees and make none; to look through all that a search remembers of them, again and again,
    takes as long as half of what proposing and gating take, and once after ten minutes five seconds."""
    running, last = gc.isenabled(), time.monotonic()

    def age() -> None:
        """Counts all that is there as old, so that it is not looked through."""
        gc.freeze()
        gc.unfreeze()

    def collect() -> None:
        nonlocal last
        if time.monotonic() - last >= COLLECT_SECONDS:
            gc.collect(0)
            age()
            last = time.monotonic()

    gc.disable()
    try:
        yield collect
    finally:
        age()
        if running:
            gc.enable()


@contextmanager
def _logged(crew: Workers, archive: Archive) -> Iterator[Callable[[], None]]:
    """Gives what notes in the archive what has befallen the workers; the last of it when all ends, however it ends."""

    def log() -> None:
        if crew.incidents:
            archive.log([crew.incidents.popleft() for _ in range(len(crew.incidents))])

    try:
        yield log
    finally:
        log()


def _crew(plan: Plan, workers: int | None, ray_address: str | None, runtime_env: Mapping[str, Any] | None) -> Crew:
    space = plan.space
    return Crew(
        count=workers,
        address=ray_address,
        time_limit=space.unit.limit_seconds,
        memory=int(space.unit.memory * 1e9),
        requests=tuple(dict.fromkeys(rung.request for rung in space.rungs)),
        files=plan.files,
        runtime_env=runtime_env,
    )


class _Flight:
    """The generations in flight, the oldest in front, and the crew that trains them."""

    def __init__(self, crew: Workers, clock: _Clock) -> None:
        self._crew, self._clock = crew, clock
        self._generations: deque[Live] = deque()

    def __bool__(self) -> bool:
        return bool(self._generations)

    @property
    def front(self) -> Live:
        return self._generations[0]

    def start(self, live: Live) -> None:
        self._generations.append(live)
        with self._clock("absorb"):
            for key, unit in live.start():
                self._crew.submit(key, unit, live.number)

    def pop(self) -> Live:
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

    def take_in_what_is_done(self) -> None:
        while (done := self._crew.next(wait=False)) is not None:
            self.take_in(done)


class _Clock:
    """Where the time went: phase -> seconds, since it was last taken. A phase inside another is not counted there.

    Phases of the driver add up to the time that went by: "propose", "gate", "absorb" (results taken in, units made),
    "store", "report" (the consumer's), and "idle", waiting for results, or "training" where this process trains. Those
    of `records.OF_WORKERS` are the workers' time. How long storing a generation took is known when it is stored, and so
    is counted with the next one.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = 0.0
        """Seconds of the phases that ended inside the one that is open."""
        self._open: list[tuple[str, float, float]] = []

    def __call__(self, phase: str) -> Self:
        """The phase that is entered next."""
        self._next = phase
        return self

    def __enter__(self) -> None:
        self._open.append((self._next, time.perf_counter(), self._inside))
        self._inside = 0.0

    def __exit__(self, *_: object) -> None:
        phase, began, before = self._open.pop()
        whole = time.perf_counter() - began
        self._seconds[phase] += whole - self._inside
        self._inside = before + whole

    def add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] += seconds

    def take(self) -> dict[str, float]:
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def added_to(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """These seconds and what is left here."""
        phases = {**seconds, **self._seconds}
        return {phase: seconds.get(phase, 0.0) + self._seconds.get(phase, 0.0) for phase in phases}
