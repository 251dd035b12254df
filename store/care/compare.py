"""Comparing two stores: features byte for byte, commit records apart from their telemetry."""

import filecmp
from pathlib import Path
from typing import Any

from store.layout.plan import FEATURES, read_plan
from store.log.commits import read_commits


def differences_between(a: Path, b: Path) -> list[str]:
    """List what differs between two stores; empty if they are identical."""
    differences = [] if read_plan(a) == read_plan(b) else ["plans differ"]
    files_of_a, files_of_b = _files(a), _files(b)
    differences += [f"only in one: {path}" for path in sorted(files_of_a ^ files_of_b)]
    for path in sorted(files_of_a & files_of_b):
        if not filecmp.cmp(a / FEATURES / path, b / FEATURES / path, shallow=False):
            differences.append(f"bytes differ: {path}")
    return differences if _records(a) == _records(b) else [*differences, "commit records differ"]


def _files(store: Path) -> set[Path]:
    features = store / FEATURES
    return {path.relative_to(features) for path in features.rglob("*") if path.is_file()}


def _records(store: Path) -> list[dict[int, dict[str, Any]]]:
    """Read the commit records of each generation by shard, without telemetry."""
    logs = [read_commits(store, generation) for generation in range(read_plan(store).generation + 1)]
    return [{shard: record.model_dump(exclude={"telemetry"}) for shard, record in log.items()} for log in logs]
