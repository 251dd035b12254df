"""The commit record of a shard: what was committed, sealed with a checksum of its own."""

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from store.layout.shard import FileRecord


class CommitRecord(BaseModel):
    """One committed shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    first_row: int
    last_row: int
    """Inclusive."""
    ids_digest: str
    """sha256 over the ids of its rows."""
    plan_digest: str
    """sha256 of the plan that it was written for, fingerprints included."""
    files: dict[str, FileRecord]
    """By array."""
    failures: dict[int, str]
    """Rows whose image could not be encoded, with the reason; they hold NaN."""
    telemetry: dict[str, Any]
    """Times, host, versions: not part of a store's identity."""
    sha256: str = ""
    """Of all fields but this one and telemetry, so that a damaged record is noticed."""

    def sealed(self) -> "CommitRecord":
        """The record with its checksum."""
        return self.model_copy(update={"sha256": self._digest()})

    @property
    def intact(self) -> bool:
        """Whether the checksum is right."""
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        content = self.model_dump_json(exclude={"telemetry", "sha256"})
        return hashlib.sha256(content.encode()).hexdigest()


def intact_record(text: bytes) -> CommitRecord | None:
    """The record in a text; None if it is none, or was changed."""
    try:
        record = CommitRecord.model_validate_json(text)
    except ValidationError:
        return None
    return record if record.intact else None
