"""The first moments of a command: a signal while modules are imported ends the process with its exit code and no traceback.

This module is imported before everything else, so nothing that it imports takes time.
"""

import os
import signal
from types import FrameType
from typing import NoReturn

from configs.processes.signals import handle


def end_quietly_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process at once, until `configs.cli.main` sets its own handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        handle(number, _leave)


def encode_once() -> None:
    """Run the command `encode-once`; the entry point of the installed package."""
    end_quietly_on_signals()
    from configs.command import main

    main()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(130 if number == signal.SIGINT else 75)
