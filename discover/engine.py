"""The search: propose, gate, train, absorb, again.

Several generations are in flight at a time, always the same number: generation n is proposed when generation n - lag
has been absorbed and no later one has. So what is proposed depends on the seed alone, workers are busy while the driver
thinks, and a resumed search, which absorbs its archive anew, goes on as if it had never stopped. Units of an earlier
generation go first: it ends, and the next is proposed, while the units of the later one are trained.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

from discover import workers as workers_module
from discover.archive import Archive
from discover.budget import UNLIMITED, Budget
from discover.clock import Clock, collecting_rarely
from discover.errors import RunError
from discover.events import Event, Finished, GenerationDone
from discover.flight import Flight, Journal
from discover.plan import Plan
from discover.progress import Progress
from discover.records import Generation, Ranked, Totals
from discover.workers import Crew

PLACES = 10
"""How long the leaderboard at the end is."""


def search(
    plan: Plan, archive: Archive, asked: Crew, budget: Budget = UNLIMITED, stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Searches until a budget is used or it is asked to stop, from wherever the archive ends.

    Args:
        plan: the space and all choices that results depend on.
        archive: of the run, open for writing; what it holds is absorbed first.
        asked: who is to train.
        budget: when it ends. What is in flight then is brought to its end.
        stop: asked after each unit, and each generation of the archive; the generations in flight are dropped, nothing
            absorbed is lost.

    Yields:
        A GenerationDone for each generation that is in the archive, a Notice for each thing worth knowing, Finished.

    Raises:
        ClusterError: no cluster at the address, or it is gone; ArchiveError: the disk is full or gone; RunError: our
            code stumbles over every program.
    """
    progress, clock, lag = Progress(plan), Clock(), plan.space.lag
    with (
        collecting_rarely() as collect,
        closing(workers_module.start(asked)) as crew,
        Journal(crew, archive, clock) as journal,
    ):
        began, before, interrupted = time.monotonic(), archive.totals(), False
        flight = Flight(progress, archive, crew, clock, lambda: budget.reached(progress, time.monotonic() - began))
        for number in range(lag):
            flight.launch(number)
        for generation in archive.generations():
            progress.absorb(generation)
            if not flight:  # to know what was known takes time that is not searching
                began = time.monotonic()
                crew.present()
            flight.launch(generation.record.number + lag)
            if interrupted := stop():
                break
        while flight and not interrupted:
            if not flight.front.done:
                with clock("training" if asked.count == 0 else "idle"):
                    done = crew.next()
                if done is not None:
                    flight.take_in(done)
                yield from journal.notices()
                if interrupted := stop():
                    break
                continue
            with clock("absorb"):
                generation = flight.land().result(progress.levels)
                progress.absorb(generation)
            clock.add("present", crew.present())
            best = _stored(archive, generation, clock)
            with clock("report"):
                front = len(archive.pareto().confirmed())
                yield GenerationDone(generation.record, archive.totals(), best, time.monotonic() - began, front)
            if progress.fault:
                raise RunError(f"no program could be trained: {progress.fault}")
            with clock("absorb"):
                collect()
            flight.launch(generation.record.number + lag)
        yield from journal.notices()
        clock.add("present", crew.present())
        elapsed = time.monotonic() - began
        yield _finished(archive, clock, before, elapsed, "" if interrupted else flight.ended)


def _stored(archive: Archive, generation: Generation, clock: Clock) -> Ranked | None:
    """Stores a generation and where the time went since the last one. The head of the leaderboard then."""
    seconds = clock.take()
    with clock("store"):
        archive.commit_generation(generation, seconds=seconds)
        return next(iter(archive.leaderboard(1)), None)


def _finished(archive: Archive, clock: Clock, before: Totals, elapsed: float, ended: str) -> Finished:
    totals = archive.totals()
    return Finished(
        replace(totals, seconds=clock.added_to(totals.seconds)),
        elapsed,
        totals.proposed - before.proposed,
        totals.trained - before.trained,
        ended,
        archive.leaderboard(PLACES),
        Counter(incident.kind for incident in archive.incidents()),
        archive.front(),
    )
