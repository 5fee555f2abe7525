"""Objects from a user's Python file, named FILE.py:NAME."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from discover.errors import UserError


def from_file(text: str, what: str) -> Callable[..., Any] | None:
    """What `text` names in a file, which is executed; None if it names no file.

    Args:
        text: perhaps FILE.py:NAME.
        what: is looked for, in a word, for messages.

    Raises:
        UserError: no such file or name, or the file cannot be imported.
    """
    stem, colon, name = text.partition(".py:")
    if not colon:
        return None
    path = Path(f"{stem}.py")
    if not path.is_file():
        raise UserError(f"{path}: no such file; {what} of your own is written FILE.py:NAME")
    module_name = f"discover_plugin_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{path}: has no '{name}' that can be called; expected a class or a function")
    return found  # type: ignore[no-any-return]
