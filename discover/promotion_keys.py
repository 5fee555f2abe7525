"""What promotion asks of found rules, as a space says it: rungs on select tasks, simplifying, the final tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from discover import pruners
from discover.keys import Counts, Keys, Names, Positive, Resources, Steps, request_of
from discover.pruners import Pruner

_SHARDS = re.compile(r"[*?[]|\.bin$")  # a glob, or a file


class Sizes(Keys):
    """Where and how long a comparison trains.

    Attributes:
        tasks: none for all of the set.
        steps: a whole number of steps, or a fraction (0.5, 1.0) of each task's horizon; schedules are stretched to it.
    """

    tasks: Names = ()
    steps: Steps = 1.0

    def steps_of(self, horizon: int) -> int:
        return max(2, round(self.steps * horizon)) if isinstance(self.steps, float) else self.steps


class Placed(Sizes):
    """Sizes with what trains them.

    Attributes:
        resources: as for a rung of the search.
        here: tasks and steps where there are no such resources.
    """

    resources: Resources = Field(default_factory=dict)
    here: Sizes | None = None

    @property
    def request(self) -> tuple[tuple[str, float], ...]:
        """As `Rung.request`."""
        return request_of(self.resources)


class Tuning(Placed):
    """Tunings with one budget for all.

    Attributes:
        trials: settings of each tuning.
        tuning_seeds: on which each setting is trained.
        fresh: seeds on which the best setting of each tuning is scored.
        tunings: how many, each on seeds of its own.
    """

    trials: Annotated[int, Field(ge=1)] = 8
    tuning_seeds: Annotated[int, Field(ge=1)] = 1
    fresh: Annotated[int, Field(ge=1)] = 2
    tunings: Annotated[int, Field(ge=2, le=100)] = 4

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `resources` and `here` where they are not asked for: so certificates that are older than these keys
        say what follows from their space."""
        return {key: value for key, value in plain(self).items() if value or key not in ("resources", "here")}


class PromotionRung(Placed):
    """A comparison of every candidate and every baseline, whose winners go on.

    Attributes:
        trials, tuning_seeds, fresh: of each tuning, see `Tuning`.
        tunings: least and most; each is one look at whether a candidate is better.
        error_rate: probability that any candidate goes on which is not better than every baseline.
        baselines: None for those of the section.
    """

    trials: Annotated[int, Field(ge=1)] = 12
    tuning_seeds: Annotated[int, Field(ge=1)] = 1
    fresh: Annotated[int, Field(ge=1)] = 2
    tunings: Counts = (10, 16)
    error_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    baselines: Names | None = None

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if not 2 <= self.tunings[0] <= self.tunings[1] <= 100:
            raise ValueError(f"tunings: expected [least, most] from 2 to 100, not {list(self.tunings)}")
        if self.baselines == ():
            raise ValueError("baselines: expected at least one")
        return self


class Simplify(Tuning):
    """How a winner is simplified.

    Attributes:
        margin: nats of loss; what costs surely less than this goes.
        error_rate: of each test of that.
    """

    margin: Positive = 0.01
    error_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05


