"""What the three command lines share: signals, and errors turned into exit codes."""

import errno
import io
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from configs.errors import EncodeOnceError, Interrupted
from configs.experiment import StoreLocation, store_location

NO_SPACE_OR_READ_ONLY = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}


class _StoreParameter(click.Path):
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> StoreLocation:  # fmt: skip
        return store_location(value)


STORE = _StoreParameter()
"""Type of an argument that is the folder or the URL of a store."""


def main(group: click.Group, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a click group and leave the process with the exit code of the design's table."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    stop_on_sigterm()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored for us
        signal.signal(signal.SIGINT, _on_sigint)
    for stream in (sys.stdout, sys.stderr):  # no name, path or locale may turn a result into a UnicodeEncodeError
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run_to_exit_code(lambda: group.main(args=arguments, standalone_mode=False)))


def run_to_exit_code(run: Callable[[], Any]) -> int:
    """Run something that may raise; say what it raised, and return the exit code of the design's table."""
    try:
        returned = run()
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        click.echo("interrupted; what is done is kept: run the same command again to go on", err=True)
        return 130
    except EncodeOnceError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in NO_SPACE_OR_READ_ONLY:
            raise
        click.echo(
            f"error: {error.strerror}: {error.filename or 'the output folder'}; free space there and run again",
            err=True,
        )
        return 7
    return returned if isinstance(returned, int) else 0


def stop_on_sigterm() -> None:
    """Let SIGTERM end this process in order: exit 75, to be gone on with."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Interrupted("stopped by SIGTERM; run the same command again to go on")


def _on_sigint(number: int, frame: FrameType | None) -> None:
    """Ctrl-C ends what is under way in order; whoever presses it again does not wait for that."""
    signal.signal(signal.SIGINT, _leave_now)
    raise KeyboardInterrupt


def _leave_now(number: int, frame: FrameType | None) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(130)
