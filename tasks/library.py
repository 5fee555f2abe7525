"""Tasks by name: the built-in ones, and a user's own from a Python file."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import cast

import torch

from tasks import options
from tasks.options import nearest
from tasks.task import ROLES, Parameter, Task

# Name to class; the module has the task's name. Not imported before it is asked for.
_BUILT_IN = {
    "quadratic": "Quadratic",
    "breast_cancer": "BreastCancer",
    "wine_classification": "WineClassification",
    "diabetes_regression": "DiabetesRegression",
    "digits_mlp": "DigitsMLP",
    "digits_spikes": "DigitsSpikes",
    "digits_autoencoder": "DigitsAutoencoder",
    "bytes_mlp": "BytesMLP",
    "digits_cnn": "DigitsCNN",
    "burgers_pinn": "BurgersPINN",
    "photo_coordinates": "PhotoCoordinates",
    "digits_diffusion": "DigitsDiffusion",
    "bytes_transformer": "BytesTransformer",
    "mnist_resnet": "MnistResNet",
    "mnist_vit": "MnistViT",
    "gru_lm": "GRULM",
    "gpt": "GPT",
}


def names() -> tuple[str, ...]:
    """The built-in tasks, cheapest first."""
    return tuple(_BUILT_IN)


def load(name: str) -> Task:
    """The task called `name`; asking again gives the same object, however its options are spelled.

    Args:
        name: a built-in name (see `names`), or `path/file.py:NAME` where NAME is a `Task` subclass that needs no
            arguments, or an instance of one, in that Python file. The file is executed. Either may be followed by
            options, as in `digits_mlp(batch_size=512)`: see `tasks.options`.

    Raises:
        ValueError: no such task, file, name or option, a value that cannot be, or the task breaks the contract; says
            what, and what was expected.
    """
    return _make(*_read(name))


def check_name(name: str) -> None:
    """Raises ValueError for a name that `load` would refuse: no such task, file, name or option, or a value that cannot
    be. The task is not made and its data are not read; a user's file is executed."""
    _read(name)


def _read(name: str) -> tuple[str, options.Values, options.Values]:
    """What is to be made: a task, its own options, the common ones."""
    base, given = options.parse(name)
    own, common = options.convert(_maker(base), given, base)
    return base, own, common


@cache
def _make(base: str, own: options.Values, common: options.Values) -> Task:
    if not common:
        task = _construct(base, _maker(base), dict(own))
        task.spelling = options.spelled(base, own)
        if base not in _BUILT_IN:
            path, _, attribute = base.rpartition(":")
            check(task, where=f"{path}: {attribute}")
        return task
    plain = _make(base, own, ())
    changes = tuple((key, value) for key, value in common if value != getattr(plain, key))
    if changes != common:
        return _make(base, own, changes)
    task = copy.copy(plain)  # its data are shared
    for key, value in changes:
        setattr(task, key, value)
    task.spelling = options.spelled(base, own + changes)
    if task.horizon >= 1:
        task.warmup = min(round(plain.warmup * task.horizon / plain.horizon), task.horizon - 1)
    _check_numbers(task, where=base)
    return task


def _construct(base: str, maker: type[Task] | Task, own: dict[str, object]) -> Task:
    if isinstance(maker, Task):
        return copy.copy(maker)
    try:
        return cast(Callable[..., Task], maker)(**own)
    except Exception as error:
        if base not in _BUILT_IN:
            path, _, attribute = base.rpartition(":")
            message = f"{path}: {attribute}() cannot be made: {type(error).__name__}: {error}"
            raise ValueError(message) from error
        if isinstance(error, ValueError):  # data that are not there, a package that is not installed
            raise ValueError(f"{base}: {error}") from error
        raise


def _maker(base: str) -> type[Task] | Task:
    """The class of a task, or the task itself where a file holds one."""
    if own := re.fullmatch(r"(.+\.py)(?::(.*))?", base):
        return _from_file(Path(own[1]), own[2] or "")
    if base not in _BUILT_IN:
        hint = nearest(base, _BUILT_IN) or f"there are {', '.join(_BUILT_IN)}; your own is written path/file.py:NAME"
        raise ValueError(f"unknown task '{base}'; {hint}")
    made: type[Task] = getattr(importlib.import_module(f"tasks.{base}"), _BUILT_IN[base])
    return made


