"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from discover.errors import UnwritableError


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file in one go: whoever reads it meanwhile, or after a crash, sees the old content or the new.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of the one at the path at the end, as `write_whole` does; nothing stays of
    it where writing it fails."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UnwritableError(f"cannot write '{path}': {_reason(error)}") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def refused(folder: Path) -> str:
    """Why no file can be written into a folder, which is made if it is not there; empty where one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return _reason(error)


def remove_empty(folder: Path) -> None:
    """Removes a folder that has nothing in it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _reason(error: OSError) -> str:
    return "Not a directory" if isinstance(error, FileExistsError) else str(error.strerror)  # a parent is a file


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def free(path: Path) -> Path:
    """The path, or the first of PATH-2, PATH-3 ... that is not there yet."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
