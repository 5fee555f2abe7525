"""When a search ends: all limits that it may have, and what each of them means, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field

from discover.durations import format_duration, parse_duration
from discover.keys import Duration, Keys

if TYPE_CHECKING:
    from discover.progress import Progress
    from discover.records import Totals

EXHAUSTED = 50
"""After so many generations in a row without anything new to train a search ends, whatever its budget."""


class Budget(Keys):
    """When a search ends: at whichever of these comes first. A section of a space, and what the command line gives.

    Two are equal that end searches alike, however their time is spelled.

    Attributes:
        time: of searching, of one session.
        candidates: trained, all sessions together, as for what follows.
        model_steps: training steps of one model, references and confirmations included.
        target: a fitness that fresh scores let one expect of a candidate.
        plateau: so many candidates trained since the best of these was last bettered, from the first that is confirmed
            on: before, there is nothing to better.
    """

    time: Duration | None = None
    candidates: Annotated[int, Field(ge=1)] | None = None
    model_steps: Annotated[int, Field(ge=1)] | None = None
    target: float | None = None
    plateau: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def of(cls, *, seconds: float | None = None, **others: Any) -> Self:
        """A budget whose time is a number, as `plain` gives it. Raises ValidationError, a ValueError."""
        return cls(time=None if seconds is None else f"{Decimal(repr(float(seconds))):f}s", **others)

    def plain(self) -> dict[str, Any]:
        """As plain data: what a manifest keeps."""
        return {"seconds": self.seconds, **{name: getattr(self, name) for name in _COUNTED}}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(tuple(self.plain().values()))

    @property
    def seconds(self) -> float | None:
        return None if self.time is None else parse_duration(self.time)

    @property
    def limits(self) -> dict[str, float]:
        """Those that are given."""
        return {name: value for name, value in self.plain().items() if value is not None}

    @property
    def compute(self) -> dict[str, float]:
        """Those that are compute, which a control may have more of."""
        return {name: value for name, value in self.limits.items() if name in ("seconds", "candidates", "model_steps")}

    def reached(self, progress: Progress, elapsed: float) -> str:
        """Why there may be no other generation, `elapsed` seconds after the session began; empty where there may."""
        best, trained = progress.best, progress.trained
        if self.target is not None and best is not None and best >= self.target:
            return f"fresh scores let one expect {best:+.3f} of a candidate, and {self.target:+g} was the target"
        if self.candidates is not None and trained >= self.candidates:
            return f"{trained} candidates are trained, and {self.candidates} were to be"
        if self.model_steps is not None and progress.model_steps >= self.model_steps:
            return f"{progress.model_steps:,} model steps are used, of {self.model_steps:,}"
        if self.plateau is not None and best is not None and trained - progress.trained_at_best >= self.plateau:
            return f"the last {trained - progress.trained_at_best} candidates brought nothing better"
        if progress.barren >= EXHAUSTED:
            return f"nothing new in {progress.barren} generations: the space is exhausted, or its gate lets none in"
        if self.seconds is not None and elapsed >= self.seconds:
            return f"its {format_duration(self.seconds)} are over"
        return ""

    def spent(self, totals: Totals) -> str:
        """What an archive says is used up, in words; empty if nothing is, as far as it can tell."""
        if self.candidates is not None and totals.trained >= self.candidates:
            return f"has trained its {self.candidates} candidates"
        if self.seconds is not None and totals.elapsed >= self.seconds:
            return f"has used its {format_duration(self.seconds)}"
        if self.model_steps is not None and totals.model_steps >= self.model_steps:
            return f"has used its {self.model_steps} model steps"
        return ""

    def after(self, elapsed: float) -> Self:
        """What is left for another session when so many seconds, fewer than its time, are over."""
        plain = self.plain()
        return self.of(**plain if self.seconds is None else {**plain, "seconds": self.seconds - elapsed})

    def times(self, factor: float) -> Self:
        """So many times the compute: a target and a plateau are none."""
        plain = self.plain()
        more: dict[str, Any] = {"seconds": None if self.seconds is None else self.seconds * factor}
        for name in ("candidates", "model_steps"):
            more[name] = None if plain[name] is None else max(1, round(plain[name] * factor))
        return self.of(**{**plain, **more})

    def words(self) -> Iterator[str]:
        """Each limit, for people."""
        if self.seconds is not None:
            yield format_duration(self.seconds)
        if self.candidates is not None:
            yield f"up to {self.candidates} candidates"
        if self.model_steps is not None:
            yield f"up to {self.model_steps:,} model steps"
        if self.target is not None:
            yield f"until fitness {self.target:g}"
        if self.plateau is not None:
            yield f"until {self.plateau} candidates bring nothing better"


UNLIMITED = Budget()
_COUNTED = tuple(name for name in Budget.model_fields if name != "time")
