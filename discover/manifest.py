"""What a run says of itself: `manifest.json`, with all that was asked for, so that resuming needs nothing else."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from discover.budget import UNLIMITED, Budget
from discover.errors import RunError
from discover.own_files import digests, named
from discover.source import code
from discover.space import Space
from discover.space_errors import in_words

FORMAT = 5
"""Version of a run folder's layout and of its manifest; another one is refused."""

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a search was asked to do.

    Attributes:
        space: as read from YAML, the user's own tasks put in.
        ancestors: the rules it starts from, as text, so that no file is needed later.
        algorithm: of a proposer, as `discover.proposers.load` takes it.
        seed: fixes every proposal and every instance.
        compiled_from: task -> the first generation whose gradients run compiled, None for never. Settled when the run
            is made, since results depend on it in their last bits.
        native: whether elementwise rules are stepped by `discover.native`; settled when the run is made, as that.
        budget: when it ends. In the file its limits stand beside the rest, each by its name, as they always did.
        workers: processes; 0 trains in this one, None uses all that a cluster has room for. Has no influence on
            results, nor has `ray_address`, nor `runtime_env`, which says how workers there get the code.
    """

    space: Space
    ancestors: tuple[str, ...]
    algorithm: str
    seed: int
    compiled_from: Mapping[str, int | None]
    native: bool
    budget: Budget
    workers: int | None
    ray_address: str | None = None
    runtime_env: Mapping[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.__slots__ if name != "budget"}
        return own | {"space": self.space.plain()} | self.budget.plain()

    def files(self) -> dict[str, str]:
        """Digests of the user's files that results depend on, by absolute path. Ancestors are kept as text."""
        space = {key: value for key, value in self.space.plain().items() if key != "ancestor"}
        return digests([*named(space), *named(self.algorithm)])

    @classmethod
    def of(cls, data: Mapping[str, Any], source: str) -> Configuration:
        """From what `plain` gives; a manifest that is older than some of the limits has none of those."""
        data = dict(data)
        data["space"] = Space.of(data["space"], f"{source}: space")
        data["ancestors"] = tuple(data["ancestors"])
        try:
            data["budget"] = Budget.of(**{limit: data.pop(limit) for limit in UNLIMITED.plain() if limit in data})
        except ValidationError as error:
            raise RunError(f"{source}: is damaged: {in_words(error, Budget)}") from None
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run says of itself.

    Attributes:
        versions, host: where it was made. Results are bound to these versions in their last bits.
        files: digests of the user's files that it was made with, see `Configuration.files`.
    """

    run: str
    created: str
    command: tuple[str, ...]
    configuration: Configuration
    versions: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, str | int | None] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        data = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({"format": FORMAT, **data, "configuration": self.configuration.plain()}, indent=2) + "\n"


class OtherFormatError(RunError):
    """The manifest is of another version."""


def read_manifest(folder: Path) -> Manifest:
    """Raises OtherFormatError, or RunError where the manifest is damaged."""
    path = folder / MANIFEST
    data = read_json(path)
    if data.get("format") != FORMAT:
        ours = data.get("versions", {}).get("optimizer-discovery", "another version")
        raise OtherFormatError(
            f"{folder}: is a run of format {data.get('format')}, and this version reads format {FORMAT};"
            f" it was made with optimizer-discovery {ours}"
        )
    try:
        configuration = Configuration.of(data["configuration"], str(path))
        return Manifest(
            data["run"],
            data["created"],
            tuple(data["command"]),
            configuration,
            data["versions"],
            data["host"],
            data.get("files", {}),
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}: is damaged: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise RunError(f"{path}: is damaged (not a JSON object)")
    return data


def versions(*more: str) -> dict[str, str]:
    """Versions of what results depend on, this project's `code` by its digest among them, of Ray, and of more
    packages."""
    found = {"python": platform.python_version(), "code": code()}
    for package in ("optimizer-discovery", "torch", "numpy", "ray", *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def host() -> dict[str, str | int | None]:
    """This machine: its system, its CPU by name, and gigabytes of memory; None for what it does not tell."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "cpus": os.cpu_count(),
        "memory_gb": _memory(),
    }


def _cpu(info: Path) -> str | None:
    """The CPU's name: where Linux tells it, else what Python knows."""
    try:
        lines = [line.partition(":") for line in info.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    named = (value.strip() for key, _, value in lines if key.strip() == "model name")
    return next(named, platform.processor()) or None


def _memory() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):
        return None
