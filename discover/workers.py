"""Who trains: units of work go in, results come out in whatever order they are done.

`InProcess` trains in this process, for debugging and for tests. `RayWorkers` are long-lived Ray actors, on this machine
or on a cluster; a unit whose worker dies is trained again, and one that kills or hangs its workers is given back as
failed, so that nothing waits for ever and no other unit is touched. This is the only module that knows Ray.
"""

from __future__ import annotations

import os
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


@dataclass(frozen=True, slots=True)
class Done:
    """A unit's end: its result, or why there is none ("worker lost", "timed out")."""

    key: Hashable
    result: UnitResult | None
    failure: str = ""


class Workers(Protocol):
    """A place to train units. `next` blocks until one is done."""

    count: int

    def submit(self, key: Hashable, unit: Unit) -> None: ...

    def next(self) -> Done: ...

    def close(self) -> None: ...


class InProcess:
    """Trains each unit here when its result is asked for."""

    count = 0

    def __init__(self) -> None:
        torch.set_num_threads(1)
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
    began: float = 0.0


class RayWorkers:
    """Long-lived Ray actors, one unit at a time each.

    Args:
        count: how many actors.
        address: of a running cluster ("auto" for the one on this machine); None starts a private one here.
        time_limit: seconds that a unit may take before its worker is killed.

    Raises:
        UserError: no cluster at the address.
    """

    def __init__(self, count: int, address: str | None = None, time_limit: float = 600.0) -> None:
        self.count, self.time_limit = count, time_limit
        self._ray = _start_ray(count, address)
        self._actor = self._ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        self._idle: list[Any] = [self._actor.remote() for _ in range(count)]
        self._busy: dict[Any, tuple[Any, _Job]] = {}
        self._waiting: deque[_Job] = deque()
        self._failed: deque[Done] = deque()

    def submit(self, key: Hashable, unit: Unit) -> None:
        self._waiting.append(_Job(key, unit))
        self._dispatch()

    def next(self) -> Done:
        while True:
            if self._failed:
                return self._failed.popleft()
            done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=1.0)
            if not done:
                self._kill_overdue()
                continue
            actor, job = self._busy.pop(done[0])
            try:
                result: UnitResult = self._ray.get(done[0])
            except self._ray.exceptions.RayActorError:
                self._lost(job, "worker lost")
                continue
            self._idle.append(actor)
            self._dispatch()
            return Done(job.key, result)

    def close(self) -> None:
        self._ray.shutdown()

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            actor, job = self._idle.pop(), self._waiting.popleft()
            job.began = time.monotonic()
            self._busy[actor.evaluate.remote(job.unit)] = (actor, job)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for reference, (actor, job) in list(self._busy.items()):
            if now - job.began > self.time_limit:
                del self._busy[reference]
                self._ray.kill(actor)
                self._lost(job, "timed out")

    def _lost(self, job: _Job, reason: str) -> None:
        """Replaces the worker, and gives its unit to another, first in the queue, while it has attempts left."""
        self._idle.append(self._actor.remote())
        job.attempts += 1
        if reason == "timed out" or job.attempts >= ATTEMPTS:
            self._failed.append(Done(job.key, None, reason))
        else:
            self._waiting.appendleft(job)
        self._dispatch()


class _Worker:
    """The actor: one core, one unit at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def evaluate(self, unit: Unit) -> UnitResult:
        return evaluate(unit)


def start(count: int, address: str | None = None) -> Workers:
    """Workers: `count` of them as Ray actors, or this process for 0."""
    return RayWorkers(count, address) if count else InProcess()


def _start_ray(count: int, address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": count, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"--ray-address {address}: no Ray cluster answers there ({str(error).splitlines()[0]})"
        ) from None
    return ray
