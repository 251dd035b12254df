"""Start a module of this project in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from configs.errors import Interrupted
from configs.processes.signals import handle


def module_process(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a process that runs a module with the code that this process runs.

    `-P` keeps Python from taking a file of the current folder for the package of the same name.
    """
    path = os.pathsep.join(folder for folder in sys.path if folder)
    return [sys.executable, "-P", "-m", module, *arguments], os.environ | {"PYTHONPATH": path}


def run_to_its_end(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a process to its own end, even if this process is asked to stop meanwhile, and return the exit code.

    A terminal sends Ctrl-C to both processes, so this process only waits until the other has saved its work. SIGTERM comes to
    this process alone and is passed on. A signal that comes while the other process is started takes effect just after.
    A process that a signal has ended returns 128 + the signal's number.
    """
    pending: list[int] = []
    usual: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in usual:
        handle(number, lambda number, _: pending.append(number))
    try:
        process = subprocess.Popen(command, env=environment)
    except BaseException:
        _restore(usual)
        raise
    stopped = 0
    while True:
        try:
            _restore(usual)
            while pending:
                signal.raise_signal(pending.pop())
            code = process.wait()
            return 128 - code if code < 0 else code or stopped
        except KeyboardInterrupt:
            stopped = 130
        except Interrupted as error:
            stopped = error.exit_code
            process.terminate()


def _restore(handlers: dict[int, Any]) -> None:
    """Set the handlers of signals again, each once: a signal may end this function before the last one."""
    for number in list(handlers):
        signal.signal(number, handlers[number])
        del handlers[number]
