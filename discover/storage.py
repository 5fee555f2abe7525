"""Where studies are kept: an Optuna storage with one writer. `optuna-dashboard` opens it."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from discover.errors import UserError
from dsl.library import registered_directory

LONGEST = 512
"""Letters of a study's name that Optuna's tables hold; SQLite alone does not mind more."""

SECRET = r"[^=&]*(?:password|passwd|passphrase|pwd|secret|token)[^=&]*|odbc_connect"
"""Keys of a URL's query whose values are nobody's business."""

EXPECTED = "expected sqlite:///FILE, or another database's URL, such as postgresql+psycopg://USER:PASSWORD@HOST/NAME"


def default_url() -> str:
    """A SQLite file beside the registered rules: in $DISCOVER_DATA_DIR, or the user's data directory."""
    return f"sqlite:///{registered_directory().parent.absolute() / 'studies.sqlite'}"


def public_url(url: str) -> str:
    """A URL as it is written down for others: a file by its absolute path, and no password."""
    file = _file_of(url)
    return masked(url) if file is None else f"sqlite:///{file.absolute()}"


def masked(url: str) -> str:
    """A URL as it is shown: itself, but for passwords. By its text, since one that cannot be parsed has them too; as
    SQLAlchemy reads it, to whom all from "USER:" to the first "@" is one, and on to a later "@" of the same address."""
    without = re.sub(r"(//[^/:@]*:)[^@]*@(?:[^?]*@)?", r"\1***@", url)
    return re.sub(rf"([?&](?:{SECRET})=)[^&]*", r"\1***", without, flags=re.IGNORECASE)


def as_typed(command: Sequence[str]) -> str:
    """A command as one line, to give it again; the password of its storage is left out."""
    words = []
    for word in command:
        option, equals, value = word.partition("=")
        words.append(f"{option}={masked(value)}" if equals and option == "--storage" else masked(word))
    return shlex.join(words)


class Store:
    """An Optuna storage with one writer. `optuna-dashboard URL` opens it.

    Args:
        url: as Optuna takes it, such as sqlite:///studies.sqlite; None keeps studies for this process only.

    Raises:
        UserError: no such storage, or another process writes there.
    """

    def __init__(self, url: str | None) -> None:
        self.url = url
        self._lock = _locked(url) if url and not _in_memory(url) else None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._errors():
            self._storage = _storage(url)
            self._known = {_digest(each.study_name): each._study_id for each in self._storage.get_all_studies()}
        """Digest -> number. One writer: nobody else adds to them."""
        self._ids: dict[str, int] = {}

    @property
    def folder(self) -> Path | None:
        """Where long trainings of these studies are kept: beside a SQLite file, else with the user's data."""
        if self.url is None:
            return None
        file = _file_of(self.url)
        return file.with_name(f"{file.name}.trainings") if file else registered_directory().parent / "trainings"

    def study(self, name: str, facts: Mapping[str, Any]) -> tuple[list[FrozenTrial], dict[str, Any]]:
        """The trials and attributes of a study, made if it is not there. Names count by their digest at the end."""
        with self._errors():
            if (known := self._known.get(_digest(name))) is not None:
                self._ids[name] = known
                return self._storage.get_all_trials(known), self._storage.get_study_user_attrs(known)
            short = name if len(name) <= LONGEST else name[: LONGEST - len(_digest(name))] + _digest(name)
            self._ids[name] = self._storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], short)
            self._known[_digest(name)] = self._ids[name]
            self._storage.set_study_user_attr(self._ids[name], "about", facts)
        return [], {}

    def add(self, name: str, trial: FrozenTrial) -> None:
        with self._errors():
            self._storage.create_new_trial(self._ids[name], template_trial=trial)

    def set(self, name: str, key: str, value: object) -> None:
        with self._errors():
            self._storage.set_study_user_attr(self._ids[name], key, value)

    def close(self) -> None:
        with self._errors():
            self._storage.remove_session()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except optuna.exceptions.DuplicatedStudyError:
            raise UserError(
                f"--storage {masked(self.url or '')}: another process, on another machine perhaps, writes there; wait"
                " for it, or name another storage"
            ) from None
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError, ImportError, ValueError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"--storage {masked(self.url or '')}: {_why(self.url or '', error)}") from None


def _why(url: str, error: BaseException) -> str:
    """What a database or its driver says, in one line and without the password."""
    cause = error.__cause__ or error
    if isinstance(cause, ModuleNotFoundError):
        return f"its driver, the Python package '{cause.name}', is not installed; install it, or name one that is"
    (line, *_), parsed = str(cause).strip().splitlines() or [type(cause).__name__], _parsed(url)
    if parsed is not None and parsed.password:
        line = line.replace(str(parsed.password), "***")
    return f"{masked(line)}; {EXPECTED}" if isinstance(cause, ArgumentError | ValueError) else masked(line)


def _digest(name: str) -> str:
    """The end of a study's name, which says all that its outcome depends on."""
    return name[name.rfind("[") :]


def _storage(url: str | None) -> optuna.storages.BaseStorage:
    if url is None or _file_of(url) is None:
        return optuna.storages.get_storage(url)
    found = optuna.storages.RDBStorage(url)

    def connected(connection: Any, record: object) -> None:
        """Commits that outlive the process, and need not outlive a power failure: ten times as fast."""
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    found.engine.dispose()
    event.listen(found.engine, "connect", connected)
    return found


def _parsed(url: str) -> URL | None:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # the second for a port that is no number
        return None


def _in_memory(url: str) -> bool:
    """Whether it is a database of this process alone."""
    parsed = _parsed(url)
    return parsed is not None and parsed.get_backend_name() == "sqlite" and _file_of(url) is None


def _file_of(url: str) -> Path | None:
    """The file of a SQLite URL; None for another database, and for one in memory."""
    parsed = _parsed(url)
    if parsed is None or parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(parsed.database)


def _locked(url: str) -> filelock.BaseFileLock:
    """SQLite stands one writer; two comparisons that train the same would waste their time with any storage. Seen is
    what writes from this machine; from another one, who makes the same study second is told."""
    file = _file_of(url)
    folder = file.parent if file else registered_directory().parent
    name = file.name if file else hashlib.sha256(url.encode()).hexdigest()[:12]
    lock = filelock.FileLock(folder / f"{name}.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"--storage {masked(url)}: another process writes there; wait for it, or name another file with --storage"
        ) from None
    except OSError as error:
        raise UserError(f"--storage {masked(url)}: cannot be written: {error.strerror}") from None
    return lock
