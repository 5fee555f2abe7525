"""`discover verify`: whether a certificate holds.

Four things are checked, and each finds what the others may not: the seal (the file is as it was written); that all of
it follows from the space and the tunings in it (`discover.rehearsal`), and that these may be (`discover.plausible`);
the runs (trained again with the same hyperparameters on the same seeds, they end where the certificate says); and
tunings (done again with all their trials, they come to the same hyperparameters).

What was trained is trained again as it was: with compiled gradients or without, with native rules or without. Where
versions and kind of CPU are those of the certificate too, losses are equal to the last bit; elsewhere a training rounds
in another way, and a run's loss may differ by `TOLERANCE`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from discover import certificate, runs
from discover.again import BOUND, TOLERANCE, TUNED, TUNINGS_APART, Place, retrain, retune
from discover.certify import packages as classes
from discover.contest import Contest
from discover.errors import STOPPED, UserError
from discover.keeper import Keeper, StoppedError
from discover.manifest import versions
from discover.own_files import changed
from discover.plausible import problems_of
from discover.rehearsal import Recorded, compare, stages_of
from discover.sessions import BESIDE, everybody
from discover.storage import Store
from discover.workshop import Staff, Workshop, opened


@dataclass(frozen=True, slots=True)
class Report:
    """What checking came to.

    Attributes:
        problems: why it does not hold; none where it does.
        retrained, runs: how many runs were trained again, of all.
        retuned, tunings: how many tunings were done again, of all.
        exact: whether all runs had to be equal to the bit; `why_not` says why not.
        loose, tunings_loose: how many of those runs and tunings could not be trained here as they were, and were held
            to a tolerance.
        largest: the largest difference of log loss that was found in runs that were trained again.
        unchecked: what cannot be told from what is here, each in a line.
    """

    problems: tuple[str, ...]
    retrained: int = 0
    runs: int = 0
    retuned: int = 0
    tunings: int = 0
    exact: bool = False
    why_not: str = ""
    loose: int = 0
    tunings_loose: int = 0
    largest: float = 0.0
    unchecked: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.problems


def find(text: str) -> Path:
    """Where a certificate is.

    Args:
        text: its file, a folder that has it, or a run as `runs.find` takes it.

    Raises:
        RunError: no such run.
    """
    path = Path(text)
    if text != "last" and (path.suffix == ".json" or path.is_file() or (path / runs.CERTIFICATE).is_file()):
        return path
    return runs.find(text)


def read(path: Path) -> dict[str, Any]:
    """A certificate. Raises UserError: not there, or not a certificate of this version."""
    wanted = "expected a run, or its certificate.json"
    if path.is_dir():
        path, wanted = path / runs.CERTIFICATE, f"'discover promote {runs.handle(path)}' makes it"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; {wanted}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict) or "contests" not in data or "sha256" not in data:
        raise UserError(f"{path}: is not a certificate; expected the certificate.json that 'discover promote' wrote")
    if data.get("format") != certificate.FORMAT:
        raise UserError(
            f"{path}: is of format {data.get('format')}, and this version reads format {certificate.FORMAT};"
            " the version that made it checks it"
        )
    return data


def verify(
    data: Mapping[str, Any],
    *,
    sample: int | None,
    tune: int = 0,
    seed: int = 0,
    folder: Path | None = None,
    workshop: Workshop | None = None,
) -> Report:
    """Checks a certificate.

    Args:
        data: as `read` gives it.
        sample: how many runs to train again, drawn by `seed`; None for all.
        tune: how many tunings to do again, all trials of each, drawn by `seed`; all where there are no more.
        folder: where the certificate lies; what is there of its run is looked at.
        workshop: who trains, and who hears of progress; None for this process, and nobody.

    Raises:
        StoppedError: the workshop was asked to stop.
        UserError: a task or a class that the certificate names is not there.
    """
    problems = [] if certificate.digest(data) == data["sha256"] else ["the seal is broken: the file was changed"]
    workshop = workshop or Workshop(Store(None), Keeper(None))
    told = len(problems)
    try:
        stages = stages_of(data)
        contests, recorded = [Contest.of(each) for each in stages], Recorded(stages)
        places = list(_places(contests))
        problems += [line for pair in zip(stages, contests, strict=True) for line in problems_of(*pair, recorded)]
        wrong, unchecked = compare(data, folder, recorded)
        problems += wrong
        why_not, why_not_tuned = _not_exact(data), _not_exact(data, TUNED)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        what = [] if len(problems) > told else [f"its data do not fit together: {error!r}"]
        return Report((*problems, *what))
    studies = list(dict.fromkeys(replace(place, run=0) for place in places))
    some = [_drawn(each, count, seed) for each, count in ((places, sample), (studies, tune))]
    whole = {**data, "contests": stages}
    runs = retrain(whole, contests, some[0], why_not, workshop)
    tunings = retune(whole, contests, some[1], why_not or why_not_tuned, workshop)
    return Report(
        problems=(*problems, *runs.problems, *tunings.problems),
        retrained=len(some[0]),
        runs=len(places),
        retuned=len(some[1]),
        tunings=len(studies),
        exact=not runs.loose and not why_not,
        why_not=why_not or "; ".join(runs.reasons),
        loose=runs.loose,
        tunings_loose=tunings.loose,
        largest=runs.largest,
        unchecked=tuple(unchecked),
    )


def _drawn(places: Sequence[Place], count: int | None, seed: int) -> list[Place]:
    """So many of them; None for all."""
    if count is None or count >= len(places):
        return list(places)
    return [places[index] for index in sorted(np.random.default_rng(seed).choice(len(places), count, replace=False))]


def _places(contests: Sequence[Contest]) -> Iterator[Place]:
    for index, contest in enumerate(contests):
        for task, row in contest.results.items():
            for name, tunings in row.items():
                for number, tuned in enumerate(tunings):
                    yield from (Place(index, task, name, number, run) for run in range(len(tuned.seeds)))


def _not_exact(data: Mapping[str, Any], packages: Sequence[str] = BOUND) -> str:
    """Why nothing that is trained again can be expected to be equal to the bit; empty where it can."""
    own = classes(data["contenders"])
    here = {**versions(*BESIDE), **own}
    for name in own:
        if data["versions"].get(name) != here[name]:
            return f"{name} is {here[name]}, not {data['versions'].get(name)}"
    for who, machine in everybody(data):
        for name in packages:
            if machine["versions"].get(name) != here[name]:
                return f"{name} is {here[name]}, and {who} {machine['versions'].get(name)}"
    return ""


# The command ----------------------------------------------------------------------------------------------------------


def run(text: str, *, sample: int | None, tune: int, seed: int, staff: Staff, as_json: bool) -> int:
    """Checks a certificate, named as `find` takes it, and says what came of it: the exit code is 0 where it holds, 1
    where it does not, 130 where nobody knows, since it was stopped.

    Raises:
        UserError: a mistake of the user's.
    """
    console = Console(stderr=as_json)
    torch.set_num_threads(1)
    path = find(text)
    data = read(path)
    folder = path if path.is_dir() else path.parent

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    for line in changed(data.get("files", {}), "the promotion"):
        say(line)
    try:
        with opened(None, staff, console, what="training again") as workshop:
            found = verify(data, sample=sample, tune=tune, seed=seed, folder=folder, workshop=workshop)
    except StoppedError:
        say("interrupted before all was trained again: it is not known whether it holds")
        if as_json:
            print(json.dumps({"interrupted": True}, indent=1))
        return STOPPED
    for problem in found.problems:
        say(problem)
    how, apart = _asked(found), f"largest difference {found.largest:.3g} nats"
    say(f"{found.retrained} of {found.runs} runs trained again ({how}); {apart}")
    say(f"{found.retuned} of {found.tunings} tunings done again, with all their trials{_asked_of_tunings(found)}")
    for line in found.unchecked:
        say(f"not checked: {line}")
    say(f"holds: {data['statement']}" if found.holds else f"does not hold: {len(found.problems)} problems")
    if as_json:
        largest = found.largest if math.isfinite(found.largest) else None
        facts: dict[str, Any] = {
            "runs": found.runs,
            "retrained": found.retrained,
            "exact": found.exact,
            "loose": found.loose,
            "largest": largest,
        }
        facts |= {"tunings": found.tunings, "retuned": found.retuned, "tunings_loose": found.tunings_loose}
        facts["unchecked"] = list(found.unchecked)
        print(json.dumps({"holds": found.holds, "problems": list(found.problems), **facts}, indent=1))
    return 0 if found.holds else 1


def _asked(found: Report) -> str:
    """What was asked of runs that were trained again."""
    if found.exact:
        return "equal to the bit was asked"
    of = f" of {found.loose}" if found.loose < found.retrained else ""
    return f"within {TOLERANCE:g} nats was asked{of}, since {found.why_not}"


def _asked_of_tunings(found: Report) -> str:
    return f"; {found.tunings_loose} of them held to {TUNINGS_APART:g} nats" if found.tunings_loose else ""
