"""The command `discover compare-runs`: runs side by side, those that differ in their seed alone taken together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console

from discover import plain, runs
from discover.console import Rows, by_count, one_line
from discover.console import fitness as fitness_in_words
from discover.durations import format_duration
from discover.errors import UserError
from discover.report_data import Report, gather
from discover.report_svg import short
from discover.statistics import Estimate, mean_interval

POINTS = 8
"""At which fitness is read off, evenly up to where the first run ends: beyond it, nothing is beside the others."""


def run(texts: Sequence[str], *, as_json: bool) -> None:
    """Compares runs.

    Args:
        texts: the runs, as `runs.find` takes them.
        as_json: print JSON in place of tables.

    Raises:
        UserError: no such run, or one given twice.
    """
    folders = [runs.find(text) for text in texts]
    real = [folder.resolve() for folder in folders]
    if twice := next((text for text, folder in zip(texts, real, strict=True) if real.count(folder) > 1), None):
        raise UserError(f"'{twice}' is given twice")
    found = [gather(folder, places=1) for folder in folders]
    data = compared(found)
    if as_json:
        print(json.dumps(data, indent=1))
        return
    console = Console()
    for part in _shown(found, data):
        console.print(part, highlight=False, markup=False, soft_wrap=True)


def compared(found: Sequence[Report]) -> dict[str, Any]:
    """Fitness for each group of runs, at compute that all of them had and at each one's end, and each run's counts and
    best rule."""
    groups, grid = grouped(found), _grid(found)
    data: dict[str, Any] = plain.ready(
        {
            "model_steps": grid,
            "groups": {
                name: {
                    "runs": [one.manifest.run for one in own],
                    "seeds": [one.manifest.configuration.seed for one in own],
                    "fitness": [_estimate(at_steps(own, steps)) for steps in grid],
                    "end": {
                        "model_steps": [one.totals.model_steps for one in own],
                        **_estimate([at_steps([one], one.totals.model_steps)[0] for one in own]),
                    },
                }
                for name, own in groups.items()
            },
            "runs": [_facts(one) for one in found],
        }
    )
    return data


def grouped(found: Sequence[Report]) -> dict[str, list[Report]]:
    """Runs that were asked for the same, but for seed, budget and workers. Names say what they are: space and
    algorithm, and a number where that is not enough."""
    keys: dict[str, list[Report]] = {}
    for one in found:
        asked = one.manifest.configuration
        space = {key: value for key, value in asked.space.plain().items() if key != "budget"}
        facts = (space, asked.ancestors, asked.algorithm)
        keys.setdefault(json.dumps(facts, sort_keys=True), []).append(one)
    names = [
        f"{own[0].manifest.configuration.space.name} {own[0].manifest.configuration.algorithm}" for own in keys.values()
    ]
    groups: dict[str, list[Report]] = {}
    for name, own in zip(names, keys.values(), strict=True):
        number = sum(each == name or each.startswith(f"{name} #") for each in groups) + 1
        groups[f"{name} #{number}" if names.count(name) > 1 else name] = own
    return groups


def at_steps(own: Sequence[Report], steps: int) -> list[float]:
    """Of each run, its leader's fitness on fresh instances after so many model steps; nan where nobody was confirmed
    yet, and of a run that did not come so far."""
    values = []
    for one in own:
        before = [m.fitness for m in one.moments if m.model_steps <= steps and m.fitness is not None]
        values.append(before[-1] if before and steps <= one.totals.model_steps else math.nan)
    return values


def _grid(found: Sequence[Report]) -> list[int]:
    """Of runs that have trained nothing yet there is no end."""
    shortest = min((one.totals.model_steps for one in found if one.totals.model_steps), default=0)
    return sorted({shortest * point // POINTS for point in range(1, POINTS + 1)} - {0})


def _estimate(values: Sequence[float]) -> dict[str, Any]:
    """The mean over seeds with Student's interval; of those that had a confirmed leader, and how many these are."""
    known = np.array([value for value in values if not math.isnan(value)])
    mean = mean_interval(known) if len(known) else Estimate(math.nan, math.nan, math.nan)
    return {**asdict(mean), "seeds": len(known)}


