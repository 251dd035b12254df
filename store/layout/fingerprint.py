# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (JSON may hold anything)
"""Fingerprints record what features were made by.

The semantic part must agree before features are used together; the numeric part decides whether their bits can be equal.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from configs.files.portable import is_folder
from store.errors import FingerprintMismatch

SOURCES = {"checkpoint", "clip"}
"""The semantic fields that name a checkpoint."""


class Fingerprint(BaseModel):
    """What one array was made by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    semantic: dict[str, Any]
    """Checkpoint, weights, layer, processor and so on; if these differ, the features are other features."""
    numeric: dict[str, Any]
    """Versions, device, kernels; if these differ, the features may be close instead of equal."""


class Difference(BaseModel):
    """One field in which two fingerprints differ."""

    model_config = ConfigDict(frozen=True)

    field: str
    """Dotted path of the field."""
    expected: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected!r}, found {self.found!r}"


def source_name(source: str) -> str:
    """Name a checkpoint by its hub id or its folder; an absolute path is cut to its last part and a slash.

    So a store can be shared without naming paths of the machine that made it.
    """
    if not Path(source).is_dir():
        return source
    return f"{Path(source).name}/" if Path(source).is_absolute() else str(Path(source))


def without_paths(made: Fingerprint) -> Fingerprint:
    """Rename the checkpoints in a fingerprint that are absolute paths, as `source_name` does."""
    absolute = {key: str(made.semantic[key]) for key in SOURCES & made.semantic.keys()}
    named = {key: f"{Path(path).name}/" for key, path in absolute.items() if Path(path).is_absolute()}
    return made.model_copy(update={"semantic": made.semantic | named}) if named else made


def spelt_as(made: Mapping[str, Fingerprint], stored: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """Rename the checkpoints in `made` to those in `stored` where both are folders with the same last part.

    So a folder may move. A folder with other weights is still noticed, because the fingerprint holds their digests.
    """
    spelt = dict(made)
    for name in made.keys() & stored.keys():
        semantic = dict(made[name].semantic)
        for key in SOURCES & semantic.keys() & stored[name].semantic.keys():
            ours, theirs = str(semantic[key]), str(stored[name].semantic[key])
            if is_folder(ours) and is_folder(theirs) and Path(ours).name == Path(theirs).name:
                semantic[key] = stored[name].semantic[key]
        spelt[name] = made[name].model_copy(update={"semantic": semantic})
    return spelt


def differences(expected: Any, found: Any, path: str = "") -> list[Difference]:
    """List the leaves in which two nested mappings differ, by dotted path; `path` is the path of the mappings themselves."""
    if isinstance(expected, dict) and isinstance(found, dict):
        listed: list[Difference] = []
        for key in sorted({*expected, *found}, key=str):
            inner = f"{path}.{key}" if path else str(key)
            listed += differences(expected.get(key, "nothing"), found.get(key, "nothing"), inner)
        return listed
    return [] if expected == found else [Difference(field=path, expected=expected, found=found)]


def require_equal(what: str, expected: Any, found: Any, advice: str) -> None:
    """Raise FingerprintMismatch (exit 4) with every differing field if two nested mappings differ.

    Args:
        what: the subject of the message.
        expected: the mapping that is asked for.
        found: the mapping in the store.
        advice: what the user should do, as the last line of the message.
    """
    differing = differences(expected, found)
    if differing:
        listed = "".join(f"\n  {difference}" for difference in differing)
        raise FingerprintMismatch(f"{what} differs in {len(differing)} fields:{listed}\n{advice}")
