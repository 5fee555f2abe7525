"""The connection to Ray: to a cluster, or to a private one on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from discover.errors import ClusterError, first_line
from discover.workers import Crew

PACKAGES = ("dsl", "tasks", "discover")
"""What is shipped to the workers of a cluster."""

ANSWER_SECONDS = 1.0
"""How long the head of a cluster may take for a connection."""

_OBJECT_STORE = 200 * 2**20
"""Bytes; units and results are small."""


def connect(crew: Crew) -> Any:
    """Connects this process, and gives the ray module. Raises ClusterError: no cluster at the address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

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
        options["address"] = crew.address
    try:
        with _packed() as packed:
            if crew.address is not None:
                options["runtime_env"] = {"working_dir": packed} if crew.runtime_env is None else {**crew.runtime_env}
            with _own_signals():
                ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = first_line(error).partition(": ")[2]
        raise ClusterError(f"--ray-address {crew.address}: no Ray cluster there ({first})") from None
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Leaves SIGTERM to whoever had it: Ray takes it for itself, and would end the driver where it stands."""
    mine = signal.getsignal(signal.SIGTERM)
    yield
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
    return {
        each["NodeID"]: (f"{each['NodeManagerAddress']} ({each['NodeID'][:8]})", each["Resources"])
        for each in ray.nodes()
        if each["Alive"]
    }


def head_of(ray: Any, address: str) -> tuple[str, int] | None:
    """Where the head listens; None where that is not known."""
    host, _, port = (address if "://" in address else ray.get_runtime_context().gcs_address).rpartition(":")
    host = host.rpartition("/")[2]
    return (host, int(port)) if host and port.isdigit() else None


def answers(head: tuple[str, int] | None) -> bool:
    if head is None:
        return True
    try:
        with socket.create_connection(head, timeout=ANSWER_SECONDS):
            return True
    except OSError:
        return False


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
