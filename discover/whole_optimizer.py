"""An optimizer as bytes, with all that it holds, and back.

Not by `state_dict`, which casts on its way back and leaves out attributes, nor by its own pickling, which leaves out
attributes too: an optimizer may keep its moments in a list, counters, a generator, or another optimizer that it wraps.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from discover.keeper import UnkeepableError


def packed(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> bytes:
    """All that an optimizer holds but the parameters themselves, which count by their places.

    Raises:
        UnkeepableError: it holds something that cannot be pickled, such as a lambda or an open file.
    """
    file = io.BytesIO()
    try:
        _Pickler(file, parameters).dump(vars(optimizer))
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        raise UnkeepableError(f"{type(optimizer).__name__} cannot be kept: {error}") from None
    return file.getvalue()


def unpack(content: bytes, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Makes an optimizer of the same class hold what was packed, around parameters that are there."""
    vars(optimizer).update(_Unpickler(io.BytesIO(content), parameters).load())


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, parameters: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._places = {id(p): place for place, p in enumerate(parameters)}

    def persistent_id(self, obj: object) -> int | None:
        return self._places.get(id(obj))

    def reducer_override(self, obj: object) -> Any:
        """An optimizer within is taken as it is, too."""
        if isinstance(obj, torch.optim.Optimizer):
            return _bare, (type(obj),), vars(obj), None, None, _fill
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parameters: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._parameters = parameters

    def persistent_load(self, pid: int) -> Tensor:
        return self._parameters[pid]


def _bare(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return kind.__new__(kind)


def _fill(optimizer: torch.optim.Optimizer, held: Mapping[str, Any]) -> None:
    vars(optimizer).update(held)
