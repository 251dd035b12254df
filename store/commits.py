"""The commit log: a shard exists if and only if its record does."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.atomic import publish_once, sync_directory
from store.errors import IntegrityError
from store.shard import FileRecord

FOLDER = "commits"


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


def publish(store: Path, record: CommitRecord) -> bool:
    """Commit a shard; False if it was committed before (the first wins)."""
    text = record.sealed().model_dump_json(indent=1) + "\n"
    return publish_once(store / FOLDER / f"{record.shard}.json", text)


def read_commits(store: Path) -> dict[int, CommitRecord]:
    """All committed shards by number."""
    commits: dict[int, CommitRecord] = {}
    for path in sorted((store / FOLDER).glob("*.json")):
        if path.name.startswith("."):
            continue
        record = _intact_record(path)
        if record is None:
            raise IntegrityError(
                f"{path} is not a commit record, or was changed: remove it and run `make extract`, which computes that "
                "shard again"
            )
        if path.stem != str(record.shard):
            raise IntegrityError(f"{path} is the record of shard {record.shard}: remove it and run `make extract`")
        commits[record.shard] = record
    return dict(sorted(commits.items()))


def _intact_record(path: Path) -> CommitRecord | None:
    try:
        record = CommitRecord.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError):
        return None
    return record if record.intact else None


def intact_records(store: Path) -> dict[int, CommitRecord]:
    """What `read_commits` returns, damaged records left out: for looking at a store that is damaged."""
    found = {path: _intact_record(path) for path in _record_files(store)}
    return {r.shard: r for path, r in found.items() if r is not None and path.stem == str(r.shard)}


def damaged_records(store: Path) -> list[tuple[Path, int]]:
    """Files that are no records of the shard that their name says, with that shard."""
    whole = intact_records(store)
    return [(path, int(path.stem)) for path in _record_files(store) if int(path.stem) not in whole]


def _record_files(store: Path) -> list[Path]:
    return sorted(path for path in (store / FOLDER).glob("*.json") if path.stem.isdecimal())


def withdraw(store: Path, shards: Iterable[int]) -> None:
    """Take back the commits of some shards, durably: they count as not computed from now on."""
    for shard in shards:
        (store / FOLDER / f"{shard}.json").unlink(missing_ok=True)
    sync_directory(store / FOLDER)
