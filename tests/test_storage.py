"""Laws of storages that are no SQLite files: a database's URL is Optuna's business and reaches it as it is, what is
kept there goes on as it does in a file, and its password is written down nowhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from discover import cli
from discover.errors import UserError
from discover.storage import LONGEST, Store
from discover.studies import TuningBudget
from tests.home import home
from tests.stored import dying, stored
from tests.test_promote import a_run, adam
from tests.test_tuning import SMALL, tuned

__all__ = ["home"]

SECRET = "hunter2"
URL = f"other+driver://me:{SECRET}@there:1234/studies"


class Elsewhere(SQLiteDialect_pysqlite):
    """A stand-in for a database server: it is reached by user, password, host and name, as one is, and is no file as
    far as a URL says. Behind it is SQLite, in a file of the name."""

    supports_statement_cache = True

    def create_connect_args(self, url: sqlalchemy.URL) -> Any:
        assert (url.username, url.password, url.host, url.port) == ("me", SECRET, "there", 1234)
        return [f"{url.database}.elsewhere"], {"check_same_thread": False}


registry.register("other.driver", __name__, "Elsewhere")


@pytest.mark.parametrize("after", [2, 5])
def test_studies_in_another_database_go_on_and_are_used_again(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", dying(after))
        with pytest.raises(KeyboardInterrupt):
            tuned("adamw", url=URL)
    before = stored(URL)
    assert [len(trials) for trials in before.values()] == [after]
    assert tuned("adamw", url=URL) == tuned("adamw")
    ((name, trials),) = stored(URL).items()
    assert trials[:after] == before[name]
    assert len(trials) == SMALL.trials
    with monkeypatch.context() as patch:
        patch.setattr("discover.tuning.train", lambda *_, **__: pytest.fail("trains again"))
        assert tuned("adamw", url=URL) == tuned("adamw", url=URL)
    assert not Path("studies").exists()
    assert Path("studies.elsewhere").exists()


def test_a_url_reaches_optuna_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Kept(optuna.storages.RDBStorage):
        def __init__(self, url: str, *rest: Any, **options: Any) -> None:
            given.append((url, rest, options))
            super().__init__("sqlite://")

    monkeypatch.setattr(optuna.storages, "RDBStorage", Kept)
    urls = ["postgresql+psycopg2://me:s%40cret@there/db?connect_timeout=3", "mysql+pymysql://me:se/cret@there:3306/db"]
    for url in urls:
        Store(url).close()
    assert given == [(url, (), {}) for url in urls]


@pytest.mark.parametrize(
    ("kind", "package"), [("postgresql+psycopg2", "psycopg2"), ("mysql+pymysql", "pymysql"), ("oracle", "oracledb")]
)
def test_a_driver_that_is_not_installed_is_one_line_and_nothing_is_left(
    kind: str, package: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for command in ("compare lion --task quadratic", "calibrate --space lion_like", "promote found"):
        if "promote" in command:
            a_run([adam()])
        url = f"{kind}://me:{SECRET}@there/db"
        assert cli.main([*command.split(), "--workers", "0", "--storage", url]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"discover: --storage {kind}://me:***@there/db: its driver, the Python package '{package}', is not"
            " installed; install it, or name one that is"
        )
    assert not list(home.rglob("compare*"))
    assert mentions(home) == []


@pytest.mark.parametrize("url", ["nonsense", "journal.log", "nosql://me:hunter2@there/db", "redis://me:hunter2@there"])
def test_what_is_no_database_is_told_what_one_is(url: str) -> None:
    with pytest.raises(UserError, match=r"; expected sqlite:///FILE, or another database's URL, such as ") as raised:
        Store(url)
    assert SECRET not in str(raised.value)


def test_what_a_driver_says_is_shown_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: Elsewhere, *_: object, **__: object) -> None:
        raise sqlalchemy.exc.OperationalError(None, None, ValueError(f"no entry for me with {SECRET}\nmore of it"))

    monkeypatch.setattr(Elsewhere, "connect", refuses)
    with pytest.raises(UserError) as raised:
        Store(URL)
    assert str(raised.value).startswith("--storage other+driver://me:***@there:1234/studies: ")
    assert str(raised.value).endswith("no entry for me with ***")


@pytest.mark.slow
def test_a_password_is_in_no_file_of_a_comparison_and_a_promotion_nor_on_the_screen(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "compare sgd --task breast_cancer --trials 2 --tunings 2 --seeds 2 --tuning-seeds 1 --steps 6 --out compared"
    folder = a_run([adam()])
    for command in (
        line,
        f"{line}2 --json",
        "promote found",
        "promote found --json",
        "verify found --sample 1 --tune 1",
    ):
        where = [] if "verify" in command else ["--storage", URL]
        assert cli.main([*command.split(), "--workers", "0", *where]) == 0
        captured = capsys.readouterr()
        assert SECRET not in captured.out + captured.err
    assert mentions(home) == []
    shown = "other+driver://me:***@there:1234/studies"
    for name in (folder / "certificate.json", folder / "certificate.md", Path("compared/compare.json")):
        assert shown in name.read_text()


def mentions(folder: Path) -> list[Path]:
    """Files that have the password."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_databases_in_memory_are_their_processes_own() -> None:
    first, second = Store("sqlite://"), Store("sqlite:///:memory:")
    for store in (first, second):
        assert tuned("adamw") == tuned("adamw", url="sqlite://")
        store.close()


def test_a_name_that_is_too_long_for_a_table_keeps_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    from discover.studies import Study

    identity = Study._identity

    def long(self: Study) -> tuple[str, dict[str, Any]]:
        name, facts = identity(self)
        return "x" * LONGEST + name, facts

    monkeypatch.setattr(Study, "_identity", long)
    budget = TuningBudget(trials=3, seeds=1, fresh=1)
    found = tuned("adamw", budget, url=URL)
    ((name, trials),) = stored(URL).items()
    assert (len(name), name[-1], len(trials)) == (LONGEST, "]", 3)
    monkeypatch.setattr("discover.tuning.train", lambda *_, **__: pytest.fail("trains again"))
    assert tuned("adamw", budget, url=URL) == found
