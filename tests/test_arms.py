"""Laws of searches side by side: what is kept is not run again, and what a command prints is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import arms, evidence, rediscovery
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
    assert len(lines) == len({json.dumps(json.loads(line)["search"]) for line in lines}) == 4
    search, seeds = arms.search, list[int]()

    def counted(*given: object, seed: int, **more: object) -> arms.Found:
        seeds.append(seed)
        return search(*given, seed=seed, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(arms, "search", counted)
    assert run(space, each, kept) == said
    assert not seeds
    kept.write_text("\n".join(lines[:1]) + "\n" + lines[1][:40])  # a kill in the middle of a line
    assert (
        [line.partition(" (")[0] for line in run(space, each[:1], kept)]
        == [  # but for how long it took
            line.partition(" (")[0] for line in said[:2]
        ]
    )
    assert seeds == [1]
    as_it_is = run(space, [arms.Arm("as it is")], kept, seeds=1)
    assert as_it_is[0].partition(":")[2] == said[0].partition(":")[2]  # the same search under another name
    assert seeds == [1]


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "what is promoted": ({"promote": {"top": 2}}, True),
    "its name": ({"name": "small", "description": "The same."}, True),
    "its budget": ({"budget": {"time": "9m"}}, True),
    "final tasks": ({"tasks": {"final": []}}, True),
    "its algorithm, where the arm has one": ({"algorithm": "random"}, True),
    "mutation": ({"mutation": {"delete": 2.0}}, False),
    "select tasks, which score": ({"tasks": {"select": ["diabetes_regression"]}}, False),
    "a search task's length": ({"rungs": [{"tasks": ["breast_cancer"], "steps": 13}]}, False),
}


def line_of(space: Space, **more: Any) -> dict[str, Any]:
    return evidence.search(space, "evolution", model_steps=2000, seed=0, shares=(1.0,), **more)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_is_known_by_what_decides_a_search_alone(change: str, space: Space, tmp_path: Path) -> None:
    what, known = CHANGES[change]
    evidence.Evidence(tmp_path / "kept.jsonl").keep(line_of(space), scores=[1.0])
    again = evidence.Evidence(tmp_path / "kept.jsonl")
    assert again.find(line_of(space))
    assert [line.partition(", ")[0] for line in again.said()] == ["1 of these searches were kept"]
    assert bool(again.find(line_of(space.changed(what)))) is known
    assert again.find(line_of(space, instances=2)) is None


def test_a_key_that_came_later_has_its_default_in_what_was_kept_before(space: Space, tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    line = evidence.Evidence(kept).keep(line_of(space), scores=[1.0])
    del line["search"]["space"]["cache"], line["search"]["space"]["evolution"]["rejoin"]
    line["search"]["space"]["evolution"]["a_key_of_old"] = 1
    kept.write_text(json.dumps(line) + "\n")
    assert evidence.Evidence(kept).find(line_of(space)) is None
    del line["search"]["space"]["evolution"]["a_key_of_old"]
    kept.write_text(json.dumps(line) + "\n")
    assert evidence.Evidence(kept).find(line_of(space))
    assert evidence.Evidence(kept).find(line_of(space.changed({"evolution": {"rejoin": False}}))) is None


@pytest.mark.parametrize("file", sorted((evidence.ROOT / "benchmarks" / "kept").iterdir()), ids=lambda path: path.stem)
def test_what_the_project_keeps_can_be_read(file: Path) -> None:
    done = evidence.Evidence(file)
    for line in map(json.loads, file.read_text().splitlines()):
        found = done.find(line["search"])
        assert found is not None
        assert found["arm"] == line["arm"]
        Space.of({"name": "kept", **line["search"]["space"]}, file.name)
        assert len(line["found"]["incumbents"]) == len(line["search"]["shares"])


def test_a_rediscovery_is_kept_wherever_the_project_stands(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = f"{Path(rediscovery.__file__).with_name('planted.py')}:IllConditioned"
    own = rediscovery.load(rediscovery.PLANTED["ill_conditioned"], task)
    kept = tmp_path / "kept.jsonl"
    one = rediscovery.search(own, evidence.Evidence(kept), model_steps=2000, seed=3, workers=0)
    assert str(evidence.ROOT) not in kept.read_text()
    monkeypatch.setattr(arms, "search", None)
    again = rediscovery.search(own, evidence.Evidence(kept), model_steps=2000, seed=3, workers=0)
    assert (list(one.incumbents), one.trained, one.seconds) == (again.incumbents, again.trained, again.seconds)
