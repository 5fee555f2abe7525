"""The archive keeps generations, whole or not at all, in one order; and says in a line what is wrong with its file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from discover.archive import Archive
from discover.errors import ArchiveError
from discover.records import (
    Candidate,
    Confirmation,
    Evaluation,
    Generation,
    GenerationRecord,
)
from discover.standing import Confirmed, expected
from tests.fresh import confirmed


def candidate(id: int, generation: int = 0, **facts: Any) -> Candidate:
    plain = {
        "origin": "insert u = sign(u)",
        "parents": (id - 1,) if id else (),
        "text": "def rule(p, g, *, lr=0.1):\n    p = p - lr * g\n",
        "structure": f"s{id}",
        "behaviour": f"b{id}",
        "status": "trained",
        "fitness": 0.1 * id,
        "rung": 1,
        "properties": {"state_bytes": 8.0, "length": 3, "degree": None, "odd": True, "name": "x"},
    }
    return Candidate(id, generation, **{**plain, **facts})


def evaluation(id: int | None, generation: int = 0, **facts: Any) -> Evaluation:
    plain = {
        "kind": "search" if id is not None else "reference",
        "rung": 0,
        "task": "digits_mlp",
        "seed": 2**31 - 1,
        "loss_scale": 0.01,
        "parameter_scale": 100.0,
        "learning_rates": (1e-3, 2e-3, 4e-3),
        "losses": ((0.5, None), (0.25, 1e-300), (1 / 3, 0.1)),
        "best_lr": 2.1e-3,
        "loss": 0.1 + 0.2,
        "reference_loss": 0.31,
        "score": 0.03,
        "model_steps": 600,
    }
    return Evaluation(id, generation, **{**plain, **facts})


def generation(number: int, ids: range | None = None, **facts: Any) -> Generation:
    ids = ids if ids is not None else range(10 * number, 10 * number + 3)
    record = GenerationRecord(
        number, 10, {"not odd": 4, "ill typed": 1}, 2, len(ids), (0.5, None), 1234, 0.2, (None, 0.1), (0.3, None)
    )
    evaluations = (evaluation(None, number), *(evaluation(id, number) for id in ids))
    confirmations = tuple(confirmed(id, number, 0.05, 0.01, 3) for id in ids[:1])
    made = Generation(record, tuple(candidate(id, number) for id in ids), evaluations, confirmations)
    return replace(made, **facts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.sqlite"


@pytest.fixture
def archive(path: Path) -> Any:
    with Archive.create(path, {"space": "lion_like", "seed": "0"}) as archive:
        yield archive


# What is written is read ----------------------------------------------------------------------------------------


def test_generations_read_are_the_generations_written(archive: Archive, path: Path) -> None:
    written = [generation(number) for number in range(4)]
    for each in written:
        archive.commit_generation(each)
    assert list(archive.generations()) == written
    archive.close()
    with Archive.read(path) as again:
        assert list(again.generations()) == written
        assert again.meta() == {"format": "3", "space": "lion_like", "seed": "0"}
        assert again.candidate(11) == written[1].candidates[1]
        assert again.candidate(9) is None
        assert again.evaluations_of(11) == (written[1].evaluations[2],)
        assert again.confirmations_of(10) == written[1].confirmations


@pytest.mark.parametrize("lost", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_read_as_none(archive: Archive, lost: float) -> None:
    row = evaluation(None, losses=((lost,), (1.0,)), loss=lost, score=lost)
    archive.commit_generation(generation(0, evaluations=(row,)))
    (read,) = next(archive.generations()).evaluations
    assert read == replace(row, losses=((None,), (1.0,)), loss=None, score=None)


def test_rows_are_kept_in_one_order_whatever_the_order_they_came_in(archive: Archive, tmp_path: Path) -> None:
    one = generation(0)
    archive.commit_generation(one)
    other = replace(one, candidates=one.candidates[::-1], evaluations=one.evaluations[::-1])
    with Archive.create(tmp_path / "other.sqlite") as second:
        second.commit_generation(other)
        assert second.digest() == archive.digest()
        assert list(second.generations()) == [one]


# The digest ----------------------------------------------------------------------------------------


def digest_of(generation: Generation, seconds: dict[str, float] | None = None) -> str:
    with Archive.create(Path("x.sqlite")) as archive:
        archive.commit_generation(generation, seconds)
        digest = archive.digest()
    Path("x.sqlite").unlink()
    return digest


def test_digest_does_not_depend_on_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert digest_of(generation(0), {"train": 1.0}) == digest_of(generation(0), {"train": 2.0, "idle": 3.0})


CHANGED = {str: "changed", int: 7, float: 0.123, tuple: (0.5,), type(None): 5, dict: {"a": 1}}
SPECIAL = {"status": "diverged", "kind": "confirm", "duplicate_of": 0, "candidate": 1}
FIELDS = [
    (table, field.name)
    for table, record in (
        ("candidates", Candidate),
        ("evaluations", Evaluation),
        ("confirmations", Confirmation),
        ("record", GenerationRecord),
    )
    for field in fields(record)
    if field.name not in ("generation", "number")
]


@pytest.mark.parametrize(("table", "field"), FIELDS)
def test_digest_depends_on_every_result(
    table: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = generation(0)
    rows = getattr(whole, table)
    row = rows if table == "record" else rows[-1]
    value = SPECIAL.get(field, CHANGED[type(getattr(row, field))])
    changed = replace(row, **{field: value})
    assert changed != row
    after = replace(whole, **{table: changed if table == "record" else (*rows[:-1], changed)})
    if (table, field) == ("candidates", "id"):
        after = replace(after, evaluations=whole.evaluations[:-1])
    assert digest_of(after) != digest_of(whole)


# All or nothing ----------------------------------------------------------------------------------------


def test_a_failed_commit_leaves_nothing(archive: Archive) -> None:
    archive.commit_generation(generation(0))
    before = archive.digest(), archive.totals()
    with pytest.raises(sqlite3.IntegrityError):
        archive.commit_generation(generation(1, range(2, 5)))  # candidate 2 is there already
    assert (archive.digest(), archive.totals()) == before
    archive.commit_generation(generation(1))
    assert archive.totals().generations == 2


def test_a_process_killed_in_the_middle_of_a_commit_loses_that_generation_only(path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from discover.archive import _EVALUATIONS, Archive
from tests.test_archive import generation
archive = Archive.create(Path(sys.argv[1]))
archive.commit_generation(generation(0))
class Deadly:
    def __getattr__(self, name): os._exit(9)
second = generation(1)
archive.commit_generation(generation(1, confirmations=(Deadly(),)))
"""
    root = Path(__file__).parent.parent
    killed = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, check=False)
    assert killed.returncode == 9
    with Archive.open(path) as archive:
        assert list(archive.generations()) == [generation(0)]
        archive.commit_generation(generation(1))


