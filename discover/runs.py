"""Run folders: making, finding, locking and describing them.

A run is a folder with `manifest.json` (all that was asked for, so that resuming needs nothing else), `archive.sqlite`,
`best.rule`, and `lock`, which a search holds while it writes. The folder appears whole: it is made beside its place,
under a name that starts with a dot, and moved there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import dsl
from discover.archive import Archive
from discover.budget import UNLIMITED, Budget
from discover.errors import RunError, UserError
from discover.files import free, remove_empty, write_whole
from discover.manifest import MANIFEST, Configuration, Manifest, host, read_json, read_manifest, versions
from discover.own_files import changed
from discover.records import Ranked
from dsl.flatten import tidy
from dsl.parse import suggest
from dsl.program import Program

ARCHIVE, BEST, LOCK = "archive.sqlite", "best.rule", "lock"
PROMOTION, CERTIFICATE, READABLE, CERTIFIED = "promotion.json", "certificate.json", "certificate.md", "certified.rule"
"""Files of a run's folder; the second line is what a promotion adds."""

LOCK_SECONDS = 1.0
"""How long a locked run is waited for: whoever looks whether a search is running holds the lock for a moment."""


class Run:
    """A run that this process may write to, until it is closed."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        lock: TextIO,
        notes: Sequence[str] = (),
        resumed: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.manifest, self.notes, self.resumed = folder, manifest, tuple(notes), resumed
        """`notes` are lines for the user, such as a version that is not the one it was started with. `resumed` is what
        the archive is to keep of a session that goes on with a run: command, versions and host. Those of the first one
        are in the manifest."""
        self._lock = lock

    @property
    def name(self) -> str:
        return self.manifest.run

    @property
    def configuration(self) -> Configuration:
        return self.manifest.configuration

    @property
    def handle(self) -> str:
        """What to call it on the command line."""
        return handle(self.folder)

    @property
    def best_path(self) -> Path:
        return self.folder / BEST

    def archive(self) -> Archive:
        """The run's archive, to write to."""
        return Archive.open(self.folder / ARCHIVE)

    def write_best(self, best: Ranked) -> None:
        """Keeps the head of the leaderboard as a rule file."""
        write_whole(self.best_path, dsl.format(program_of(best, self.name)))

    def remove_if_empty(self) -> None:
        """Deletes the folder if nothing was learned: of a search that could not start, nothing is left."""
        with Archive.read(self.folder / ARCHIVE) as archive:
            empty = not archive.totals().generations
        if empty:
            shutil.rmtree(self.folder)

    def close(self) -> None:
        _unlock(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


# Making and resuming ------------------------------------------------------------------------------------------------


def create(configuration: Configuration, *, out: Path | None = None, command: Sequence[str] = ()) -> Run:
    """Makes a run's folder and locks it.

    Args:
        out: the folder, which must not exist or be empty; by default runs/SPACE-TIME-sSEED.
        command: how it was started, for the record.

    Raises:
        RunError: the folder is in use, or cannot be written; nothing is left behind.
    """
    now = datetime.now(UTC)
    folder = out or free(directory() / f"{configuration.space.name}-{now:%Y%m%d-%H%M%S}-s{configuration.seed}")
    if (folder / MANIFEST).exists():
        raise RunError(f"{folder}: holds a run already; 'discover resume {folder}' goes on with it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: exists and is not empty; name a new folder")
    name = folder.absolute().name
    manifest = Manifest(
        run=name,
        created=now.isoformat(timespec="seconds"),
        command=tuple(command),
        configuration=configuration,
        versions=versions(),
        host=host(),
        files=configuration.files(),
    )
    made = _missing_parents(folder)
    building = folder.with_name(f".{name}.{os.getpid()}")
    try:
        building.mkdir(parents=True)
        lock = _lock(building)
        Archive.create(building / ARCHIVE, {"space": configuration.space.name, "seed": str(configuration.seed)}).close()
        write_whole(building / MANIFEST, manifest.text())
        building.rename(folder)
    except (OSError, UserError) as error:
        shutil.rmtree(building, ignore_errors=True)
        for parent in made:
            remove_empty(parent)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(f"cannot make the run's folder '{folder}': {reason}") from None
    return Run(folder, manifest, lock)


def resume(
    text: str,
    *,
    budget: Budget = UNLIMITED,
    workers: int | None = None,
    ray_address: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
) -> Run:
    """Opens a run to go on with it, and locks it.

    Args:
        text: as for `find`.
        budget: a new one. With any limit in it the run's own holds no longer, without one what is left of that does.
        workers, ray_address, runtime_env: of this session; by default as before, but for a run that comes to a cluster,
            which then uses all of it.
        command: how this session was started, for the record.

    Raises:
        RunError: no such run, locked, of another version, not to be written, or its budget is used and none is given.
    """
    folder = find(text)
    manifest = read_manifest(folder)
    try:
        lock = _lock(folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from None
    asked = manifest.configuration
    try:
        with Archive.open(folder / ARCHIVE) as archive:
            totals = archive.totals()
        if not budget.limits:
            if spent := asked.budget.spent(totals):
                again = f"'discover resume {handle(folder)} --time 10m' goes on for longer"
                raise RunError(f"{folder}: {spent}; {again}")
            budget = asked.budget.after(totals.elapsed)
    except BaseException:
        _unlock(lock)
        raise
    configuration = replace(
        asked,
        budget=budget,
        workers=workers if workers is not None else None if ray_address is not None else asked.workers,
        ray_address=asked.ray_address if ray_address is None else ray_address,
        runtime_env=asked.runtime_env if runtime_env is None else runtime_env,
    )
    here = versions()
    notes = [
        f"{package} was {before} when the run was started and is {now} now: results may differ in their last bits"
        for package, now in here.items()
        if package != "ray"  # which carries results and makes none
        and (before := manifest.versions.get(package, "absent")) != now
    ]
    notes += changed(manifest.files, "the run was made")
    session = {"command": command, "versions": here, "host": host()}
    return Run(folder, replace(manifest, configuration=configuration), lock, notes, session)


def _lock(folder: Path) -> TextIO:
    lock = (folder / LOCK).open("a+", encoding="utf-8")
    until = time.monotonic() + LOCK_SECONDS
    while not _taken(lock):
        if time.monotonic() > until:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            who = f"process {holder}" if holder else "another process"
            raise RunError(f"{folder}: is in use by {who}; wait for its search to end, or stop it first")
        time.sleep(0.02)
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(lock: TextIO) -> None:
    """Gives a lock up, and takes this process out of it: nobody is to be told that it still holds the run."""
    if not lock.closed:
        lock.truncate(0)
        lock.close()


def is_running(folder: Path) -> bool:
    """Whether a search holds the run's lock."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _missing_parents(folder: Path) -> list[Path]:
    return [parent for parent in folder.absolute().parents if not parent.exists()]


# Finding and reading ------------------------------------------------------------------------------------------------


def directory() -> Path:
    """Where runs are: $DISCOVER_RUNS_DIR, or runs/ in the working directory."""
    return Path(os.environ.get("DISCOVER_RUNS_DIR") or "runs")


def folders() -> list[Path]:
    """The run folders in `directory()`, oldest first by what their manifests say; those of one second by name."""
    found = [path.parent for path in directory().glob(f"*/{MANIFEST}") if not path.parent.name.startswith(".")]
    return sorted(found, key=lambda folder: (_created(folder), folder.name))


def handle(folder: Path) -> str:
    """What `find` takes for this folder: its name if it is in `directory()`, else its path."""
    return folder.name if folder.absolute().parent == directory().absolute() else str(folder)


def find(text: str) -> Path:
    """A run's folder.

    Args:
        text: a path, a folder's name in runs/, a beginning of one that no other has, or "last".

    Raises:
        RunError: there is none, or more than one, or it is not a run.
    """
    there = folders()
    if text == "last":
        if not there:
            raise RunError(f"there is no run in '{directory()}' yet; 'discover search' makes one")
        return there[-1]
    for path in (Path(text), directory() / text):
        if (path / MANIFEST).is_file():
            return path
        if text and path.is_dir():
            raise RunError(f"{path}: is not a run (it has no {MANIFEST})")
    matches = [folder for folder in there if text and folder.name.startswith(text)]
    if len(matches) > 1:
        some = ", ".join(folder.name for folder in matches[:3]) + (", ..." if len(matches) > 3 else "")
        raise RunError(f"'{text}' is the beginning of {len(matches)} runs: {some}")
    if not matches:
        hint = suggest(text, [folder.name for folder in there])
        raise RunError(f"no run '{text}'{hint}; 'discover list runs' shows them")
    return matches[0]


def describe(folder: Path) -> dict[str, Any]:
    """A run in a few facts, for a list; none but its name and what is wrong where it cannot be read."""
    facts: dict[str, Any] = dict.fromkeys(
        ("run", "state", "trained", "best", "created", "incidents", "algorithm", "tasks")
    )
    try:
        manifest = read_manifest(folder)
        with Archive.read(folder / ARCHIVE) as archive:
            totals, best, state = archive.totals(), archive.best(), state_of(folder, archive)
            incidents = Counter(incident.kind for incident in archive.incidents())
    except UserError as error:
        return facts | {"run": folder.name, "state": f"cannot be read: {error}"}
    return facts | {
        "run": folder.name,
        "state": state,
        "trained": totals.trained,
        "best": fitness_in_words(best) if best else None,
        "created": manifest.created,
        "incidents": dict(incidents),
        "algorithm": manifest.configuration.algorithm,
        "tasks": list(dict.fromkeys(name for rung in manifest.configuration.space.rungs for name in rung.tasks)),
    }


def state_of(folder: Path, archive: Archive) -> str:
    """Whether a run's search is running, was stopped (or is over), or is gone without a word: "killed"."""
    return "running" if is_running(folder) else "stopped" if archive.open_session() is None else "killed"


def place_of(reference: str) -> tuple[Path, Ranked]:
    """A run's folder, and a place of its leaderboard.

    Args:
        reference: "RUN@K", K from 1; RUN as for `find`.

    Raises:
        RunError: no such run, or no such place.
    """
    run, _, place = reference.rpartition("@")
    if not run or not place.isdigit() or int(place) < 1:
        raise RunError(f"'{reference}' is not RUN@K, for example last@1")
    folder = find(run)
    read_manifest(folder)
    with Archive.read(folder / ARCHIVE) as archive:
        places = archive.leaderboard(int(place))
    if len(places) < int(place):
        have = f"its leaderboard has {len(places)} places" if places else "it has trained nothing yet"
        raise RunError(f"{folder}: has no rank {place}; {have}")
    return folder, places[-1]


def program_of(ranked: Ranked, run: str) -> Program:
    """The program at a place, tidied for reading, with where it comes from as its documentation."""
    program = tidy(dsl.parse(ranked.candidate.text, f"{run}@{ranked.rank}"))
    return replace(
        program, doc=f"Found by discover: run {run}, rank {ranked.rank}, fitness {fitness_in_words(ranked)}."
    )


def fitness_in_words(ranked: Ranked) -> str:
    """The fitness and how far it can be trusted: "+0.041 +- 0.008 (8 fresh evaluations)"."""
    if ranked.fitness is None:
        return "none"
    if ranked.confirmation is None:
        return f"{ranked.fitness:+.3f} (not confirmed)"
    error, count = ranked.confirmation.error, ranked.confirmation.count
    spread = "" if error is None else f" +- {error:.3f}"
    return f"{ranked.fitness:+.3f}{spread} ({count} fresh evaluation{'' if count == 1 else 's'})"


def _created(folder: Path) -> str:
    try:
        return str(read_json(folder / MANIFEST).get("created", ""))
    except RunError:
        return ""
