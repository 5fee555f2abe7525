"""A promotion, as far as it is: what is asked of a run, and what promotion.json keeps of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from discover.contest import load
from discover.errors import RunError, UserError
from discover.files import write_whole
from discover.manifest import Manifest, read_json, read_manifest
from discover.own_files import anchored, changed, digests, named
from discover.promotion_keys import Promote, PromotionRung, least_tunings, pruners_fit
from discover.pruners import Pruner
from discover.runs import find, is_running
from discover.sets import refuse_overlap
from discover.space import Space

FORMAT = 1
"""Version of promotion.json."""

PROMOTION, CERTIFICATE, READABLE = "promotion.json", "certificate.json", "certificate.md"
CERTIFIED = "certified.rule"


@dataclass(slots=True)
class Promotion:
    """A promotion, as far as it is.

    Attributes:
        manifest: of the run; its space's promote section and select and final tasks are those that were asked for.
        settings: of the space, with `top`, `pruner` and further rungs as they were asked for.
        state: what promotion.json holds.
        notes: lines for the user, such as a file that is not what the search read.
    """

    folder: Path
    manifest: Manifest
    settings: Promote
    state: dict[str, Any]
    compile: bool
    notes: tuple[str, ...] = ()

    def keep(self) -> None:
        write_whole(self.folder / PROMOTION, json.dumps(self.state, indent=1, allow_nan=False) + "\n")

    @property
    def split(self) -> Mapping[str, tuple[str, ...]]:
        tasks = self.manifest.configuration.space.tasks
        return {"select": tasks.select, "final": tasks.final}

    @property
    def seen(self) -> tuple[str, ...]:
        """The tasks that search or selection saw, as their results are stored."""
        tasks = self.manifest.configuration.space.tasks
        names = (*tasks.search, *tasks.select, *self.state["tasks"])
        return tuple(dict.fromkeys(load(name).spelling for name in names))


def begin(
    text: str,
    top: int | None,
    pruner: Pruner | None = None,
    *,
    by: str | None = None,
    own_tasks: Sequence[str] = (),
) -> Promotion:
    """Finds the run, and what an earlier promotion of it came to.

    Args:
        text: as for `runs.find`.
        top, pruner: candidates, and of tunings; None for the space's. An earlier promotion's stay.
        by: a space whose promote section and select and final tasks to go by; None for the run's own. An earlier
            promotion's stay.
        own_tasks: for one more rung each, as large as the space's last one. An earlier promotion's stay.

    Raises:
        RunError: no such run, it is being searched, or has trained nothing.
        UserError: its space has no select or final tasks; too many candidates for the rungs to tell apart; too few
            tuning seeds for the pruner; a task that is not there, or is in two sets.
    """
    folder = find(text)
    manifest = read_manifest(folder)
    if is_running(folder):
        raise RunError(f"{folder}: is being searched; wait for its end, or stop it, and promote it then")
    state: dict[str, Any] = {"format": FORMAT, "stages": {}, "seconds": {}}
    if (folder / PROMOTION).is_file():
        state = read_json(folder / PROMOTION)
        if state.get("format") != FORMAT:
            raise RunError(f"{folder / PROMOTION}: is of format {state.get('format')}; this version reads {FORMAT}")
    else:
        state["by"] = None if by is None else _terms_of(by)
    space = _by(manifest.configuration.space, state.get("by"))
    manifest = replace(manifest, configuration=replace(manifest.configuration, space=space))
    for part in ("select", "final"):
        if not getattr(space.tasks, part):
            raise UserError(
                f"{folder}: its space has no tasks.{part}; promotion needs select and final tasks in the YAML"
            )
    count = state.setdefault("top", space.promote.top if top is None else top)
    for number, rung in enumerate(space.promote.rungs):
        least = least_tunings(rung.error_rate, count)
        if rung.tunings[1] < least:
            raise UserError(
                f"--top {count}: {rung.tunings[1]} tunings of rungs[{number}] cannot tell so many candidates from luck;"
                f" {least} can (promote.rungs in the space), or fewer candidates"
            )
    chosen = state.setdefault("pruner", _earlier(state) or pruner or space.promote.pruner)
    if "tasks" not in state:  # an earlier version, which had no such rungs, may have begun
        state["tasks"] = [] if state["stages"] else _further(own_tasks, manifest, folder)
    rungs = (*space.promote.rungs, *(_on(space.promote.rungs[-1], task) for task in state["tasks"]))
    settings = space.promote.model_copy(update={"top": count, "pruner": chosen, "rungs": rungs})
    try:
        pruners_fit(settings)
    except ValueError as error:
        raise UserError(f"--prune {chosen}: {error}") from None
    promotion = Promotion(folder, manifest, settings, state, space.compile != "never")
    if own_tasks and spelled(own_tasks) != state["tasks"]:
        taken = ", ".join(state["tasks"]) or "none"
        promotion.notes = (
            f"an earlier promotion of this run had as --task {taken}; it stays so: nothing is drawn again",
        )
    if not (folder / CERTIFICATE).is_file():
        _look_at_files_and_tasks(promotion)
    return promotion


def spelled(own_tasks: Sequence[str]) -> list[str]:
    """Tasks from the command line as results are stored. Raises UserError where there is no such task."""
    return list(dict.fromkeys(load(name).spelling for name in anchored(list(own_tasks), Path.cwd())))


def _further(own_tasks: Sequence[str], manifest: Manifest, folder: Path) -> list[str]:
    """The tasks of further rungs, none of which may be the search's or a final one."""
    tasks = manifest.configuration.space.tasks
    further = spelled(own_tasks)
    for part in ("search", "final"):
        refuse_overlap({"--task": further, f"tasks.{part}": tasks.sets[part]}, str(folder))
    return further


def _on(rung: PromotionRung, task: str) -> PromotionRung:
    """A rung of the same size on one task."""
    here = None if rung.here is None else rung.here.model_copy(update={"tasks": ()})
    return rung.model_copy(update={"tasks": (task,), "here": here})


def _look_at_files_and_tasks(promotion: Promotion) -> None:
    """Makes every task of the run, before anything is trained: a certificate speaks of all of them."""
    state, manifest = promotion.state, promotion.manifest
    sets = dict(manifest.configuration.space.tasks.sets)
    for name in (*sets["search"], *sets["select"], *sets["final"]):
        load(name)
    refuse_overlap(sets, str(promotion.folder))
    promotion.notes += tuple(changed(manifest.files, "the run was made"))
    promotion.notes += tuple(changed(state.get("files", {}), "its promotion began"))
    now = manifest.configuration.files() | digests(named(state["tasks"]))
    state["files"] = now | state.get("files", {})


def _terms_of(by: str) -> dict[str, Any]:
    """What a space asks of found rules, as promotion.json keeps it."""
    plain = Space.load(by).absolute().plain()
    tasks = {part: plain["tasks"][part] for part in ("select", "final")}
    return {"space": by, "promote": plain["promote"], "tasks": tasks}


def _by(space: Space, terms: Mapping[str, Any] | None) -> Space:
    """A run's space that asks of found rules what another one does. Raises SpaceError where their tasks overlap."""
    if terms is None:
        return space
    plain = space.plain()
    plain |= {"promote": terms["promote"], "tasks": {**plain["tasks"], **terms["tasks"]}}
    return Space.of(plain, f"{space.name} promoted by {terms['space']}")


def _earlier(state: Mapping[str, Any]) -> Pruner | None:
    """What an earlier version, which had no pruners, went by: none, where it had begun."""
    return "none" if state["stages"] else None
