"""Leases: small files, one per shard, that say which process works on the shard.

One process takes the lease, touches it while the work goes on, and removes it at the end. A lease is alive while its process
runs (where this machine can see that) and has made progress lately. The file's modification time shows the progress; it is
compared with the clock of the disk that the lease lies on, because the clocks of machines may differ or jump.
"""

import json
import os
import socket
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from configs.files.atomic import publish_once
from store.files.disk import Unreadable, content, listed, numbered
from store.log.processes import has_ended, own_start

FOLDER = "leases"
PROBE = ".now-"
"""Prefix of the files that are created to read the clock of a disk."""
TAKEN_AWAY = ".*.json.*"
"""Pattern of the names that leases of dead processes have while they are being removed."""
BEAT_SECONDS = 1.0
"""Least time between two touches of a lease, in seconds."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease, as the lease names it."""

    host: str
    pid: int
    started: int
    """When the process began, in clock ticks since its machine started; a reused pid comes with another start."""
    token: str
    """Random text that tells two leases of one process apart."""

    @property
    def provably_dead(self) -> bool:
        """Whether the process ran on this machine and has ended."""
        return self.host == socket.gethostname() and has_ended(self.pid, self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_HOLDER = TypeAdapter(Holder)


class Lease:
    """The right of this process to compute and commit one shard."""

    def __init__(self, path: Path, shard: int, holder: Holder) -> None:
        self.path, self.shard, self.holder = path, shard, holder
        self._beaten = time.monotonic()

    @classmethod
    def take(cls, store: Path, shard: int, stall_seconds: float) -> "Lease | None":
        """Take the lease of a shard, also from a process that died or has made no progress for `stall_seconds`.

        None if a living process holds the lease, or if another process was faster to take it over.
        """
        path = store / FOLDER / f"{shard}.json"
        current = read_holder(path)
        if current is not None:
            if not (current.provably_dead or stalled(path, stall_seconds)):
                return None
            if not _take_away(path, current):
                return None
        holder = Holder(socket.gethostname(), os.getpid(), own_start(), uuid4().hex)
        return cls(path, shard, holder) if publish_once(path, json.dumps(vars(holder))) else None

    @property
    def held(self) -> bool:
        """Whether this process still holds the lease; another process takes the lease over if this process seems stalled."""
        return read_holder(self.path) == self.holder

    def beat(self) -> None:
        """Show that the work goes on, by touching the lease."""
        if time.monotonic() - self._beaten >= BEAT_SECONDS:
            self._beaten = time.monotonic()
            with suppress(FileNotFoundError):
                os.utime(self.path)

    def release(self) -> None:
        """Remove the lease, if this process still holds it."""
        if self.held:
            self.path.unlink(missing_ok=True)


def live_leases(store: Path, stall_seconds: float) -> dict[int, Holder]:
    """Map every shard whose lease is alive to the lease's holder."""
    holders: dict[int, Holder] = {}
    try:
        paths = listed(store / FOLDER)
    except Unreadable:  # no folder lies there, so no process holds a lease in it
        return holders
    for path in paths:
        shard = numbered(path.name)  # files with other names are no leases
        holder = None if shard is None else read_holder(path)
        if shard is not None and holder is not None and not holder.provably_dead and not stalled(path, stall_seconds):
            holders[shard] = holder
    return dict(sorted(holders.items()))


def read_holder(path: Path) -> Holder | None:
    """Read which process holds a lease; None if there is no lease.

    A lease that cannot be read counts as held by a process of another machine, because a process may hold it. A folder or a
    link in place of a lease counts as held by a dead process, because no process makes such a lease.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return Holder(socket.gethostname(), 0, -1, "")  # provably dead
        return _HOLDER.validate_json(content(path), strict=True)
    except FileNotFoundError:
        return None
    except (Unreadable, ValidationError):
        return Holder("unknown", 0, 0, "")


def _take_away(path: Path, expected: Holder) -> bool:
    """Remove the lease of a dead process; False if another process has taken the lease over first."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    was_dead = read_holder(aside) == expected
    if not was_dead:
        with suppress(FileExistsError):
            os.link(aside, path)
    with suppress(OSError):  # a folder stays, but under a name that no lease has
        aside.unlink()
    return was_dead


def stalled(path: Path, seconds: float) -> bool:
    """Tell whether a lease was last touched more than `seconds` ago, by the clock of its disk."""
    try:
        return disk_time(path.parent) - path.lstat().st_mtime > seconds
    except FileNotFoundError:
        return False


def disk_time(folder: Path) -> float:
    """Read the clock of the disk that a folder lies on; the clock of this machine if the folder cannot be written to.

    Returns:
        Seconds since 1970, as modification times have them.
    """
    probe = folder / f"{PROBE}{uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
