"""Searches that are done, kept in a file so that none is run twice: a line of JSON for each.

A line says which search it was by everything that decides one, each key of the space written out: so it is known again
whatever has become of the rest of the space, and keys that came later have their defaults in it. Whoever changes what a
default does writes the old way into the lines that are kept. The engine's version decides nothing; the commit is for
the reader.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from discover.errors import SpaceError
from discover.space import Space

ROOT = Path(__file__).parent.parent

ASIDE = ("name", "description", "algorithm", "budget", "calibration", "promote", "warm_starts")
"""Keys of a space that neither a search of given algorithm and model steps depends on, nor its scores. `tasks.final` is
another."""


def search(
    space: Space, algorithm: str | None, *, model_steps: float, seed: int, shares: Sequence[float], **more: Any
) -> dict[str, Any]:
    """All that decides a search, as plain data; `more` is what decides its scores beside that."""
    return {
        "space": _deciding(space),
        "algorithm": (algorithm or space.algorithm).removeprefix(f"{ROOT}/"),
        "model_steps": round(model_steps),
        "seed": seed,
        "shares": list(shares),
        **more,
    }


class Evidence:
    """The lines of a file, or none; what is kept is there for good.

    Attributes:
        taken: commit -> how many searches were found in the file, and so were not run now.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._lines = {_key(line["search"]): line for line in map(_read, lines) if line is not None}
        self.taken: Counter[str] = Counter()

    def find(self, search: Mapping[str, Any]) -> dict[str, Any] | None:
        line = self._lines.get(_key(search))
        if line is not None:
            self.taken[str(line["commit"])] += 1
        return line

    def said(self) -> Iterator[str]:
        """By which commits searches were run that were not run now: the engine may do otherwise since."""
        for commit, count in self.taken.items():
            yield f"{count} of these searches were kept, and run by commit {commit}"

    def keep(self, search: Mapping[str, Any], **found: Any) -> dict[str, Any]:
        """Adds a line, and gives it."""
        line = json.dumps({**found, "commit": _commit(), "search": search})
        if self._path is not None:
            cut_short = self._path.exists() and not self._path.read_text().endswith("\n")
            with self._path.open("a") as file:
                file.write("\n" * cut_short + line + "\n")
        kept: dict[str, Any] = json.loads(line)
        self._lines[_key(search)] = kept
        return kept


def _read(line: str) -> dict[str, Any] | None:
    try:
        read: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None  # a kill cut it short
    return read


def _deciding(space: Space) -> dict[str, Any]:
    """With files of this project relative to it, wherever it stands."""
    plain = space.model_dump(mode="json", exclude={**dict.fromkeys(ASIDE, True), "tasks": {"final"}})
    relative: dict[str, Any] = json.loads(json.dumps(plain, ensure_ascii=False).replace(f"{ROOT}/", ""))
    return relative


def _key(search: Mapping[str, Any]) -> str:
    """The search with today's defaults for the keys that it does not have; of a space that cannot be read any more, as
    it is."""
    try:
        space = _deciding(Space.of({"name": "kept", **search["space"]}, "kept"))
    except SpaceError:
        space = search["space"]
    return json.dumps({**search, "space": space}, sort_keys=True)


def _commit() -> str | None:
    """The commit that is checked out, "-dirty" if files differ from it; None where there is no git."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    print("a library: what `python -m benchmarks.rediscovery`, and others by `benchmarks.arms`, keep of searches")
