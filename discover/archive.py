"""The archive: all that a search learned, in one SQLite file, one transaction a generation.

Rows are only ever added. What the same seed gives again on any machine is in the tables of `_TABLES`, which `digest`
reads; when, how long and by whom is in `timings` and `sessions`, and what befell workers and driver in `incidents`: it
leaves these out. The file can be read with any SQLite tool: numbers and text are columns, lists and mappings are JSON
in them, and `meta` holds the version of this layout.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from discover import plain
from discover.errors import ArchiveError
from discover.front import COSTS, Front, costs_of
from discover.records import (
    Candidate,
    Confirmation,
    Evaluation,
    Generation,
    GenerationRecord,
    Incident,
    Ranked,
    Totals,
)
from discover.standing import DOUBT, expected

FORMAT = 3
"""Version of the layout below; any other is refused, not guessed at."""

_SCHEMA = """
create table meta (key text primary key, value text not null);
create table generations (
    number integer primary key, proposed integer not null, rejected json not null, duplicates integer not null,
    trained integer not null, hurdles json not null, model_steps integer not null, best_fitness real,
    levels json not null, middles json not null);
create table candidates (
    id integer primary key, generation integer not null references generations, origin text not null,
    parents json not null, text text not null, structure text not null, behaviour text not null,
    status text not null check (status in ('trained', 'duplicate', 'diverged', 'timed_out', 'worker_lost')),
    reason text not null, duplicate_of integer references candidates, fitness real, rung integer,
    properties json not null);
create index candidates_generation on candidates (generation);
create index candidates_fitness on candidates (fitness) where status = 'trained';
create table evaluations (
    candidate integer references candidates, generation integer not null references generations,
    kind text not null check (kind in ('search', 'confirm', 'reference')), rung integer not null, task text not null,
    seed integer not null, loss_scale real not null, parameter_scale real not null, learning_rates json not null,
    losses json not null, best_lr real, loss real, reference_loss real, score real, model_steps integer not null,
    tensor_scales json not null, batch_size integer);
create index evaluations_generation on evaluations (generation);
create index evaluations_candidate on evaluations (candidate);
create table confirmations (
    candidate integer not null references candidates, generation integer not null references generations,
    fitness real, error real, count integer not null, luckless real, primary key (candidate, generation));
create table timings (
    generation integer primary key references generations, ended text not null, seconds json not null);
"""

_INCIDENTS = """
create table if not exists incidents (
    id integer primary key, at text not null, kind text not null, generation integer, text text not null)
"""
_SESSIONS = """
create table if not exists sessions (
    id integer primary key, at text not null, event text not null check (event in ('began', 'ended')),
    text text not null)
