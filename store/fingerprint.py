# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (JSON may hold anything)
"""What features were made by: the part that must agree, and the part that decides whether bits can."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from store.errors import FingerprintMismatch


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
