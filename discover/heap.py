"""How a process that trains keeps its memory."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
_LARGEST = 2**25
"""Bytes; the most that glibc takes from its heap and not from the system."""
_KEPT = 2**28
"""Bytes at the end of the heap that a process may keep unused."""


@cache
def keep_freed_memory() -> bool:
    """Keeps memory that is freed for the next tensor, in this process from now on; whether that can be asked for here.

    Every step of a training makes tensors of some megabytes and drops them. glibc would give each back to the system,
    which hands it out again page by page, zeroed: more than half of the time of a `quadratic`'s validation.
    Other systems are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
