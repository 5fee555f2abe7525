"""Who trains: units of work go in, results come out in whatever order they are done.

`InProcess` trains in this process, for debugging and for tests. `RayWorkers` are long-lived Ray actors, on this machine
or on a cluster; a unit whose worker dies is trained again, and one that kills or hangs its workers is given back as
failed, so that nothing waits for ever and no other unit is touched. This is the only module that knows Ray.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from discover.errors import UserError
from discover.evaluate import Unit, UnitResult, evaluate

ATTEMPTS = 3
"""How many workers may die under a unit before it is given up."""

AHEAD = 2
"""Units that an actor has at a time, the one in work included."""

_OBJECT_STORE = 200 * 2**20
"""Bytes; units and results are small."""

WAIT_SECONDS = 0.5
"""How long `next` waits: a search that is asked to stop does so within about this time."""


@dataclass(frozen=True, slots=True)
class Done:
    """A unit's end: its result, or why there is none ("worker lost", "timed out")."""

    key: Hashable
    result: UnitResult | None
    failure: str = ""


class Workers(Protocol):
    """A place to train units. `next` waits for one to be done, for some time only: None then. `notes` are lines for the
    user that came up meanwhile; whoever reads them takes them out."""

    count: int
    notes: deque[str]

    def submit(self, key: Hashable, unit: Unit) -> None: ...

    def next(self) -> Done | None: ...

    def close(self) -> None: ...


class InProcess:
    """Trains each unit here when its result is asked for."""

    count = 0

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.notes: deque[str] = deque()
        self._waiting: deque[tuple[Hashable, Unit]] = deque()

    def submit(self, key: Hashable, unit: Unit) -> None:
        self._waiting.append((key, unit))

    def next(self) -> Done:
        key, unit = self._waiting.popleft()
        return Done(key, evaluate(unit))

    def close(self) -> None:
        self._waiting.clear()


@dataclass(slots=True)
class _Job:
    key: Hashable
    unit: Unit
    attempts: int = 0


@dataclass(slots=True)
class _Queue:
    """An actor and the jobs it has, in order: the first is in work since `since`, the others wait inside the actor."""

    actor: Any
    jobs: deque[tuple[Any, _Job]]
    since: float = 0.0


class RayWorkers:
    """Long-lived Ray actors. Each has one unit in work and one waiting, so that none is idle while the driver thinks.

    Args:
        count: how many actors.
        address: of a running cluster ("auto" for the one on this machine); None starts a private one here.
        time_limit: seconds that a unit may take before its worker is killed.

    Raises:
        UserError: no cluster at the address.
    """

    def __init__(self, count: int, address: str | None, time_limit: float) -> None:
        self.count, self.time_limit = count, time_limit
        self.notes: deque[str] = deque()
        self._ray = _start_ray(count, address)
        self._actor = self._ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        self._queues = [_Queue(self._actor.remote(), deque()) for _ in range(count)]
        self._waiting: deque[_Job] = deque()
        self._failed: deque[Done] = deque()

    def submit(self, key: Hashable, unit: Unit) -> None:
        self._waiting.append(_Job(key, unit))
        self._dispatch()

    def next(self) -> Done | None:
        if self._failed:
            return self._failed.popleft()
        busy = {queue.jobs[0][0]: queue for queue in self._queues if queue.jobs}
        done, _ = self._ray.wait(list(busy), num_returns=1, timeout=WAIT_SECONDS)
        self._kill_overdue()
        if not done:
            return None
        queue = busy[done[0]]
        errors = self._ray.exceptions
        try:
            result: UnitResult = self._ray.get(done[0])
        except errors.RayTaskError:
            raise  # of our own code: a bug, and the same on every worker
        except errors.RayError as error:  # the actor, its node or its result is gone; Ray has a dozen words for it
            self.notes.append(f"a worker was lost ({_first_line(error)}); a unit is tried {ATTEMPTS} times")
            self._replace(queue, "worker lost")
            return None
        _, job = queue.jobs.popleft()
        queue.since = time.monotonic()
        self._dispatch()
        return Done(job.key, result)

    def close(self) -> None:
        self._ray.shutdown()

    def _dispatch(self) -> None:
        """Gives waiting units to the actors that have the fewest."""
        while self._waiting:
            queue = min(self._queues, key=lambda each: len(each.jobs))
            if len(queue.jobs) >= AHEAD:
                return
            if not queue.jobs:
                queue.since = time.monotonic()
            job = self._waiting.popleft()
            queue.jobs.append((queue.actor.evaluate.remote(job.unit), job))

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for queue in self._queues:
            if queue.jobs and now - queue.since > self.time_limit and not self._is_done(queue.jobs[0][0]):
                self._replace(queue, "timed out")

    def _is_done(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], num_returns=1, timeout=0)[0])

    def _replace(self, queue: _Queue, reason: str) -> None:
        """A new actor for one that hangs or is gone, or may be. The unit it was at goes first to another while it has
        attempts left; those that waited inside the actor had no part in it."""
        self._ray.kill(queue.actor)
        (_, job), *others = queue.jobs
        job.attempts += 1
        for _, other in reversed(others):
            self._waiting.appendleft(other)
        if reason == "timed out" or job.attempts >= ATTEMPTS:
            self._failed.append(Done(job.key, None, reason))
        else:
            self._waiting.appendleft(job)
        queue.actor, queue.jobs = self._actor.remote(), deque()
        self._dispatch()


class _Worker:
    """The actor: one core, one unit at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def evaluate(self, unit: Unit) -> UnitResult:
        return evaluate(unit)


def start(count: int, address: str | None, time_limit: float) -> Workers:
    """Workers: `count` of them as Ray actors, or this process for 0, where nothing can stop a unit that hangs."""
    return RayWorkers(count, address, time_limit) if count else InProcess()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _start_ray(count: int, address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": count, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    else:
        _must_answer(address)
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--ray-address {address}: no Ray cluster there ({str(error).splitlines()[0]})") from None
    return ray


def _must_answer(address: str) -> None:
    """Ray itself waits a minute or more for an address where nothing listens."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        with socket.create_connection((host, int(port)), timeout=5.0):
            pass
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--ray-address {address}: no Ray cluster answers there ({reason})") from None