class Promote(Keys):
    """What a found rule must do to be promoted: on select tasks first, and then once on the final ones.

    Attributes:
        top: how many candidates of the chosen checkpoint take part.
        baselines: what they must beat, all of them.
        beside: what they are shown beside on the final tasks and need not beat; where the search began always is.
        seed: which study seeds, and so fresh seeds, are drawn. Promotions with the same one share them, and the
            tunings of their baselines; who goes on until something passes needs another.
        own: whether all hyperparameters are tuned, of candidates (their lifted constants) and baselines alike, or lr
            and weight decay alone.
        pruner: which trials of a tuning are dropped before their end, see `discover.pruning`.
        checkpoints: how many incumbents of the run are scored at most.
        incumbents: how each is.
        rungs: none for one on all select tasks.
        simplify: on select tasks; tasks none for those of the first rung.
        final: on final tasks.
    """

    top: Annotated[int, Field(ge=1)] = 4
    baselines: Annotated[Names, Field(min_length=1)] = ("adamw", "lion", "momentum", "muon")
    beside: Names = ()
    seed: Annotated[int, Field(ge=0, lt=10**6)] = 0
    own: bool = True
    pruner: Pruner = "none"
    checkpoints: Annotated[int, Field(ge=1)] = 6
    incumbents: Tuning = Tuning()
    rungs: tuple[PromotionRung, ...] = (PromotionRung(),)
    simplify: Simplify = Simplify(tunings=6)
    final: PromotionRung = PromotionRung()

    @model_validator(mode="after")
    def _can_show_something(self) -> Self:
        if not self.rungs:
            raise ValueError("rungs: expected at least one")
        for number, rung in enumerate(self.rungs):
            _enough(rung, self.top, f"rungs[{number}]")
        _enough(self.final, 1, "final")
        pruners_fit(self)
        return self

    def baselines_of(self) -> Iterator[tuple[str, str]]:
        """(where in the YAML, name) for every baseline that is named."""
        parts = {"": self.baselines, "final.": self.final.baselines}
        parts |= {f"rungs[{number}].": rung.baselines for number, rung in enumerate(self.rungs)}
        for where, names in parts.items():
            for name in names or ():
                yield f"promote.{where}baselines", name
        for name in self.beside:
            yield "promote.beside", name

    def tasks_of(self) -> Iterator[tuple[str, str, str]]:
        """(where in the YAML, task, set it must belong to) for every task that is named."""
        parts: list[tuple[str, Placed, str]] = [
            ("incumbents", self.incumbents, "select"),
            ("simplify", self.simplify, "select"),
            ("final", self.final, "final"),
        ]
        parts += [(f"rungs[{number}]", rung, "select") for number, rung in enumerate(self.rungs)]
        here = [(f"{where}.here", part.here, kind) for where, part, kind in parts if part.here]
        for where, sizes, kind in [*parts, *here]:
            for task in sizes.tasks:
                yield f"promote.{where}.tasks", task, kind


def pruners_fit(section: Promote) -> None:
    """Raises ValueError where a tuning has too few seeds for the section's pruner."""
    least = pruners.least_seeds(section.pruner)
    parts: dict[str, Tuning | PromotionRung] = {
        "incumbents": section.incumbents,
        **{f"rungs[{number}]": rung for number, rung in enumerate(section.rungs)},
        "simplify": section.simplify,
        "final": section.final,
    }
    for where, part in parts.items():
        if part.tuning_seeds < least:
            raise ValueError(
                f"{where}.tuning_seeds: {part.tuning_seeds}, expected at least {least} for the pruner {section.pruner},"
                " which compares settings seed by seed"
            )


def _enough(rung: PromotionRung, candidates: int, where: str) -> None:
    least = least_tunings(rung.error_rate, candidates)
    if rung.tunings[1] < least:
        raise ValueError(
            f"{where}.tunings: {rung.tunings[1]} cannot show that one of {candidates} candidates is better at error"
            f" rate {rung.error_rate:g}; at least {least} are needed, or fewer candidates (top)"
        )


def least_tunings(error_rate: float, candidates: int) -> int:
    """How many tunings a candidate that wins them all needs to pass: where `statistics.evidence` reaches Holm's first
    limit."""
    count = 1
    while (2.0 ** (count + 1) - 1) / (count + 1) < candidates / error_rate:
        count += 1
    return count


def base_of(task: str) -> str:
    """What is equal for names of which one set alone may have one: for all variants of a task, whatever their options
    say, and for all paths to one file, links included. Variants of a built-in task that read other data, by the option
    `data`, are other tasks."""
    stem, colon, rest = task.partition(".py:")
    if colon:
        return f"{Path(f'{stem}.py').resolve()}:{without_options(rest)}"
    data = _data_of(task)
    return without_options(task) + (f"(data={data})" if data else "")


def without_options(name: str) -> str:
    """A task's name alone: what stands before the parentheses."""
    return name.partition("(")[0].strip()


def _data_of(task: str) -> str | None:
    """Where the data of a built-in task are, as `FORMAT:PATH` or a path; None where it brings its own. Shards of tokens
    go by their folder, since they share those in it that are held out."""
    if "data" not in task.partition("(")[2]:
        return None
    from tasks import options  # and with it torch, which other spaces do not wait for

    try:
        text = options.parse(task)[1].get("data", "none")
    except ValueError:  # refused where the task is made
        return None
    if text == "none":
        return None
    form, path = options.form_and_path(text)
    found = os.path.realpath(os.path.expanduser(path))
    folder, name = os.path.split(found)
    return form + (folder if _SHARDS.search(name) else found)
