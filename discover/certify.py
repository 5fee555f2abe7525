"""Writes a promotion's certificate: all that is needed to check it, as data and as a page to read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dsl
from discover import certificate, footprint, named_tasks
from discover.contenders import ClassContender, made
from discover.contest import Contest
from discover.files import write_whole
from discover.footprint import Footprint
from discover.promotion import Promotion
from discover.runs import CERTIFICATE, CERTIFIED, READABLE
from discover.sessions import this_machine
from discover.sets import facts_of
from dsl.canonical import structure_hash


def certify(promotion: Promotion) -> dict[str, Any]:
    """Writes certificate.json and certificate.md."""
    data = composed(promotion)
    measured = footprints(data["contests"][-1])
    data["footprints"] = {task: {name: asdict(cost) for name, cost in row.items()} for task, row in measured.items()}
    data["versions"] = {**this_machine()["versions"], **packages(data["contenders"])}
    data["hardware"] = this_machine()["hardware"]
    data["sessions"] = promotion.state.get("sessions", [])
    data["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    sealed = certificate.seal(json.loads(json.dumps(data, allow_nan=False)))
    write_whole(promotion.folder / READABLE, certificate.markdown(sealed))
    if sealed["outcome"] == "better":
        write_whole(promotion.folder / CERTIFIED, sealed["rule"]["text"])
    write_whole(promotion.folder / CERTIFICATE, json.dumps(sealed, indent=1, allow_nan=False) + "\n")
    return sealed


def composed(promotion: Promotion) -> dict[str, Any]:
    """All of a certificate that follows from the promotion, so that it comes out the same whenever it is asked for."""
    state = promotion.state
    order = ["incumbents", *(f"rung {number + 1}" for number in range(len(promotion.settings.rungs))), "final"]
    stages = [state["stages"][name] for name in order if name in state["stages"]]
    contests = [Contest.of(stage) for stage in stages]
    ablation = state["stages"].get("simplify")
    held = contests if ablation is None else [*contests, Contest.of(ablation)]
    asked, provenance = promotion.asked(), promotion.provenance()
    trained = [task for contest in held for task in contest.terms.tasks]
    data_of, networks = facts_of(dict.fromkeys((*trained, *promotion.seen)))
    data: dict[str, Any] = {
        "format": certificate.FORMAT,
        "outcome": certificate.outcome(contests),
        "rule": _rule(state["final"]) if "final" in state["stages"] else None,
        "standing": state["standing"],
        "candidates": state["candidates"],
        "left_out": state["left_out"],
        "contenders": state["contenders"],
        "curve": state["curve"],
        "checkpoint": state["checkpoint"],
        "contests": stages,
        "statistics": [certificate.statistics_of(contest) for contest in contests],
        "simplification": state.get("simplification", []),
        "ablation": ablation,
        "seen": list(promotion.seen),
        "data": data_of,
        "networks": networks,
        "files": state.get("files", {}),
        "provenance": provenance,
        "spent": {
            "model_steps": {contest.terms.name: contest.model_steps for contest in held},
            "seconds": sum(state["seconds"].values()),
            "by_stage": state["seconds"],
        },
        "asked": asked,
        "commands": _commands(provenance["sessions"], asked),
    }
    return data | {"statement": certificate.statement(data)}


def _rule(recorded: Mapping[str, Any]) -> dict[str, Any]:
    found = dsl.parse(recorded["text"])
    return {**recorded, "structure": structure_hash(found), "behaviour": dsl.fingerprint(found).behaviour}


def footprints(stage: Mapping[str, Any]) -> dict[str, dict[str, Footprint]]:
    """Task -> contender -> what its step costs, of a contest: where that trained, if it is here, else on the CPU."""
    contenders = [made(name, spelling) for name, spelling in stage["rules"].items()]
    loaded = {task: named_tasks.load(task) for task in stage["terms"]["tasks"]}
    device = stage["terms"]["device"]
    return {name: footprint.measure(contenders, footprint.placed(task, device)) for name, task in loaded.items()}


def packages(spelled: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Class -> the package it is of, with its version, of those contenders that are classes."""
    classes = [made(name, spelling) for name, spelling in spelled.items() if "class" in spelling]
    return {one.name: one.origin["package"] for one in classes if isinstance(one, ClassContender)}


def _commands(sessions: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> list[str]:
    """What led to the certificate, each session of the search first, and what checks it."""
    pruned = ["--prune", asked["pruner"]] if asked["pruner"] != "none" else []
    by = ["--space", asked["by"]["space"]] if asked["by"] else []
    further = [word for task in asked["tasks"] for word in ("--task", task)]
    given = [word for name, value in asked["given"].items() for word in (f"--{name}", str(value))]
    options = ["--top", str(asked["top"]), *pruned, *by, *further, *given]
    return [
        *(each["command"] or f"# the session of {each['began']} left no command" for each in sessions),
        shlex.join(["discover", "promote", asked["folder"], *options]),
        shlex.join(["discover", "verify", str(Path(asked["folder"]) / CERTIFICATE)]),
    ]
