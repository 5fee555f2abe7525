"""What tuned AdamW reaches on each built-in task: computed by `discover reference`, kept in `references.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from tasks import options
from tasks.library import load, names

PATH = Path(__file__).with_name("references.json")
FORMAT = 1
"""Version of the file's layout; another one is refused."""

_SEEN_WHEN_READ = ("task", "stale")


@dataclass(frozen=True, slots=True)
class Reference:
    """What AdamW reaches on a task at its full horizon, tuned on a stated budget and then run on seeds it never saw.

    Attributes:
        task: its spelling: a name, or `FILE.py:NAME`, with options in parentheses for a variant.
        loss: held-out loss at the end, geometric mean over the fresh seeds.
        standard_error: of `loss`: `loss` times the standard error of the mean logarithm.
        losses: one for each of `fresh_seeds`.
        learning_rate, weight_decay: of the setting with the least mean log loss over the tuning seeds.
        learning_rates, weight_decays: the grid that was tried; every pair is a trial.
        at_edge: whether the setting still lies at an edge of the grid, which was not extended any further.
        trials: settings tried, each on every tuning seed.
        tuning_seeds, fresh_seeds: of initial parameters and batches; no seed is in both.
        steps: of each training.
        model_steps: spent in all.
        data_sha256: of the data it was measured on.
        versions: of Python and torch.
        command: computes it again; names the device where that is not the CPU.
        date: when it was computed, UTC, as 2026-01-31.
        stale: whether the task has other data or another horizon here: another version of Python has another manual.
    """

    task: str
    loss: float
    standard_error: float
    losses: tuple[float, ...]
    learning_rate: float
    weight_decay: float
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    at_edge: bool
    trials: int
    tuning_seeds: tuple[int, ...]
    fresh_seeds: tuple[int, ...]
    steps: int
    model_steps: int
    data_sha256: str
    versions: Mapping[str, str]
    command: str
    date: str
    stale: bool = False

    def __str__(self) -> str:
        stale = ", stale" if self.stale else ""
        return f"{loss_and_error(self.loss, self.standard_error)} at lr {self.learning_rate:.3g}{stale}"

    def plain(self) -> dict[str, Any]:
        """What the file keeps: all but the task's name and whether it is stale."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _SEEN_WHEN_READ}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}

    @classmethod
    def of(cls, task: str, data: Mapping[str, Any]) -> Self:
        """The reverse of `plain`. Raises TypeError where a field is missing or unknown."""
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in data.items()}
        return cls(task, **values)


def reference(name: str) -> Reference | None:
    """The stored reference of a built-in task or of a variant; None where there is none, as for a task of your own.

    Raises:
        ValueError: no such task; the file is damaged, or of another version.
    """
    task = load(name)
    stored = read(PATH).get(task.spelling)
    if stored is None:
        return None
    return replace(stored, stale=(stored.data_sha256, stored.steps) != (task.data_sha256, task.horizon))


def variants() -> tuple[str, ...]:
    """The variants of built-in tasks that have a stored reference, in the order of `names` and by batch and steps.

    Raises:
        ValueError: the file is damaged, or of another version.
    """
    known, found = names(), []
    for name in read(PATH):
        base, given = options.parse(name)
        if given and base in known:
            numbers = [float(given.get(key, 0)) for key in ("batch_size", "horizon")]
            found.append((known.index(base), numbers, name))
    return tuple(name for *_, name in sorted(found))


def read(path: Path) -> dict[str, Reference]:
    """The references in a file, none where there is no file; `stale` is not looked at.

    Raises:
        ValueError: the file cannot be read, is damaged, or of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"{path}: has format {data['format']}, and this version reads format {FORMAT}")
        return {name: Reference.of(name, entry) for name, entry in data["tasks"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: is not a file of references; 'discover reference' writes one") from None


def text(references: Mapping[str, Reference]) -> str:
    """The file: JSON, keys sorted, one field a line."""
    entries = []
    for name, entry in sorted(references.items()):
        lines = (f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(entry.plain().items()))
        entries.append(f"    {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n    }")
    return f'{{\n  "format": {FORMAT},\n  "tasks": {{\n' + ",\n".join(entries) + "\n  }\n}\n"


def loss_and_error(loss: float, error: float) -> str:
    """Both to the error's second digit, or to three digits of the loss: "2.5301 ±0.0021"."""
    if error <= 0:
        return f"{loss:.4g} ±{error:.2g}"
    digits = max(0, 1 - int(f"{error:.1e}".partition("e")[2]))
    return f"{loss:.{digits}f} ±{error:.{digits}f}"
