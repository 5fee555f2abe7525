"""Searches side by side: the same space and compute, one thing changed; what each had found after how much compute.

An *arm* is a search with something changed. Its *incumbent* at some compute is the candidate that fresh scores let one
expect most of by then. Incumbents are scored on instances of tasks that no search has seen; nothing is chosen by
those scores.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from numpy.random import default_rng
from rich.console import Console
from rich.table import Table

import dsl
import tasks
from benchmarks import evidence
from discover import artefact, native, runs, session
from discover.archive import Archive
from discover.budget import Budget
from discover.evaluate import Entry, Grid, Unit, draw_instance, evaluate, interpolated_best, score
from discover.space import Space
from discover.standing import Confirmed
from discover.statistics import mean_interval
from dsl import properties

STREAM = 3
"""Of a seed: instances that incumbents are scored on. A search draws from 0 and 1, `benchmarks.rescore` from 2."""

LIMITS = (-2.0, 2.0)


@dataclass(frozen=True, slots=True)
class Arm:
    """A search.

    Attributes:
        algorithm: a proposer; none for the space's.
        changes: keys of the space -> other values; within a section, the keys that are named.
        compute: times the budget in model steps.
    """

    name: str
    algorithm: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    compute: float = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """What an arm had found: after each share of its budget, the incumbent's text; None where nothing was confirmed."""

    incumbents: tuple[str | None, ...]
    trained: int
    distinct: int
    seconds: float


