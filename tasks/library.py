"""Tasks by name: the built-in ones, and a user's own from a Python file."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import cast

import torch

from tasks.task import ROLES, Parameter, Task

# Name to class; the module has the task's name. Not imported before it is asked for.
_BUILT_IN = {
    "quadratic": "Quadratic",
    "breast_cancer": "BreastCancer",
    "digits_mlp": "DigitsMLP",
    "digits_autoencoder": "DigitsAutoencoder",
    "bytes_mlp": "BytesMLP",
    "digits_cnn": "DigitsCNN",
    "bytes_transformer": "BytesTransformer",
}


def names() -> tuple[str, ...]:
    """The built-in tasks, cheapest first."""
    return tuple(_BUILT_IN)


@cache
def load(name: str) -> Task:
    """The task called `name`; asking again gives the same object.

    Args:
        name: a built-in name (see `names`), or `path/file.py:NAME` where NAME is a `Task` subclass that needs no
            arguments, or an instance of one, in that Python file. The file is executed.

    Raises:
        ValueError: no such task, file or name, or the task breaks the contract; says what, and what was expected.
    """
    if own := re.fullmatch(r"(.+\.py)(?::(.*))?", name):
        return _load_from_file(Path(own[1]), own[2] or "")
    if name not in _BUILT_IN:
        hint = _nearest(name, _BUILT_IN) or f"there are {', '.join(_BUILT_IN)}; your own is written path/file.py:NAME"
        raise ValueError(f"unknown task '{name}'; {hint}")
    task: Task = getattr(importlib.import_module(f"tasks.{name}"), _BUILT_IN[name])()
    return task


def _nearest(word: str, words: Iterable[str]) -> str:
    """`did you mean ...?`, or nothing where no word is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean '{near[0]}'?" if near else ""


def _load_from_file(path: Path, attribute: str) -> Task:
    module = _execute(path)
    there = [name for name, value in vars(module).items() if _is_own_task(value, module)]
    listed = f"tasks there: {', '.join(there) or 'none'}"
    if not attribute:
        raise ValueError(f"{path}: say which task, as {path}:NAME; {listed}")
    if not hasattr(module, attribute):
        raise ValueError(f"{path}: '{attribute}' is not defined; {_nearest(attribute, there) or listed}")
    found = getattr(module, attribute)
    if isinstance(found, type) and issubclass(found, Task):
        try:
            found = cast(Callable[[], Task], found)()
        except Exception as error:
            raise ValueError(f"{path}: {attribute}() cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(found, Task):
        raise ValueError(f"{path}: '{attribute}' is not a tasks.Task; {listed}")
    check(found, where=f"{path}: {attribute}")
    return found


def _is_own_task(value: object, module: ModuleType) -> bool:
    is_class = isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    return is_class or isinstance(value, Task)


def _execute(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a task of your own is written path/file.py:NAME")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
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
            f"parameter '{p.name}': unknown role '{p.role}'; {_nearest(p.role, ROLES) or roles}",
        )
        value = p.init(torch.Generator().manual_seed(0))
        expect(
            tuple(value.shape) == p.shape and value.dtype == torch.float32,
            f"parameter '{p.name}': init gave {value.dtype} {tuple(value.shape)}, expected float32 {p.shape}",
        )
    for part, tensors in (("train", task.train), ("held_out", task.held_out)):
        counts = {x.shape[0] for x in tensors}
        expect(len(counts) == 1, f"{part}: its tensors count {sorted(counts)} examples, expected one number")
    examples = task.train[0].shape[0]
    expect(1 <= task.batch_size <= examples, f"batch_size {task.batch_size}: expected 1 to {examples}")
    expect(0 <= task.warmup < task.horizon, f"warmup {task.warmup}: expected 0 to less than {task.horizon}")
    flat = torch.stack([task.initial(0), task.initial(1)])
    batch = task.gather(torch.stack([task.batches(0, 1)[0], task.batches(1, 1)[0]]))
    loss = task.loss(task.split(flat), batch)
    expect(tuple(loss.shape) == (2,), f"loss of 2 lanes gave shape {tuple(loss.shape)}, expected (2,)")
    expect(bool(loss.isfinite().all()), f"loss at the start is {loss.tolist()}, expected finite numbers")
