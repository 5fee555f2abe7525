"""A promotion, as far as it is: what is asked of a run, and what promotion.json keeps of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dsl
from discover import named_tasks
from discover.archive import Archive
from discover.contenders import Contender, contender, made
from discover.contenders import spelled as spelling_of
from discover.errors import RunError, UserError
from discover.files import write_whole
from discover.incumbents import Leader, checkpoint, leaders, thinned
from discover.manifest import Manifest, read_json, read_manifest
from discover.own_files import anchored, changed, digests, named
from discover.promotion_keys import Promote, PromotionRung, least_tunings, pruners_fit
from discover.pruners import Pruner
from discover.records import Candidate
from discover.runs import ARCHIVE, CERTIFICATE, PROMOTION, find, is_running
from discover.sessions import Machine, searched, this_machine
from discover.sets import refuse_overlap
from discover.space import Space
from discover.workers import Request
from discover.workshop import Place, Workshop
from dsl import Program
from dsl.lift import lift

FORMAT = 4
"""Version of promotion.json."""

ASKED = ("top", "pruner", "by", "tasks", "given")
"""What of the command line a promotion keeps; `given` are options that change no result."""


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

    def open_session(self, workshop: Workshop) -> None:
        """Notes who promotes from here on: this process, and each kind of worker when it is first heard of."""
        session = {"began": datetime.now(UTC).isoformat(timespec="seconds"), **this_machine(), "workers": []}
        self.state.setdefault("sessions", []).append(session)

        def met(machine: Machine) -> None:
            if machine not in session["workers"]:
                session["workers"].append(machine)
                self.keep()

        workshop.met = met

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
        return tuple(dict.fromkeys(named_tasks.load(name).spelling for name in names))

    def contender(self, name: str) -> Contender:
        """A baseline by its name: what it was when this promotion first asked for it."""
        known = self.state.setdefault("contenders", {})
        if name not in known:
            known[name] = spelling_of(contender(name))
        return made(name, known[name])

    def place(self, stage: str, request: Request, workshop: Workshop) -> Place:
        """Where a stage is trained."""
        return workshop.place(request)

    def led(self) -> list[tuple[Leader, float | None, Program]]:
        """The run's leaders that are scored, with the fitness of each in the search; none where it has trained
        nothing."""
        with Archive.read(self.folder / ARCHIVE) as archive:
            count = self.state.setdefault("generations", archive.totals().generations)
            found = thinned(leaders(archive, count), self.settings.checkpoints)
            texts = [archive.candidate(leader.candidate) for leader, _ in found]
        return [(*each, program_of(one.id, one.text)) for each, one in zip(found, texts, strict=True) if one]

    def standing(self, generation: int) -> tuple[int, list[Candidate]]:
        """How many had a place at the end of a generation, and those, the first first."""
        with Archive.read(self.folder / ARCHIVE) as archive:
            ranked = checkpoint(archive, generation)
        return len(ranked), ranked

    def provenance(self) -> dict[str, Any]:
        """Where the candidates come from: the run, who searched and at what cost, its archive as far as it went, the
        winner's ancestors."""
        manifest, configuration = self.manifest, self.manifest.configuration
        count = self.state["generations"]
        with Archive.read(self.folder / ARCHIVE) as archive:
            digest, totals = archive.digest(count), archive.totals(count)
            sessions = searched(manifest, archive, count)
            lineage = _lineage(archive, self.state)
        return {
            "run": manifest.run,
            "space": configuration.space.plain(),
            "ancestors": list(configuration.ancestors),
            "seed": configuration.seed,
            "algorithm": configuration.algorithm,
            "sessions": sessions,
            "spent": {
                "proposed": totals.proposed,
                "trained": totals.trained,
                "model_steps": totals.model_steps,
                "seconds": totals.elapsed,
            },
            "archive": digest,
            "generations": count,
            "candidate": self.state.get("winner"),
            "lineage": lineage,
        }

    def asked(self) -> dict[str, Any]:
        """What was asked for on the command line, and where the run lies, as text."""
        return {"folder": str(self.folder.absolute())} | {key: self.state[key] for key in ASKED}


def program_of(id: int, text: str) -> Program:
    """A candidate with its constants lifted."""
    program = lift(dsl.parse(text, f"candidate {id}"))
    return replace(dsl.check(program), name=f"candidate_{id}", doc="")


