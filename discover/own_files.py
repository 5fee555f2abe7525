"""Files of the user's that a space or a run names, as FILE.rule or FILE.py:NAME: where they are, and what is in them.

In a manifest their paths are absolute, so that a run means the same from every folder; beside them stands a digest of
what was in them, so that a file that has changed since is said to have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from discover.errors import UserError
from dsl.program import RuleError
from dsl.spelling import renamed

PROSE = "description"
"""The key whose text is for people: no path, whatever it looks like."""


def file_of(text: str) -> str | None:
    """The file that a rule, a task or a class is read from, None where it comes from none of the user's.

    >>> file_of("spaces/own.py:Net(horizon=8)"), file_of("mine.rule"), file_of("adamw")
    ('spaces/own.py', 'mine.rule', None)
    """
    if "\n" in text:
        return None
    stem, colon, _ = text.partition(".py:")
    return f"{stem}.py" if colon else text if text.endswith(".rule") else None


def absolute(name: str) -> str:
    """A task's or class's name with the path of its file, if it has one, written in full."""
    path, colon, rest = name.partition(".py:")
    return f"{Path(path).absolute()}.py:{rest}" if colon else name


def anchored(data: Any, base: Path) -> Any:
    """Plain data with the paths of files in it, keys included, relative to `base`; absolute ones stay. That
    of a built-in task's data too: `gpt(data=shards)`."""
    if isinstance(data, dict):
        return {anchored(key, base): value if key == PROSE else anchored(value, base) for key, value in data.items()}
    if isinstance(data, list):
        return [anchored(value, base) for value in data]
    if not isinstance(data, str):
        return data
    return _with_data(_with_files(data, lambda path: _short(str(base / path))), base)


def named(data: Any) -> Iterator[str]:
    """The files that plain data name."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from named(key)
            yield from named(None if key == PROSE else value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from named(value)
    elif isinstance(data, str):
        found: list[str] = []

        def noted(path: str) -> str:
            found.append(path)
            return path

        _with_files(data, noted)
        yield from found


def contents(names: Iterable[str]) -> dict[str, bytes]:
    """What is in the files that tasks and classes are read from, by path as named: what workers elsewhere need.

    Args:
        names: of tasks and classes, those of no file among them too.

    Raises:
        UserError: a file cannot be read.
    """
    paths = {f"{path}.py" for path, colon, _ in (name.partition(".py:") for name in names) if colon}
    return {path: _content(path) for path in sorted(paths)}


def digests(paths: Iterable[str]) -> dict[str, str]:
    """Absolute path -> SHA-256 of the file, for those that can be read."""
    found = {str(Path(path).absolute()): _digest(path) for path in sorted(set(paths))}
    return {path: digest for path, digest in found.items() if digest is not None}


def changed(then: Mapping[str, str], since: str) -> Iterator[str]:
    """A line for each file that is not what it was.

    Args:
        then: as `digests` gave it.
        since: when that was, in words.
    """
    for path, digest in then.items():
        if (now := _digest(path)) is None:
            yield f"{path}: cannot be read any more; it was there when {since}"
        elif now != digest:
            yield f"{path}: has changed since {since}: results are not those of the file as it was"


def _with_files(text: str, change: Callable[[str], str]) -> str:
    """The same with other paths of files; those of rules may stand in compositions."""

    def changed(name: str) -> str:
        path = file_of(name)
        return name if path is None else change(path) + name[len(path) :]

    if ".rule" in text and text.endswith(")") and "\n" not in text:
        with suppress(RuleError):  # refused where it is read, with the key it stands under
            return renamed(text, changed)
    return changed(text)


def _with_data(task: str, base: Path) -> str:
    """A built-in task's name with the path in its option `data` relative to `base`."""
    if "data" not in task.partition("(")[2] or file_of(task):
        return task
    from tasks import options  # and with it torch, which other spaces do not wait for

    try:
        form, path = options.form_and_path(options.parse(task)[1].get("data", "none"))
    except ValueError:  # refused where the task is made
        return task
    if path == "none" or path.startswith("~"):
        return task
    return options.with_options(task, data=form + _short(str(base / path)))


def _short(path: str) -> str:
    """Without the steps back in it, where they lead to the same file: a link to a folder may be among them."""
    short = os.path.normpath(path)
    return short if os.path.realpath(short) == os.path.realpath(path) else path


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None


def _digest(path: str) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None
