"""Commands in README and docs are such as the command line takes, on rules, tasks and spaces that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import dsl
from discover import named_tasks, proposers
from discover.cli import app
from discover.space import Space

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "log.md")]
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_OF_THE_READER = re.compile(r"^[A-Z_]+$|\.py:|\.yaml|\.rule|^my_|@|^[\w.]+:\w+$|data=")
"""What stands for a rule, a task, a space or data of the reader's."""


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `discover` of each command on a page: what is shown as a line, and what is named in a text."""
    text = page.read_text()
    lines = "\n".join(_FENCED.findall(text)).replace("\\\n", " ").splitlines()
    shown = [line.removeprefix("$ ") for line in lines]
    named = re.findall(r"`([^`]*)`", _FENCED.sub("", text))
    for each in (*shown, *named):
        if each.startswith("discover ") and "\\|" not in each:
            plain = re.sub(r"\.\.\.|[][]", " ", re.sub(r"(--[\w-]+) \.\.\.", r"\1 HERE", each))
            words = shlex.split(plain, comments=True)[1:]
            yield words[: words.index(">")] if ">" in words else words


def test_there_are_commands_to_check() -> None:
    assert sum(len(words) > 1 for page in PAGES for words in commands(page)) > 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_what_the_command_line_takes(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in commands(page):
        name, *given = words
        command = group.commands[name]  # type: ignore[attr-defined]
        options = {spelling for each in command.params for spelling in (*each.opts, *each.secondary_opts)}
        assert {word for word in given if word.startswith("--")} <= options, words
        if given and (not given[0].startswith("--") or "--space" in given):  # else an option is named, and no more
            _check(command.make_context(name, given).params)


def _check(given: dict[str, object]) -> None:
    """Rules, tasks and spaces that are named are there."""
    for name in filter(_is_ours, _several(given.get("task"))):
        assert named_tasks.load(name)
    for name in filter(_is_ours, _several(given.get("space"))):
        assert Space.load(name)
    rules = (given.get(key) for key in ("rule", "baseline", "warm_start"))
    for name in filter(_is_ours, (each for several in rules for each in _several(several))):
        assert dsl.load(name)
    for name in _several(given.get("algorithm")):
        assert not _is_ours(name) or proposers.load(str(ROOT / name) if ".py:" in name else name)


def _is_ours(name: str) -> bool:
    return (ROOT / name.partition(":")[0]).is_file() or not _OF_THE_READER.search(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_benchmarks_are_there_and_have_the_options_that_are_shown(page: Path) -> None:
    for name, options in re.findall(r"python -m benchmarks\.(\w+)([^`|#]*)", page.read_text().replace("\\\n", " ")):
        source = (ROOT / "benchmarks" / f"{name}.py").read_text()
        for option in re.findall(r"--[a-z-]+", options.partition("\n")[0]):
            assert f'"{option}"' in source, (name, option)


def _several(given: object) -> list[str]:
    return (
        [given] if isinstance(given, str) else [str(each) for each in given] if isinstance(given, (list, tuple)) else []
    )
