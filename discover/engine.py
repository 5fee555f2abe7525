"""The search: propose, gate, train, absorb, again.

Several generations are in flight at a time, always the same number: generation n is proposed when generation n - lag
has been absorbed and no later one has. So what is proposed depends on the seed alone, workers are busy while the driver
thinks, and a resumed search, which absorbs its archive anew, goes on as if it had never stopped.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from discover import workers as workers_module
from discover.archive import Archive
from discover.events import Event, Finished, GenerationDone
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
        stop: asked after each unit; the generations in flight are dropped, nothing absorbed is lost.

    Yields:
        A GenerationDone for each generation that is in the archive, Finished.

    Raises:
        UserError: no cluster at the address; ArchiveError: the disk is full or gone.
    """
    progress = Progress(plan)
    stored = list(archive.generations())
    for generation in stored:
        progress.remember(generation)
    clock = _Clock()
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
            if number < len(stored) or not allowed():
                return
            with clock("propose"):
                live = progress.propose(number)
            flight.append(live)
            for key, unit in live.start():
                crew.submit(key, unit)

        for number in range(plan.space.lag):
            launch(number)
        for generation in stored:
            progress.absorb(generation)
            launch(generation.record.number + plan.space.lag)
        while flight:
            if flight[0].done:
                live = flight.popleft()
                generation = live.result()
                with clock("store"):
                    archive.commit_generation(generation, seconds=clock.take())
                progress.absorb(generation)
                elapsed = time.monotonic() - began
                yield GenerationDone(
                    generation.record, archive.totals(), next(iter(archive.leaderboard(1)), None), elapsed
                )
                if not allowed():
                    break
                launch(live.number + plan.space.lag)
                continue
            with clock("idle"):
                done = crew.next()
            if done is not None:
                if done.result is not None:
                    clock.add("train", done.result.seconds)
                live = next(each for each in flight if each.number == done.key.generation)  # type: ignore[attr-defined]
                for key, unit in live.record(done):
                    crew.submit(key, unit)
            if stop():
                interrupted = True
                break
        totals = archive.totals()
        yield Finished(
            totals,
            time.monotonic() - began,
            totals.proposed - first.proposed,
            totals.trained - first.trained,
            interrupted,
            archive.leaderboard(PLACES),
        )


class _Clock:
    """Where the time went: phase -> seconds, since it was last taken."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - began

    def add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] += seconds

    def take(self) -> dict[str, float]:
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken
