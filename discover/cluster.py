"""Workers as long-lived Ray actors, on this machine or on a cluster.

This module and `discover.connection` are the only ones that know Ray.

Every kind of worker that a search asks for has a pool: actors, and a heap of units that wait for one. An actor has one
unit in work and one more waiting inside, so that it need not wait for the driver; whoever has nothing to do takes what
waits inside another, so that a slow machine holds up nothing but the unit it is at. Results come in by callback, and
actors are kept in the order in which they will be wanted, so that no step of the driver looks at all of them, but where
one was lost or nodes come or go.

A unit whose worker dies is trained again; one that kills, hangs or bursts its workers is given back as failed, so that
nothing waits for ever and no other unit is touched. An actor that is gone is replaced; on a cluster, nodes that come
are used, nodes that go are noted. A node on which a worker was lost is given nothing until it is known whether it is
still there: all its workers may be dead, and one unit is not to be lost under several of them. One whose disk is full,
or that lacks a package, is given nothing more, as long as there are workers elsewhere. Where the cluster itself
is gone the search ends in one line, and can be resumed.
"""

from __future__ import annotations

import heapq
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from discover.actor import Actor
from discover.connection import Head, RestartedError, abandon, alive, connect
from discover.errors import ClusterError, LostClusterError, first_line
from discover.placement import fit
from discover.pools import AHEAD, Job, Pool, Worker
from discover.records import Incident, IncidentKind
from discover.workers import FAULTY, OUT_OF_MEMORY, TIMED_OUT, UNBOUNDED, WORKER_LOST, Crew, Done, Request, Work

ATTEMPTS = 3
"""How many workers may die under a unit before it is given up; and how many may fail to start before the first does."""

DOUBT_SECONDS = 20.0
"""How long a node on which a worker was lost is given nothing, unless a worker there answers: longer than Ray takes to
find out that a node was killed, 15 seconds by its own settings."""

WAIT_SECONDS = 0.5
"""How long `next` waits: a search that is asked to stop does so within about this time."""

REST_SECONDS = 60.0
"""How long no worker of a kind is asked for, at most, where one after the other did not start: on a node that lacks a
package, say."""

LOOK_SECONDS = 0.25
"""How often actors are looked at: for units that take too long, and for actors that are missing."""

WATCH_SECONDS = 1.0
"""How often the cluster is looked at, for nodes that came or went."""

PATIENCE_SECONDS = 15.0
"""How long the head of the cluster may be silent. Ray ends the process, without a word of ours, after a minute."""

SLOW = 4.0
"""Times the mean after which a unit in work is given to a worker of another node too, where one has nothing to do."""

SLOW_SECONDS = 2.0
"""The least time for that."""


class RayActor(Actor):
    """A worker that can say where it is."""

    def hello(self) -> tuple[str, int, str]:
        """Answers once the process has started: the node's id, its own, and where it has its code from."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid(), self.code()


class RayWorkers:
    """See the module.

    Raises:
        ClusterError: no cluster at the address.
    """

    def __init__(self, crew: Crew) -> None:
        self.crew, self.time_limit = crew, crew.time_limit
        self.notes: deque[str] = deque()
        self.incidents: deque[Incident] = deque()
        self._ray = connect(crew)
        self._actor = self._ray.remote(max_restarts=0, max_task_retries=0)(RayActor)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._done: deque[Done] = deque()
        self._numbers = 0
        self._looked = self._counted = time.monotonic()
        self._present, self._ready = 0.0, 0
        self._nodes: dict[str, str] = {}
        """The cluster's nodes: id -> a name for people."""
        self._doubted: dict[str, float] = {}
        """Nodes on which a worker was lost, and when."""
        self._failed: dict[str, BaseException] = {}
        """Nodes that cannot do what others may, and what their workers met."""
        self._pools = {request: Pool(request, crew.count or 0) for request in crew.requests}
        self.room: dict[Request, int] = {}
        """How many workers of each kind the nodes that are there could hold."""
        self._closed = threading.Event()
        self._lost = False
        self._on_nodes(alive(self._ray))
        if crew.address is not None:
            threading.Thread(target=self._watch, args=(Head(self._ray),), name="watch-cluster", daemon=True).start()

    # What the engine asks ---------------------------------------------------------------------------------------------

    def submit(self, key: Hashable, unit: Work, order: int = 0) -> None:
        self._numbers += 1
        job = Job(key, unit, order, self._numbers)
        pool = self._pools[unit.request]
        self._wait(pool, job)
        self._dispatch(pool)

    def next(self, wait: bool = True) -> Done | None:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            self._look()
            if self._done:
                return self._done.popleft()
            left = min(deadline, self._looked + LOOK_SECONDS) - time.monotonic()
            try:
                self._inbox.get(timeout=max(left, 0.001))() if wait else self._inbox.get_nowait()()
            except Empty:
                if not wait or time.monotonic() >= deadline:
                    return None

    def present(self) -> float:
        self._count(0)
        seconds, self._present = self._present, 0.0
        return seconds

    def close(self) -> None:
        self._closed.set()
        if self._lost:
            abandon(self._ray)
        else:
            self._ray.shutdown()

    # Units to workers -------------------------------------------------------------------------------------------------

    def _wait(self, pool: Pool, job: Job) -> None:
        heapq.heappush(pool.waiting, (job.order, job.number, job))

    def _dispatch(self, pool: Pool) -> None:
        """Gives waiting units to the workers that have the fewest; what is left idle takes from the others."""
        while pool.waiting:
            worker = next((each for load in pool.loads[:AHEAD] for each in load), None)
            if worker is None:
                return
            *_, job = heapq.heappop(pool.waiting)
            if not job.over:
                self._give(worker, job)
        while pool.loads[0] and self._take_over(pool):
            pass

    def _take_over(self, pool: Pool) -> bool:
        """Gives an idle worker the unit that has waited inside another the longest; or one that has been in work for
        far too long, where a machine of another speed is free to do it too."""
        for worker in pool.loads[AHEAD]:
            reference, job = worker.jobs[-1]
            if not job.over and job.running == 1:
                self._give(next(iter(pool.loads[0])), job)
                self._ray.cancel(reference)
                return True
        for worker in pool.beyond(max(SLOW * pool.mean, SLOW_SECONDS)) if pool.mean else ():
            _, job = worker.jobs[0]
            elsewhere = next((each for each in pool.loads[0] if each.node != worker.node), None)
            if elsewhere and job.unit.twice and not job.over and job.running == 1 and not job.attempts:
                self._give(elsewhere, job)
                return True
        return False

    def _give(self, worker: Worker, job: Job) -> None:
        reference = worker.actor.evaluate.remote(job.unit)
        job.running += 1
        self._load(worker, lambda: worker.jobs.append((reference, job)))
        if len(worker.jobs) == 1:
            worker.begin()
        self._when_done(reference, partial(self._on_result, worker, reference))

    def _load(self, worker: Worker, change: Callable[[], object]) -> None:
        """Changes a worker's jobs, and puts it where one with so many belongs."""
        worker.pool.loads[len(worker.jobs)].pop(worker, None)
        change()
        shunned = worker.node in self._doubted or worker.node in self._failed
        if worker.ready and not worker.gone and not shunned:
            worker.pool.loads[len(worker.jobs)][worker] = None

    def _when_done(self, reference: Any, act: Callable[[Any, BaseException | None], None]) -> None:
        """Has something done with a result, or with why there is none, when `next` finds it in the inbox."""

        def put(future: Any) -> None:
            error = future.exception()
            self._inbox.put(partial(act, None if error else future.result(), error))

        reference.future().add_done_callback(put)

    # What comes in ----------------------------------------------------------------------------------------------------

    def _on_result(self, worker: Worker, reference: Any, result: Any, error: BaseException | None) -> None:
        if worker.gone:
            return  # what it had is another's by now
        errors = self._ray.exceptions
        if error is not None and not isinstance(error, errors.RayError):
            raise error
        if isinstance(error, errors.RayTaskError):
            if not isinstance(error.cause, OSError | ImportError):
                raise error  # of our own code: a bug, and the same on every worker
            self._fail(worker, error)
            return
        if error is not None and not isinstance(error, errors.TaskCancelledError):
            # the actor, its node or its result is gone; Ray has a dozen words for it
            reason = OUT_OF_MEMORY if isinstance(error, errors.OutOfMemoryError) else WORKER_LOST
            self.notes.append(f"a worker was lost ({first_line(error)}); a unit is tried {ATTEMPTS} times")
            self._note(WORKER_LOST, self._on(worker, first_line(error)), worker.jobs[0][1])
            self._doubt(worker.node)
            self._replace(worker, reason)
            return
        if error is None:
            self._answered(worker)
        place = next(index for index, (each, _) in enumerate(worker.jobs) if each == reference)
        job = worker.jobs[place][1]
        self._load(worker, lambda: worker.jobs.remove((reference, job)))
        job.running -= 1
        if place == 0:
            spent = time.monotonic() - worker.since
            worker.begin()
            if error is None:
                worker.pool.mean += 0.1 * (spent - worker.pool.mean) if worker.pool.mean else spent
        if not job.over and error is None:
            job.over = True
            failed = isinstance(result, str)
            self._done.append(Done(job.key, None, result) if failed else Done(job.key, result))
            if failed and result != OUT_OF_MEMORY:
                self.notes.append(FAULTY.format(result))
                self._note("fault", self._on(worker, f"{job.unit}: {result}"), job)
            elif failed:
                if self.crew.memory < UNBOUNDED:
                    allowed = f"the {self.crew.memory / 1e9:g} GB of unit.memory"
                    self.notes.append(f"a unit took more than {allowed}; its programs are trained one by one")
                self._note(OUT_OF_MEMORY, self._on(worker, str(job.unit)), job)
        elif not job.over and not job.running:
            self._wait(worker.pool, job)  # cancelled, and whoever took it is gone
        self._dispatch(worker.pool)

    def _on_ready(self, worker: Worker, hello: Any, error: BaseException | None) -> None:
        if worker.gone:
            return
        pool = worker.pool
        if error is None:
            pool.failures = 0
            self._count(1)
            worker.ready = True
            worker.node, worker.process, worker.code = hello
            self._answered(worker)
            self._load(worker, lambda: None)
            self._dispatch(pool)
            return
        self._remove(worker)
        pool.failures += 1
        pool.rests_until = time.monotonic() + min(REST_SECONDS, LOOK_SECONDS * 2 ** min(pool.failures, 16))
        if pool.failures >= ATTEMPTS and not any(each.ready for each in pool.workers):
            raise ClusterError(f"workers cannot start: {_last_line(error)}")
        if pool.failures == ATTEMPTS:
            self.notes.append(f"a worker does not start ({_last_line(error)}); the others go on, and it is tried again")
        self._note(WORKER_LOST, f"before it was ready: {first_line(error)}")

    def _on_nodes(self, nodes: Mapping[str, tuple[str, Mapping[str, float]]]) -> None:
        """What the cluster consists of now."""
        added = nodes.keys() - self._nodes.keys() if self._nodes else ()
        removed = self._nodes.keys() - nodes.keys()
        self.incidents += [Incident("node added", nodes[each][0]) for each in sorted(added)]
        self.incidents += [Incident("node removed", self._nodes[each]) for each in sorted(removed)]
        for node in removed:
            self._doubt(node)  # all of it first: what one of its workers had must not go to another of them
        room = fit([resources for _, resources in nodes.values()], list(self._pools))
        before, self.room = self.room, dict(zip(self._pools, room, strict=True))
        for pool, count in zip(self._pools.values(), room, strict=True):
            pool.wanted = count if self.crew.count is None else self.crew.count
            pool.rests_until = 0.0 if added else pool.rests_until  # a new node may do
        for worker in [each for pool in self._pools.values() for each in pool.workers if each.node in removed]:
            self._note(WORKER_LOST, self._on(worker, "its node is gone"))
            self._replace(worker, WORKER_LOST)
        for node in removed:
            self._doubted.pop(node, None)
            self._failed.pop(node, None)
        self._nodes = {node: name for node, (name, _) in nodes.items()}
        for pool in self._pools.values():
            if not self.room[pool.request] and before.get(pool.request) != 0:
                asked = ", ".join(f"{name} {quantity:g}" for name, quantity in pool.request)
                self.notes.append(f"no node has room for a worker with {asked}; its units wait until one has")
                self._note("no room", asked)
            while len(pool.workers) > pool.wanted and (idle := [each for each in pool.workers if not each.ready]):
                self._ray.kill(idle[-1].actor)
                self._remove(idle[-1])
        self._hire()

    def _on_loss(self, line: str) -> None:
        """The cluster is gone for good, or for too long."""
        self._lost = True
        self._note("cluster lost", line)
        raise LostClusterError(f"{line}; {self.crew.again}")

    # Workers that come and go -----------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """Asks for the workers that are missing, one of each kind in turn: Ray gives places in this order. Where some
        did not start, others of their kind are asked for after a while, ever longer."""
        missing, now = True, time.monotonic()
        while missing:
            missing = False
            for pool in self._pools.values():
                if len(pool.workers) < pool.wanted and pool.rests_until <= now:
                    self._hire_one(pool)
                    missing = True

    def _hire_one(self, pool: Pool) -> None:
        asked = dict(pool.request)
        options: dict[str, Any] = {"num_cpus": asked.pop("CPU", 0)}
        for name, option in (("GPU", "num_gpus"), ("memory", "memory")):
            if name in asked:
                options[option] = asked.pop(name)
        actor = self._actor.options(**options, resources=asked).remote(dict(self.crew.files or {}), self.crew.memory)
        worker = Worker(actor, pool, since=time.monotonic())
        pool.workers[worker] = None
        self._when_done(actor.hello.remote(), partial(self._on_ready, worker))

    def _replace(self, worker: Worker, reason: str, *, blamed: bool = True) -> None:
        """A new actor for one that hangs or is gone, or may be. The unit it was at goes first to another while it has
        attempts left, where it may be to blame; those that waited inside the actor had no part in it."""
        self._ray.kill(worker.actor)
        self._remove(worker)
        for place, (_, job) in enumerate(worker.jobs):
            job.running -= 1
            job.attempts += blamed and place == 0
            if job.over or job.running:
                continue
            if place == 0:
                if reason == TIMED_OUT or job.attempts >= ATTEMPTS:
                    job.over = True
                    self._note("unit given up", f"{reason}: {job.unit!s}", job)
                    self._done.append(Done(job.key, None, reason))
                    continue
                self._note("unit retried", str(job.unit), job)
            self._wait(worker.pool, job)
        self._hire()
        self._dispatch(worker.pool)

    def _fail(self, worker: Worker, error: BaseException) -> None:
        """Gives nothing more to a node that cannot do what others may: its disk is full, or it lacks a package. Its
        units had no part in it. Raises the error where no other worker of the kind is there."""
        if worker.node not in self._failed:
            what = self._on(worker, first_line(error.cause))  # type: ignore[attr-defined]  # of a RayTaskError
            self.notes.append(f"{what}; nothing more is trained on that node")
            self._note("node failed", what, worker.jobs[0][1])
        self._failed[worker.node] = error
        self._shun(worker.node)
        if not any(each.ready and each.node not in self._failed for each in worker.pool.workers):
            raise error
        self._replace(worker, WORKER_LOST, blamed=False)

    def _doubt(self, node: str) -> None:
        """Gives nothing more to a node for a while. The node of a private Ray is this one."""
        if self.crew.address is not None:
            self._doubted[node] = time.monotonic()
            self._shun(node)

    def _shun(self, node: str) -> None:
        """Has no worker of the node among those that may be given something."""
        for pool in self._pools.values():
            for load in pool.loads:
                for worker in [each for each in load if each.node == node]:
                    del load[worker]

    def _answered(self, worker: Worker) -> None:
        """A worker said something. If it was asked after its node was doubted, the node is there."""
        if worker.since > self._doubted.get(worker.node, math.inf):
            self._trust(worker.node)

    def _trust(self, node: str) -> None:
        del self._doubted[node]
        for pool in self._pools.values():
            for worker in [each for each in pool.workers if each.node == node]:
                self._load(worker, lambda: None)
            self._dispatch(pool)

    def _remove(self, worker: Worker) -> None:
        if worker.ready:
            self._count(-1)
        worker.gone = True
        worker.pool.workers.pop(worker, None)
        worker.pool.busy.pop(worker, None)
        for load in worker.pool.loads:
            load.pop(worker, None)

    def _look(self) -> None:
        """Kills what takes too long, and asks for workers that are missing; now and then."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for node in [node for node, since in self._doubted.items() if now - since > DOUBT_SECONDS]:
            self._trust(node)
        for pool in self._pools.values():
            if (
                self._failed
                and pool.waiting
                and pool.workers
                and all(each.node in self._failed for each in pool.workers)
            ):
                raise next(iter(self._failed.values()))
            for worker in pool.beyond(self.time_limit):
                job = worker.jobs[0][1]
                if not job.over:
                    self._note(TIMED_OUT, self._on(worker, str(job.unit)), job)
                self._replace(worker, TIMED_OUT)
            self._dispatch(pool)
        self._hire()

    def _count(self, change: int) -> None:
        """Adds up how long workers have been there, before their number changes."""
        now = time.monotonic()
        self._present += self._ready * (now - self._counted)
        self._counted = now
        self._ready += change

    def _note(self, kind: IncidentKind, text: str, job: Job | None = None) -> None:
        self.incidents.append(Incident(kind, text, getattr(job.key, "generation", None) if job else None))

    def _on(self, worker: Worker, what: str) -> str:
        return f"process {worker.process} on {self._nodes.get(worker.node, 'a node that is gone')}: {what}"

    def _watch(self, head: Head) -> None:
        """Runs beside the driver: asks the cluster what nodes it has, and notices when nobody answers, or a head that
        was started in the place of the first: to that one, Ray's other calls are errors or worse."""
        known: object = None
        answered = time.monotonic()
        while not self._closed.wait(WATCH_SECONDS):
            try:
                nodes = head.nodes()
            except RestartedError:
                where = f"the head of the Ray cluster at {self.crew.address} was restarted"
                self._inbox.put(partial(self._on_loss, where))
                return
            except Exception:  # whatever Ray makes of it: no answer, and the watch goes on
                nodes = None
            if nodes is not None:
                answered = time.monotonic()
                if nodes.keys() != known:
                    known = nodes.keys()
                    self._inbox.put(partial(self._on_nodes, nodes))
            elif time.monotonic() - answered > PATIENCE_SECONDS:
                where = f"the Ray cluster at {self.crew.address} has not answered for {PATIENCE_SECONDS:g} seconds"
                self._inbox.put(partial(self._on_loss, where))
                return


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
