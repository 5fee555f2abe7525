"""Ray without Ray: as much of its module as `discover.cluster` asks for, with actors that are objects of this process.

So the real `RayWorkers` can be given events one at a time (`tests/test_workers.py`), or a thousand actors that sleep
(`benchmarks/driver.py`).
"""

from __future__ import annotations

import heapq
import pickle
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from discover.evaluate import Unit, UnitResult


class Reference:
    """Something that an actor computes."""

    def __init__(self, actor: int) -> None:
        self.actor = actor
        self.promise: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self.promise


class VirtualRay:
    """Actors are ready at once, numbered from 1, each where `place` says, but for those that `broken` says never are;
    what becomes of units, others say."""

    def __init__(self, cores: float = 2.0) -> None:
        import ray.exceptions

        self.exceptions = ray.exceptions
        self.cores = cores
        self.place: Callable[[int], str] = "node {}".format
        self.broken: Callable[[int], bool] = lambda actor: False
        self.actors: list[Any] = []
        self.killed: list[int] = []

    def remote(self, *_: object, **__: object) -> Any:
        return lambda _: self

    def options(self, **_: object) -> Any:
        return SimpleNamespace(remote=self._actor)

    def _actor(self, *_: object) -> Any:
        number = len(self.actors) + 1

        def hello() -> Reference:
            reference = Reference(number)
            if self.broken(number):
                reference.promise.set_exception(self.exceptions.ActorDiedError())
            else:
                reference.promise.set_result((self.place(number), number, "here"))
            return reference

        def evaluate(unit: Unit) -> Reference:
            reference = Reference(number)
            self.ask(unit, reference)
            return reference

        methods = {"hello": SimpleNamespace(remote=hello), "evaluate": SimpleNamespace(remote=evaluate)}
        self.actors.append(SimpleNamespace(number=number, **methods))
        return self.actors[-1]

    def nodes(self) -> list[Any]:
        return [{"NodeID": "0", "NodeManagerAddress": "here", "Resources": {"CPU": self.cores}, "Alive": True}]

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.number)

    def shutdown(self) -> None:
        pass

    @abstractmethod
    def ask(self, unit: Unit, reference: Reference) -> None:
        """Its actor is given a unit, behind those that it has."""

    @abstractmethod
    def cancel(self, reference: Reference) -> None:
        """What waits inside an actor is to be left undone."""


class Sleeping(VirtualRay):
    """Each actor does its units in turn, and each takes the seconds that it says it takes. What travels is pickled, as
    Ray would do it; Ray's own messages are not there.

    Attributes:
        units: done so far.
        busy: seconds that actors have slept over them.
        elsewhere: seconds of this process's CPU that went into what workers would have done.
    """

    def __init__(self, cores: float, answer: Callable[[Unit], UnitResult]) -> None:
        super().__init__(cores)
        self._answer = answer
        self.units, self.busy, self.elsewhere = 0, 0.0, 0.0
        self._waiting: dict[int, deque[tuple[bytes, Reference]]] = {}
        """Of each actor the units that it has, the first of them in work."""
        self._ends: list[tuple[float, int, bytes]] = []
        """When which actor is done, and with what."""
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._sleep, name="virtual-ray", daemon=True)
        self._thread.start()

    def ask(self, unit: Unit, reference: Reference) -> None:
        sent = pickle.dumps(unit)
        with self._changed:
            own = self._waiting.setdefault(reference.actor, deque())
            own.append((sent, reference))
            if len(own) == 1:
                self._begin(reference.actor)

    def cancel(self, reference: Reference) -> None:
        with self._changed:
            own = self._waiting.get(reference.actor, deque())
            place = next((place for place, (_, each) in enumerate(own) if each is reference), 0)
            if not place:
                return  # in work, or done
            del own[place]
        reference.promise.set_exception(self.exceptions.TaskCancelledError())

    def shutdown(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()

    def _begin(self, actor: int) -> None:
        began = time.thread_time()
        result = self._answer(pickle.loads(self._waiting[actor][0][0]))
        back = pickle.dumps(result)
        heapq.heappush(self._ends, (time.monotonic() + result.seconds, actor, back))
        self.units, self.busy = self.units + 1, self.busy + result.seconds
        self.elsewhere += time.thread_time() - began
        if self._ends[0][1] == actor:
            self._changed.notify()

    def _sleep(self) -> None:
        while True:
            with self._changed:
                left = self._ends[0][0] - time.monotonic() if self._ends else None
                if self._over:
                    return
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                _, actor, back = heapq.heappop(self._ends)
                _, reference = self._waiting[actor].popleft()
                if self._waiting[actor]:
                    self._begin(actor)
            reference.promise.set_result(pickle.loads(back))


if __name__ == "__main__":
    print("a library: what `python -m benchmarks.driver` gives the real RayWorkers in place of Ray")
