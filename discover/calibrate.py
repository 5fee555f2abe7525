"""The command that measures how far a space's proxies can be trusted: `discover calibrate`.

Known rules of many families are tuned with one budget on each proxy, at the length at which the search trains there,
and on each select task. If the order of the rules is the same on both, a search that climbs on the proxies climbs on
larger tasks; if it is not, no length of search helps. The statistics are in `discover.fidelity`.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
import torch
from rich.console import Console

import tasks
from discover import calibration, fidelity, lanes, named_tasks, plain, verdict
from discover.asks import Ask
from discover.calibration import estimate
from discover.console import Rows
from discover.contenders import Contender, RuleContender, check, contender
from discover.durations import format_duration
from discover.errors import NoLogarithmError, SpaceError, UserError
from discover.fidelity import Fidelity
from discover.files import refused
from discover.keeper import StoppedError
from discover.lanes import Lane
from discover.pruners import Pruner
from discover.sets import refuse_overlap
from discover.space import Space
from discover.storage import as_typed, default_url
from discover.studies import Tuned, TuningBudget
from discover.trainers import Ground
from discover.workshop import Staff, Workshop, interrupted, opened
from tasks import Task

REFERENCE = "adamw"

RULES: Mapping[str, tuple[str, ...]] = {
    "gradient": ("sgd", "sgd_sai"),
    "momentum": ("momentum", "nesterov"),
    "sign": ("signsgd", "signum", "lion"),
    "adaptive": (REFERENCE, "adagrad", "rmsprop", "adabelief", "laprop", "nadam", "adan"),
    "memory": ("adafactor", "adam_mini"),
    "matrix": ("muon", "soap", "shampoo"),
    "normalised": ("scale", "sinkgd"),
    "clipped": ("sgd_ll", "clip_global(momentum)", "clip_adaptive(adamw)"),
    "schedule-free": ("schedule_free_sgd", "schedule_free_adamw"),
    "wrapper": ("cautious(adamw)", "lookahead(adamw)", "ema_nesterov(adamw)", "grokfast(adamw)"),
}
"""Family -> rules whose order is compared: old and new, good and bad, since an order needs all of them."""

TUNINGS = 4
"""How often each rule is tuned on each task; what is independent, and so what is halved for the ceiling."""

TRIALS, SEEDS, TUNING_SEEDS = 12, 8, 2
MOST_SEEDS = 100

_TIMED_STEPS = 12


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    Attributes:
        trials: settings of each tuning.
        seeds: fresh seeds on each task, rounded up to as many for every tuning.
        tunings: of each rule on each task.
        tuning_seeds: on which each setting is trained.
        pruner: see `discover.pruning`.
    """

    trials: int = TRIALS
    seeds: int = SEEDS
    tunings: int = TUNINGS
    tuning_seeds: int = TUNING_SEEDS
    pruner: Pruner = "none"

    def __post_init__(self) -> None:
        """Raises UserError where a number is out of range."""
        if not self.tunings <= self.seeds <= MOST_SEEDS * self.tunings:
            most = MOST_SEEDS * self.tunings
            raise UserError(f"--seeds {self.seeds}: expected {self.tunings} (one for each tuning) to {most}")
        if self.trials < 1:
            raise UserError(f"--trials {self.trials}: expected at least 1")

    @property
    def budget(self) -> TuningBudget:
        return TuningBudget(self.trials, self.tuning_seeds, math.ceil(self.seeds / self.tunings), pruner=self.pruner)


@dataclass(frozen=True, slots=True)
class Place:
    """Where rules are tuned: a task at a length.

    Attributes:
        name: the task's, with the length where the space has the task at several.
        weight: how much its score counts, all rungs and instances of a candidate together.
        trainings: how many instances of it a candidate is trained on; 1 for a select task.
    """

    name: str
    task: Task
    steps: int
    weight: float = 1.0
    trainings: int = 1


