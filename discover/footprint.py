"""What a contender costs beside its gradients: the time of its step, and the memory of its state."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from discover.contenders import Contender, RuleContender, fresh
from dsl import properties
from tasks import Task

WARM_UP = 3
ROUNDS = 25
SECONDS = 0.5
"""After how long of measuring a contender no further round begins; three are made in any case."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one step costs.

    Attributes:
        seconds: of `optimizer.step()` on a task's parameters, gradients there already; median of the rounds. None for a
            rule that asks for more than a gradient: its step is mostly the model's.
        state_bytes: of its state for each number of the parameters.
        device: where the step was timed.
    """

    seconds: float | None
    state_bytes: float
    device: str = "cpu"


def placed(task: Task, device: str) -> Task:
    """The task on the device where it was trained; on the CPU, where workers alone have such a device."""
    return task.to(device) if device == "cpu" or torch.cuda.is_available() else task


def measure(contenders: Sequence[Contender], task: Task) -> dict[str, Footprint]:
    """Footprints by name, all measured in turns, so that whatever slows the machine down slows all of them."""
    torch.manual_seed(0)
    made: dict[str, torch.optim.Optimizer] = {}
    found: dict[str, Footprint] = {}
    for each in contenders:
        if isinstance(each, RuleContender) and each.asks:
            found[each.name] = Footprint(None, properties.of(each.program).state_bytes, task.device.type)
            continue
        parameters = fresh(task, task.initial(0))
        made[each.name] = each.optimizer(task, parameters, {"lr": 1e-4})
        for p in parameters:
            p.grad = 1e-2 * torch.randn_like(p)
    gradients = {name: [p.grad for p in _parameters(one)] for name, one in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(WARM_UP + ROUNDS):
        for name, optimizer in made.items():
            for tensor, gradient in zip(_parameters(optimizer), gradients[name], strict=True):
                tensor.grad = None if gradient is None else gradient.clone()
            took = _time(optimizer, task.device)
            if number >= WARM_UP:
                seconds[name].append(took)
        if number >= WARM_UP + 2 and max(map(sum, seconds.values()), default=0.0) > SECONDS:
            break
    for name, optimizer in made.items():
        found[name] = Footprint(statistics.median(seconds[name]), state_bytes(optimizer) / task.size, task.device.type)
    return found


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that an optimizer keeps, in its state, in attributes of its own or in an optimizer that it
    wraps; parameters apart, and counters of one number."""
    parameters = {_memory(p) for p in _parameters(optimizer)}
    kept = {_memory(x): x.untyped_storage().nbytes() for x in _tensors(optimizer) if x.ndim}
    return sum(size for where, size in kept.items() if where not in parameters)


def _memory(x: Tensor) -> int:
    """Where a tensor's numbers are: views of one buffer are at one place."""
    return int(x.untyped_storage()._cdata)


def _tensors(held: object) -> list[Tensor]:
    """Each once, wherever it is held."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    waiting = [held]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found[id(value)] = value
        elif id(value) not in seen:
            seen.add(id(value))
            value = vars(value) if isinstance(value, torch.optim.Optimizer) else value
            parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
            waiting += parts
    return list(found.values())


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _time(optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    optimizer.step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
