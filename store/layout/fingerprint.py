# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (JSON may hold anything)
"""What features were made by: the part that must agree, and the part that decides whether bits can."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from configs.files.portable import is_folder
from store.errors import FingerprintMismatch

SOURCES = {"checkpoint", "clip"}
"""Semantic fields that name a checkpoint."""


class Fingerprint(BaseModel):
    """One per array."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    semantic: dict[str, Any]
    """Checkpoint, weights, layer, processor, …: a difference means other features."""
    numeric: dict[str, Any]
    """Versions, device, kernels: a difference means features that may be close instead of equal."""


class Difference(BaseModel):
    """One field that two fingerprints disagree on."""

    model_config = ConfigDict(frozen=True)

    field: str
    expected: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.field}: expected {self.expected!r}, found {self.found!r}"


def source_name(source: str) -> str:
    """Name a checkpoint: a hub id, or a folder as it was given; of an absolute path the last part with a slash behind it.

    So a store that is shared names no path of the machine that it was made on.
    """
    if not Path(source).is_dir():
        return source
    return f"{Path(source).name}/" if Path(source).is_absolute() else str(Path(source))


def without_paths(made: Fingerprint) -> Fingerprint:
    """Name checkpoints that are given by an absolute path as `source_name` names them."""
    absolute = {key: str(made.semantic[key]) for key in SOURCES & made.semantic.keys()}
    named = {key: f"{Path(path).name}/" for key, path in absolute.items() if Path(path).is_absolute()}
    return made.model_copy(update={"semantic": made.semantic | named}) if named else made


def spelt_as(made: Mapping[str, Fingerprint], stored: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """Spell checkpoints in `made` as in `stored`, where both are folders of one name: their weights have digests of their own."""
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
    """Leaf by leaf, by dotted path."""
    if isinstance(expected, dict) and isinstance(found, dict):
        both: list[Difference] = []
        for key in sorted({*expected, *found}, key=str):
            inner = f"{path}.{key}" if path else str(key)
            both += differences(expected.get(key, "nothing"), found.get(key, "nothing"), inner)
        return both
    return [] if expected == found else [Difference(field=path, expected=expected, found=found)]


def require_equal(what: str, expected: Any, found: Any, advice: str) -> None:
    """Raise FingerprintMismatch with every differing field, and what to do about it."""
    differing = differences(expected, found)
    if differing:
        listed = "".join(f"\n  {difference}" for difference in differing)
        raise FingerprintMismatch(f"{what} differs in {len(differing)} fields:{listed}\n{advice}")
