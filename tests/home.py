"""A folder to run commands in, where nothing of the machine's is read or written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def settle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes there; what is registered and tuned is kept there, runs too, and there is no compiler."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DISCOVER_DATA_DIR", str(folder / "data"))
    monkeypatch.delenv("DISCOVER_RUNS_DIR", raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """For each test of a module that imports it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    settle(tmp_path, monkeypatch)
    yield tmp_path
    torch.set_num_threads(before)
