"""Tell processes apart: a machine reuses a process id, but never the same id with the same start."""

import os
from pathlib import Path


def own_start() -> int:
    """Read when this process began, in clock ticks since its machine started; 0 where the system does not show this."""
    return process_start(os.getpid()) or 0


def has_ended(pid: int, started: int) -> bool:
    """Tell whether a process of this machine, given by its id and its `process_start`, has ended."""
    return process_start(pid) != started


def process_start(pid: int) -> int | None:
    """Read when a process of this machine began.

    Returns:
        Clock ticks since the machine started, 0 where the system does not show them; None if no such process runs.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() or not _answers(pid) else 0
    fields = status.rpartition(")")[2].split()  # the name of the program, in brackets, may hold blanks
    return None if fields[0] == "Z" else int(fields[19])  # a zombie has ended


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process runs, as another user
        return True
    return True
