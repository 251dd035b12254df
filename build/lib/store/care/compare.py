"""Are two stores the same? Features byte for byte, commit records apart from telemetry."""

import filecmp
from pathlib import Path

from store.layout.plan import read_plan
from store.log.commits import read_commits
from store.reading.reader import FEATURES


def differences_between(a: Path, b: Path) -> list[str]:
    """What differs between two stores; empty if they are identical."""
    found = [] if read_plan(a) == read_plan(b) else ["plans differ"]
    files = [
        {path.relative_to(root / FEATURES) for path in (root / FEATURES).rglob("*") if path.is_file()}
        for root in (a, b)
    ]
    found += [f"only in one: {path}" for path in sorted(files[0] ^ files[1])]
    for path in sorted(files[0] & files[1]):
        if not filecmp.cmp(a / FEATURES / path, b / FEATURES / path, shallow=False):
            found.append(f"bytes differ: {path}")
    records = [
        [
            {
                shard: record.model_dump(exclude={"telemetry"})
                for shard, record in read_commits(root, generation).items()
            }
            for generation in range(read_plan(root).generation + 1)
        ]
        for root in (a, b)
    ]
    return found if records[0] == records[1] else [*found, "commit records differ"]
