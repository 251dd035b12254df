"""Making a store whole: writes again what follows from the rest of the store, and withdraws damaged shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from store.care.rebuild import rebuild
from store.care.strays import move_strays
from store.care.verify import damaged_shards, verify
from store.errors import ArchiveReadOnly
from store.layout.plan import read_plan
from store.log.commits import withdraw
from store.log.finding import ARCHIVE, MOVE, REPAIR, Finding
from store.log.progress import stored_codec
from store.log.spare import differing, restore
from store.writing.lock import STALL_SECONDS, lock


@dataclass(frozen=True)
class Repaired:
    """What `repair` found and did."""

    written: list[Path]
    """Files that were damaged, and that were written again as they were."""
    moved: dict[Path, Path]
    """Old and new path of each file or folder that did not belong where it lay."""
    withdrawn: dict[int, list[int]]
    """Shards whose commits were withdrawn so that they are computed again, by generation."""
    findings: list[Finding]
    """The damage that `verify` found, after plans and manifests were restored."""

    @property
    def left(self) -> list[Finding]:
        """Findings that `repair` could do nothing about; the remedy of each says what can be done."""
        return [finding for finding in self.findings if finding.shard is None and finding.remedy not in (REPAIR, MOVE)]


def repair(store: Path, quick: bool) -> Repaired:
    """Write again what follows from the rest of the store, move strays out, and withdraw the damaged shards.

    The files of withdrawn shards stay until they are written again; without a record, no reader believes them.

    Args:
        store: Folder of the store.
        quick: Look at sizes, metadata and the log only, not at every byte.

    Raises:
        StoreLocked: another process writes (exit 6).
        ArchiveReadOnly: shards of an archive are damaged (exit 7).
    """
    written, moved = list[Path](), dict[Path, Path]()
    if differing(store):
        with lock(store, "exclusive", STALL_SECONDS):
            written += restore(store)
    findings = verify(store, quick)
    shards = damaged_shards(findings)
    if any(finding.remedy == REPAIR for finding in findings):
        with lock(store, "exclusive", STALL_SECONDS):
            written += rebuild(store)
    if any(finding.remedy == MOVE for finding in findings):
        with lock(store, "exclusive", STALL_SECONDS):
            moved = move_strays(store, read_plan(store))
    if shards:
        _require_can_be_computed(store, shards)
        with lock(store, "exclusive", STALL_SECONDS):
            for generation, damaged in shards.items():
                withdraw(store, damaged, generation, read_plan(store).n_shards)
    return Repaired(written, moved, shards, findings)


def _require_can_be_computed(store: Path, damaged: Mapping[int, list[int]]) -> None:
    """Raise ArchiveReadOnly (exit 7) if the store is an archive, whose shards cannot be computed again."""
    if stored_codec(store) != "none":
        raise ArchiveReadOnly(
            f"expected shards that can be computed again, {store} is an archive, which is only read, and its shards "
            f"{sorted(shard for shards in damaged.values() for shard in shards)} "
            f"are damaged: {ARCHIVE}; `python -m store export {store} --store OUT` unpacks it when it is whole"
        )
