"""The connection to Ray: to a cluster, or to a private one on this machine."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from discover.errors import ClusterError, first_line
from discover.workers import Crew

PACKAGES = ("dsl", "tasks", "discover")
"""What is shipped to the workers of a cluster."""

ANSWER_SECONDS = 2.0
"""How long the head of a cluster may take to say what nodes there are."""

REFUSALS = ("WrongClusterID", "InvalidAuthToken")
"""What a head says to those who mean the one before it: that it is another, or, where it began to ask for tokens or has
a new one, that they have not the right one."""

_OBJECT_STORE = 200 * 2**20
"""Bytes; units and results are small."""


def connect(crew: Crew) -> Any:
    """Connects this process, and gives the ray module.

    Raises:
        ClusterError: no cluster at the address, or Ray cannot start on this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = _ray()
    global _abandoned
    if _abandoned:
        ray.shutdown()
        _abandoned = False
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if crew.address is None:
        # of each kind its own, or one kind could take all places and leave none to the others
        room: dict[str, float] = {}
        for request in crew.requests:
            for name, quantity in request:
                room[name] = room.get(name, 0.0) + quantity * (crew.count or 0)
        options |= {"num_cpus": room.pop("CPU", 0.0), "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        options["address"] = "local"  # without it Ray joins whatever cluster this machine started last, dead or alive
        if missing := sorted(room.keys() - {"GPU", "memory"}):
            raise ClusterError(f"rungs ask for '{missing[0]}', which no private Ray has; give --ray-address")
    else:
        _must_answer(crew.address)
        options |= {"address": crew.address, "runtime_env": dict(crew.runtime_env or {})}
    ships = crew.address is not None and crew.runtime_env is None
    with _packed() if ships else nullcontext() as packed, _own_signals():
        if packed is not None:
            options["runtime_env"] = {"working_dir": packed}
        try:
            ray.init(**options)
        except (OSError, ValueError, RuntimeError) as error:
            first = first_line(error)
            said = first.partition(": ")[2] or first
            if crew.address is None:
                raise ClusterError(f"Ray cannot start on this machine: {said}") from None
            raise ClusterError(f"--ray-address {crew.address}: no Ray cluster there ({said})") from None
    return ray


@cache
def _ray() -> Any:
    """The ray module, with its own words on stderr: it prints on stdout what befell workers, whatever it is told of
    logs, and that is where a command's JSON goes."""
    import ray
    from ray._private import worker

    if (told := getattr(worker, "print_to_stdstream", None)) is not None:  # Ray's own affair; another version may not
        worker.print_to_stdstream = lambda data, *rest, **how: told({**data, "is_err": True}, *rest, **how)
    return ray


def abandon(ray: Any) -> None:
    """Leaves a cluster that is gone. To say goodbye to it can take Ray a minute, or end the process; so that is done by
    whoever connects next, and by nobody where the process ends."""
    global _abandoned
    _abandoned = True
    atexit.unregister(ray.shutdown)


_abandoned = False


@contextmanager
def _own_signals() -> Iterator[None]:
    """Leaves SIGTERM to whoever had it: Ray takes it for itself, and would end the driver where it stands."""
    mine = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and mine is not None:
            signal.signal(signal.SIGTERM, mine)


@contextmanager
def _packed() -> Iterator[str]:
    """A folder with this installation's packages and nothing else: what workers elsewhere need. As a working_dir and
    not as modules: Ray would put the driver's own folders first, on machines that may have an older copy there."""
    with tempfile.TemporaryDirectory(prefix="discover-") as folder:
        for package in PACKAGES:
            there = Path(__file__).parent.parent / package
            shutil.copytree(there, Path(folder) / package, ignore=shutil.ignore_patterns("__pycache__"))
        yield folder


def alive(ray: Any) -> dict[str, tuple[str, Mapping[str, float]]]:
    """The nodes of the cluster: id -> a name for people, and what it has."""
    return dict(
        _node(each["NodeID"], each["NodeManagerAddress"], each["Resources"]) for each in ray.nodes() if each["Alive"]
    )


def _node(node: str, address: str, resources: Mapping[str, float]) -> tuple[str, tuple[str, Mapping[str, float]]]:
    return node, (f"{address} ({node[:8]})", resources)


class RestartedError(Exception):
    """Where the head was, there is another, which knows nothing of this process."""


class Head:
    """The head of the cluster that this process has joined, asked what nodes there are in a way that can always be got
    over: `ray.nodes()` waits for a head that is gone until Ray ends the process, and aborts it where another one has
    taken the place of the first."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._client = getattr(ray._private.worker.global_worker, "gcs_client", None)  # it names its cluster each time

    def nodes(self) -> dict[str, tuple[str, Mapping[str, float]]] | None:
        """As `alive`; None where no answer comes in time.

        Raises:
            RestartedError: see there.
        """
        if self._client is None:  # ray://, where a process beside the head asks it
            return alive(self._ray)
        try:
            found = self._client.get_all_node_info(timeout=ANSWER_SECONDS)
        except self._ray.exceptions.RayError as error:
            if any(each in str(error) for each in REFUSALS):
                raise RestartedError from None
            return None
        return dict(
            _node(node.hex(), each.node_manager_address, dict(each.resources_total))
            for node, each in found.items()
            if each.state == 0  # GcsNodeInfo.ALIVE
        )


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
        raise ClusterError(f"--ray-address {address}: no Ray cluster answers there ({reason})") from None
