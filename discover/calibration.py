"""What is known of how far a space's proxies can be trusted: NAME.calibration.json beside the space's YAML file.

`discover calibrate` writes it (`discover.calibrate`); lists and searches read it here, without waiting for scipy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discover.errors import UserError
from discover.files import write_whole
from discover.space import DIRECTORY, Space

FORMAT = 1
"""Version of the file."""


def path_of(space: str) -> Path:
    """Where the calibration of a space is, by the space's name or YAML file."""
    is_file = space.endswith((".yaml", ".yml")) or os.sep in space
    return (Path(space) if is_file else DIRECTORY / f"{space}.yaml").with_suffix(".calibration.json")


def digest(space: Space) -> str:
    """Equal for two spaces whose proxies, weights, limits and select tasks are the same, in whatever rungs; the same
    from whatever folder."""
    space = space.absolute()
    trained = sorted((task, rung.steps, rung.seeds) for rung in space.rungs for task in rung.tasks)
    facts = (trained, sorted(space.weights.items()), space.score_limits, space.tasks.select)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Keeps a calibration. Raises UserError where the folder cannot be written."""
    write_whole(path, json.dumps({"format": FORMAT, **data}, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any] | None:
    """A calibration; None where there is none.

    Raises:
        UserError: the file is damaged, or of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{path}: is damaged or of another version; delete it, and 'discover calibrate' makes it anew")
    return data


def find(space: str, now: Space) -> dict[str, Any] | None:
    """The calibration of a space's tasks: its own, or that of a built-in space which has the same tasks.

    Where there is none of these tasks, its own of other ones; None where there is none at all.
    """
    own = read(path_of(space))
    if own is not None and own["digest"] == digest(now):
        return own
    others = (read(path) for path in sorted(DIRECTORY.glob("*.calibration.json")))
    return next((other for other in others if other is not None and other["digest"] == digest(now)), own)


def line(space: str, now: Space) -> str:
    """How far the proxies can be trusted, in one line; empty where nobody has measured it.

    Args:
        space: its name or YAML file.
        now: as it will be searched: with other tasks, perhaps, than those that were calibrated.
    """
    data = find(space, now)
    if data is None:
        return ""
    if data["digest"] != digest(now):
        return "proxies: calibrated with other tasks or weights; 'discover calibrate' measures these"
    return in_words(data)


def brief(space: str, now: Space) -> str:
    """`line` for a table: "0.62 [0.21, 0.84] at 1/23", or "not calibrated"."""
    data = find(space, now)
    if data is None or data["digest"] != digest(now):
        return "not calibrated" if data is None else "of other tasks"
    return f"{estimate(data['all']['spearman'])} at {cost(data)}"


def in_words(data: Mapping[str, Any]) -> str:
    """ "proxies agree with select tasks: Spearman 0.62 [0.21, 0.84], 0.55 on rules it was not chosen by; cost 1/23 of
    the FLOPs": the second is what the best set on half of the rules comes to on the others."""
    agree, others = f"Spearman {estimate(data['all']['spearman'])}", data["chosen"]["value"]
    if others is not None:  # there were sets to choose from
        agree += f", {others:.2f} on rules it was not chosen by"
    return f"proxies agree with select tasks: {agree}; cost {cost(data)} of the FLOPs"


def estimate(found: Mapping[str, float | None]) -> str:
    """ "0.62 [0.21, 0.84]"."""
    if found["value"] is None:
        return "unknown"
    low, high = (("?" if found[end] is None else f"{found[end]:.2f}") for end in ("low", "high"))
    return f"{found['value']:.2f} [{low}, {high}]"


def cost(data: Mapping[str, Any], unit: str = "flops") -> str:
    """What one rule costs on all proxies, as a part or a multiple of what it costs on all select tasks: "1/23", "2.5x".

    Args:
        unit: "model_steps", "flops" or "seconds".
    """
    ratio = data["cost"]["proxies"][unit] / data["cost"]["select"][unit]
    return f"1/{float(f'{1 / ratio:.2g}'):g}" if ratio < 1 else f"{float(f'{ratio:.2g}'):g}x"
