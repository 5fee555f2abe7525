"""How many runs train side by side: by the memory that each takes, and by what the machine has left.

Runs are independent, so how they are cut into groups changes no result; it decides whether they fit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from discover.contenders import Contender, RuleContender, fresh
from discover.errors import UserError, first_line, is_shortage
from discover.footprint import state_bytes
from discover.generators import left_alone
from dsl.lane_rule import LaneRule
from tasks import Task

SHARE = 0.5
"""Of the memory that is free, what the runs of a group take; the rest is for activations of a tile and for others."""

COPIES = 6
"""Of a run's parameters, beside its state: themselves, their gradient, the point of evaluation twice, and what a rule
or an optimizer is about to write."""

_STATE = 4
"""Numbers of state for each parameter, where it cannot be told without training."""

_INDEX = 8  # bytes of the number of an example


def of_run(contender: Contender, task: Task, steps: int, example: int) -> int:
    """Bytes that one run takes beside others, about.

    Args:
        contender, task, steps: what is trained, and for how long.
        example: bytes of a step's examples, as the loss takes them.
    """
    parameters = 4 * task.size
    return COPIES * parameters + _state(contender, task) + example + _INDEX * steps * task.batch_size


def _state(contender: Contender, task: Task) -> int:
    """By a rule or an optimizer on torch's `meta` device, where tensors have shapes alone."""
    try:
        if isinstance(contender, RuleContender):
            return _state_of_rule(contender, task)
        flat = torch.empty(task.size, device="meta")
        parameters = fresh(task, flat)
        optimizer = contender.optimizer(task, parameters, {})
        for p in parameters:
            p.grad = torch.empty_like(p)
        with left_alone(task.device):
            optimizer.step()
        return state_bytes(optimizer)
    except Exception:  # whatever somebody's optimizer makes of tensors without numbers: this is an estimate
        return 4 * _STATE * task.size


def _state_of_rule(contender: RuleContender, task: Task) -> int:
    layout = [(parameter.shape, parameter.role) for parameter in task.parameters]
    rule = LaneRule(contender.program, layout, lanes=1, device=torch.device("meta"), dtype=torch.float32)
    numbers: dict[str, float | Tensor] = dict(contender.defaults)
    rule.start(torch.empty(1, task.size, device="meta"), numbers)
    return sum(x.numel() * x.element_size() for unit in rule.units for x in unit.state.values())


def at_once(each: int, room: int, together: int = 1) -> int:
    """How many runs train side by side.

    Args:
        each: bytes of a run; room: bytes that there are for all.
        together: runs that are not parted, such as those of a trial that is pruned by what all of them come to.

    Returns:
        `together` times a power of two, so that it seldom changes from one session to the next, in which a training
        that was kept half-way is looked for.
    """
    fit = room // max(1, each * together)
    return together * (1 << max(0, fit.bit_length() - 1))


def room(device: torch.device, among: int = 1) -> int:
    """Bytes that runs side by side may take on a device.

    Args:
        among: how many processes train on this machine's CPUs.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE * (free + unused))
    return int(SHARE * free_memory() / among)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: of the machine's memory, and of what its control group leaves it. On a
    system that tells neither there is no bound."""
    return min(_available(root), *_left_by_groups(root), sys.maxsize)


def _available(root: Path) -> int:
    try:
        lines = [line.split() for line in (root / "proc/meminfo").read_text().splitlines()]
        return next(1024 * int(line[1]) for line in lines if line[0] == "MemAvailable:")
    except (OSError, StopIteration, ValueError, IndexError):
        return sys.maxsize


def _left_by_groups(root: Path) -> Iterator[int]:
    """What each control group leaves that this process is in, of either version; pages of files are given back."""
    for limit, usage, stat in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _groups(root, limit):
            try:
                most, taken = (int((folder / name).read_text()) for name in (limit, usage))
                files = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no limit: "max"
                continue
            yield max(0, most - taken + int(files.get(stat, 0)))
    yield sys.maxsize


def _groups(root: Path, limit: str) -> list[Path]:
    top = root / "sys/fs/cgroup"
    top = top if limit == "memory.max" else top / "memory"
    try:
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        named = [path for _, kind, path in lines if kind in ("", "memory")]
    except (OSError, ValueError):
        named = []
    found = [top]
    for path in named:
        place = top / path.strip("/")
        found += [place, *(each for each in place.parents if top in each.parents)]
    return list(dict.fromkeys(found))


@contextmanager
def shortage_said(what: object) -> Iterator[None]:
    """Where memory runs out inside, that is the user's to mend: raises UserError, in a line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise UserError(
            f"{what}: out of memory ({first_line(error)[:120]}); take smaller batches or a `microbatch`, fewer"
            " --workers, or a machine with more memory; what was trained is kept: the same command goes on"
        ) from None
