"""Writes a promotion's certificate: all that is needed to check it, as data and as a page to read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

import dsl
from discover import certificate, footprint
from discover.archive import Archive
from discover.contenders import made
from discover.contest import Contest, load
from discover.files import write_whole
from discover.manifest import host, versions
from discover.promotion import CERTIFICATE, CERTIFIED, READABLE, Promotion
from discover.runs import ARCHIVE, handle
from discover.sets import facts_of
from dsl.canonical import structure_hash


def certify(promotion: Promotion) -> dict[str, Any]:
    """Writes certificate.json and certificate.md."""
    state, manifest = promotion.state, promotion.manifest
    order = ["incumbents", *(f"rung {number + 1}" for number in range(len(promotion.settings.rungs))), "final"]
    stages = [state["stages"][name] for name in order if name in state["stages"]]
    contests = [Contest.of(stage) for stage in stages]
    final = contests[-1] if "final" in state["stages"] else None
    last = contests[-1]
    contenders = [made(name, spelled) for name, spelled in stages[-1]["rules"].items()]
    prints = {task: footprint.measure(contenders, load(task)) for task in last.terms.tasks}
    rule = None
    if final is not None:
        recorded = state["final"]
        found = dsl.parse(recorded["text"])
        rule = {**recorded, "structure": structure_hash(found), "behaviour": dsl.fingerprint(found).behaviour}
    configuration = manifest.configuration
    with Archive.read(promotion.folder / ARCHIVE) as archive:
        provenance = {
            "run": manifest.run,
            "space": configuration.space.plain(),
            "seed": configuration.seed,
            "algorithm": configuration.algorithm,
            "command": shlex.join(manifest.command),
            "versions": dict(manifest.versions),
            "archive": archive.digest(),
            "candidate": state.get("winner"),
            "lineage": _lineage(archive, state),
        }
    steps = {stage["terms"]["name"]: contest.model_steps for stage, contest in zip(stages, contests, strict=True)}
    if "simplify_model_steps" in state:
        steps["simplify"] = state["simplify_model_steps"]
    trained = [task for contest in contests for task in contest.terms.tasks]
    data_of, networks = facts_of(dict.fromkeys((*trained, *promotion.seen)))
    data: dict[str, Any] = {
        "format": certificate.FORMAT,
        "outcome": certificate.outcome(contests),
        "rule": rule,
        "candidates": state["candidates"],
        "left_out": state["left_out"],
        "curve": state["curve"],
        "checkpoint": state["checkpoint"],
        "contests": stages,
        "statistics": [certificate.statistics_of(contest) for contest in contests],
        "simplification": state.get("simplification", []),
        "footprints": {task: {name: asdict(cost) for name, cost in row.items()} for task, row in prints.items()},
        "seen": list(promotion.seen),
        "data": data_of,
        "networks": networks,
        "files": state.get("files", {}),
        "provenance": provenance,
        "spent": {"model_steps": steps, "seconds": sum(state["seconds"].values()), "by_stage": state["seconds"]},
        "versions": versions(),
        "hardware": {**host(), "capability": torch.backends.cpu.get_cpu_capability()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commands": _commands(promotion),
    }
    data["statement"] = certificate.statement(data)
    sealed = certificate.seal(json.loads(json.dumps(data, allow_nan=False)))
    write_whole(promotion.folder / READABLE, certificate.markdown(sealed))
    if rule is not None and sealed["outcome"] == "better":
        write_whole(promotion.folder / CERTIFIED, rule["text"])
    write_whole(promotion.folder / CERTIFICATE, json.dumps(sealed, indent=1, allow_nan=False) + "\n")
    return sealed


def _lineage(archive: Archive, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The winner's ancestors along first parents, the oldest first."""
    id = next((each["id"] for each in state["candidates"] if each["name"] == state.get("winner")), None)
    found: list[dict[str, Any]] = []
    while id is not None:
        candidate = archive.candidate(id)
        assert candidate is not None
        found.append({"id": candidate.id, "origin": candidate.origin, "generation": candidate.generation})
        id = candidate.parents[0] if candidate.parents else None
    return found[::-1]


def _options(promotion: Promotion) -> list[str]:
    state = promotion.state
    pruned = ["--prune", state["pruner"]] if state["pruner"] != "none" else []
    by = ["--space", state["by"]["space"]] if state.get("by") else []
    further = [word for task in state["tasks"] for word in ("--task", task)]
    return ["--top", str(state["top"]), *pruned, *by, *further]


def _commands(promotion: Promotion) -> list[str]:
    run = handle(promotion.folder)
    return [
        shlex.join(promotion.manifest.command),
        shlex.join(["discover", "promote", run, *_options(promotion)]),
        shlex.join(["discover", "verify", str(promotion.folder / CERTIFICATE)]),
    ]
