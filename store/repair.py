"""Withdraw the commits of damaged shards, and nothing else: the next extraction computes just those."""

from collections.abc import Callable
from pathlib import Path

from store.commits import read_commits, withdraw
from store.plan import Plan
from store.verify import Finding, bad_shards, verify
from store.writer import STALL_SECONDS, lock, require_no_archive


def repair(store: Path, quick: bool) -> tuple[list[Finding], dict[int, list[int]]]:
    """All findings of `verify`, and the shards that were withdrawn, by generation.

    Files stay where they are until they are written again: no record, no data. Raises StoreLocked (exit 6) while
    someone writes, ArchiveReadOnly (exit 7).
    """
    findings = verify(store, quick)
    require_no_archive(store)
    shards = bad_shards(findings)
    if shards:
        with lock(store, "exclusive", STALL_SECONDS):
            for generation, bad in shards.items():
                withdraw(store, bad, generation)
    return findings, shards


def withdraw_failures(store: Path, plan: Plan, but: str, can_be_made: Callable[[int], bool]) -> list[int]:
    """Withdraw the shards of images that could not be encoded, so that they are tried again; the caller is alone.

    Those that failed for the reason `but` would fail again. Returns shards that stay, because they hold features of rows
    that cannot be made any more.
    """
    spared: set[int] = set()
    for generation in range(plan.generation + 1):
        failures = read_commits(store, generation).failures
        shards = {row // plan.shard_images for row, why in failures.items() if why != but}
        good = {shard: [row for row in plan.rows(shard) if row not in failures] for shard in shards}
        spared |= {shard for shard, rows in good.items() if not all(map(can_be_made, rows))}
        withdraw(store, sorted(shards - spared), generation)
    return sorted(spared)
