"""Who took part: versions and hardware of each session of a search and of its promotion, and of the workers of this."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

from discover.archive import Archive
from discover.built import cpu
from discover.manifest import Manifest, host, versions

BESIDE = ("optuna", "scipy", "scikit-learn")
"""Packages that tunings, statistics and tasks' data go by, beside those of a run."""

Machine = Mapping[str, Any]
"""`versions` and `hardware` of a process."""


@cache
def this_machine() -> Machine:
    """Of this process."""
    hardware: dict[str, Any] = {**host(), "kind": cpu()}
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"versions": versions(*BESIDE), "hardware": hardware}


def searched(manifest: Manifest, archive: Archive, generations: int) -> list[dict[str, Any]]:
    """The sessions that brought a search to so many generations, in order: when each `began`, by which `command`, with
    which `versions`, on what `hardware`. A command is empty where a program searched, and with an older version all of
    it, but for the first session, which the manifest is of."""
    first = {"command": manifest.command, "versions": manifest.versions, "host": manifest.host}
    noted = archive.sessions_until(generations)
    later = noted[1:] if noted and not noted[0][1] else noted  # who made the run may have been gone before it searched
    return [
        {
            "began": began,
            "command": shlex.join(facts.get("command", ())),
            "versions": dict(facts.get("versions", {})),
            "hardware": dict(facts.get("host", {})),
        }
        for began, facts in ((manifest.created, first), *later)
    ]


def everybody(data: Mapping[str, Any]) -> Iterator[tuple[str, Machine]]:
    """Whoever took part, by a certificate: who it was in words, and of what."""
    yield "it was written by", {"versions": data["versions"], "hardware": data["hardware"]}
    for session in data["sessions"]:
        yield "a session of it was of", session
        for worker in session["workers"]:
            yield "a worker of it was of", worker