def _from_file(path: Path, attribute: str) -> type[Task] | Task:
    module = _execute(path)
    there = [name for name, value in vars(module).items() if _is_own_task(value, module)]
    listed = f"tasks there: {', '.join(there) or 'none'}"
    if not attribute:
        raise ValueError(f"{path}: say which task, as {path}:NAME; {listed}")
    if not hasattr(module, attribute):
        raise ValueError(f"{path}: '{attribute}' is not defined; {nearest(attribute, there) or listed}")
    found: object = getattr(module, attribute)
    if isinstance(found, Task) or (isinstance(found, type) and issubclass(found, Task)):
        return found
    raise ValueError(f"{path}: '{attribute}' is not a tasks.Task; {listed}")


def _is_own_task(value: object, module: ModuleType) -> bool:
    is_class = isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    return is_class or isinstance(value, Task)


_EXECUTED: dict[Path, ModuleType] = {}


def _execute(path: Path) -> ModuleType:
    """The module that a file makes; once for a file, by whatever path, as its data may take long to load."""
    absolute = path.resolve()
    if absolute in _EXECUTED:
        return _EXECUTED[absolute]
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a task of your own is written path/file.py:NAME")
    digest = hashlib.sha256(str(absolute).encode()).hexdigest()[:12]
    name = f"tasks_user_{path.stem}_{digest}"  # two files of one stem must not meet in sys.modules
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path}: cannot be executed: {type(error).__name__}: {error}") from error
    _EXECUTED[absolute] = module
    return module


def check(task: Task, where: str) -> None:
    """Raises ValueError, starting with `where`, if the task breaks the contract in a way that a small trial shows."""

    def expect(truth: bool, message: str) -> None:
        if not truth:
            raise ValueError(f"{where}: {message}")

    for needed in Task.__annotations__:
        expect(hasattr(task, needed), f"'{needed}' is not set; every task states it (see tasks/task.py)")
    seen = [p.name for p in task.parameters if isinstance(p, Parameter)]
    expect(0 < len(seen) == len(task.parameters), "parameters must be a tuple of at least one tasks.Parameter")
    expect(len(set(seen)) == len(seen), f"parameters share a name: {', '.join(seen)}")
    roles = f"expected one of {', '.join(ROLES)}"
    for p in task.parameters:
        expect(
            p.role in ROLES,
            f"parameter '{p.name}': unknown role '{p.role}'; {nearest(p.role, ROLES) or roles}",
        )
        value = p.init(torch.Generator().manual_seed(0))
        expect(
            tuple(value.shape) == p.shape and value.dtype == torch.float32,
            f"parameter '{p.name}': init gave {value.dtype} {tuple(value.shape)}, expected float32 {p.shape}",
        )
    for part, tensors in (("train", task.train), ("held_out", task.held_out)):
        counts = {x.shape[0] for x in tensors}
        expect(len(counts) == 1, f"{part}: its tensors count {sorted(counts)} examples, expected one number")
    _check_numbers(task, where)
    flat = torch.stack([task.initial(0), task.initial(1)])
    batch = task.gather(torch.stack([task.batches(0, 1)[0], task.batches(1, 1)[0]]))
    try:
        loss = task.loss(task.split(flat), batch)
    except Exception as error:  # whatever is wrong in it is the user's, and this is its first call
        raise ValueError(f"{where}: loss raised {type(error).__name__}: {error}") from error
    expect(tuple(loss.shape) == (2,), f"loss of 2 lanes gave shape {tuple(loss.shape)}, expected (2,)")
    expect(bool(loss.isfinite().all()), f"loss at the start is {loss.tolist()}, expected finite numbers")
    held_out = task.validation_loss(task.split(flat))
    negative = bool((held_out < 0).any())
    expect(not negative, f"held-out loss at the start is {held_out.tolist()}, expected numbers above 0")


def _check_numbers(task: Task, where: str) -> None:
    examples = task.train[0].shape[0]
    for truth, message in (
        (1 <= task.batch_size <= examples, f"batch_size {task.batch_size}: expected 1 to {examples}, the examples"),
        (task.horizon >= 1, f"horizon {task.horizon}: expected at least 1 step"),
        (0 <= task.warmup < task.horizon, f"warmup {task.warmup}: expected 0 to less than {task.horizon}"),
        (0 < task.learning_rate < math.inf, f"learning_rate {task.learning_rate}: expected more than 0"),
    ):
        if not truth:
            raise ValueError(f"{where}: {message}")
