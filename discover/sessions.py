"""Who took part in a promotion: versions and hardware of each of its sessions, and of the workers in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

from discover.built import cpu
from discover.manifest import host, versions

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


def everybody(data: Mapping[str, Any]) -> Iterator[tuple[str, Machine]]:
    """Whoever took part, by a certificate: who it was in words, and of what."""
    yield "it was written by", {"versions": data["versions"], "hardware": data["hardware"]}
    for session in data["sessions"]:
        yield "a session of it was of", session
        for worker in session["workers"]:
            yield "a worker of it was of", worker
