"""What keeps a study: the store, or notes on the way to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from optuna.trial import FrozenTrial


class Ledger(Protocol):
    """Where what a study comes to is kept: `discover.storage.Store`, or `Notes` on the way there."""

    def study(self, name: str, facts: Mapping[str, Any]) -> tuple[list[FrozenTrial], dict[str, Any]]:
        """What is kept of a study: trials and attributes."""

    def add(self, name: str, trial: FrozenTrial) -> None: ...

    def set(self, name: str, key: str, value: object) -> None: ...


@dataclass(slots=True)
class Notes:
    """What a worker knows of one study, and what it adds; it travels.

    Attributes:
        trials, attributes: what was kept before.
        added: trials since; `fresh`: what the best setting came to since.
    """

    trials: list[FrozenTrial]
    attributes: dict[str, Any]
    added: list[FrozenTrial] = field(default_factory=list)
    fresh: dict[str, Any] | None = None

    def study(self, name: str, facts: Mapping[str, Any]) -> tuple[list[FrozenTrial], dict[str, Any]]:
        return list(self.trials), dict(self.attributes)

    def add(self, name: str, trial: FrozenTrial) -> None:
        self.added.append(trial)

    def set(self, name: str, key: str, value: object) -> None:
        assert key == "fresh"
        assert isinstance(value, dict)
        self.fresh = value
