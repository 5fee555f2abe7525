"""What can be compared: rules, and classes of `torch.optim.Optimizer` from any package, by what a user calls them.

A contender knows its hyperparameters and can be made into an optimizer for a task's parameters. How it is trained is
in `discover.trainers`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import dsl
from discover import rule_names
from discover.contender_names import class_asked, require_rate
from discover.errors import UserError
from discover.optimizer import RuleOptimizer, class_of
from dsl import Program
from dsl.fingerprint import fingerprint
from dsl.graph import needs
from dsl.parse import suggest
from dsl.program import Range
from dsl.spelling import with_settings
from tasks import Task


class Contender(ABC):
    """Something that trains.

    Attributes:
        name: what it was asked for by, and is called in tables.
        fingerprint: equal for two contenders that do the same and are tuned alike; what stored results go by.
        defaults: its hyperparameters; `lr` is one of them.
        ranges: where its author says that a hyperparameter is searched.
        origin: where it comes from, for the record; empty where nobody asks, as in a worker.
    """

    name: str
    fingerprint: str
    defaults: Mapping[str, float]
    ranges: Mapping[str, Range]
    origin: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def optimizer(self, task: Task, parameters: Sequence[Tensor], hypers: Mapping[str, float]) -> torch.optim.Optimizer:
        """An optimizer of a task's parameters, given in the task's order; other hyperparameters keep their defaults.

        Raises:
            UserError: there is no such optimizer: it does not take these parameters, say.
        """

    def __repr__(self) -> str:
        return f"<contender {self.name}>"


class RuleContender(Contender):
    """A rule. `program` takes no other rule."""

    def __init__(self, name: str, program: Program, origin: Mapping[str, Any] | None = None) -> None:
        require_rate(name, program)
        self.name, self.program, self.origin = name, program, origin or {}
        self.defaults = MappingProxyType(dict(program.defaults))
        self.ranges = {hyper.name: hyper.range for hyper in program.hypers if hyper.range}
        hypers = [(h.name, h.default, h.range and (h.range.low, h.range.high, h.range.log)) for h in program.hypers]
        self.fingerprint = _digest("rule", fingerprint(program).structure, hypers)
        self.asks = tuple(needs(program).closure)
        """What it asks for beside a gradient; lanes answer it, and a step costs more than a gradient then."""

    def optimizer(self, task: Task, parameters: Sequence[Tensor], hypers: Mapping[str, float]) -> torch.optim.Optimizer:
        groups: dict[str, dict[str, Any]] = {}
        for parameter, tensor in zip(task.parameters, parameters, strict=True):
            groups.setdefault(parameter.role, {"params": [], "role": parameter.role})["params"].append(tensor)
        values: dict[str, Any] = dict(hypers)
        return class_of(self.program)(list(groups.values()), **values)


class ClassContender(Contender):
    """A class of optimizers. Its hyperparameters are those of its numeric arguments that have a default, or are `lr`;
    `betas` are taken as beta1, beta2, ... Settings are other defaults for them."""

    def __init__(
        self, name: str, made: type[torch.optim.Optimizer], settings: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        self.name, self.made, self.origin = name, made, {"class": name, "package": _version(made)}
        self.ranges: Mapping[str, Range] = {}
        found: dict[str, float] = {}
        self._betas = 0
        for argument in inspect.signature(made).parameters.values():
            value = argument.default
            if argument.name == "betas" and isinstance(value, Sequence):
                self._betas = len(value)
                found |= {f"beta{i}": float(beta) for i, beta in enumerate(value, start=1)}
            elif argument.name == "lr":
                found["lr"] = float(value) if _is_number(value) else 1e-3
            elif _is_number(value):
                found[argument.name] = value
        if "lr" not in found:
            raise UserError(f"{name}: has no argument 'lr', and so nothing that can be tuned and scheduled")
        if unknown := next((key for key in settings if key not in found), None):
            there = f"{suggest(unknown, found)}; it has {', '.join(found)}"
            raise UserError(f"{name}: has no argument '{unknown}' that is a number{there}")
        whole = {key for key, value in found.items() if isinstance(value, int)}
        self._settings = {
            key: int(value) if key in whole and value == int(value) else value for key, value in settings.items()
        }
        self.defaults = MappingProxyType({**found, **self._settings})
        self.fingerprint = _digest(
            "class", f"{made.__module__}:{made.__qualname__}", self.origin["package"], dict(self.defaults)
        )

    def optimizer(self, task: Task, parameters: Sequence[Tensor], hypers: Mapping[str, float]) -> torch.optim.Optimizer:
        betas = [f"beta{i}" for i in range(1, self._betas + 1)]
        given = {**self._settings, **hypers}
        arguments: dict[str, Any] = {key: value for key, value in given.items() if key not in betas}
        if any(key in given for key in betas):
            arguments["betas"] = tuple({**self.defaults, **given}[key] for key in betas)
        try:
            made = self.made(list(parameters), **arguments)
            switch(made, "train")
        except Exception as error:
            raise UserError(f"{self.name}: cannot be made for {task.name}: {_in_words(error)}") from error
        return made


def contender(text: str) -> Contender:
    """A contender by what a user writes: a rule (see `rule_names.found`), `module:Class`, or `FILE.py:Class`, these two
    with settings as well. A class that was made from a rule is that rule.

    Raises:
        UserError, RuleError: there is none of this name, or it cannot be compared; says what was expected.
    """
    if (asked := class_asked(text)) is None:
        program, origin = rule_names.found(text)
        return RuleContender(text, dsl.check(program), origin)
    where, _, attribute = asked.what.rpartition(":")
    module = _file(Path(where)) if where.endswith(".py") else _module(where, text)
    made = getattr(module, attribute, None)
    if not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
        there = [key for key, each in vars(module).items() if _is_optimizer(each)]
        wrong = "is not a torch.optim.Optimizer" if hasattr(module, attribute) else f"{where} has no '{attribute}'"
        raise UserError(f"{text}: {wrong}{suggest(attribute, there)}")
    if issubclass(made, RuleOptimizer) and made.program is not None:
        return RuleContender(text, with_settings(made.program, asked.settings, text), {"class": text})
    return ClassContender(text, made, asked.settings)


def spelled(one: Contender) -> dict[str, str]:
    """A contender as text that `made` makes it from again, anywhere: a rule as it is, a class by its name."""
    return {"text": dsl.format(one.program)} if isinstance(one, RuleContender) else {"class": one.name}


def made(name: str, spelling: Mapping[str, str]) -> Contender:
    """A contender from what `spelled` gave. Raises UserError where there is no such class."""
    return RuleContender(name, dsl.parse(spelling["text"])) if "text" in spelling else contender(spelling["class"])


def check(one: Contender, task: Task) -> None:
    """Tries a step on a task's parameters, so that a contender that cannot train it says so before anything trains.

    Raises:
        UserError: the contender cannot step them from gradients alone.
    """
    parameters = fresh(task, task.initial(0))
    made = one.optimizer(task, parameters, {})
    generator = torch.Generator().manual_seed(0)
    for tensor in parameters:
        tensor.grad = torch.randn(tensor.shape, generator=generator).to(tensor.device)
    if isinstance(one, RuleContender):
        return
    wanted = inspect.signature(made.step).parameters.get("closure")
    if wanted is not None and wanted.default is inspect.Parameter.empty:
        raise UserError(f"{one.name}: needs a closure; only optimizers that step from a gradient can be compared")
    try:
        made.step()
    except Exception as error:
        raise UserError(f"{one.name}: cannot train {task.name}: {_in_words(error)}") from error


def switch(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """To the point to train from or to evaluate, "train" or "eval", where an optimizer has two, as Schedule-Free ones
    do."""
    switches = getattr(optimizer, mode, None)
    if callable(switches):
        switches()


def fresh(task: Task, flat: Tensor) -> list[nn.Parameter]:
    """A flat vector [N] as parameters of the task's shapes, each with memory of its own."""
    return [nn.Parameter(part.clone()) for part in task.split(flat).values()]


# Inside -------------------------------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer)


def _module(name: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not error.name or (name != error.name and not name.startswith(f"{error.name}.")):
            raise UserError(f"{text}: cannot be imported: {_in_words(error)}") from error
        raise UserError(f"{text}: there is no module '{error.name}' here; 'pip install' brings packages") from None
    except Exception as error:
        raise UserError(f"{text}: cannot be imported: {_in_words(error)}") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{path}: no such file; an optimizer of your own is written path/file.py:Class")
    name = f"optimizers_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path}: cannot be executed: {_in_words(error)}") from error
    return module


def _version(made: type) -> str:
    """Of the distribution that a class comes with; for a file of one's own, a digest of its text."""
    top = made.__module__.partition(".")[0]
    for distribution in _distributions().get(top, ()):
        return f"{distribution} {metadata.version(distribution)}"
    file = inspect.getsourcefile(made)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


@cache
def _distributions() -> Mapping[str, Sequence[str]]:
    """Package -> distributions; looked for once, since that reads all that is installed."""
    return metadata.packages_distributions()


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