def _facts(one: Report) -> dict[str, Any]:
    best = one.leaderboard[0] if one.leaderboard else None
    totals = one.totals
    return {
        "run": one.manifest.run,
        "folder": str(one.folder),
        "space": one.manifest.configuration.space.name,
        "algorithm": one.manifest.configuration.algorithm,
        "seed": one.manifest.configuration.seed,
        "state": one.state,
        "seconds": totals.elapsed,
        "model_steps": totals.model_steps,
        "proposed": totals.proposed,
        "rejected": dict(totals.rejected),
        "duplicates": totals.duplicates,
        "trained": totals.trained,
        "distinct": totals.distinct,
        "rungs": list(one.rungs),
        "confirmed": one.confirmed,
        "best": best
        and {
            "fitness": best.fitness,
            "error": best.confirmation and best.confirmation.error,
            "evaluations": best.confirmation.count if best.confirmation else 0,
            "rule": best.candidate.text,
        },
    }


# What a person sees ---------------------------------------------------------------------------------------------------


def _shown(found: Sequence[Report], data: Mapping[str, Any]) -> Iterator[Any]:
    yield "\nfitness of the leader on fresh instances, after model steps"
    groups = data["groups"].values()
    rows = [
        [_steps(steps), *(_cell(own["fitness"][place], len(own["runs"])) for own in groups)]
        for place, steps in enumerate(data["model_steps"])
    ]
    ends = [f"{_cell(own['end'], len(own['runs']))} after {_between(own['end']['model_steps'])}" for own in groups]
    yield Rows(
        ("model steps", *(f"{name} ({len(own['runs'])} runs)" for name, own in data["groups"].items())),
        [*rows, ["at its end", *ends]],
    )
    yield "[..]: 95 % interval of the mean over seeds (Student); (n): of n runs, as the others had no confirmed"
    yield "leader. Rows end with the run that ends first; what came later is not to be compared line by line."
    yield "\nfunnel"
    lines = [
        [
            one.manifest.run,
            one.state,
            format_duration(one.totals.elapsed),
            f"{one.totals.model_steps:,}",
            f"{one.totals.proposed:,}",
            f"{sum(one.totals.rejected.values()):,}",
            f"{one.totals.duplicates:,}",
            " > ".join(f"{count:,}" for count in one.rungs) or "0",
            f"{one.confirmed:,}",
        ]
        for one in found
    ]
    yield Rows(
        ("run", "state", "time", "model steps", "proposed", "rejected", "duplicates", "trained, by rung", "confirmed"),
        lines,
    )
    reasons = [(one.manifest.run, by_count(one.totals.rejected)[:3]) for one in found if one.totals.rejected]
    for name, most in reasons:
        yield f"{name}: rejected most for {', '.join(f'{reason} ({count:,})' for reason, count in most)}"
    yield "\nbest rules"
    for one in found:
        best = one.leaderboard[0] if one.leaderboard else None
        words = (
            "nothing was trained yet"
            if best is None
            else f"{fitness_in_words(best)}: {one_line(best.candidate.text, 200)}"
        )
        yield f"{one.manifest.run}: {words}"


def _steps(steps: int) -> str:
    return short(float(f"{steps:.3g}"))


def _between(steps: Sequence[int]) -> str:
    first, last = _steps(min(steps)), _steps(max(steps))
    return first if first == last else f"{first} to {last}"


def _cell(estimate: Mapping[str, Any], of: int) -> str:
    if estimate["value"] is None:
        return "-"
    text = f"{estimate['value']:+.3f}"
    if estimate["low"] is not None:
        text += f" [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"
    return text if estimate["seeds"] == of else f"{text} ({estimate['seeds']})"
