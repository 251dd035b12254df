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

from configs.errors import NO_SPACE_OR_READ_ONLY, EncodeOnceError, Interrupted
from configs.experiment import StoreLocation, store_location
from configs.parsing.redact import Redacting, without_credentials

WRONG_PATHS = {
    errno.ENOTDIR: (2, "expected a folder there, a file is in its place: remove it or name another path"),
    errno.EISDIR: (2, "expected a file there, a folder is in its place: remove it or name another path"),
    errno.ENOENT: (2, "expected it to be there: check the path"),
    errno.EEXIST: (2, "expected nothing there: remove it or name another path"),
    errno.ENOTEMPTY: (2, "expected an empty folder or none: remove it or name another path"),
    errno.ELOOP: (2, "expected no link that leads to itself: check the path"),
    errno.ENAMETOOLONG: (2, "expected a shorter name: give the run or the file another one"),
    errno.ENXIO: (2, "expected a file or a folder, it is neither: name another path"),
    errno.EACCES: (7, "this user may not read or write it: change its permissions or name another path"),
    errno.EPERM: (7, "this user may not read or write it: change its permissions or name another path"),
}
"""What is wrong with a path that the user gave, by the system's error: the exit code and what to do."""


class _StoreParameter(click.Path):
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> StoreLocation:  # fmt: skip
        try:
            return store_location(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


STORE = _StoreParameter()
"""Type of an argument that is the folder or the URL of a store."""


def main(group: click.Group, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a click group and leave the process with the exit code of the design's table."""
    _require_utf8()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Redacting("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
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
        error.show(file=(said := io.StringIO()))
        click.echo(without_credentials(said.getvalue()), err=True, nl=False)
        return 2
    except click.Abort:
        click.echo("interrupted; what is done is kept: run the same command again to go on", err=True)
        return 130
    except EncodeOnceError as error:
        click.echo(f"error: {without_credentials(str(error))}", err=True)
        return error.exit_code
    except OSError as error:
        code, advice = _of_the_file_system(error)
        click.echo(f"error: {error.strerror}: {_printable(error.filename or 'the output folder')}; {advice}", err=True)
        return code
    return returned if isinstance(returned, int) else 0


def _of_the_file_system(error: OSError) -> tuple[int, str]:
    """Exit code and advice for what the file system refuses; raises what is no matter of a path that the user gave."""
    if error.errno in NO_SPACE_OR_READ_ONLY:
        return 7, "free space there and run again"
    if error.filename is None or error.errno not in WRONG_PATHS:
        raise error
    return WRONG_PATHS[error.errno]


def _printable(path: object) -> str:
    """Write a path that an error names, also one of bytes or of no text."""
    return os.fsdecode(path).encode(errors="backslashreplace").decode() if isinstance(path, str | bytes) else str(path)


def _require_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale is not UTF-8: names of files are ids, which no locale may change.

    A process replaces itself, with the same arguments; its children inherit the mode.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (no shell is wanted)


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
