"""Who works on which shard now: one small file per shard, taken by one, touched as work goes on, taken over when it stops.

A lease is alive while its process lives (where that can be seen) and has made progress lately. Progress is the file's
modification time, judged by the clock of the disk that it lies on: clocks of machines may differ or jump.
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
"""Begins the names of files that are made to read the clock of a disk."""
TAKEN_AWAY = ".*.json.*"
"""Names of leases of the dead, while they are taken away."""
BEAT_SECONDS = 1.0
"""A lease is touched at most this often."""


@dataclass(frozen=True)
class Holder:
    """What a lease says about who holds it."""

    host: str
    pid: int
    started: int
    """When the process began, in clock ticks since its machine did: a pid is given again, the two together are not."""
    token: str
    """Tells two leases of one process apart."""

    @property
    def provably_dead(self) -> bool:
        """Whether it ran on this machine and does not any more."""
        return self.host == socket.gethostname() and has_ended(self.pid, self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_HOLDER = TypeAdapter(Holder)


class Lease:
    """The right to compute and commit one shard."""

    def __init__(self, path: Path, shard: int, holder: Holder) -> None:
        self.path, self.shard, self.holder = path, shard, holder
        self._beaten = time.monotonic()

    @classmethod
    def take(cls, store: Path, shard: int, stall_seconds: float) -> "Lease | None":
        """The lease of a shard; None while someone alive holds it. One that stalled or died is taken over."""
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
        """Whether it is still ours: someone may have taken it for stalled."""
        return read_holder(self.path) == self.holder

    def beat(self) -> None:
        """Say that work goes on."""
        if time.monotonic() - self._beaten >= BEAT_SECONDS:
            self._beaten = time.monotonic()
            with suppress(FileNotFoundError):
                os.utime(self.path)

    def release(self) -> None:
        """Give it up, if it is still ours."""
        if self.held:
            self.path.unlink(missing_ok=True)


def live_leases(store: Path, stall_seconds: float) -> dict[int, Holder]:
    """By shard, the holders that are alive."""
    found: dict[int, Holder] = {}
    try:
        paths = listed(store / FOLDER)
    except Unreadable:  # no folder: nobody holds anything in it
        return found
    for path in paths:
        shard = numbered(path.name)  # all other names are no leases
        holder = None if shard is None else read_holder(path)
        if shard is not None and holder is not None and not holder.provably_dead and not stalled(path, stall_seconds):
            found[shard] = holder
    return dict(sorted(found.items()))


def read_holder(path: Path) -> Holder | None:
    """Who holds a lease; None if nobody does. One that is not readable may be held, a folder or a link by nobody."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return Holder(socket.gethostname(), 0, -1, "")  # provably dead
        return _HOLDER.validate_json(content(path), strict=True)
    except FileNotFoundError:
        return None
    except (Unreadable, ValidationError):
        return Holder("unknown", 0, 0, "")


def _take_away(path: Path, expected: Holder) -> bool:
    """Remove a dead lease; False if it was someone else's by then, who took it over first."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    ours = read_holder(aside) == expected
    if not ours:
        with suppress(FileExistsError):
            os.link(aside, path)
    with suppress(OSError):  # a folder stays, under a name that is no lease's
        aside.unlink()
    return ours


def stalled(path: Path, seconds: float) -> bool:
    """Whether a lease was not touched for so long, by the clock of its disk."""
    try:
        return disk_time(path.parent) - path.lstat().st_mtime > seconds
    except FileNotFoundError:
        return False


def disk_time(folder: Path) -> float:
    """Now, as the disk of a folder sees it; where nothing can be written, as this machine does."""
    probe = folder / f"{PROBE}{uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