"""
"""These came later than the layout above: an archive without them gets them when it is opened for writing."""

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class _Table(Generic[Row]):
    """How a record is kept: a column for each field, some of them JSON, in an order that the record itself gives."""

    name: str
    record: Callable[..., Row]
    columns: tuple[str, ...]
    json: frozenset[str]
    generation: str
    order: Callable[[Any], tuple[Any, ...]]

    def pack(self, row: Row) -> list[Any]:
        return [
            _to_json(value) if name in self.json else plain.finite(value)
            for name, value in ((name, getattr(row, name)) for name in self.columns)
        ]

    def unpack(self, values: tuple[Any, ...]) -> Row:
        pairs = zip(self.columns, values, strict=True)
        return self.record(**{name: _from_json(value) if name in self.json else value for name, value in pairs})

    @property
    def select(self) -> str:
        return f"select {', '.join(self.columns)} from {self.name}"

    @property
    def insert(self) -> str:
        return f"insert into {self.name} ({', '.join(self.columns)}) values ({', '.join('?' * len(self.columns))})"


def _table(
    name: str, record: type[Row], json: str, order: Callable[[Any], tuple[Any, ...]], generation: str = "generation"
) -> _Table[Row]:
    columns = tuple(field.name for field in fields(record))  # type: ignore[arg-type]
    return _Table(name, record, columns, frozenset(json.split()), generation, order)


_GENERATIONS = _table(
    "generations", GenerationRecord, "rejected hurdles levels middles", lambda g: (g.number,), "number"
)
_CANDIDATES = _table("candidates", Candidate, "parents properties", lambda c: (c.id,))
_EVALUATIONS = _table(
    "evaluations",
    Evaluation,
    "learning_rates losses tensor_scales",
    lambda e: (
        *(e.kind, e.rung, e.task, e.seed, e.loss_scale, e.parameter_scale),
        *(e.tensor_scales, e.batch_size or 0),
        -1 if e.candidate is None else e.candidate,
    ),
)
_CONFIRMATIONS = _table("confirmations", Confirmation, "", lambda c: (c.candidate,))
_TABLES: tuple[_Table[Any], ...] = (_GENERATIONS, _CANDIDATES, _EVALUATIONS, _CONFIRMATIONS)


_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False)


def _to_json(value: Any) -> str:
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError):  # a mapping that is no dict; a number that is not finite
        return _ENCODER.encode(plain.ready(value))


def _from_json(text: str) -> Any:
    return _frozen(json.loads(text))


def _placed(rank: int, candidate: Candidate, fresh: Confirmation | None, usual: float) -> Ranked:
    hoped = None
    if fresh is not None and fresh.luckless is not None:
        hoped = expected(fresh.luckless, fresh.count, usual)
    return Ranked(rank, candidate, fresh, hoped)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


class Archive:
    """One run's archive. `create` and `open` give the run's one writer, `read` gives anyone a look, also meanwhile.

    Every method raises ArchiveError, in one line, where the file or the disk is at fault.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._totals: _Count | None = None
        self._front: Front | None = None

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, str] | None = None) -> Archive:
        """A new, empty archive. Raises ArchiveError if the file exists, or cannot be written."""
        if path.exists():
            raise ArchiveError(f"{path}: exists already")
        with _in_words(path):
            archive = cls(path, _connect(f"{_uri(path)}?mode=rwc"))
            archive._connection.execute("pragma journal_mode = wal")
            with archive._transaction():
                for statement in filter(str.strip, [*_SCHEMA.split(";"), _INCIDENTS, _SESSIONS]):
                    archive._connection.execute(statement)
                rows = [("format", str(FORMAT)), *sorted((meta or {}).items())]
                archive._connection.executemany("insert into meta values (?, ?)", rows)
        return archive

    @classmethod
    def open(cls, path: Path) -> Archive:
        """An existing archive, to go on writing. Whoever calls this holds the run's lock."""
        with _in_words(path):
            archive = cls(path, _connect(f"{_uri(path)}?mode=rw"))._checked()
            archive._connection.execute("pragma journal_mode = wal")
            archive._connection.execute(_INCIDENTS)
            archive._connection.execute(_SESSIONS)
        return archive

    @classmethod
    def read(cls, path: Path) -> Archive:
        """An existing archive, to look at, also while a search writes to it."""
        with _in_words(path):
            return cls(path, _connect(f"{_uri(path)}?mode=ro"))._checked()

    def _checked(self) -> Self:
        """Refuses what this cannot read."""
        try:
            found = self.meta().get("format")
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            found = None
        if found != str(FORMAT):
            self._connection.close()
            made_by = f"is of format {found}" if found else "is not an archive of discover"
            raise ArchiveError(f"{self.path}: {made_by}; this version reads format {FORMAT}")
        return self

    def close(self) -> None:
        """Leaves one plain file where this was the writer and nobody else is reading."""
        try:
            self._connection.execute("pragma journal_mode = delete")
        except sqlite3.Error:
            pass  # a reader is at it, or this is one: the log beside the file stays, and belongs to it
        finally:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Writing ------------------------------------------------------------------------------------------------------

    def commit_generation(self, generation: Generation, seconds: Mapping[str, float] | None = None) -> None:
        """Adds a generation: all of it, or, where anything goes wrong, nothing.

        Args:
            generation: the next one. Its rows may be in any order; they are kept in one of their own.
            seconds: phase -> seconds ("propose", "gate", "train", "store", "idle"); not part of the digest.

        Raises:
            ValueError: not the next generation.
            ArchiveError: the disk is full, or the file cannot be written.
        """
        totals, front = self._count(), self.pareto()
        number = generation.record.number
        if number != totals.generations:
            raise ValueError(f"generation {number} was committed where {totals.generations} comes next")
        with _in_words(self.path), self._transaction():
            rows = ((generation.record,), generation.candidates, generation.evaluations, generation.confirmations)
            for table, added in zip(_TABLES, rows, strict=True):
                ordered = sorted(added, key=table.order)
                self._connection.executemany(table.insert, map(table.pack, ordered))
            self._connection.execute(
                "insert into timings values (?, ?, ?)",
                (number, _now(), _to_json(dict(seconds or {}))),
            )
        totals.add(generation, seconds or {})
        for each in generation.candidates:
            if each.status == "trained" and each.fitness is not None:
                front.add(each.id, each.fitness, costs_of(each.properties))
        if generation.confirmations:
            front.usual = generation.record.usual
        for row in generation.confirmations:
            found = self.candidate(row.candidate)
            front.confirm(row.candidate, row.luckless, row.count, costs_of(found.properties if found else {}))

    def log(self, incidents: Sequence[Incident]) -> None:
        """Notes what befell the workers, at once, so that it is known whatever comes next."""
        at = _now()
        rows = [(at, each.kind, each.generation, each.text) for each in incidents]
        with _in_words(self.path), self._transaction():
            self._connection.executemany("insert into incidents (at, kind, generation, text) values (?, ?, ?, ?)", rows)

    def begin_session(self, facts: Mapping[str, Any] | None = None) -> str:
        """Notes that a search goes on from here, and facts about who goes on with it. Where the session before came to
        no end that it could note, as one that is killed does not, that is an incident, whose text this returns."""
        line = ""
        if (began := self.open_session()) is not None:
            stored = next(self._rows("select generation, ended from timings order by generation desc limit 1"), None)
            last = f"generation {stored[0]}, the last, was stored at {stored[1]}" if stored else "nothing was stored"
            line = f"the session that began at {began} noted no end: it was killed, or could not write; {last}"
            self.log([Incident("driver gone", line)])
        self._note_session("began", _to_json(facts) if facts else "")
        return line

    def end_session(self, reason: str) -> None:
        """Notes how a session ends, in a line."""
        self._note_session("ended", reason)

    def _note_session(self, event: str, text: str) -> None:
        with _in_words(self.path), self._transaction():
            self._connection.execute("insert into sessions (at, event, text) values (?, ?, ?)", (_now(), event, text))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("begin immediate")
        try:
            yield
            self._connection.execute("commit")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            raise

    # Reading ------------------------------------------------------------------------------------------------------

    def meta(self) -> dict[str, str]:
        """What was said of the archive when it was made, and `format`."""
        return dict(self._rows("select key, value from meta order by key"))

    def generations(self) -> Iterator[Generation]:
        """Every generation in the order of the search: what a resumed search absorbs again."""
        for record in self._records(_GENERATIONS, "order by number"):
            yield Generation(record, *(self._of(table, record.number) for table in _TABLES[1:]))

    def _of(self, table: _Table[Row], generation: int) -> tuple[Row, ...]:
        return tuple(self._records(table, f"where {table.generation} = ? order by rowid", generation))

    def candidate(self, id: int) -> Candidate | None:
        return next(self._records(_CANDIDATES, "where id = ?", id), None)

    def lineage(self, id: int | None) -> list[Candidate]:
        """A candidate and its ancestors along first parents, the oldest first."""
        found: list[Candidate] = []
        while id is not None and (candidate := self.candidate(id)) is not None:
            found.append(candidate)
            id = candidate.parents[0] if candidate.parents else None
        return found[::-1]

    def evaluations_of(self, candidate: int) -> tuple[Evaluation, ...]:
        """All evaluations of a candidate, in the order of the search."""
        return tuple(self._records(_EVALUATIONS, "where candidate = ? order by rowid", candidate))

    def confirmations_of(self, candidate: int) -> tuple[Confirmation, ...]:
        """How a candidate's standing on fresh instances developed."""
        return tuple(self._records(_CONFIRMATIONS, "where candidate = ? order by generation", candidate))

    def incidents(self) -> tuple[Incident, ...]:
        """What befell the workers, in the order in which it was noted."""
        if not self._has("incidents"):
            return ()
        rows = self._rows("select kind, text, generation, at from incidents order by id")
        return tuple(Incident(*row) for row in rows)

    def sessions(self) -> tuple[tuple[str, str, str], ...]:
        """When sessions began and ended: the time, "began" or "ended", and who goes on, as JSON, or why it ended. Not
        part of the digest."""
        return tuple(self._rows("select at, event, text from sessions order by id")) if self._has("sessions") else ()

    def sessions_until(self, generations: int) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """The sessions that began before the last of so many generations was stored: when, and what each noted of
        itself, which may be nothing."""
        if not self._has("sessions"):
            return ()
        rows = self._rows(
            "select at, text from sessions where event = 'began' and at <="
            " (select ended from timings where generation = ?) order by id",
            generations - 1,
        )
        return tuple((at, _from_json(text) if text else {}) for at, text in rows)

    def open_session(self) -> str | None:
        """When a session began that has not ended: one that runs, or was killed."""
        at, event, _ = next(iter(self.sessions()[-1:]), ("", "ended", ""))
        return at if event == "began" else None

    def _has(self, table: str) -> bool:
        return any(self._rows("select 1 from sqlite_master where name = ?", table))

    def timings(self) -> dict[int, dict[str, float]]:
        """Where the time of each generation went: phase -> seconds."""
        rows = self._rows("select generation, seconds from timings order by generation")
        return {generation: _from_json(text) for generation, text in rows}

    def leaderboard(self, count: int = 10) -> tuple[Ranked, ...]:
        """The first places: confirmed candidates by what is expected of them, then those not confirmed by their own.

        A candidate that failed on fresh instances has no place.
        """
        places: list[tuple[Candidate, Confirmation | None]] = []
        usual = self._usual()
        for row in self._confirmed(usual, count):
            places += [(each, row) for each in self._records(_CANDIDATES, "where id = ?", row.candidate)]
        others = self._records(
            _CANDIDATES,
            "where status = 'trained' and fitness is not null and id not in (select candidate from confirmations)"
            " order by fitness desc, id limit ?",
            count - len(places),
        )
        places += [(candidate, None) for candidate in others]
        return tuple(_placed(rank, *place, usual) for rank, place in enumerate(places, start=1))

    def _confirmed(self, usual: float, count: int = -1) -> Iterator[Confirmation]:
        """The latest that is known of each, by what it lets one expect; all of them for -1. In the order of
        `discover.standing.Confirmed`."""
        return self._records(
            _CONFIRMATIONS,
            "where luckless is not null and (candidate, generation) in"
            " (select candidate, max(generation) from confirmations group by candidate)"
            " order by ?1 + (luckless - ?1) * (count / (count + ?2)) desc, candidate limit ?3",
            *(usual, DOUBT, count),
        )

    def _usual(self) -> float:
        """The usual score when the last confirmed were scored."""
        last = self._records(_GENERATIONS, "where number = (select max(generation) from confirmations)")
        return next((record.usual for record in last), 0.0)

    def best(self) -> Ranked | None:
        """The head of the leaderboard."""
        return next(iter(self.leaderboard(1)), None)

    def pareto(self) -> Front:
        """Who is on the Pareto front; grows with each generation."""
        if self._front is None:
            self._front = front = Front()
            front.usual = self._usual()
            costs = ", ".join(f"json_extract(properties, '$.{name}')" for name in COSTS)
            rows = self._rows(f"select id, fitness, {costs} from candidates where status = 'trained'")
            for id, fitness, *own in rows:
                if fitness is not None:
                    front.add(id, fitness, costs_of(dict(zip(COSTS, own, strict=True))))
            rows = self._rows(
                f"select candidate, luckless, count, {costs} from confirmations c join candidates on id = candidate"
                " order by c.generation"
            )
            for id, luckless, count, *own in rows:
                front.confirm(id, luckless, count, costs_of(dict(zip(COSTS, own, strict=True))))
        return self._front

    def front(self) -> tuple[Ranked, ...]:
        """The confirmed candidates that no other of them beats in fitness, state and operations at once, then those
        not confirmed that would join them, each with its place on the leaderboard."""
        front = self.pareto()
        order = [row.candidate for row in self._confirmed(front.usual)]
        found = [self._ranked(id, order.index(id) + 1) for id in front.confirmed()]
        for id in front.others():
            before = (
                "select count(*) from candidates a, candidates b where b.id = ? and a.status = 'trained' and (a.fitness"
                " > b.fitness or a.fitness = b.fitness and a.id < b.id) and a.id not in (select candidate from"
                " confirmations)"
            )
            ((count,),) = self._rows(before, id)
            found.append(self._ranked(id, len(order) + count + 1))
        return tuple(found)

    def _ranked(self, id: int, rank: int) -> Ranked:
        candidate, fresh = self.candidate(id), self.confirmations_of(id)
        assert candidate is not None
        return _placed(rank, candidate, fresh[-1] if fresh else None, self.pareto().usual)

    def totals(self, generations: int | None = None) -> Totals:
        """The counts of the whole run.

        Args:
            generations: count so many, as if the search had ended there; None for all.
        """
        return (self._count() if generations is None else self._counted(generations)).totals()

    def _count(self) -> _Count:
        if self._totals is None:
            self._totals = self._counted(-1)
        return self._totals

    def _counted(self, limit: int) -> _Count:
        """So many generations, all for -1."""
        count = _Count()
        for record in self._records(_GENERATIONS, "where ?1 < 0 or number < ?1 order by number", limit):
            count.add_record(record)
        for (text,) in self._rows("select seconds from timings where ?1 < 0 or generation < ?1", limit):
            count.seconds.update(_from_json(text))
        distinct = "select behaviour from candidates where status != 'duplicate' and (?1 < 0 or generation < ?1)"
        count.behaviours.update(behaviour for (behaviour,) in self._rows(distinct, limit))
        return count

    def digest(self, generations: int | None = None) -> str:
        """SHA-256 of every result, in order: the same for the same search, however it was run, however long it took.

        Args:
            generations: read so many, as if the search had ended there; None for all.
        """
        digest, limit = hashlib.sha256(), -1 if generations is None else generations
        for table in _TABLES:
            digest.update(f"{table.name}\n".encode())
            until = f"where ? < 0 or {table.generation} < ?"
            for row in self._rows(f"{table.select} {until} order by {table.generation}, rowid", limit, limit):
                digest.update(f"{row!r}\n".encode())
        return digest.hexdigest()

    def _records(self, table: _Table[Row], where: str, *values: object) -> Iterator[Row]:
        return map(table.unpack, self._rows(f"{table.select} {where}", *values))

    def _rows(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        with _in_words(self.path), closing(self._connection.execute(query, values)) as cursor:
            yield from cursor


class _Count:
    """Totals that grow with each generation."""

    def __init__(self) -> None:
        self.generations = self.proposed = self.duplicates = self.trained = self.model_steps = 0
        self.rejected: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.behaviours: set[str] = set()

    def add(self, generation: Generation, seconds: Mapping[str, float]) -> None:
        self.add_record(generation.record)
        self.seconds.update(seconds)
        self.behaviours.update(c.behaviour for c in generation.candidates if c.status != "duplicate")

    def add_record(self, record: GenerationRecord) -> None:
        self.generations += 1
        self.proposed += record.proposed
        self.rejected.update(record.rejected)
        self.duplicates += record.duplicates
        self.trained += record.trained
        self.model_steps += record.model_steps

    def totals(self) -> Totals:
        return Totals(
            self.generations,
            self.proposed,
            dict(sorted(self.rejected.items())),
            self.duplicates,
            self.trained,
            len(self.behaviours),
            self.model_steps,
            dict(self.seconds),
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10.0)
    connection.execute("pragma foreign_keys = on")
    connection.execute("pragma synchronous = normal")
    return connection


def _uri(path: Path) -> str:
    return path.absolute().as_uri()


_WORDS = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space, then 'discover resume' goes on",
    sqlite3.SQLITE_READONLY: "no permission to write",
    sqlite3.SQLITE_PERM: "no permission",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; is the folder there, and yours to write?",
    sqlite3.SQLITE_NOTADB: "is not an archive of discover (not an SQLite file)",
    sqlite3.SQLITE_CORRUPT: "is damaged; 'sqlite3 archive.sqlite .recover' may save what is left",
    sqlite3.SQLITE_BUSY: "another process is writing to it",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
}


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """SQLite's complaints about file and disk in one line; complaints about a query are bugs and stay as they are."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        words = _WORDS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if words is None:
            raise
        raise ArchiveError(f"{path}: {words}") from error
