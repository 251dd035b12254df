"""Start a module of this project in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from configs.errors import Interrupted


def module_process(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a process that runs a module with the code that this process runs.

    -P: a file of the current folder that is called as one of the packages must not be taken for the package.
    """
    path = os.pathsep.join(folder for folder in sys.path if folder)
    return [sys.executable, "-P", "-m", module, *arguments], os.environ | {"PYTHONPATH": path}


def run_to_its_end(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a process to its own end, even if this process is asked to stop meanwhile, and return the exit code.

    A terminal sends Ctrl-C to both processes, so it is only waited for what the other process still has to keep; SIGTERM
    comes to this process alone and is passed on. A process that a signal has ended returns 128 + the signal's number.
    """
    process, stopped = subprocess.Popen(command, env=environment), 0
    while True:
        try:
            code = process.wait()
            return 128 - code if code < 0 else code or stopped
        except KeyboardInterrupt:
            stopped = 130
        except Interrupted as error:
            stopped = error.exit_code
            process.terminate()
