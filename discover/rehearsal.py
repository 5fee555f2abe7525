"""A promotion held once more with nothing trained: its tunings are answered from a certificate.

What a promotion comes to follows from its space, its candidates and its tunings alone. So the code that made a
certificate makes it once more from what is in it, and whatever is not as it was written there does not follow from the
rest: a contest that the space asks for, or its terms; who took part, and so what Holm's correction counts; the
checkpoint; the ablation and what it left; statistics, costs, commands. Where the run's folder is at hand, its archive
and manifest are read in place of what the certificate says of them.

What it cannot see is whether a tuning was the one that its study finds; `discover.verify` trains for that.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import dsl
from discover import promote
from discover.asks import Answer, Ask
from discover.budget import UNLIMITED
from discover.certify import composed, footprints
from discover.contenders import Contender, RuleContender, made, spelled
from discover.contest import Contest, tuned_of
from discover.errors import SpaceError, UserError
from discover.incumbents import Leader
from discover.keeper import Keeper
from discover.manifest import MANIFEST, Configuration, Manifest, OtherFormatError, read_manifest
from discover.pieces import CORE
from discover.promotion import ASKED, Promotion, judged_by, settings_of
from discover.records import Candidate
from discover.runs import ARCHIVE
from discover.space import Space
from discover.storage import Store
from discover.studies import Tuned
from discover.trainers import Ground
from discover.workers import Request
from discover.workshop import Place, Workshop
from dsl import Program

ROUNDING = 1e-6
"""Relative, of statistics: scipy may differ in the last bits."""

CPU_INSTEAD = ": trained on the CPU"

PARTS = (
    *("standing", "candidates", "left_out", "contenders", "curve", "checkpoint", "contests", "simplification"),
    *("ablation", "rule", "statistics", "outcome", "statement", "footprints", "seen", "data"),
    *("networks", "provenance", "spent", "asked", "commands"),
)
"""Of a certificate, in the order in which one follows from the other."""


class MissingError(Exception):
    """The certificate has not what its space asks for; the text says what, in a line."""


def stages_of(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All contests of a certificate, that of the ablation last."""
    return [*data["contests"], *([data["ablation"]] if data["ablation"] is not None else [])]


