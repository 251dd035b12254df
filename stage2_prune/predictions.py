"""Per-question predictions as JSONL, a file per cell: appended batch by batch, complete when renamed.

<run_dir>/eval/
  cells.json                        what each file was made with, and how long its selector took
  predictions/<cell>.jsonl          complete
  predictions/<cell>.jsonl.partial  an interrupted run's, resumed at its last whole batch
  .writer.lock                      held by the command that writes here
"""

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.atomic import sync_directory, write_atomically
from stage2_prune.ask import Prediction
from stage2_prune.errors import OtherRun, RunLocked

PARTIAL = ".jsonl.partial"
_SHOWN = 5


class PredictionFile:
    """The predictions of one cell, in question order."""

    def __init__(self, path: Path, batch_size: int, total: int) -> None:
        self.path = path
        self.rows: list[Prediction] = []
        self._partial = path.with_suffix(PARTIAL)
        if path.is_file():
            self.rows = read_predictions(path)
            if len(self.rows) == total:
                return
            path.replace(self._partial)  # cut short by other hands
        if self._partial.is_file():
            rows = read_predictions(self._partial)[:total]  # more are another process's, which wrote here too
            whole = len(rows) if len(rows) == total else len(rows) - len(rows) % batch_size
            self.rows = rows[:whole]
            write_atomically(self._partial, _lines(self.rows))

    def append(self, rows: Sequence[Prediction]) -> None:
        """Add the predictions of one batch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._partial.open("a", encoding="utf-8") as file:
            file.write(_lines(rows))
        self.rows += rows

    def finish(self) -> None:
        """Declare the file complete."""
        if self.path.is_file():
            return
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self.path)
        sync_directory(self.path.parent)

    @staticmethod
    def remove(path: Path) -> None:
        """Forget what is on disk."""
        path.unlink(missing_ok=True)
        path.with_suffix(PARTIAL).unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Generator[None, None, None]:
    """The only command that writes predictions below `folder`; RunLocked (exit 6) if there is another."""
    folder.mkdir(parents=True, exist_ok=True)
    guard = FileLock(folder / ".writer.lock")
    try:
        guard.acquire(timeout=0)
    except Timeout:
        raise RunLocked(
            f"{folder} is being written by another process: wait for it, or stop it first, or name another --run-dir"
        ) from None
    try:
        yield
    finally:
        guard.release()


def refuse_other_runs(folder: Path, identities: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise OtherRun (exit 2), naming what differs, if predictions were made with other settings."""
    recorded = read_cells(folder)
    for cell, identity in identities.items():
        old = recorded.get(cell, {}).get("identity", identity)
        differing = [
            f"{key} {old.get(key)!r}, now {value!r}" for key, value in identity.items() if old.get(key) != value
        ]
        if differing:
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise OtherRun(
                f"the predictions of {cell} in {folder} were made with other settings "
                f"({'; '.join(differing[:_SHOWN])}{more}): run again with --overwrite to replace them, "
                "or with another --run-dir, and --store.path of this store, to keep them"
            )


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """The record of each cell evaluated so far."""
    path = folder / "cells.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_cells(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the records of some cells, keep the others; several processes may do so at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".cells.lock"):
        merged = read_cells(folder) | {cell: dict(record) for cell, record in records.items()}
        write_atomically(folder / "cells.json", json.dumps(merged, indent=1, sort_keys=True) + "\n")


def _lines(rows: Sequence[Prediction]) -> str:
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def read_predictions(path: Path) -> list[Prediction]:
    """Predictions in question order, up to the first line that is torn."""
    rows: list[Prediction] = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the torn end of an interrupted run
        rows.append(Prediction(**row | {"answers": tuple(row["answers"])}))
    return rows
