"""Keeps trainings on disk while they run, and stops them when asked to, so that none starts again from nothing."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from discover.files import whole

KEEP_SECONDS = 30.0
"""How often a training is kept on disk."""

SPACING = 20.0
"""At least so many times as long as keeping took passes before it is kept again, so that large ones are not mostly
written."""


class StoppedError(Exception):
    """A training was asked to stop. What it had done is on disk."""


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

    def load(self, key: str) -> Any:
        """What was kept under a key, None if nothing was, or nothing that can be read."""
        self._kept_at = time.monotonic()
        if self.folder is None:
            return None
        try:
            return torch.load(self._path(key), weights_only=False)  # written by this program, for this user
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ImportError):
            return None  # of another version, or damaged: train anew

    def pulse(self, key: str, state: Callable[[], object]) -> None:
        """Keeps the state if it is time. Raises StoppedError, once it is kept, when asked to stop."""
        stop = self.stop()
        if stop or time.monotonic() - self._kept_at >= max(self.seconds, self.spacing * self._took):
            self.keep(key, state)
        if stop:
            raise StoppedError

    def keep(self, key: str, state: Callable[[], object]) -> None:
        """Keeps the state now."""
        began = time.monotonic()
        if self.folder is not None:
            with whole(self._path(key)) as file:
                torch.save(state(), file)
        self._kept_at = time.monotonic()
        self._took = self._kept_at - began

    def forget(self, key: str) -> None:
        """The training, with all whose keys are this one and more, is done and stored elsewhere."""
        if self.folder is not None:
            for path in self.folder.glob(f"{key}*.pt"):
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.pt"
