"""Where contenders are tuned and trained for a judgement: in this process, or by Ray workers; and how that is shown.

`compare`, `calibrate`, `promote` and `verify` say what they want, and take what it came to in the order in which they
asked. The store has one writer, this process: workers give back what they have trained, batch by batch, and it is kept
at once. So what a judgement comes to depends neither on who trains nor on how many do, and one that was killed goes on.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from discover import artefact, gradient, workers
from discover.asks import Answer, Ask, Job
from discover.contenders import spelled
from discover.errors import ClusterError, UserError
from discover.files import remove_empty, write_whole
from discover.keeper import Keeper, StoppedError
from discover.memory import shortage_said
from discover.own_files import absolute, contents
from discover.pieces import CORE, Look, Refusal, Site
from discover.sessions import Machine
from discover.storage import Store, masked
from discover.studies import Tuned
from discover.trainers import Ground
from discover.tuning import tune
from discover.watch import interruptible
from discover.workers import OUT_OF_MEMORY, UNBOUNDED, Crew, Done, Request, Work, Workers

AGAIN = "what was trained is kept: the same command goes on"

NODES = {
    "node removed": "a node left the cluster ({}); what its workers had in hand goes to others",
    "node added": "a node joined the cluster ({})",
}
"""What is said of incidents that no note of the workers tells; there is no archive to note them in."""


@dataclass(frozen=True, slots=True)
class Staff:
    """Who trains, as for a search: `count`, `address` and `runtime_env` of a `Crew`."""

    workers: int | None = 0
    address: str | None = None
    runtime_env: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is trained that asked for more than cores.

    Attributes:
        request: what its workers have.
        device: on which it trains.
        missing: why not as asked, such as "no GPU on this machine"; empty where it is.
        on: the GPU's name.
    """

    request: Request
    device: str = "cpu"
    missing: str = ""
    on: str = ""