class Recorded(Workshop):
    """A workshop that trains nothing, and answers from a certificate's contests."""

    def __init__(self, stages: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(Store(None), Keeper(None))
        self.stages = {stage["terms"]["first"]: stage for stage in stages}
        self.found: dict[tuple[int, str, str], list[Tuned]] = {}
        for first, stage in self.stages.items():
            for task, row in stage["results"].items():
                for name, tunings in row.items():
                    self.found[first, task, _key(stage["rules"][name])] = [tuned_of(each) for each in tunings]

    def tuned(self, asks: Iterable[Ask]) -> Iterator[Answer]:
        for ask in asks:
            first, count = ask.seeds[0], len(ask.seeds)
            there = self.found.get((first, ask.task.spelling, _key(spelled(ask.contender))), [])
            if len(there) < count:
                raise MissingError(
                    f"{self._named(first)}: {count} tunings of {ask.contender.name} on {ask.task.spelling} are needed,"
                    f" from study seed {first} on, and {len(there)} are there"
                )
            yield Answer(ask, there[:count], None, 0.0)

    def ground(self, ask: Ask) -> Ground:
        """Uncompiled: what is asked of it here is how far contenders step."""
        return super().ground(replace(ask, compile=False))

    def _named(self, first: int) -> str:
        stage = self.stages.get(first)
        return "a contest" if stage is None else str(stage["terms"]["name"])


def _key(spelling: Mapping[str, str]) -> str:
    return json.dumps(spelling, sort_keys=True)


class Rehearsal(Promotion):
    """A promotion as a certificate tells it.

    Args:
        data: the certificate.
        folder: of the run, where it is at hand: its archive and manifest are read then.

    Raises:
        MissingError: what the certificate says was asked for cannot have been.
    """

    def __init__(self, data: Mapping[str, Any], folder: Path | None) -> None:
        asked, source = data["asked"], data["provenance"]
        try:
            manifest = judged_by(read_manifest(folder) if folder else _manifest(source), asked["by"])
            settings = settings_of(manifest.configuration.space, asked["top"], asked["pruner"], asked["tasks"])
        except SpaceError as error:
            raise MissingError(str(error)) from None
        except UserError as error:
            raise MissingError(f"asked: {error}") from None
        state: dict[str, Any] = {"stages": {}, "seconds": {}, "contenders": {}, "generations": source["generations"]}
        state |= {key: asked[key] for key in ASKED}
        place = folder or Path(asked["folder"])
        super().__init__(place, manifest, settings, state, manifest.configuration.space.compile != "never")
        self.data, self.at_hand = data, folder is not None
        self.recorded = {stage["terms"]["name"]: stage for stage in stages_of(data)}

    def keep(self) -> None:
        """Nothing is written."""

    def contender(self, name: str) -> Contender:
        if name not in self.data["contenders"]:
            raise MissingError(f"contenders: '{name}', a baseline of the space, is not there")
        self.state["contenders"][name] = self.data["contenders"][name]
        return made(name, self.data["contenders"][name])

    def place(self, stage: str, request: Request, workshop: Workshop) -> Place:
        if stage not in self.recorded:
            raise MissingError(f"{stage}: the space asks for it, and it is not in the certificate")
        if request == CORE:
            return Place(CORE)
        kept = self.recorded[stage]
        if tuple(map(tuple, kept["terms"]["request"])) != request:
            return Place(CORE, missing=kept["place"].partition(CPU_INSTEAD)[0] or "not as asked")
        return Place(request, kept["terms"]["device"], on=kept["place"].removeprefix("on "))

    def led(self) -> list[tuple[Leader, float | None, Program]]:
        if self.at_hand:
            return super().led()
        if "incumbents" not in self.recorded:
            raise MissingError("incumbents: the space asks for it, and it is not in the certificate")
        rules, found = self.recorded["incumbents"]["rules"], []
        for point in self.data["curve"]:
            name = f"candidate_{point['candidate']}"
            if name not in rules:
                raise MissingError(f"curve: {name} was not among the incumbents")
            program = dsl.check(dsl.parse(rules[name]["text"]))  # as it was lifted: to lift it again may tidy it again
            found.append((Leader(point["generation"], point["candidate"]), point["fitness"], program))
        return found

    def standing(self, generation: int) -> tuple[int, list[Candidate]]:
        if self.at_hand:
            return super().standing(generation)
        kept = self.data["standing"]
        return kept["places"], [
            Candidate(each["id"], generation, each["origin"], (), each["text"], "", "", "trained")
            for each in kept["looked_at"]
        ]

    def provenance(self) -> dict[str, Any]:
        if self.at_hand:
            return super().provenance()
        space = self.manifest.configuration.space.plain()
        return {**self.data["provenance"], "space": space, "candidate": self.state.get("winner")}

    def asked(self) -> dict[str, Any]:
        return {**super().asked(), "folder": self.data["asked"]["folder"]}


def compare(data: Mapping[str, Any], folder: Path | None, recorded: Recorded) -> tuple[list[str], list[str]]:
    """What in a certificate does not follow from the rest of it, and what cannot be told; each in a line.

    Args:
        data: the certificate.
        folder: where it lies; what is there of the run is read.
        recorded: made of it.
    """
    at_hand, why = _at_hand(folder)
    try:
        found = rehearsed(data, at_hand, recorded)
    except MissingError as error:
        return [str(error)], []
    problems = []
    ablation = None if data["ablation"] is None else _told(data["ablation"])
    told = {**data, "contests": [_told(stage) for stage in data["contests"]], "ablation": ablation}
    if at_hand is None:
        told["provenance"] = {**data["provenance"], "space": _space(data["provenance"]).plain()}
    for part in PARTS:
        if (where := _differs(found[part], told[part], part)) is not None:
            problems.append(_in_words(where, data))
    known, unknown = _baselines(data)
    unchecked = (
        [] if at_hand else [f"the run's space, sessions, spend, archive, standing, leaders and lineage, since {why}"]
    )
    return [*problems, *known], [*unchecked, *unknown]


def _told(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A contest as this version writes it: an older one left unsaid which code trained a tuning."""
    results = json.loads(json.dumps(Contest.of(stage).plain()["results"], allow_nan=False))
    return {**stage, "results": results}


def _space(source: Mapping[str, Any]) -> Space:
    """The space of a run that is not at hand, less keys that are gone since, of what a search alone reads: a promotion
    goes by its sections `promote` and `tasks`."""
    plain = copy.deepcopy(source["space"])
    try:
        Space.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        for where in (each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"):
            if where[0] not in ("promote", "tasks"):
                section = reduce(lambda inside, key: inside[key], where[:-1], plain)
                del section[where[-1]]
    return Space.of(plain, "provenance.space")


def _at_hand(folder: Path | None) -> tuple[Path | None, str]:
    """The folder if a run is there that this version reads; if none is, why not."""
    if folder is None or not (folder / MANIFEST).is_file() or not (folder / ARCHIVE).is_file():
        return None, "its folder is elsewhere"
    try:
        read_manifest(folder)
    except OtherFormatError as error:
        return None, str(error)
    except UserError:
        pass  # it is damaged, which is a problem: whoever reads it meets it
    return folder, ""


def rehearsed(data: Mapping[str, Any], folder: Path | None, recorded: Recorded) -> dict[str, Any]:
    """The parts of a certificate that follow from its tunings, made once more. Raises MissingError."""
    rehearsal = Rehearsal(data, folder)
    promote.stages(rehearsal, recorded)
    state = rehearsal.state
    places, looked_at = state["standing"]["places"], state["standing"]["looked_at"]
    if len(state["candidates"]) < rehearsal.settings.top and len(looked_at) < places:
        raise MissingError(
            f"candidates: {len(state['candidates'])} of {rehearsal.settings.top} that were asked for, and"
            f" {len(looked_at)} of {places} places looked at"
        )
    stored = data["spent"]["by_stage"]
    state["seconds"] = {name: stored.get(name, seconds) for name, seconds in state["seconds"].items()}
    if "final" in state and data["rule"] is not None:
        state["final"]["recorded"] = data["rule"]["recorded"]
    found: dict[str, Any] = json.loads(json.dumps(composed(rehearsal), allow_nan=False))
    found["footprints"] = {
        task: {
            name: {
                "seconds": _timed(cost.seconds, data, task, name),
                "state_bytes": cost.state_bytes,
                "device": data["footprints"].get(task, {}).get(name, {}).get("device", cost.device),
            }
            for name, cost in row.items()
        }
        for task, row in footprints(found["contests"][-1]).items()
    }
    return found


def _timed(seconds: float | None, data: Mapping[str, Any], task: str, name: str) -> float | None:
    """The time that the certificate has, where it has one: another machine takes another."""
    stored = data["footprints"].get(task, {}).get(name, {}).get("seconds")
    return stored if isinstance(stored, float) and stored > 0 and seconds is not None else seconds


def _manifest(source: Mapping[str, Any]) -> Manifest:
    """Of a run that is not at hand, as far as a promotion needs it."""
    configuration = Configuration(
        space=_space(source),
        ancestors=tuple(source["ancestors"]),
        algorithm=source["algorithm"],
        seed=source["seed"],
        compiled_from={},
        native=True,
        budget=UNLIMITED,
        workers=0,
    )
    return Manifest(source["run"], "", (), configuration)


def _baselines(data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Baselines that are not what their names say, and those whose names do not say it anywhere but there."""
    wrong, unknown = [], []
    for name, spelling in data["contenders"].items():
        if set(re.findall(r"[^\W\d]\w*", name)) <= {*dsl.names()}:
            if RuleContender(name, dsl.load(name)).fingerprint != made(name, spelling).fingerprint:
                wrong.append(f"contenders: '{name}' is not the built-in rule of that name")
        elif "text" in spelling:
            unknown.append(f"whether '{name}' was the baseline that was meant: it is the rule that the certificate has")
    return wrong, unknown


# Differences ----------------------------------------------------------------------------------------------------------

Where = tuple[str, Any, Any]
"""Where two pieces of plain data differ, what follows there, and what is stored."""


def _differs(found: Any, stored: Any, where: str) -> Where | None:
    """Where two pieces of plain data differ first, None where they do not."""
    if isinstance(found, Mapping) and isinstance(stored, Mapping):
        if found.keys() != stored.keys():
            more, less = ([key for key in one if key not in other] for one, other in ((stored, found), (found, stored)))
            return f"{where} (keys)", less, more
        each = [(key, found[key], stored[key]) for key in found]
    elif isinstance(found, list) and isinstance(stored, list):
        if len(found) != len(stored):
            return where, found, stored
        each = [(str(i), a, b) for i, (a, b) in enumerate(zip(found, stored, strict=True))]
    elif isinstance(found, float) and isinstance(stored, int | float):
        close = math.isclose(found, stored, rel_tol=ROUNDING, abs_tol=1e-9)
        return None if close else (where, found, stored)
    else:
        return None if found == stored else (where, found, stored)
    return next((at for key, a, b in each if (at := _differs(a, b, f"{where}.{key}")) is not None), None)


def _in_words(at: Where, data: Mapping[str, Any]) -> str:
    where, found, stored = at
    if where.startswith("data.") and found is not stored:
        return f"{where.removeprefix('data.')}: its data here are not those of the certificate"
    for part in ("contests", "statistics"):
        for index, stage in enumerate(data["contests"]):
            if where.startswith(f"{part}.{index}.") or where == f"{part}.{index}":
                where = where.replace(f"{part}.{index}", f"{part}: {stage['terms']['name']}", 1)
    return f"{where} is {_short(stored)}, and {_short(found)} follows from the rest"


def _short(value: Any) -> str:
    text = " ".join(json.dumps(value).split())
    if isinstance(value, list) and len(text) > 60:
        return f"a list of {len(value)}"
    return text if len(text) <= 60 else f"{text[:57]}..."
