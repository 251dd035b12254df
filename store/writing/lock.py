"""The lock of a store: who may write to it, alone or beside others."""

import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import filelock

from store.errors import StoreLocked
from store.files.disk import Unreadable, content, make_lockable, make_way
from store.log.leases import FOLDER as LEASES
from store.log.leases import live_leases

LOCK = "writer.lock"
"""The file that is locked."""
HOLDER = "writer.json"
"""The file that says which process holds the lock, for messages to others."""
STALL_SECONDS = 300.0
"""Seconds without progress after which a worker is taken for dead, wherever it runs."""
Presence = Literal["exclusive", "shared", "joined"]
"""How a writer uses the store: alone, as one of several workers, or as a worker of a process that holds the store alone."""
_CREATION_SECONDS = 60.0
"""Seconds that a worker waits for another worker to create the store."""
_POLL_SECONDS = 0.05


@contextmanager
def lock(path: Path, presence: Presence, stall_seconds: float) -> Generator[None, None, None]:
    """Hold the lock of a store; StoreLocked (exit 6) names the process that holds it already.

    Workers that share a store hold the lock for a moment only, to create the store, and wait for each other. A process
    that wants the store for itself waits for nobody.

    Args:
        path: Folder of the store; it is created if necessary.
        presence: How the process is going to write.
        stall_seconds: Seconds without progress after which a worker that holds a lease is taken for dead.
    """
    path.mkdir(parents=True, exist_ok=True)
    make_way(path, path / LEASES / "0.json")
    for name in (LOCK, HOLDER):
        make_lockable(path, path / name)
    guard = _acquire(path, presence)
    try:
        if presence == "exclusive":
            _require_no_workers(path, stall_seconds)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "presence": presence}
        (path / HOLDER).write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        try:
            (path / HOLDER).unlink(missing_ok=True)
        finally:
            guard.release()


def _acquire(path: Path, presence: Presence) -> filelock.BaseFileLock:
    guard = filelock.FileLock(path / LOCK)
    deadline = time.monotonic() + (_CREATION_SECONDS if presence == "shared" else 0)
    while True:
        try:
            guard.acquire(timeout=0)
            return guard
        except filelock.Timeout:
            holder = _lock_holder(path)
            if time.monotonic() >= deadline or holder.get("presence") == "exclusive":
                who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
                raise StoreLocked(f"{path} is being written by {who}: wait for it, or stop it first") from None
            time.sleep(_POLL_SECONDS)


def _lock_holder(path: Path) -> dict[str, Any]:
    """Read which process holds the lock; empty if the file does not say."""
    try:
        holder = dict(json.loads(content(path / HOLDER)))
    except (FileNotFoundError, Unreadable, ValueError, TypeError, RecursionError):
        return {}
    return holder if {"host", "pid"} <= holder.keys() else {}


def _require_no_workers(path: Path, stall_seconds: float) -> None:
    """Raise StoreLocked (exit 6) if a living worker holds a lease."""
    for shard, holder in live_leases(path, stall_seconds).items():
        raise StoreLocked(
            f"{path} is being written by {holder} (shard {shard}): wait for it, or stop it first; a worker that shares the "
            "store needs --worker-index and --num-workers"
        )