@dataclass(slots=True)
class Calibration:
    """A calibration, as far as it is.

    Attributes:
        results: place -> rule -> tunings.
        step_seconds: place -> of one step of one model of AdamW, where several train side by side.
        left_out: rule -> why its order cannot be compared.
    """

    space: Space
    options: Options
    contenders: Sequence[Contender]
    proxies: Sequence[Place]
    select: Sequence[Place]
    results: dict[str, dict[str, list[Tuned]]] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def leave_out(self, rule: str, place: Place, error: UserError) -> None:
        """Goes on without a rule that brought a held-out loss below 0, or met a task whose loss begins at 0: it has no
        logarithm. Raises any other error, and this one where the reference did it."""
        if not isinstance(error, NoLogarithmError) or rule == REFERENCE:
            raise UserError(f"{rule} on {place.name}: {error}") from error
        self.left_out[rule] = f"on {place.name} {error}"
        for row in self.results.values():
            row.pop(rule, None)

    @property
    def places(self) -> list[Place]:
        return [*self.proxies, *self.select]


def prepare(space: Space, options: Options, rules: Sequence[str] | None = None) -> Calibration:
    """Finds the space's proxies and select tasks, and the rules, and tries whether each can train each.

    Args:
        space: its proxies are the tasks of its rungs at their lengths.
        rules: None for `RULES`; the reference is always among them.

    Raises:
        UserError: no select task; no such task; a rule that cannot train one.
    """
    if not space.tasks.select:
        raise SpaceError(f"{space.name}: tasks.select is empty; name the tasks that the proxies shall stand for")
    names = [name for family in RULES.values() for name in family] if rules is None else list(rules)
    found = [contender(name) for name in dict.fromkeys([REFERENCE, *names])]
    proxies = _proxies(space)
    select = [Place(task.spelling, task, task.horizon) for task in map(named_tasks.load, space.tasks.select)]
    for place in [*proxies, *select]:
        for one in found:
            check(one, place.task)
    return Calibration(space, options, found, proxies, select)


def _proxies(space: Space) -> list[Place]:
    asked: dict[tuple[str, int], tuple[Task, int]] = {}
    for rung in space.rungs:
        for name in rung.tasks:
            task = named_tasks.load(name)
            key = (name, rung.steps_of(task.horizon))
            asked[key] = (task, asked.get(key, (task, 0))[1] + rung.seeds)
    lengths = [name for name, _ in asked]
    return [
        Place(
            f"{name}, {steps} steps" if lengths.count(name) > 1 else name,
            task,
            steps,
            space.weights.get(name, 1.0) * trainings,
            trainings,
        )
        for (name, steps), (task, trainings) in asked.items()
    ]


def carry_out(asked: Calibration, workshop: Workshop, *, compile: bool = True) -> None:
    """Tunes and scores every rule on every proxy and select task.

    Raises:
        StoppedError: the workshop was asked to stop; what was trained is in the store.
        UserError: a rule that cannot be compared, where it is the reference; ClusterError: the cluster is gone.
    """
    adamw = asked.contenders[0]
    for place in asked.places:  # before anything trains beside it
        asked.step_seconds[place.name] = step_seconds(workshop.ground(_ask(asked, place, adamw, compile)))
        asked.results.setdefault(place.name, {})
    places = {(place.task.spelling, place.steps): place for place in asked.places}
    answers = workshop.tuned(_asks(asked, compile))
    for where, some in groupby(answers, lambda answer: (answer.ask.task.spelling, answer.ask.steps)):
        place, began = places[where], time.perf_counter()
        row = asked.results[place.name]
        for answer in some:
            name = answer.ask.contender.name
            if name not in asked.left_out:
                try:
                    row[name] = answer.tunings
                except UserError as error:
                    asked.leave_out(name, place, error)
                    workshop.say(f"{name} is left out: {asked.left_out[name]}")
        seconds = time.perf_counter() - began
        workshop.say(f"{place.name}, {place.steps} steps: {len(row)} rules ({format_duration(seconds)})")


def _asks(asked: Calibration, compile: bool) -> Iterator[Ask]:
    """Every rule on every place; who was left out by the time it would be its turn is not asked for."""
    for place in asked.places:
        for one in asked.contenders:
            if one.name not in asked.left_out:
                yield _ask(asked, place, one, compile)


def _ask(asked: Calibration, place: Place, one: Contender, compile: bool) -> Ask:
    return Ask(one, place.task, place.steps, asked.options.budget, range(asked.options.tunings), compile=compile)


