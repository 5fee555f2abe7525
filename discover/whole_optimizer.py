"""An optimizer with all that it holds as bytes, and back.

Not by `state_dict`, which casts on its way back and leaves out attributes, nor by its own pickling, which leaves out
attributes too: an optimizer may keep its moments in a list, counters, a generator, or another optimizer that it wraps.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from discover.keeper import UnkeepableError


def packed(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> bytes:
    """An optimizer and the parameters that it steps, with all identities: views share their memory afterwards too.

    Raises:
        UnkeepableError: it holds something that cannot be written down, such as a lambda or an open file.
    """
    file, way = io.BytesIO(), SimpleNamespace(__name__=__name__, Pickler=_Pickler)
    try:
        torch.save((list(parameters), optimizer), file, pickle_module=way)
    except Exception as error:  # whatever somebody's attributes make of it
        raise UnkeepableError(f"{type(optimizer).__name__} cannot be kept: {error}") from None
    return file.getvalue()


def unpacked(content: bytes) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """What was packed. Raises UnkeepableError where it cannot be made again."""
    try:
        parameters, optimizer = torch.load(io.BytesIO(content), weights_only=False)
    except Exception as error:
        raise UnkeepableError(f"cannot be taken up: {error}") from None
    return parameters, optimizer


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: object) -> Any:
        """An optimizer, be it within another, is taken as it is."""
        if isinstance(obj, torch.optim.Optimizer):
            return _bare, (type(obj),), vars(obj), None, None, _fill
        return NotImplemented


def _bare(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return kind.__new__(kind)


def _fill(optimizer: torch.optim.Optimizer, held: Mapping[str, Any]) -> None:
    vars(optimizer).update(held)
