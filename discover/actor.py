"""What runs inside a worker process: one piece of work at a time, on one core, within bounds of memory.

Nothing here knows Ray; `discover.cluster` makes a Ray actor of `Actor`.
"""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from discover.errors import is_shortage
from discover.workers import OUT_OF_MEMORY, Work


class Actor:
    """A worker: long-lived, so that data, gradients and compiled code are loaded once.

    Args:
        files: path -> content of the user's files that tasks are read from.
        memory: bytes that a piece of work may take beyond what the process had before.
    """

    def __init__(self, files: Mapping[str, bytes], memory: int) -> None:
        torch.set_num_threads(1)
        gc.freeze()  # what is imported is here to stay: to look through it for cycles takes 3 % of training
        self.memory = memory
        self.here = {path: _at_hand(Path(path), content) for path, content in files.items()}
        """Where this machine has each file."""

    def code(self) -> str:
        """Where this process has its code from."""
        import discover

        return str(Path(discover.__file__).parent)

    def evaluate(self, work: Work) -> Any:
        """What it comes to, such as a unit's result; or why there is none, as text."""
        try:
            with bounded_memory(self.memory):
                return work.moved(self._spelled).carry_out()
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
        gc.collect()
        return OUT_OF_MEMORY

    def _spelled(self, name: str) -> str:
        """A name, with the file where this machine has it if it is in one of the user's."""
        path, colon, rest = name.partition(".py:")
        there = self.here.get(f"{path}.py") if colon else None
        return f"{there}:{rest}" if there else name


def _at_hand(path: Path, content: bytes) -> Path:
    """The file itself where this machine has it, with what lies beside it; else a copy of what the driver read."""
    try:
        if path.read_bytes() == content:
            return path
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"discover-{os.getuid()}-{hashlib.sha256(content).hexdigest()[:16]}"
    with suppress(FileExistsError):  # one that another worker has made is shared
        folder.mkdir(mode=0o700)
    if not _ours_alone(folder):
        folder = Path(tempfile.mkdtemp(prefix="discover-"))
    handle, temporary = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, folder / path.name)  # whole at once: workers of one machine write the same file
    return folder / path.name


def _ours_alone(folder: Path) -> bool:
    """Whether nobody else can have put something into a folder, or made it: what is in it is executed, and anybody may
    make a folder of any name where temporary files are."""
    found = os.lstat(folder)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


@contextmanager
def bounded_memory(limit: int) -> Iterator[None]:
    """Lets this process take so many bytes more than it has; then allocating fails, in C++ as in Python.

    What counts is private writable memory (RLIMIT_DATA on Linux), not what is mapped from files or shared: a process
    that holds torch and Ray has gigabytes of that which nothing uses. Where the system has no such limit, Ray's memory
    monitor, which watches the whole machine, is the only bound.
    """
    taken = _data_bytes()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if taken is None:
        yield
        return
    bound = taken + limit if before[1] == resource.RLIM_INFINITY else min(taken + limit, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (bound, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
