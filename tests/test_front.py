"""Laws of the Pareto front: kept as generations come, it is what one look at the whole archive gives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discover.archive import Archive
from discover.console import front_lines
from discover.events import Finished
from discover.front import COSTS, costs, undominated
from discover.records import Candidate, Confirmation, Generation, GenerationRecord, Ranked, Totals
from discover.standing import expected
from tests.fresh import confirmed

RULE = "def rule(p, g, *, lr=0.1, weight_decay=0.0):\n    p = p - lr * sign(g)\n"


def generation(
    number: int, rows: list[tuple[float | None, int, int]], fresh: list[Confirmation], usual: float = 0.0
) -> Generation:
    """Of candidates with these fitnesses and costs, those without any being lost."""
    first = 100_000 * number
    candidates = [
        Candidate(
            *(first + place, number, "", (), RULE, f"s{first + place}", f"b{first + place}"),
            status="diverged" if fitness is None else "trained",
            fitness=fitness,
            rung=0,
            properties=dict(zip(COSTS, own, strict=True)),
        )
        for place, (fitness, *own) in enumerate(rows)
    ]
    record = GenerationRecord(number, len(rows), {}, 0, len(rows), (), 1, None, (usual,), (usual,))
    return Generation(record, tuple(candidates), (), tuple(fresh))


def front_of(archive: Archive) -> list[Ranked]:
    places = {each.rank: each for each in archive.leaderboard(10**6)}
    usual = 0.0
    for each_generation in archive.generations():
        usual = each_generation.record.usual if each_generation.confirmations else usual
    fresh, alone = {}, {}
    for rank, each in places.items():
        assert each.fitness is not None
        if each.confirmation:
            assert each.expected == expected(each.fitness, each.confirmation.count, usual)
            fresh[rank] = (each.expected, *costs(each))
        else:
            alone[rank] = (expected(each.fitness, 1, usual), *costs(each))
    front = undominated(fresh)
    both = undominated({**{-rank: values for rank, values in fresh.items()}, **alone})  # of equals the confirmed
    return [places[rank] for rank in (*front, *(rank for rank in both if rank > 0))]


ROW = st.tuples(st.none() | st.sampled_from([-0.5, -0.1, 0.0, 0.1, 0.2, 0.3]), st.integers(0, 2), st.integers(3, 6))
FRESH = st.tuples(st.integers(0, 10**6), st.none() | st.sampled_from([-0.3, 0.0, 0.05, 0.1, 0.4]), st.integers(1, 8))


@given(st.lists(st.tuples(st.lists(ROW, max_size=8), st.lists(FRESH, max_size=3)), max_size=5))
@settings(deadline=None)
def test_the_front_that_is_kept_is_that_of_the_whole_archive(
    steps: list[tuple[list[tuple[float | None, int, int]], list[tuple[int, float | None, int]]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, Archive.create(Path(folder) / "a.sqlite") as archive:
        trained: list[int] = []
        for number, (rows, scores) in enumerate(steps):
            fresh = {
                trained[pick % len(trained)]: (None if fitness is None else fitness, count)
                for pick, fitness, count in scores
                if trained
            }
            confirmations = [confirmed(id, number, fitness, None, n) for id, (fitness, n) in fresh.items()]
            done = generation(number, rows, confirmations, usual=0.1 * number)
            archive.commit_generation(done)
            trained += [each.id for each in done.candidates if each.status == "trained"]
            assert list(archive.front()) == front_of(archive)
        with Archive.read(Path(folder) / "a.sqlite") as reader:
            assert reader.front() == archive.front()


def test_the_front_reaches_beyond_the_first_thousand_places(tmp_path: Path) -> None:
    rows: list[tuple[float | None, int, int]] = [(0.001 * place, 8, 10) for place in range(3000)]
    rows[5] = (0.005, 0, 3)  # place 2995, and nothing is cheaper
    with Archive.create(tmp_path / "a.sqlite") as archive:
        archive.commit_generation(generation(0, rows, []))
        best, cheap = archive.front()
    assert (best.rank, cheap.rank, cheap.candidate.id) == (1, 2995, 5)


def test_who_is_not_confirmed_stands_beside_the_front_and_is_marked(tmp_path: Path) -> None:
    fitter, lucky, cheaper = 0, 1, 2
    rows: list[tuple[float | None, int, int]] = [(0.2, 8, 10), (0.3, 8, 10), (0.1, 4, 10), (0.05, 8, 9), (-0.2, 0, 2)]
    with Archive.create(tmp_path / "a.sqlite") as archive:
        archive.commit_generation(generation(0, rows, []))
        assert [each.candidate.id for each in archive.front()] == [lucky, cheaper, 3, 4]
        fresh = [confirmed(fitter, 1, 0.25, 0.01, 4), confirmed(3, 1, 0.2, 0.01, 2)]
        archive.commit_generation(generation(1, [], fresh))
        front = archive.front()
        assert len(archive.pareto().confirmed()) == 2
    # what is lucky and no cheaper does not enter: less is expected of one score of 0.3 than of four fresh ones of 0.25
    assert [(each.candidate.id, each.confirmation is not None) for each in front] == [
        (fitter, True),
        (3, True),
        (cheaper, False),
        (4, False),
    ]
    lines = list(front_lines(Finished(Totals(0, 0, {}, 0, 0, 0, 0, {}), 1.0, 0, 0, "", (), {}, front)))
    assert lines[4] == "these would, if fresh instances confirmed them:"
    assert [("not confirmed" in line) for line in lines[2:]] == [False, False, False, True, True]


@pytest.mark.parametrize("seed", range(5))
def test_whoever_is_left_out_is_beaten_by_one_who_is_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {key: tuple(map(float, rng.integers(0, 6, 3))) for key in range(60)}
    found = undominated(values)
    for key, own in values.items():
        beaten = [o for o in found if o != key and values[o][0] >= own[0] and all(np.array(values[o][1:]) <= own[1:])]
        assert bool(beaten) == (key not in found)