def step_seconds(ground: Ground) -> float:
    """Of one step of one model under AdamW, a tile of them side by side: the quickest of a few steps."""
    adamw, tile = contender(REFERENCE), ground.gradient.tile
    assert isinstance(adamw, RuleContender)
    side_by_side = [Lane(0, seed, {"lr": ground.task.learning_rate}) for seed in range(tile)]
    training = lanes.Training(
        ground.task,
        [adamw.program],
        side_by_side,
        ground.steps,
        ground.gradient,
        native=ground.built.native,
        checkpoints=(),
    )
    took = []
    for t in range(1, min(_TIMED_STEPS, ground.steps) + 1):
        began = time.perf_counter()
        training.step(t)
        took.append(time.perf_counter() - began)
    return min(took) / tile


def judged(asked: Calibration, *, resamples: int = 2000) -> Fidelity:
    """What it shows; the same for the same results."""
    limits = asked.space.score_limits
    tables = {place.name: _scores(asked.results[place.name], limits) for place in asked.places}
    weights = {place.name: place.weight for place in asked.proxies}
    return fidelity.judge(
        {place.name: tables[place.name] for place in asked.proxies},
        [tables[place.name] for place in asked.select],
        weights,
        np.random.default_rng(0),
        resamples=resamples,
    )


def _scores(row: Mapping[str, Sequence[Tuned]], limits: tuple[float, float]) -> Any:
    logs = np.array([verdict.log_losses(tuned) for tuned in row.values()])
    return fidelity.scores(logs, list(row).index(REFERENCE), limits)


