"""What every worker process of a command shares, in both stages: how it begins, notices that it is alone, and is ended."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable
from multiprocessing.context import SpawnProcess

from configs.errors import Interrupted, WrongCall
from configs.processes.signals import stop


def begin_worker() -> None:
    """Set the signals of a spawned worker: the parent alone reacts to Ctrl-C, and stops its workers by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)  # even if a shell has told the parent to ignore it


def require_guard() -> None:
    """End this process (exit 2) if it is a worker that still imports the script that started it, and the script starts a run.

    A spawned process runs its parent's script under the name `__mp_main__`, and only then makes that module its `__main__`. No
    error is raised here, because Python would print its traceback for each worker.
    """
    script = sys.modules.get("__mp_main__")
    if script is not None and script is not sys.modules["__main__"]:
        print(
            f'error: expected a script that starts workers to start its runs below `if __name__ == "__main__":`, each worker '
            f"imports {script.__file__}, which starts a run at once: write that line above its runs",
            file=sys.stderr,
        )
        sys.exit(WrongCall.exit_code)


def require_parent() -> None:
    """Raise Interrupted (exit 75) if the process that started this worker has died."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise Interrupted("the process that started this worker is gone; run the same command again to go on")


def usable_cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stop_workers(processes: Iterable[SpawnProcess], seconds: float) -> None:
    """End all processes by SIGTERM, and kill those that still run after `seconds`; processes never started are skipped."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
