"""Tasks by name, where a name that is none is the user's mistake."""

from __future__ import annotations

import tasks
from discover.errors import UserError
from tasks import Task


def load(name: str) -> Task:
    """A task by name, as `tasks.load` takes it. Raises UserError where there is none."""
    try:
        return tasks.load(name)
    except ValueError as error:
        raise UserError(str(error)) from None
