"""The JSON files of a checkpoint, each read once in a process for as long as it does not change."""

import json
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

FileState = tuple[int, int, int, int]
"""Device, inode, size in bytes, and time of the last change in nanoseconds: a file that is written again has another state."""


def state_of(path: Path) -> FileState:
    """Return the state of a file, following links; raises FileNotFoundError where there is none."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, as a copy that the caller may change.

    Raises ValueError or RecursionError for a file that is not UTF-8 or not JSON, OSError for a file that cannot be read.
    """
    return deepcopy(_content(path.absolute(), state_of(path)))


def read_settings(path: Path | None) -> Mapping[str, Any]:
    """Return the JSON object in a file; an empty object for no file and for content that cannot be parsed.

    Stock code reads the same file later, and its message about unreadable content is better.
    """
    try:
        content: Any = {} if path is None else read_json(path)
    except (ValueError, RecursionError):
        return {}
    return as_object(content)


def as_object(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object, otherwise an empty object."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


@lru_cache(maxsize=16)
def _content(path: Path, state: FileState) -> Any:
    """Parse a file; `state` is part of the cache's key, so that a changed file is read again."""
    return json.loads(path.read_text(encoding="utf-8"))
