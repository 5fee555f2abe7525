"""Disjoint sets of tasks: which two are one and the same under two names, and which share their data.

Names alone tell built-in tasks apart: two of them are two networks, or one network on other data. Two networks may
share data, which a certificate then says (`shared`). Variants of a task are one, those of a built-in one apart that
read other data (`base_of`): a network in another size on the same data is no test of what was found there. Of a user's
tasks names tell nothing: a file can be copied, and a class be given another name. So these are made and looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import tasks
from discover.errors import UserError
from discover.own_files import file_of
from discover.promotion_keys import base_of
from tasks import Task
from tasks.task import sha256


def refuse_overlap(sets: Mapping[str, Sequence[str]], source: str) -> None:
    """Raises UserError, starting with `source`, where one task is in two of the sets, under whatever names.

    Args:
        sets: what a set is called -> its tasks. Only where the user has tasks of their own is anything made. One that
            cannot be made here (a package is missing) is not looked at: promotion, which trains on all, refuses it.
    """
    made: dict[str, Task | None] = {}
    for (part, names), (other, theirs) in combinations(sets.items(), 2):
        for one in names:
            for another in theirs:
                if base_of(one) == base_of(another):
                    why = "variants of one task"
                elif _may_be_one(one, another) and is_same(_made(one, made), _made(another, made)):
                    why = "the same network, loss and data under two names"
                else:
                    continue
                raise UserError(
                    f"{source}: '{one}' in {part} and '{another}' in {other} are {why}; the sets must be disjoint"
                )


def is_same(one: Task | None, other: Task | None) -> bool:
    """Whether two tasks are one in all but options: parameters of the same shapes, the same losses of the first
    examples from the same start, the same data. False where one is missing."""
    if one is None or other is None or network(one) != network(other):
        return False
    return _first_loss(one) == _first_loss(other) and _data(one) == _data(other)


def network(task: Task) -> str:
    """A digest of the shapes of what is trained."""
    shapes = [(list(p.shape), p.role) for p in task.parameters]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def facts_of(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of the data and of the networks of tasks that are there, by name."""
    loaded = {name: tasks.load(name) for name in names}
    return {n: task.data_sha256 for n, task in loaded.items()}, {n: network(task) for n, task in loaded.items()}


def shared(final: Iterable[str], seen: Iterable[str], data: Mapping[str, str], networks: Mapping[str, str]) -> str:
    """Which final tasks have the data of others, in words, as "same data, other network: A with B, C"; empty where none
    has.

    Args:
        final, seen: tasks; those that search and selection saw.
        data, networks: digests of every task's.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for one in final:
        for other in seen:
            if data[one] == data[other]:
                kind = "other network" if networks[one] != networks[other] else "network of the same shapes"
                found.setdefault(kind, {}).setdefault(one, []).append(other)
    return "; ".join(
        f"same data, {kind}: " + ", ".join(f"{one} with {' and '.join(others)}" for one, others in pairs.items())
        for kind, pairs in found.items()
    )


def _may_be_one(one: str, other: str) -> bool:
    return file_of(one) is not None or file_of(other) is not None


def _made(name: str, made: dict[str, Task | None]) -> Task | None:
    if name not in made:
        try:
            made[name] = tasks.load(name)
        except ValueError:
            made[name] = None
    return made[name]


def _first_loss(task: Task) -> float:
    """Of the first two examples of a fixed order, which no option changes."""
    flat = task.initial(0).unsqueeze(0)
    return float(task.loss(task.split(flat), task.gather(task.batches(0, 1)[:, :2]))[0])


def _data(task: Task) -> str:
    """Of the tensors themselves: `data_sha256` is of what they were made from."""
    return sha256(*task.train, *task.held_out)
