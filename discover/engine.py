"""The search: propose, gate, train, absorb, again.

Several generations are in flight at a time, always the same number: generation n is proposed when generation n - lag
has been absorbed and no later one has. So what is proposed depends on the seed alone, workers are busy while the driver
thinks, and a resumed search, which absorbs its archive anew, goes on as if it had never stopped.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace

from discover import workers as workers_module
from discover.archive import Archive
from discover.events import Event, Finished, GenerationDone, Notice
from discover.generation import Live
from discover.plan import Plan
from discover.progress import Progress

PLACES = 10
"""How long the leaderboard at the end is."""


def search(
    plan: Plan,
    archive: Archive,
    *,
    workers: int,
    ray_address: str | None = None,
    seconds: float | None = None,
    candidates: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Searches until a budget is used or it is asked to stop, from wherever the archive ends.

    Args:
        plan: the space and all choices that results depend on.
        archive: of the run, open for writing; what it holds is absorbed first.
        workers: Ray actors; 0 trains in this process.
        ray_address: of a cluster; None for a private one on this machine.
        seconds: how long this session may search; candidates: how many the whole run may train.
        stop: asked after each unit; the generations in flight are dropped, nothing absorbed is lost. When a budget is
            used they are brought to their end instead.

    Yields:
        A GenerationDone for each generation that is in the archive, a Notice for each thing worth knowing, Finished.

    Raises:
        UserError: no cluster at the address; ArchiveError: the disk is full or gone.
    """
    progress = Progress(plan)
    stored = archive.totals().generations
    for generation in archive.generations():
        progress.remember(generation)
    clock = _Clock()
    said: set[str] = set()
    time_limit = plan.space.unit.seconds
    with closing(workers_module.start(workers, ray_address, time_limit)) as crew:
        flight: deque[Live] = deque()
        began, first = time.monotonic(), archive.totals()
        interrupted = False

        def allowed() -> bool:
            """Whether the budget allows another generation."""
            if seconds is not None and time.monotonic() - began >= seconds:
                return False
            return candidates is None or progress.trained < candidates

        def launch(number: int) -> None:
            """Proposes a generation, unless the archive holds it already."""
            if number < stored or not allowed():
                return
            with clock("propose"):
                live = progress.propose(number, clock)
            flight.append(live)
            with clock("absorb"):
                for key, unit in live.start():
                    crew.submit(key, unit)

        for number in range(plan.space.lag):
            launch(number)
        for generation in archive.generations():
            with clock("absorb"):
                progress.absorb(generation)
            launch(generation.record.number + plan.space.lag)
        while flight:
            if flight[0].done:
                live = flight.popleft()
                with clock("absorb"):
                    generation = live.result()
                    progress.absorb(generation)
                seconds_by_phase = clock.take()
                with clock("store"):
                    archive.commit_generation(generation, seconds=seconds_by_phase)
                    best = next(iter(archive.leaderboard(1)), None)
                with clock("report"):
                    yield GenerationDone(generation.record, archive.totals(), best, time.monotonic() - began)
                launch(live.number + plan.space.lag)
                continue
            with clock("idle"):
                done = crew.next()
            if done is not None:
                if done.result is not None:
                    crew.notes.extend(done.result.notes)
                    clock.add("train", done.result.seconds)
                with clock("absorb"):
                    live = next(each for each in flight if each.number == done.key.generation)  # type: ignore[attr-defined]
                    for key, unit in live.record(done):
                        crew.submit(key, unit)
            while crew.notes:
                if (note := crew.notes.popleft()) not in said:
                    said.add(note)
                    yield Notice(note)
            if stop():
                interrupted = True
                break
        totals = archive.totals()
        yield Finished(
            replace(totals, seconds=clock.added_to(totals.seconds)),
            time.monotonic() - began,
            totals.proposed - first.proposed,
            totals.trained - first.trained,
            interrupted,
            archive.leaderboard(PLACES),
        )


class _Clock:
    """Where the time went: phase -> seconds, since it was last taken. A phase inside another is not counted there.

    Phases of the driver add up to the time that went by: "propose", "gate", "absorb" (results taken in, units made),
    "store", "report" (the consumer's), and "idle", waiting for results. "train" is the workers' time. How long
    storing a generation took is known when it is stored, and so is counted with the next one.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = 0.0
        """Seconds of the phases that ended inside the one that is open."""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began, before, self._inside = time.perf_counter(), self._inside, 0.0
        try:
            yield
        finally:
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
