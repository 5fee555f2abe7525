"""What an Optuna storage has, for tests of whether anything is trained again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna

from discover.storage import Store


def dying(after: int) -> Callable[[Store, str, optuna.trial.FrozenTrial], None]:
    """In place of `Store.add`: it is as if Ctrl-C came when so many trials are stored."""
    add, left = Store.add, iter(range(after))

    def added(self: Store, name: str, trial: optuna.trial.FrozenTrial) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(self, name, trial)

    return added


def stored(where: str) -> dict[str, list[Any]]:
    """Study -> its trials, as far as results depend on them."""
    return {
        study.study_name: [(t.number, t.params, t.value, t.state, t.intermediate_values, t.user_attrs) for t in trials]
        for study in studies(where)
        for trials in (study.trials,)
    }


def scored(where: str) -> list[str]:
    """The studies whose best setting was trained on fresh seeds."""
    return [study.study_name for study in studies(where) if "fresh" in study.user_attrs]


def studies(where: str) -> list[optuna.Study]:
    storage = optuna.storages.get_storage(where)
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
