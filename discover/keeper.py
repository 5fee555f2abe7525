"""Keeps trainings while they run, and stops them when asked to, so that none starts again from nothing."""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from discover.files import whole

KEEP_SECONDS = 30.0
"""How often a training is kept on disk."""

SPACING = 20.0
"""At least so many times as long as keeping took passes before it is kept again, so that large ones are not mostly
written."""

LEG_SECONDS = 60.0
"""How long a worker that shares no folder with the driver trains before it hands over what it has, counted from when it
takes up what it was given."""


class StoppedError(Exception):
    """A training was asked to stop. What it had done is kept."""


class UnkeepableError(Exception):
    """A training whose state cannot be written down: it starts anew where it is stopped."""


class Keeper:
    """Keeps trainings on disk and stops them when asked to.

    Args:
        folder: where; None keeps nothing.
        seconds: how often; spacing: so many times as long as keeping took, at least.
        stop: whether to stop now.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        seconds: float = KEEP_SECONDS,
        spacing: float = SPACING,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.seconds, self.spacing, self.stop = folder, seconds, spacing, stop
        self._kept_at, self._took = time.monotonic(), 0.0
        self._unkeepable = False
        """Whether that was found out of what is trained now."""

    def load(self, key: str) -> Any:
        """What was kept under a key, None if nothing was, or nothing that can be read."""
        self._kept_at, self._unkeepable = time.monotonic(), False
        try:
            return self._read(key)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ImportError):
            return None  # of another version, or damaged: train anew

    def pulse(self, key: str, state: Callable[[], object]) -> None:
        """Keeps the state if it is time. Raises StoppedError, once it is kept, when asked to stop."""
        stop = self.stop()
        is_due = time.monotonic() - self._kept_at >= max(self.seconds, self.spacing * self._took)
        if (stop or is_due) and not self._unkeepable:
            try:
                self.keep(key, state)
            except UnkeepableError:
                self._unkeepable = True
        if stop:
            raise StoppedError

    def keep(self, key: str, state: Callable[[], object]) -> None:
        """Keeps the state now."""
        began = time.monotonic()
        self._write(key, state)
        self._kept_at = time.monotonic()
        self._took = self._kept_at - began

    def done(self, key: str, result: Callable[[], object]) -> None:
        """A training, with all whose keys are this one and more, is done: what it came to will be stored elsewhere."""
        self.forget(key)

    def forget(self, key: str) -> None:
        """A training, with all whose keys are this one and more, is stored elsewhere."""
        if self.folder is not None:
            for path in self.folder.glob(f"{key}*.pt"):
                path.unlink(missing_ok=True)

    def take_in(self, packed: Mapping[str, bytes]) -> None:
        """Puts into the folder what came by another way, but for what is there already."""
        for key, content in packed.items():
            if self.folder is not None and not self._path(key).exists():
                with whole(self._path(key)) as file:
                    file.write(content)

    def _read(self, key: str) -> Any:
        if self.folder is None:
            return None
        return torch.load(self._path(key), weights_only=False)  # written by this program, for this user

    def _write(self, key: str, state: Callable[[], object]) -> None:
        if self.folder is not None:
            with whole(self._path(key)) as file:
                torch.save(state(), file)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.pt"


class Notebook(Keeper):
    """Keeps on disk what trainings came to as well. Its folder is that of one undertaking, and goes when it is done."""

    def done(self, key: str, result: Callable[[], object]) -> None:
        self.keep(key, result)  # in place of what was kept of it half-way
        self.forget(f"{key}-")


class Luggage(Keeper):
    """Keeps trainings in memory where no folder is shared: they travel back with a piece of work, and to whoever goes
    on with it. Stops when a leg of the way is over.

    Args:
        packed: what came here, by key; `packed` is what is to travel on.
        leg: its seconds; spacing: so many times as long as unpacking took, at least.
    """

    def __init__(self, packed: Mapping[str, bytes], *, leg: float = LEG_SECONDS, spacing: float = SPACING) -> None:
        super().__init__(None, seconds=math.inf, spacing=spacing, stop=self._is_over)
        self.packed = dict(packed)
        self._leg = leg
        self._began: float | None = None

    def load(self, key: str) -> Any:
        began = time.monotonic()
        if self._began is None:  # not before: compiling and data are no part of the way
            self._began = began
        state = super().load(key)
        self._took += time.monotonic() - began
        return state

    def pulse(self, key: str, state: Callable[[], object]) -> None:
        """What cannot be kept would start from nothing on every leg: it goes on to its end."""
        try:
            super().pulse(key, state)
        except StoppedError:
            if not self._unkeepable:
                raise

    def done(self, key: str, result: Callable[[], object]) -> None:
        """It is stored where this goes when the whole of a batch is done; until then it travels, with what follows."""
        self.forget(key)
        self.keep(key, result)

    def forget(self, key: str) -> None:
        self.packed = {name: content for name, content in self.packed.items() if not name.startswith(key)}

    def _is_over(self) -> bool:
        leg = max(self._leg, self.spacing * self._took)
        return self._began is not None and time.monotonic() - self._began >= leg

    def _read(self, key: str) -> Any:
        return torch.load(io.BytesIO(self.packed[key]), weights_only=False) if key in self.packed else None

    def _write(self, key: str, state: Callable[[], object]) -> None:
        file = io.BytesIO()
        torch.save(state(), file)
        self.packed[key] = file.getvalue()