def test_only_the_next_generation_is_committed(archive: Archive) -> None:
    with pytest.raises(ValueError, match="generation 1 was committed where 0 comes next"):
        archive.commit_generation(generation(1))


def test_a_reader_sees_whole_generations_while_the_writer_goes_on(archive: Archive, path: Path) -> None:
    archive.commit_generation(generation(0))
    with Archive.read(path) as reader:
        assert reader.totals().generations == 1
        archive.commit_generation(generation(1))
        assert len(list(reader.generations())) == 2


def test_a_closed_archive_is_one_plain_file(archive: Archive, path: Path) -> None:
    archive.commit_generation(generation(0))
    archive.close()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


# Totals and leaderboard ----------------------------------------------------------------------------------------


def test_totals_are_the_same_kept_or_counted_anew(archive: Archive, path: Path) -> None:
    for number in range(3):
        duplicate = candidate(10 * number + 9, number, status="duplicate", duplicate_of=0, behaviour="b0", fitness=None)
        whole = generation(number)
        archive.commit_generation(replace(whole, candidates=(*whole.candidates, duplicate)), {"idle": 0.5, "train": 2})
    kept = archive.totals()
    archive.close()
    with Archive.read(path) as again:
        assert again.totals() == kept
    assert (kept.proposed, kept.trained, kept.distinct, kept.duplicates) == (30, 9, 9, 6)
    assert kept.rejected == {"ill typed": 3, "not odd": 12}
    assert kept.seconds == {"idle": 1.5, "train": 6}
    assert kept.elapsed == 1.5


def test_totals_of_the_first_generations_are_those_of_an_archive_that_ended_there(archive: Archive) -> None:
    then = []
    for number in range(3):
        then.append(archive.totals())
        archive.commit_generation(generation(number), {"idle": 0.5, "train": 2})
    then.append(archive.totals())
    assert [archive.totals(generations) for generations in range(4)] == then


