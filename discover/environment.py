"""How the workers of a cluster get the code, as a user says it: Ray's runtime_env in a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from discover.errors import UserError
from discover.yaml_reader import read_yaml

KEYS = ("working_dir", "py_modules", "excludes", "pip", "uv", "conda", "env_vars", "image_uri", "config")
"""What Ray takes, and makes sense here."""


def read_environment(path: Path) -> dict[str, Any]:
    """The file's data, with local folders and files relative to it made absolute.

    Raises:
        UserError: not a file of YAML, a key that Ray does not know, or a folder that is not there.
    """
    data = read_yaml(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected 'key: value' lines, such as 'pip: [torch]'")
    for key in data:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key '{key}'; there are {', '.join(KEYS)}")
    base = path.absolute().parent
    if "working_dir" in data:
        data["working_dir"] = _anchored(data["working_dir"], base, path)
    if "py_modules" in data:
        data["py_modules"] = [_anchored(each, base, path) for each in data["py_modules"]]
    return data


def _anchored(place: str, base: Path, source: Path) -> str:
    if "://" in place:
        return place
    if not (base / place).exists():
        raise UserError(f"{source}: '{place}' is not there; paths are relative to the file, or URIs such as s3://...")
    return str((base / place).resolve())
