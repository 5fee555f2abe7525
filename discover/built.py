"""How a training was built: what its last bits depend on beside versions of packages."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from discover import artefact


@dataclass(frozen=True, slots=True)
class Built:
    """How a training was built. Trainings that were built alike are equal to the bit, but for those on a GPU, whose
    sums have no fixed order.

    Attributes:
        compiled: whether its gradients were.
        native: whether elementwise rules were stepped by `discover.native`.
        on: the kind of CPU, or the GPU.
        code: of this project, see `discover.source`; empty where it was not noted.
    """

    compiled: bool
    native: bool
    on: str
    code: str = ""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Built:
        """From what `dataclasses.asdict` gave."""
        return cls(**data)

    def __str__(self) -> str:
        gradients, rules = ("compiled" if self.compiled else "eager"), ("native" if self.native else "generated")
        return f"{gradients} gradients, {rules} rules, on {self.on}"


def machine(device: torch.device) -> str:
    """What trains on a device of this machine: its kind of CPU, or the name of its GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()


@cache
def cpu() -> str:
    """The kind of CPU of this machine: torch and the compiler choose instructions by all of what the digest is of, its
    model, its flags and the C library; the words before are for people."""
    digest = hashlib.sha256("\n".join(artefact.cpu()).encode()).hexdigest()[:8]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {digest}"
