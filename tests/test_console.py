"""Laws of tables: nothing is lost, no word is broken, and no line is wider than the terminal."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from discover import cli
from discover.console import Rows

COMPARED = (
    ("rule", "loss", "vs adamw", "p", "speed-up", "to 3.28", "lr", "decay", "step", "bytes"),
    [
        line.split("|")
        for line in (
            "ema_nesterov(muon(adam_lr_ratio=1),gamma=0.9)|0.1514 ±0.0028, 3 of 24 lost|-33.4 % better|0.00031|1.23x|"
            "3250 (3100 to not reached)|0.07 (edge)|0.05|3.22x|10",
            "adamw|0.1514 ±0.0028||||3250 (3100 to 3400)|0.07|0.05|1200 us|8",
        )
    ],
)


def printed(columns: tuple[str, ...], rows: list[list[str]], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(Rows(columns, rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_a_table_breaks_no_word_loses_none_and_keeps_to_the_terminal(width: int) -> None:
    columns, rows = COMPARED
    text = printed(columns, rows, width)
    assert max(map(len, text.splitlines())) <= width
    for cell in (*columns, *rows[0], *rows[1]):
        for word in cell.split():
            assert f" {word} " in f" {text} ".replace("\n", " "), word
    assert len(text.splitlines()) == 3 or width < 200


WORDS = st.lists(st.text("ab[/]é", min_size=1, max_size=9), max_size=4).map(" ".join)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(WORDS, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_every_word_of_every_table_is_there(cells: list[list[str]]) -> None:
    found = printed(tuple(cells[0]), cells[1:], 40).split()
    for word in " ".join(" ".join(row) for row in cells).split():
        assert word in found


def test_a_word_that_is_wider_than_the_terminal_is_all_that_is_broken() -> None:
    text = printed(("rule", "loss"), [["x" * 90, "0.5 [red] ±0.1"]], 80)
    assert text.count("x") == 90
    assert "0.5" in text
    assert "±0.1" in text


def test_tasks_at_80_columns_have_whole_names_and_numbers_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["list", "tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert cli.main(["list", "tasks"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == [*rows[0]]
    for row in rows:
        name, bracket, options = row["task"].partition("(")
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
        for word in f"{bracket}{options}".split():
            assert word in out.split()
    assert " 5.5e7 " in out
    assert "000.0" not in out