@dataclass(slots=True)
class Workshop:
    """See the module.

    Attributes:
        store, keeper: where studies are kept, and trainings that last; the keeper says when to stop.
        say: keeps a line; `tell` shows what is in hand; `count` hears of runs that are done.
        staff: who trains.
        met: hears of the machine of each worker that has trained something.
    """

    store: Store
    keeper: Keeper
    say: Callable[[str], None] = lambda line: None
    tell: Callable[[str], None] = lambda line: None
    count: Callable[[int], None] = lambda runs: None
    staff: Staff = Staff()
    met: Callable[[Machine], None] = lambda machine: None
    _grounds: dict[Site, Ground] = field(default_factory=dict)
    _places: dict[Request, Place] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)
    _crew: Workers | None = None
    _kind: Crew | None = None
    _marker: Path | None = None
    _calls: int = 0
    """So that what is late of a call that ended early is not taken for another's."""

    def ground(self, ask: Ask) -> Ground:
        """Where it is trained; where that is a GPU that workers alone have, the same on this machine's CPU, by which
        studies are known."""
        site = ask.site
        if site.device != "cpu" and not torch.cuda.is_available() and self.staff.workers != 0:
            site = replace(site, device="cpu")
        if site not in self._grounds:
            with shortage_said(ask):
                if ask.compile and artefact.have_compiler() and not gradient.is_cached(ask.task, device=site.device):
                    self.once(f"compiling the gradient of {ask.task.spelling}, once, 5 to 40 s")
                made = Ground(ask.task, steps=ask.steps, compile=ask.compile, native=ask.native, device=site.device)
            self._grounds[site] = made
            self.once(made.gradient.note)
        return self._grounds[site]

    def tuned(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        """Tunes, and gives what it came to in the order of the asks.

        Args:
            asks: in this process each is looked at when those before it are answered; workers have all at once.

        Raises:
            StoppedError: the keeper was asked to stop; the same call goes on.
            ClusterError: the cluster is gone, or work cost worker after worker.
        """
        return self._by_workers(list(asks)) if self.staff.workers != 0 else map(self._here, asks)

    def done(self, works: Sequence[Work]) -> Iterator[Any]:
        """Has other work done, and gives what it came to in the order of the works. Raises what `tuned` does, and
        UserError for a refusal."""
        if self.staff.workers == 0:
            for work in works:
                if self.keeper.stop():
                    raise StoppedError
                yield _accepted(work.carry_out())
            return
        named = [name for work in works for name in _files(work)]
        crew, call = self._staffed(sorted({work.request for work in works}), named)
        found: dict[int, Any] = {}
        with self._dismissed_on_error():
            for number, work in enumerate(works):
                crew.submit((call, number, 0), work, number)
            for number in range(len(works)):
                while number not in found:
                    if self.keeper.stop():
                        raise StoppedError
                    for place, _, done in self._come_in(crew, call):
                        found[place] = _result(done, works[place])
                yield _accepted(found.pop(number))

    def place(self, request: Request) -> Place:
        """Where something that asks for this is trained: as asked where there is such a machine and torch sees its GPU,
        else on a CPU."""
        if request not in self._places:
            self._places[request] = self._found(request)
        return self._places[request]

    def marker(self) -> str | None:
        """A file where long trainings are kept, by which workers know whether they share that folder; None where none
        are. Its name is this workshop's own: the same path on another machine may be another folder.

        Raises:
            UserError: it cannot be written.
        """
        if self._marker is None and (folder := self.store.folder) is not None:
            marker = folder.absolute() / f"driver-{secrets.token_hex(8)}"
            write_whole(marker, "")
            self._marker = marker
        return None if self._marker is None else str(self._marker)

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
        self._crew = self._kind = None
        if self._marker is not None:
            self._marker.unlink(missing_ok=True)
            remove_empty(self._marker.parent)
        self._marker = None

    # In this process --------------------------------------------------------------------------------------------------

    def _here(self, ask: Ask) -> Answer:
        began, found = time.perf_counter(), list[Tuned]()
        refusal: UserError | None = None
        self.tell(str(ask))
        ground = self.ground(ask)
        try:
            with shortage_said(ask):
                found = tune(
                    *(ask.contender, ground, ask.budget, ask.seeds, self.store),
                    keeper=self.keeper,
                    curve=ask.curve,
                    tell=self.count,
                )
        except UserError as error:
            refusal = error.with_traceback(None)  # which holds on to all that was made for it
        return Answer(ask, found, refusal, time.perf_counter() - began)

    # By workers -------------------------------------------------------------------------------------------------------

    def _by_workers(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        named = [name for ask in asks for name in (ask.task.spelling, spelled(ask.contender).get("class", ""))]
        jobs: list[Job] = []

        def take_in(wait: bool) -> None:
            for number, block, done in self._come_in(crew, call, wait):
                for piece in jobs[number].record(block, _result(done, jobs[number])):
                    # what was paused first: else all blocks would be half trained, and as many states be kept
                    crew.submit((call, number, block), piece, -1 if piece.kept else number)
            if self.keeper.stop():  # after what has come in is kept
                raise StoppedError

        crew, call = self._staffed(sorted({ask.request for ask in asks}), named)
        with self._dismissed_on_error():
            for number, ask in enumerate(asks):
                jobs.append(Job(ask, self))
                for block, piece in jobs[-1].start():
                    crew.submit((call, number, block), piece, number)
                take_in(wait=False)
            for job in jobs:
                self.tell(str(job.ask))
                while not job.over:
                    take_in(wait=True)
                yield job.answer()

    def _come_in(self, crew: Workers, call: int, wait: bool = True) -> list[tuple[int, int, Done]]:
        """What is done by now of a call, by the numbers that it gave; waits for one, for some time only."""
        found: list[tuple[int, int, Done]] = []
        while (done := crew.next(wait and not found)) is not None:
            of, number, block = cast(tuple[int, int, int], done.key)
            if of == call:
                found.append((number, block, done))
        while crew.notes:
            self.say(crew.notes.popleft())
        while crew.incidents:
            incident = crew.incidents.popleft()
            if line := NODES.get(incident.kind):
                self.say(line.format(incident.text))
        return found

    def _staffed(self, requests: Sequence[Request], named: Sequence[str]) -> tuple[Workers, int]:
        """The crew that has these kinds of workers and files, the one that is there if it has; and a number for what it
        is asked now."""
        files = {**((self._kind and self._kind.files) or {}), **contents(map(absolute, named))}
        crew = Crew(
            count=self.staff.workers,
            address=self.staff.address,
            time_limit=math.inf,
            memory=UNBOUNDED,  # known optimizers, and rules that came through a search; Ray watches the machine
            requests=tuple(requests) or (CORE,),
            files=files,
            runtime_env=self.staff.runtime_env,
            again=AGAIN,
        )
        if self._crew is None or self._kind != crew:
            self.close()
            self._crew, self._kind = workers.start(crew), crew
        self._calls += 1
        return self._crew, self._calls

    @contextmanager
    def _dismissed_on_error(self) -> Iterator[None]:
        """What is still in work when something ends early is nobody's."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _found(self, request: Request) -> Place:
        wanted = [name for name, quantity in request if quantity and name not in ("CPU", "memory")]
        if not wanted:
            return Place(request)
        if self.staff.workers == 0 or self.staff.address is None:
            if wanted == ["GPU"] and torch.cuda.is_available():
                return Place(request, "cuda", on=torch.cuda.get_device_name())
            return Place(CORE, missing=f"no {' and no '.join(wanted)} on this machine")
        crew, _ = self._staffed([request], ())
        if not crew.room[request]:
            self.close()
            return Place(CORE, missing=f"no node of the cluster has {' and '.join(wanted)}")
        if "GPU" not in wanted:
            return Place(request)
        ((name,),) = self.done([Look(request)])
        if not name:
            return Place(CORE, missing="no GPU that torch sees on the nodes that have one")
        return Place(request, "cuda", on=name)

    def once(self, line: str) -> None:
        if line and line not in self._said:
            self._said.add(line)
            self.say(line)


def _result(done: Done, what: object) -> Any:
    if done.failure == OUT_OF_MEMORY:
        raise ClusterError(f"{what}: {done.failure}; {AGAIN}")
    if done.failure:
        raise ClusterError(f"{what}: {done.failure}, on one worker after the other; {AGAIN}")
    return done.result


def _accepted(result: Any) -> Any:
    if isinstance(result, Refusal):
        raise result.error
    return result


def _files(work: Work) -> tuple[str, ...]:
    """Names in a piece of work that may be of files."""
    site, spelling = getattr(work, "site", None), getattr(work, "spelled", {})
    return (*((site.task,) if site else ()), spelling.get("class", ""))


# What commands share --------------------------------------------------------------------------------------------------


@contextmanager
def opened(
    url: str | None,
    staff: Staff,
    console: Console,
    *,
    runs: int | None = None,
    what: str = "training",
    before: Callable[[], None] = lambda: None,
) -> Iterator[Workshop]:
    """A workshop while a command is at work: Ctrl-C stops it, lines are printed, a bar shows how far it is.

    Args:
        url: of an Optuna storage; None where nothing is kept.
        staff: who trains.
        console: where it is shown.
        runs: how many there will be; None where that is not known.
        what: is in hand as long as nothing else is said.
        before: is called when the store is there, and nothing is shown yet.

    Raises:
        UserError: no such storage; ClusterError: no such cluster.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    known = () if runs is None else (TimeRemainingColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), *known)
    torch.set_num_threads(1)
    with (
        interruptible(console.print) as stop,
        closing(Store(url)) as store,
        _after(before),
        Progress(*columns, console=console, transient=True) as progress,
    ):
        bar = progress.add_task(what, total=runs)
        workshop = Workshop(
            store,
            Keeper(store.folder, stop=stop),
            say=say,
            tell=lambda line: progress.update(bar, description=line),
            count=lambda done: progress.advance(bar, done),
            staff=staff,
        )
        with closing(workshop):
            yield workshop


@contextmanager
def _after(act: Callable[[], None]) -> Iterator[None]:
    act()
    yield


def interrupted(console: Console, url: str, *, as_json: bool, again: str = "the same command") -> None:
    """Says that a command was stopped, and how one goes on."""
    line = f"interrupted; what was trained is kept in {masked(url)}: {again} goes on"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"interrupted": True, "storage": masked(url)}, indent=2))