def _lineage(archive: Archive, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The winner's ancestors along first parents, the oldest first."""
    id = next((each["id"] for each in state["candidates"] if each["name"] == state.get("winner")), None)
    return [{"id": each.id, "origin": each.origin, "generation": each.generation} for each in archive.lineage(id)]


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
            raise RunError(
                f"{folder / PROMOTION}: is of format {state.get('format')}, and this version reads format {FORMAT};"
                " what was begun with another version goes on with that one"
            )
    else:
        state["by"] = None if by is None else _terms_of(by)
    manifest = judged_by(manifest, state["by"])
    space = manifest.configuration.space
    for part in ("select", "final"):
        if not getattr(space.tasks, part):
            raise UserError(
                f"{folder}: its space has no tasks.{part}; promotion needs select and final tasks in the YAML"
            )
    state.setdefault("given", {})
    count = state.setdefault("top", space.promote.top if top is None else top)
    chosen = state.setdefault("pruner", pruner or space.promote.pruner)
    if "tasks" not in state:
        state["tasks"] = _further(own_tasks, manifest, folder)
    settings = settings_of(space, count, chosen, state["tasks"])
    promotion = Promotion(folder, manifest, settings, state, space.compile != "never")
    if own_tasks and spelled(own_tasks) != state["tasks"]:
        taken = ", ".join(state["tasks"]) or "none"
        promotion.notes = (
            f"an earlier promotion of this run had as --task {taken}; it stays so: nothing is drawn again",
        )
    if not (folder / CERTIFICATE).is_file():
        _look_at_files_and_tasks(promotion)
    return promotion


def settings_of(space: Space, top: int, pruner: Pruner, tasks: Sequence[str]) -> Promote:
    """A space's section with what was asked for on the command line. Raises UserError where these do not fit."""
    for number, rung in enumerate(space.promote.rungs):
        least = least_tunings(rung.error_rate, top)
        if rung.tunings[1] < least:
            raise UserError(
                f"--top {top}: {rung.tunings[1]} tunings of rungs[{number}] cannot tell so many candidates from luck;"
                f" {least} can (promote.rungs in the space), or fewer candidates"
            )
    rungs = (*space.promote.rungs, *(_on(space.promote.rungs[-1], task) for task in tasks))
    settings = space.promote.model_copy(update={"top": top, "pruner": pruner, "rungs": rungs})
    try:
        pruners_fit(settings)
    except ValueError as error:
        raise UserError(f"--prune {pruner}: {error}") from None
    return settings


def spelled(own_tasks: Sequence[str]) -> list[str]:
    """Tasks from the command line as results are stored. Raises UserError where there is no such task."""
    return list(dict.fromkeys(named_tasks.load(name).spelling for name in anchored(list(own_tasks), Path.cwd())))


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
        named_tasks.load(name)
    refuse_overlap(sets, str(promotion.folder))
    promotion.notes += tuple(changed(manifest.files, "the run was made"))
    promotion.notes += tuple(changed(state.get("files", {}), "its promotion began"))
    now = manifest.configuration.files() | digests(named(state["tasks"]))
    state["files"] = now | state.get("files", {})


def _terms_of(by: str) -> dict[str, Any]:
    """What a space asks of found rules, as promotion.json keeps it."""
    plain = Space.load(by).absolute().plain()
    tasks = {part: plain["tasks"][part] for part in ("select", "final")}
    return {"space": named_space(by), "promote": plain["promote"], "tasks": tasks}


def named_space(by: str) -> str:
    """A space as it is named wherever one stands: a file by its absolute path."""
    return str(Path(by).absolute()) if Path(by).suffix in (".yaml", ".yml") else by


def judged_by(manifest: Manifest, terms: Mapping[str, Any] | None) -> Manifest:
    """A run whose space asks of found rules what another one does (None: what it says itself). Raises SpaceError where
    their tasks overlap."""
    if terms is None:
        return manifest
    space = manifest.configuration.space
    plain = space.plain()
    plain |= {"promote": terms["promote"], "tasks": {**plain["tasks"], **terms["tasks"]}}
    changed = Space.of(plain, f"{space.name} promoted by {terms['space']}")
    return replace(manifest, configuration=replace(manifest.configuration, space=changed))
