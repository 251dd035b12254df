"""The commit record of a shard: what was committed, with the record's own digest."""

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from store.layout.shard import FileRecord


class CommitRecord(BaseModel):
    """What was committed of one shard: its rows, its files and its failures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    first_row: int
    last_row: int
    """The last row of the shard, itself included."""
    ids_digest: str
    """sha256 over the ids of the rows."""
    plan_digest: str
    """sha256 of the plan that the shard was written for, fingerprints included."""
    files: dict[str, FileRecord]
    """The file of each array."""
    failures: dict[int, str]
    """Rows whose image could not be encoded, with the reason; these rows hold NaN."""
    telemetry: dict[str, Any]
    """Times, host, versions; two stores may differ in these and still be identical."""
    sha256: str = ""
    """Digest of all other fields except telemetry, so that a damaged record is noticed."""

    def sealed(self) -> "CommitRecord":
        """Return the record with its own digest filled in."""
        return self.model_copy(update={"sha256": self._digest()})

    @property
    def intact(self) -> bool:
        """Whether the record's own digest is right."""
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        content = self.model_dump_json(exclude={"telemetry", "sha256"})
        return hashlib.sha256(content.encode()).hexdigest()


def intact_record(text: bytes) -> CommitRecord | None:
    """Parse a record; None if the text is no record, or was changed since it was written."""
    try:
        record = CommitRecord.model_validate_json(text)
    except ValidationError:
        return None
    return record if record.intact else None
