"""Withdraw the commits of damaged shards, and nothing else: the next extraction computes just those."""

from contextlib import suppress
from pathlib import Path

from store.commits import withdraw
from store.verify import Finding, bad_shards, verify
from store.writer import STALL_SECONDS, lock


def repair(store: Path, quick: bool) -> tuple[list[Finding], list[int]]:
    """All findings of `verify`, and the shards that were withdrawn.

    Files stay where they are until they are written again: no record, no data. Raises StoreLocked (exit 6) while
    someone writes.
    """
    findings = verify(store, quick)
    shards = bad_shards(findings)
    if shards:
        with lock(store, "exclusive", STALL_SECONDS):
            withdraw(store, shards)
    return findings, shards


def forget_failures(store: Path, failures: dict[int, str], shard_images: int) -> list[int]:
    """Withdraw the shards of rows that failed, so that they are tried again."""
    shards = sorted({row // shard_images for row in failures})
    with suppress(FileNotFoundError):
        withdraw(store, shards)
    return shards
