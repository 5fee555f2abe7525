"""The Pareto front of a run: rules that no other beats in fitness, state and operations at once."""

from __future__ import annotations

from collections.abc import Mapping

from discover.archive import Archive
from discover.records import Ranked, believed

MOST = 1000
"""How many places of the leaderboard are looked at."""

COSTS = ("state_bytes", "operations")


def front(archive: Archive) -> tuple[Ranked, ...]:
    """The places of the leaderboard that no other beats: as fit or fitter, with no more state and no more operations.

    Fitness is what fresh scores let one believe. Where any rule was confirmed, those that were not have no part in it:
    one of thousands of single scores is always lucky.
    """
    places = [each for each in archive.leaderboard(MOST) if each.fitness is not None]
    confirmed = [each for each in places if each.confirmation is not None]
    chosen = {each.rank: each for each in confirmed or places}
    values = {rank: (_believed(each), *map(float, costs(each))) for rank, each in chosen.items()}
    return tuple(chosen[rank] for rank in undominated(values))


def costs(ranked: Ranked) -> tuple[float, ...]:
    """Bytes of state a parameter, and passes over the parameter a step."""
    found = ranked.candidate.properties
    return tuple(float(found.get(name) or 0.0) for name in COSTS)


def _believed(ranked: Ranked) -> float:
    assert ranked.fitness is not None
    return ranked.fitness if ranked.confirmation is None else believed(ranked.fitness, ranked.confirmation.count)


def undominated(values: Mapping[int, tuple[float, ...]]) -> list[int]:
    """The keys that no other beats: as fit or fitter, and in no cost higher. Of equal ones the first.

    Args:
        values: key -> fitness (higher is better), then costs (lower is better).
    """
    order = sorted(values, key=lambda key: (-values[key][0], values[key][1:], key))
    found: list[int] = []
    for key in order:  # whatever beats a key comes before it
        own = values[key][1:]
        if not any(all(a <= b for a, b in zip(values[other][1:], own, strict=True)) for other in found):
            found.append(key)
    return found