def data_of(asked: Calibration, found: Fidelity, command: Sequence[str], seconds: float) -> dict[str, Any]:
    """What the file holds: what was asked, every rule's scores, every correlation, and the cost."""
    family = {name: kind for kind, names in RULES.items() for name in names}
    limits = asked.space.score_limits
    kept = [one.name for one in asked.contenders if one.name not in asked.left_out]
    rules: dict[str, Any] = {name: {"family": family.get(name, ""), "scores": {}} for name in kept}
    for place, row in asked.results.items():
        for name, mean in zip(row, _scores(row, limits).mean(axis=1).tolist(), strict=True):
            rules[name]["scores"][place] = round(mean, 5)
    spent = [tuned for row in asked.results.values() for own in row.values() for tuned in own]
    contributions = {name: plain.ready(asdict(part)) for name, part in found.proxies.items()}
    return {
        "space": asked.space.name,
        "digest": calibration.digest(asked.space),
        "command": as_typed(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "options": asdict(asked.options),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "model_steps": sum(tuned.model_steps for tuned in spent),
        "edges": sum(tuned.at_edge for tuned in spent),
        "all": plain.ready(asdict(found.all)),
        "ceiling": plain.ready(asdict(found.ceiling)),
        "proxy_ceiling": plain.ready(asdict(found.proxy_ceiling)),
        "chosen": plain.ready(asdict(found.chosen)),
        "proxies": {
            place.name: {**contributions[place.name], **_cost_of(asked, place), "weight": place.weight}
            for place in asked.proxies
        },
        "select": {place.name: _cost_of(asked, place) for place in asked.select},
        "cost": {"proxies": _cost(asked, asked.proxies), "select": _cost(asked, asked.select)},
        "subsets": [plain.ready(asdict(one)) for one in found.subsets],
        "rules": rules,
        "left_out": asked.left_out,
    }


def _cost_of(asked: Calibration, place: Place) -> dict[str, float]:
    """Of training one rule once on each instance that a candidate is trained on: as much as the search does, but for
    its grid of learning rates."""
    steps = place.steps * place.trainings
    return {
        "steps": place.steps,
        "model_steps": steps,
        "flops": float(steps * place.task.flops),
        "seconds": float(f"{steps * asked.step_seconds[place.name]:.3g}"),
    }


def _cost(asked: Calibration, places: Sequence[Place]) -> dict[str, float]:
    each = [_cost_of(asked, place) for place in places]
    return {unit: sum(own[unit] for own in each) for unit in ("model_steps", "flops", "seconds")}


# The command ----------------------------------------------------------------------------------------------------------


def run(
    space: str, options: Options, *, storage: str | None, staff: Staff, as_json: bool, command: Sequence[str]
) -> None:
    """Calibrates, shows what came of it, and then keeps it beside the space.

    Args:
        space: its name or YAML file.
        storage: URL of an Optuna storage; None for the user's own file.
        staff: who trains.
        as_json: print JSON on stdout, and what is shown to people on stderr.
        command: what was typed.

    Raises:
        UserError: a mistake of the user's, or what was found cannot be kept there; nothing has been trained then.
    """
    console = Console(stderr=as_json)
    torch.set_num_threads(1)
    _ = options.budget  # its numbers are looked at before anything is trained
    loaded, path = Space.load(space), calibration.path_of(space)
    if reason := refused(path.parent):
        raise UserError(
            f"cannot write '{path}': {reason}; copy the space's YAML file elsewhere, and calibrate the copy"
        )
    loaded.check_tasks(tasks.check_name, space)
    refuse_overlap({"search": loaded.tasks.search, "select": loaded.tasks.select}, space)
    loaded = loaded.renamed({name: named_tasks.load(name).spelling for rung in loaded.rungs for name in rung.tasks})
    asked = prepare(loaded, options)
    runs = len(asked.places) * len(asked.contenders) * options.tunings * options.budget.planned
    url, began = storage or default_url(), time.perf_counter()
    try:
        with opened(url, staff, console, runs=runs) as workshop:
            carry_out(asked, workshop)
    except StoppedError:
        interrupted(console, url, as_json=as_json)
        return
    if len(asked.contenders) - len(asked.left_out) < fidelity.FEWEST:
        raise UserError(f"{space}: too few rules are left: {'; '.join(asked.left_out.values())}")
    data = data_of(asked, judged(asked), command, time.perf_counter() - began)
    for table in shown(data):
        console.print(table, highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(data | {"file": str(path)}, indent=1))
    calibration.write(path, data)
    line = f"{format_duration(data['seconds'])}, {data['model_steps']:,} model steps; written to {path}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


FEW_SUBSETS = 5
COLUMNS = ("proxy", "Spearman, alone", "Kendall", "with itself", "what it adds", "", "steps", "GFLOP")


def shown(data: Mapping[str, Any]) -> Iterator[Any]:
    """Tables and lines for a person."""
    rows = [
        (
            name,
            estimate(own["spearman"]),
            estimate(own["kendall"]),
            estimate(own["ceiling"]),
            estimate(own["gain"]) if own["gain"] else "",
            own["call"],
            f"{own['steps']:g}",
            f"{own['flops'] / 1e9:.2g}",
        )
        for name, own in data["proxies"].items()
    ]
    select = ", ".join(data["select"])
    yield f"\n{len(data['rules'])} rules, their order on proxies and on {select}"
    yield Rows(COLUMNS, rows)
    yield f"\nsets of proxies, the {FEW_SUBSETS} best of {len(data['subsets'])} and all"
    some = data["subsets"][:FEW_SUBSETS]
    some += [one for one in data["subsets"][FEW_SUBSETS:] if len(one["proxies"]) == len(data["proxies"])]
    yield Rows(
        ("proxies", "Spearman", "Kendall", "best in"),
        (
            (" ".join(s["proxies"]), estimate(s["spearman"]), estimate(s["kendall"]), f"{100 * s['best']:.0f} %")
            for s in some
        ),
    )
    yield ""
    yield calibration.in_words(data)
    yield (
        f"noise ceiling: select tasks agree with themselves on other seeds by {estimate(data['ceiling'])},"
        f" the proxies by {estimate(data['proxy_ceiling'])}"
    )
    yield f"the best set on half of the rules, on the other half: {estimate(data['chosen'])} over ways to halve"
    yield (
        f"cost of one rule on all proxies over that on all select tasks: {calibration.cost(data, 'model_steps')} in"
        f" model steps, {calibration.cost(data, 'flops')} in FLOPs, {calibration.cost(data, 'seconds')} in seconds"
    )
    for call, words in (("carries", "carry the signal"), ("harms", "harm")):
        named = [name for name, own in data["proxies"].items() if own["call"] == call]
        yield f"proxies shown to {words}: {', '.join(named) or 'none'}"
    yield "[..]: 95 % intervals over rules and seeds. what it adds: Spearman of all proxies less that without this one."
    for name, why in data["left_out"].items():
        yield f"left out: {name}: {why}"
    if data["edges"]:
        yield f"best learning rates at the edge of their range: in {data['edges']} tunings; more --trials extend it"