def search(space: Space, arm: Arm, *, model_steps: int, seed: int, shares: Sequence[float], workers: int) -> Found:
    """Runs an arm and reads its incumbents from the archive."""
    budget = round(arm.compute * model_steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{space.name}.yaml"
        path.write_text(json.dumps(space.changed(arm.changes).plain()))  # JSON is YAML
        configuration = session.configure(
            str(path), algorithm=arm.algorithm, seed=seed, budget=Budget(model_steps=budget), workers=workers
        )
        configuration = replace(configuration, ancestors=tuple(dsl.format(rule) for rule in space.ancestors()))
        began = time.monotonic()
        with runs.create(configuration, out=Path(folder) / "run") as run:
            for _ in session.search(run):
                pass
        seconds = time.monotonic() - began
        with Archive.read(Path(folder) / "run" / runs.ARCHIVE) as archive:
            totals = archive.totals()
            found = tuple(_incumbent(archive, share * budget) for share in shares)
    return Found(found, totals.trained, totals.distinct, seconds)


def _incumbent(archive: Archive, model_steps: float) -> str | None:
    """The candidate that most was expected of when so many steps had been trained."""
    confirmed = Confirmed()
    spent = 0
    for generation in archive.generations():
        spent += generation.record.model_steps
        if spent > model_steps:
            break
        confirmed.add(generation)
    if not (ordered := confirmed.in_order()):
        return None
    candidate = archive.candidate(ordered[0].candidate)
    assert candidate is not None
    return candidate.text


def scores(
    texts: Sequence[str | None],
    space: Space,
    names: Sequence[str],
    instances: int,
    seed: int,
    limits: tuple[float, float] = LIMITS,
) -> list[float]:
    """The mean score of each rule over fresh instances of tasks, each task as much as another; 0 for none: AdamW.

    Their loss and parameters have scales as this space asks; tensors and batches are as users meet them.
    """
    distinct = list(dict.fromkeys(text for text in texts if text is not None))
    means: dict[str | None, list[float]] = {text: [] for text in distinct}
    reference = properties.of(dsl.load("adamw")).scale
    facts = [properties.of(dsl.parse(text)) for text in distinct]
    entries = (
        Entry(None, dsl.format(dsl.load("adamw")), 1.0, 0.0),
        *(
            Entry(index, text, fact.scale / reference, fact.degree or 0.0)
            for index, (text, fact) in enumerate(zip(distinct, facts, strict=True))
        ),
    )
    grid = Grid(space.learning_rates.points, space.learning_rates.factor)
    rng = default_rng([seed, STREAM])
    for name in names:
        values: list[list[float]] = [[] for _ in distinct]
        for _ in range(instances):
            horizon = tasks.load(name).horizon
            instance = draw_instance(name, horizon, space.loss_scales, space.parameter_scales, rng)
            unit = Unit(
                instance, entries, grid, reference, space.weight_decay, artefact.have_compiler(), native.available()
            )
            best = [interpolated_best(o.learning_rates, o.losses) for o in evaluate(unit).outcomes]
            if best[0] is None:
                continue
            for mine, own in zip(values, best[1:], strict=True):
                mine.append(score(own[1], best[0][1], limits) if own else limits[0])
        for text, mine in zip(distinct, values, strict=True):
            means[text].append(math.fsum(mine) / len(mine) if mine else 0.0)
    return [0.0 if text is None else math.fsum(means[text]) / len(means[text]) for text in texts]


def run(
    title: str,
    space: Space,
    arms: Sequence[Arm],
    *,
    model_steps: int,
    seeds: int,
    instances: int,
    shares: Sequence[float] = (0.25, 0.5, 1.0),
    workers: int = 0,
    kept: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Runs all arms with all seeds, and prints the mean score of the incumbents with intervals over seeds: on the
    select tasks, which is what a search is for, and on its own, which says how well it does what it is told to.

    Args:
        model_steps: of an arm whose compute is 1; seeds: 0 to so many.
        instances: of each task, fresh ones, that incumbents are scored on.
        shares: of the budget, after which incumbents are taken.
        kept: a file of what is done, see `benchmarks.evidence`; an arm and seed that it has is not run again.
    """
    torch.set_num_threads(1)
    names = space.tasks.select or space.tasks.search
    done = evidence.Evidence(kept)
    columns = ("arm", "compute", *(f"after {share:.0%}" for share in shares))
    table, own = Table(*columns, "trained", "distinct", "seconds"), Table(*columns)
    total = time.monotonic()
    for arm in arms:
        found, rows, own_rows = [], [], []
        for seed in range(seeds):
            what = evidence.search(
                space.changed(arm.changes),
                arm.algorithm,
                model_steps=arm.compute * model_steps,
                seed=seed,
                shares=shares,
                instances=instances,
            )
            if (line := done.find(what)) is None:
                new = search(space, arm, model_steps=model_steps, seed=seed, shares=shares, workers=workers)
                scored = scores(new.incumbents, space, names, instances, seed)
                own_scores = scores(new.incumbents, space, space.tasks.search, instances, seed)
                line = done.keep(what, arm=arm.name, seed=seed, scores=scored, own=own_scores, found=asdict(new))
            found.append(Found(**line["found"]))
            rows.append(line["scores"])
            own_rows.append(line["own"])
            values, own_values = (", ".join(f"{value:+.4f}" for value in each[-1]) for each in (rows, own_rows))
            say(f"{arm.name}, seed {seed}: {values} ({found[-1].seconds:.0f} s); on search tasks {own_values}")
        counts = [sum(getattr(each, key) for each in found) / seeds for key in ("trained", "distinct", "seconds")]
        start = (arm.name, f"{arm.compute * model_steps:,.0f}")
        table.add_row(*start, *_intervals(rows), *(f"{count:.0f}" for count in counts))
        own.add_row(*start, *_intervals(own_rows))
    console = Console(width=150)
    tables = [("select", names, table), ("search", space.tasks.search, own)]
    for what_for, where, each in tables if space.tasks.select else tables[:0:-1]:
        console.print(f"{title}: mean score on the {what_for} tasks ({', '.join(where)}), {instances} fresh instances")
        console.print(f"each, {seeds} seeds; 95% intervals over seeds; AdamW, tuned on the same learning rates, is 0")
        console.print(each)
    for line in (*done.said(), f"{time.monotonic() - total:.0f} s in all"):
        console.print(line, highlight=False)


def _intervals(rows: Sequence[Sequence[float]]) -> list[str]:
    return [_interval(values) for values in zip(*rows, strict=True)]


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.4f}"
    found = mean_interval(values)
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


if __name__ == "__main__":
    print("a library: what `python -m benchmarks.controls`, `benchmarks.ablation` and `benchmarks.rediscovery` share")