def test_sessions_that_began_after_a_generation_was_stored_had_no_part_in_it(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = count()
    monkeypatch.setattr("discover.archive._now", lambda: f"{next(times):03}")
    archive.begin_session()
    archive.commit_generation(generation(0))
    for facts in ({"command": ["discover", "resume"]}, {"command": []}):
        archive.begin_session(facts)
        archive.end_session("interrupted")
    archive.commit_generation(generation(1))
    archive.begin_session({"command": ["too late"]})
    noted = [{}, {"command": ["discover", "resume"]}, {"command": []}]
    assert [facts for _, facts in archive.sessions_until(1)] == noted[:1]
    assert [facts for _, facts in archive.sessions_until(2)] == noted


def test_leaderboard_ranks_confirmed_candidates_first_and_drops_those_that_failed(archive: Archive) -> None:
    rows = tuple(
        candidate(id, fitness=fitness, status=status)
        for id, fitness, status in [
            (0, 0.9, "trained"),  # confirmed low
            (1, 0.1, "trained"),  # confirmed high
            (2, 0.8, "trained"),  # never confirmed
            (3, 0.7, "trained"),  # failed on fresh instances
            (4, -1.0, "diverged"),
            (5, 0.8, "trained"),  # never confirmed, later
        ]
    )
    first = (confirmed(0, 0, 0.9, None, 1), confirmed(1, 0, 0.05, None, 1), confirmed(3, 0, None, None, 1))
    archive.commit_generation(generation(0, range(0), candidates=rows, confirmations=first))
    later = (confirmed(0, 1, 0.01, 0.002, 2), confirmed(1, 1, 0.06, 0.001, 2))
    archive.commit_generation(generation(1, range(0), confirmations=later))
    board = archive.leaderboard(10)
    assert [ranked.candidate.id for ranked in board] == [1, 0, 2, 5]
    assert [ranked.rank for ranked in board] == [1, 2, 3, 4]
    assert [ranked.fitness for ranked in board] == [0.06, 0.01, 0.8, 0.8]
    assert board[0].confirmation == later[1]
    assert board[2].confirmation is None
    assert archive.leaderboard(1) == board[:1]
    assert archive.best() == board[0]


def test_few_fresh_scores_are_no_advantage_and_no_handicap(archive: Archive) -> None:
    """What others usually come to is expected of who has few: one score of 0.3 is neither 0.3 nor next to nothing."""
    rows = tuple(candidate(id) for id in range(4))
    given = [(-0.4, None, 1), (0.12, 0.01, 8), (0.13, None, 1), (0.3, None, 1)]
    fresh = tuple(confirmed(id, 0, *each) for id, each in enumerate(given))
    done = generation(0, range(0), candidates=rows, confirmations=fresh)
    archive.commit_generation(done)
    assert done.record.usual == 0.1
    assert [ranked.candidate.id for ranked in archive.leaderboard(4)] == [3, 1, 2, 0]
    standing = Confirmed()
    standing.add(done)
    assert [each.candidate for each in standing.in_order()] == [3, 1, 2, 0]
    assert 0.1 < expected(0.13, 1, 0.1) < expected(0.13, 8, 0.1) < 0.13
    assert expected(-0.4, 1, 0.1) == pytest.approx(-0.1)


def test_the_luck_of_a_generation_is_how_far_its_middles_are_above_the_levels() -> None:
    """On a rung where nobody was scored as on the one before it; before there is a level there is none."""
    levels, middles = (0.1, None, 0.3, 0.2), (0.15, 0.4, None, 0.1)
    record = GenerationRecord(0, 10, {}, 0, 5, (), 0, None, levels, middles)
    assert record.luck == pytest.approx((0.05, 0.0, 0.0, -0.1))
    assert replace(record, middles=(0.15, None, None, None)).luck == pytest.approx((0.05, 0.05, 0.05, 0.05))
    assert record.usual == 0.2
    assert replace(record, levels=(0.1, None), middles=(None, None)).usual == 0.0


def test_an_empty_archive_has_no_leaderboard(archive: Archive) -> None:
    assert archive.leaderboard() == ()
    assert archive.best() is None


# Files that are not right ----------------------------------------------------------------------------------------


def not_sqlite(path: Path) -> None:
    path.write_text("hello " * 1000)


def other_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table x (y)")


def other_format(path: Path) -> None:
    Archive.create(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("update meta set value = '7' where key = 'format'")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be opened"),
        (not_sqlite, "not an SQLite file"),
        (other_sqlite, "is not an archive of discover; this version reads format 3"),
        (other_format, "is of format 7; this version reads format 3"),
    ],
)
@pytest.mark.parametrize("how", [Archive.read, Archive.open])
def test_what_is_no_archive_is_refused_in_one_line(how: Any, make: Any, message: str, path: Path) -> None:
    make(path)
    with pytest.raises(ArchiveError, match=message) as error:
        how(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_an_archive_is_not_created_over_another(archive: Archive, path: Path) -> None:
    with pytest.raises(ArchiveError, match="exists already"):
        Archive.create(path)


def test_a_full_disk_is_said_in_one_line_and_nothing_is_half_written(archive: Archive, path: Path) -> None:
    archive.commit_generation(generation(0))
    before = archive.digest()
    (pages,) = archive._connection.execute("pragma page_count").fetchone()
    archive._connection.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(ArchiveError, match="the disk is full; free some space, then 'discover resume' goes on"):
        archive.commit_generation(generation(1, range(100, 400)))
    assert archive.digest() == before
