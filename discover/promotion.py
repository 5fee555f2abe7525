"""A promotion, as far as it is: what is asked of a run, and what promotion.json keeps of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discover.errors import RunError, UserError
from discover.files import write_whole
from discover.manifest import Manifest, read_json, read_manifest
from discover.promotion_keys import Promote, least_tunings, pruners_fit
from discover.pruners import Pruner
from discover.runs import find, is_running

FORMAT = 1
"""Version of promotion.json."""

PROMOTION, CERTIFICATE, READABLE = "promotion.json", "certificate.json", "certificate.md"
CERTIFIED = "certified.rule"


@dataclass(slots=True)
class Promotion:
    """A promotion, as far as it is.

    Attributes:
        state: what promotion.json holds.
        settings: of the space, with `top` and `pruner` as they were asked for.
    """

    folder: Path
    manifest: Manifest
    settings: Promote
    state: dict[str, Any]
    compile: bool

    def keep(self) -> None:
        write_whole(self.folder / PROMOTION, json.dumps(self.state, indent=1, allow_nan=False) + "\n")

    @property
    def split(self) -> Mapping[str, tuple[str, ...]]:
        tasks = self.manifest.configuration.space.tasks
        return {"select": tasks.select, "final": tasks.final}


def begin(text: str, top: int | None, pruner: Pruner | None = None) -> Promotion:
    """Finds the run, and what an earlier promotion of it came to.

    Args:
        text: as for `runs.find`.
        top, pruner: candidates, and of tunings; None for the space's. An earlier promotion's stay.

    Raises:
        RunError: no such run, it is being searched, or has trained nothing.
        UserError: its space has no select or final tasks; too many candidates for the rungs to tell apart; too few
            tuning seeds for the pruner.
    """
    folder = find(text)
    manifest = read_manifest(folder)
    if is_running(folder):
        raise RunError(f"{folder}: is being searched; wait for its end, or stop it, and promote it then")
    space = manifest.configuration.space
    for part in ("select", "final"):
        if not getattr(space.tasks, part):
            raise UserError(
                f"{folder}: its space has no tasks.{part}; promotion needs select and final tasks in the YAML"
            )
    state: dict[str, Any] = {"format": FORMAT, "stages": {}, "seconds": {}}
    if (folder / PROMOTION).is_file():
        state = read_json(folder / PROMOTION)
        if state.get("format") != FORMAT:
            raise RunError(f"{folder / PROMOTION}: is of format {state.get('format')}; this version reads {FORMAT}")
    count = state.setdefault("top", space.promote.top if top is None else top)
    for number, rung in enumerate(space.promote.rungs):
        least = least_tunings(rung.error_rate, count)
        if rung.tunings[1] < least:
            raise UserError(
                f"--top {count}: {rung.tunings[1]} tunings of rungs[{number}] cannot tell so many candidates from luck;"
                f" {least} can (promote.rungs in the space), or fewer candidates"
            )
    chosen = state.setdefault("pruner", _earlier(state) or pruner or space.promote.pruner)
    settings = space.promote.model_copy(update={"top": count, "pruner": chosen})
    try:
        pruners_fit(settings)
    except ValueError as error:
        raise UserError(f"--prune {chosen}: {error}") from None
    return Promotion(folder, manifest, settings, state, space.compile != "never")


def _earlier(state: Mapping[str, Any]) -> Pruner | None:
    """What an earlier version, which had no pruners, went by: none, where it had begun."""
    return "none" if state["stages"] else None
