"""Make a store whole: what follows from the rest of it is written again, damaged shards are withdrawn to be computed again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from store.care.rebuild import rebuild
from store.care.strays import move_strays
from store.care.verify import bad_shards, verify
from store.errors import ArchiveReadOnly
from store.layout.plan import read_plan
from store.log.commits import withdraw
from store.log.finding import ARCHIVE, MOVE, REPAIR, Finding
from store.log.progress import stored_codec
from store.log.spare import differing, restore
from store.writing.writer import STALL_SECONDS, lock


@dataclass(frozen=True)
class Repaired:
    """What `repair` found and did."""

    written: list[Path]
    """Files that were damaged, and are as they were."""
    moved: dict[Path, Path]
    """Where things lay that did not belong there, and where they lie now."""
    withdrawn: dict[int, list[int]]
    """Shards to be computed again, by generation."""
    findings: list[Finding]
    """All that was found, but for plans and manifests, which are whole again by then."""

    @property
    def left(self) -> list[Finding]:
        """What it could do nothing about; each says what can."""
        return [one for one in self.findings if one.shard is None and one.remedy not in (REPAIR, MOVE)]


def repair(store: Path, quick: bool) -> Repaired:
    """Write again what can be made of the rest of the store, and withdraw the damaged shards.

    Files of shards stay where they are until they are written again: no record, no data. Raises StoreLocked (exit 6) while
    someone writes, ArchiveReadOnly (exit 7) for damaged shards of an archive.
    """
    written, moved = list[Path](), dict[Path, Path]()
    if differing(store):
        with lock(store, "exclusive", STALL_SECONDS):
            written += restore(store)
    findings = verify(store, quick)
    shards = bad_shards(findings)
    if any(one.remedy == REPAIR for one in findings):
        with lock(store, "exclusive", STALL_SECONDS):
            written += rebuild(store)
    if any(one.remedy == MOVE for one in findings):
        with lock(store, "exclusive", STALL_SECONDS):
            moved = move_strays(store, read_plan(store))
    if shards:
        _require_no_archive(store, shards)
        with lock(store, "exclusive", STALL_SECONDS):
            for generation, bad in shards.items():
                withdraw(store, bad, generation, read_plan(store).n_shards)
    return Repaired(written, moved, shards, findings)


def _require_no_archive(store: Path, damaged: Mapping[int, list[int]]) -> None:
    if stored_codec(store) != "none":
        raise ArchiveReadOnly(
            f"expected shards that can be computed again, {store} is an archive, which is only read, and its shards "
            f"{sorted(shard for bad in damaged.values() for shard in bad)} "
            f"are damaged: {ARCHIVE}; `python -m store export {store} --store OUT` unpacks it when it is whole"
        )
