"""How this project sets the handlers of signals; this module imports nothing that takes time."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from configs.errors import Interrupted

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


def handle(number: int, handler: Handler) -> None:
    """Set the handler of a signal, unless a shell has told this process to ignore the signal, which then stays ignored."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, handler)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End the running work cleanly at SIGTERM, with exit code 75: the same command continues it."""
    raise Interrupted("stopped by SIGTERM; run the same command again to go on")
