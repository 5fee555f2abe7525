"""Laws of searches side by side: what is kept is not run again, and what a command prints is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import arms
from discover.space import Space

SPACE = """
name: tiny
ancestor: adamw
operators: [add, sub, mul, div, sign, lerp]
slots: [m, v]
max_statements: 20
proposals_per_generation: 24
tasks: {search: [breast_cancer], select: [wine_classification], final: [digits_mlp]}
learning_rates: {points: 3, factor: 3.0}
rungs: [{tasks: [breast_cancer], steps: 12}]
confirm: {every: 2, top: 2, most: 3}
compile: never
"""


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setattr("discover.artefact.have_compiler", lambda: False)
    path = tmp_path / "tiny.yaml"
    path.write_text(SPACE)
    return Space.load(str(path))


def run(space: Space, each: list[arms.Arm], kept: Path, seeds: int = 2) -> list[str]:
    said: list[str] = []
    arms.run("t", space, each, model_steps=2000, seeds=seeds, instances=1, kept=kept, say=said.append)
    return said


def test_what_is_kept_is_not_run_again(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept.jsonl"
    each = [arms.Arm("evolution", "evolution"), arms.Arm("no cache", changes={"cache": False})]
    said = run(space, each, kept)
    lines = kept.read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == 4
    search, seeds = arms.search, list[int]()

    def counted(*given: object, seed: int, **more: object) -> arms.Found:
        seeds.append(seed)
        return search(*given, seed=seed, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(arms, "search", counted)
    assert run(space, each, kept) == said
    assert not seeds
    kept.write_text("\n".join(lines[:1]) + "\n" + lines[1][:40])  # a kill in the middle of a line
    assert run(space, each[:1], kept) == said[:2]
    assert seeds == [1]
    as_it_is = run(space, [arms.Arm("as it is")], kept, seeds=1)
    assert as_it_is[0].partition(":")[2] == said[0].partition(":")[2]  # the same search under another name
    assert seeds == [1]
