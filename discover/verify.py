"""`discover verify`: whether a certificate holds, from its own data alone.

Three things are checked, and each finds what the others may not: the seal (the file is as it was written), the
statistics (they follow from the runs in it), and the runs (the rule, trained again with the same hyperparameters on the
same seeds, ends where the certificate says it does).

Where versions, kind of CPU and the way of training are those of the certificate, losses are equal to the last bit;
elsewhere a training rounds in another way, and a run's loss may differ by `TOLERANCE`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import dsl
from discover import certificate, runs
from discover.contest import Contest, curve_of, load
from discover.errors import UserError
from discover.keeper import Keeper, StoppedError
from discover.manifest import host, versions
from discover.own_files import changed
from discover.pieces import CORE, ONE_GPU, Site, Training, absolute, cpu
from discover.storage import Store
from discover.studies import Tuned
from discover.trainers import Run
from discover.workshop import Staff, Workshop, opened
from dsl.canonical import structure_hash

TOLERANCE = 0.05
"""Nats of log loss, about 5 %, that a run may differ by where it cannot be the same to the bit."""

INTERRUPTED = 130
"""Exit code: as of any command that Ctrl-C ended before it was done."""

ROUNDING = 1e-6
"""Relative, of statistics: scipy may differ in the last bits."""

BOUND = ("python", "torch", "numpy")
"""Versions that the bits of a training depend on."""


@dataclass(frozen=True, slots=True)
class Place:
    """A run on a fresh seed: where it stands in the certificate."""

    contest: int
    task: str
    contender: str
    tuning: int
    run: int


@dataclass(frozen=True, slots=True)
class Report:
    """What checking came to.

    Attributes:
        problems: why it does not hold; none where it does.
        retrained, runs: how many runs were trained again, of all.
        exact: whether they had to be equal to the bit; `why_not` says why not.
        largest: the largest difference of log loss that was found.
    """

    problems: tuple[str, ...]
    retrained: int
    runs: int
    exact: bool
    why_not: str
    largest: float

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
    if text != "last" and (path.suffix == ".json" or path.is_file() or (path / "certificate.json").is_file()):
        return path
    return runs.find(text)


def read(path: Path) -> dict[str, Any]:
    """A certificate. Raises UserError: not there, or not a certificate of this version."""
    wanted = "expected a run, or its certificate.json"
    if path.is_dir():
        path, wanted = path / "certificate.json", f"'discover promote {runs.handle(path)}' makes it"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; {wanted}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict) or "contests" not in data or "sha256" not in data:
        raise UserError(f"{path}: is not a certificate; expected the certificate.json that 'discover promote' wrote")
    if data.get("format") != certificate.FORMAT:
        raise UserError(f"{path}: is of format {data.get('format')}; this version reads format {certificate.FORMAT}")
    return data


def verify(data: Mapping[str, Any], *, sample: int | None, seed: int = 0, workshop: Workshop | None = None) -> Report:
    """Checks a certificate.

    Args:
        data: as `read` gives it.
        sample: how many runs to train again, drawn by `seed`; None for all.
        workshop: who trains, and who hears of progress; None for this process, and nobody.

    Raises:
        StoppedError: the workshop was asked to stop.
        UserError: a task or a class that the certificate names is not there.
    """
    problems = [] if certificate.digest(data) == data["sha256"] else ["the seal is broken: the file was changed"]
    try:
        contests = [Contest.of(each) for each in data["contests"]]
        problems += _of_statistics(data, contests)
        problems += _of_rules(data, contests)
        problems += _of_seeds(contests)
        places = list(_places(contests))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        return Report((*problems, f"its data do not fit together: {error!r}"), 0, 0, False, "", 0.0)
    chosen = places
    if sample is not None and sample < len(places):
        drawn = np.random.default_rng(seed).choice(len(places), size=sample, replace=False)
        chosen = [places[index] for index in sorted(drawn)]
    why_not = _not_exact(data)
    largest, changed = _retrain(data, contests, chosen, why_not, workshop or Workshop(Store(None), Keeper(None)))
    return Report(tuple(problems + changed), len(chosen), len(places), not why_not, why_not, largest)


def _of_statistics(data: Mapping[str, Any], contests: Sequence[Contest]) -> Iterator[str]:
    for contest, stored in zip(contests, data["statistics"], strict=True):
        if (where := _differs(certificate.statistics_of(contest), stored)) is not None:
            yield f"{contest.terms.name}: statistics do not follow from the runs ({where})"
    if certificate.outcome(contests) != data["outcome"]:
        yield f"the outcome is '{data['outcome']}', and the runs say '{certificate.outcome(contests)}'"
    if certificate.statement(data) != data["statement"]:
        yield "the statement is not what the numbers say"


def _differs(found: Any, stored: Any, where: str = "") -> str | None:
    """Where two pieces of plain data differ first, None where they do not."""
    if isinstance(found, Mapping) and isinstance(stored, Mapping):
        if found.keys() != stored.keys():
            return where or "keys"
        each = ((key, found[key], stored[key]) for key in found)
    elif isinstance(found, list | tuple) and isinstance(stored, list | tuple):
        if len(found) != len(stored):
            return where or "length"
        each = ((str(i), a, b) for i, (a, b) in enumerate(zip(found, stored, strict=True)))
    elif isinstance(found, float) and isinstance(stored, int | float):
        return None if math.isclose(found, stored, rel_tol=ROUNDING, abs_tol=1e-9) else where
    else:
        return None if found == stored else where
    return next((at for key, a, b in each if (at := _differs(a, b, f"{where}.{key}".lstrip("."))) is not None), None)


def _of_rules(data: Mapping[str, Any], contests: Sequence[Contest]) -> Iterator[str]:
    rule = data["rule"]
    if (rule is None) != (contests[-1].terms.name != "final"):
        yield "there is a rule without a final contest, or the other way round"
    if rule is None:
        return
    program = dsl.parse(rule["text"])
    if data["contests"][-1]["rules"][rule["rule"]]["text"] != rule["text"]:
        yield "the rule is not the one that was trained on the final tasks"
    if (structure_hash(program), dsl.fingerprint(program).behaviour) != (rule["structure"], rule["behaviour"]):
        yield "the rule's text is not of its fingerprints"


def _of_seeds(contests: Sequence[Contest]) -> Iterator[str]:
    """All contenders have the same seeds, the agreed number of them, and no seed twice on a task."""
    for contest in contests:
        terms = contest.terms
        for task, row in contest.results.items():
            for name, tunings in row.items():
                seeds = [seed for each in tunings for seed in each.seeds]
                agreed = [each.seed for each in tunings] == list(terms.studies(len(tunings)))
                full = all(len(each.losses) == len(each.seeds) == terms.fresh for each in tunings)
                enough = terms.least <= len(tunings) <= terms.most and all(t.trials == terms.trials for t in tunings)
                if not (agreed and full and enough and len(set(seeds)) == len(seeds)):
                    yield f"{terms.name}: {name} on {task}: seeds or trials are not those that were agreed on"
            pairs = {(each.seed, each.seeds) for tunings in row.values() for each in tunings}
            if len(pairs) != len({seed for seed, _ in pairs}):
                yield f"{terms.name}: {task}: contenders were not scored on the same seeds"


def _places(contests: Sequence[Contest]) -> Iterator[Place]:
    for index, contest in enumerate(contests):
        for task, row in contest.results.items():
            for name, tunings in row.items():
                for number, tuned in enumerate(tunings):
                    yield from (Place(index, task, name, number, run) for run in range(len(tuned.seeds)))


def _not_exact(data: Mapping[str, Any]) -> str:
    """Why runs cannot be expected to be equal to the bit; empty where they can."""
    here = versions()
    for name in BOUND:
        if data["versions"].get(name) != here[name]:
            return f"{name} is {here[name]}, not {data['versions'].get(name)}"
    kind = torch.backends.cpu.get_cpu_capability()
    for name, value in (("machine", host()["machine"]), ("capability", kind)):
        if data["hardware"].get(name) != value:
            return f"the CPU's {name} is {value}, not {data['hardware'].get(name)}"
    if any(each["terms"]["device"] != "cpu" for each in data["contests"]):
        return "it was trained on a GPU, whose sums have no fixed order"
    return ""


# Training again -------------------------------------------------------------------------------------------------------


def _retrain(
    data: Mapping[str, Any],
    contests: Sequence[Contest],
    places: Sequence[Place],
    why_not: str,
    workshop: Workshop,
) -> tuple[float, list[str]]:
    """The largest difference of log loss, and what is wrong."""
    largest, problems = 0.0, []
    groups: dict[tuple[int, str, str], list[Place]] = {}
    for place in places:
        groups.setdefault((place.contest, place.task, place.contender), []).append(place)
    for task in dict.fromkeys(task for _, task, _ in groups):
        if load(task).data_sha256 != data["data"][task]:
            problems.append(f"{task}: its data are not those of the certificate")
    works = [
        _work(contests[index], task, name, data["contests"][index]["rules"][name], some, workshop)
        for (index, task, name), some in groups.items()
    ]
    for ((index, task, name), some), found in zip(groups.items(), workshop.done(works), strict=True):
        contest, tunings = contests[index], contests[index].results[task][name]
        workshop.say(f"{contest.terms.name}: {name} on {task}, {len(some)} runs")
        built = {key: found.built[key] for key in ("compiled", "native")}
        alike = built == contest.built[task] and found.built["cpu"] == cpu()
        loose = why_not or ("" if alike else "trained in another way, without a compiler say")
        for place, trace, untrained in zip(some, found.traces, found.untrained, strict=True):
            tuned = tunings[place.tuning]
            stored, gap = tuned.losses[place.run], _gap(trace.loss, tuned.losses[place.run])
            largest = max(largest, gap)
            same = trace.loss == stored and tuple(trace.curve) == tuned.curves[place.run]
            same = same and untrained == tuned.untrained[place.run]
            if gap > TOLERANCE if loose else not same:
                problems.append(
                    f"{contest.terms.name}: {name} on {task}, seed {tuned.seeds[place.run]}: trained again it ends at"
                    f" {trace.loss:.6g}, not {stored:.6g}" + _elsewhere(trace.loss, stored, tuned)
                )
    return largest, problems


def _work(
    contest: Contest, task: str, name: str, spelling: Mapping[str, str], some: Sequence[Place], workshop: Workshop
) -> Training:
    terms, tunings = contest.terms, contest.results[task][name]
    request, device = CORE, "cpu"
    if terms.device != "cpu":
        there = workshop.place(terms.request if dict(terms.request).get("GPU") else ONE_GPU)
        request, device = there.request, there.device
    spelling = {**spelling, "class": absolute(spelling["class"])} if "class" in spelling else spelling
    return Training(
        name=name,
        spelled=spelling,
        site=Site(absolute(task), terms.tasks[task], terms.compile, device),
        runs=tuple(Run(tunings[p.tuning].hypers, tunings[p.tuning].seeds[p.run]) for p in some),
        curve=tuple(curve_of(terms.tasks[task])),
        request=request,
    )


def _elsewhere(found: float, stored: float, tuned: Tuned) -> str:
    return " (the end is the same; its curve or start is not)" if found == stored else f" (hypers {dict(tuned.hypers)})"


def _gap(one: float, other: float) -> float:
    """Difference of log loss; none between two lost runs."""
    if one == other:
        return 0.0
    if not (0 < one < math.inf and 0 < other < math.inf):
        return math.inf
    return abs(math.log(one / other))


# The command ----------------------------------------------------------------------------------------------------------


def run(text: str, *, sample: int | None, seed: int, staff: Staff, as_json: bool) -> int:
    """Checks a certificate, named as `find` takes it, and says what came of it: the exit code is 0 where it holds, 1
    where it does not, 130 where nobody knows, since it was stopped.

    Raises:
        UserError: a mistake of the user's.
    """
    console = Console(stderr=as_json)
    torch.set_num_threads(1)
    data = read(find(text))

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    for line in changed(data.get("files", {}), "the promotion"):
        say(line)
    try:
        with opened(None, staff, console, what="training again") as workshop:
            found = verify(data, sample=sample, seed=seed, workshop=workshop)
    except StoppedError:
        say("interrupted before all runs were trained again: it is not known whether it holds")
        if as_json:
            print(json.dumps({"interrupted": True}, indent=1))
        return INTERRUPTED
    for problem in found.problems:
        say(problem)
    how = "equal to the bit was asked" if found.exact else f"within {TOLERANCE:g} nats was asked, since {found.why_not}"
    say(f"{found.retrained} of {found.runs} runs trained again ({how}); largest difference {found.largest:.3g} nats")
    say(f"holds: {data['statement']}" if found.holds else f"does not hold: {len(found.problems)} problems")
    if as_json:
        largest = found.largest if math.isfinite(found.largest) else None
        facts = {"runs": found.runs, "retrained": found.retrained, "exact": found.exact, "largest": largest}
        print(json.dumps({"holds": found.holds, "problems": list(found.problems), **facts}, indent=1))
    return 0 if found.holds else 1
