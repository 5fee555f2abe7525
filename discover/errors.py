"""What a user did wrong, in one line: what, where, what was expected, what to do. Anything else is a bug."""

from __future__ import annotations

import sys


class UserError(ValueError):
    """A mistake that its maker can mend. The command line prints the text and leaves with exit code 2."""


class SpaceError(UserError):
    """A search space that cannot be read: "FILE: key: what was wrong"."""


class RunError(UserError):
    """A run folder that is missing, not a run, of another version, locked, or not to be written."""


class NoLogarithmError(UserError):
    """A held-out loss below 0, or one that is not above 0 before training: ratios to it mean nothing. The class is kept
    on the way from a worker."""


class ClusterError(UserError):
    """A Ray cluster that is not there, is gone, or cannot start workers."""


class LostClusterError(ClusterError):
    """A cluster that was joined and is there no more. Ray's threads in this process still wait for it: it is best ended
    at once."""


class UnwritableError(UserError):
    """A file that cannot be written: a full disk, a folder that is another's."""


class ArchiveError(RunError):
    """An archive that cannot be opened, read or written."""


STOPPED = 130
"""The exit code of what Ctrl-C ended before it was done, as shells have it."""


class HaltedError(Exception):
    """Ctrl-C where a command ends at once: a second one, or one with no work in hand. The command line prints the text
    and leaves with `STOPPED`."""


def stopped(line: str = "stopped") -> int:
    """Says that Ctrl-C ended a command; its exit code.

    Where a KeyboardInterrupt has come through an `exec` of text, as in the making of a dataclass, CPython notes it and
    lets a process that `python -m` began die of the signal in the end, whatever it exits with. The next `exec` takes
    the note away.
    """
    print(f"discover: {' '.join(line.split())}", file=sys.stderr)
    exec("")
    return STOPPED


def first_line(error: BaseException) -> str:
    """What an exception is called, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_shortage(error: Exception) -> bool:
    """Whether memory ran out, in Python or in what torch calls."""
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)
