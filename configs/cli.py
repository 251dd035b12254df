"""What the three command lines share: the handling of signals, and errors turned into exit codes."""

import atexit
import errno
import io
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from configs.errors import NO_SPACE_OR_READ_ONLY, EncodeOnceError, Interrupted
from configs.experiment import StoreLocation, store_location
from configs.import_code import line_of_a_path
from configs.parsing.redact import Redacting, without_credentials
from configs.processes.signals import handle, stop

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
"""For each error of the file system about a path that the user gave: the exit code and what to do."""


class _StoreParameter(click.Path):
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> StoreLocation:  # fmt: skip
        try:
            return store_location(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


STORE = _StoreParameter()
"""Type of a command-line argument that is the folder or the URL of a store."""


def main(group: click.Group, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a click group, then end the process with the group's exit code; see `run_to_exit_code`."""
    _require_utf8()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Redacting("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    handle(signal.SIGTERM, stop)
    handle(signal.SIGINT, _on_sigint)
    atexit.register(_ignore_signals)  # called last of all: Python calls such functions in reverse order
    for stream in (sys.stdout, sys.stderr):  # so that no name, path or locale turns a result into a UnicodeEncodeError
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run_to_exit_code(lambda: _to_the_end(group, arguments)))


def _to_the_end(group: click.Group, arguments: Sequence[str] | None) -> Any:
    """Run a click group; once it has ended, a signal ends the process at once, as nothing is left to be ended cleanly."""
    try:
        return group.main(args=arguments, standalone_mode=False)
    finally:
        handle(signal.SIGTERM, _leave_now)
        handle(signal.SIGINT, _leave_now)


def run_to_exit_code(run: Callable[[], Any]) -> int:
    """Run a command, print the error that it raises on stderr, and return the exit code.

    An error of a user's own file is printed with its traceback, because the author of the file needs it.

    Returns:
        What `run` returned if that is an integer, otherwise 0 (ok); after an error its code: 2 usage or config, or an error
        of a user's own pruner, 7 no space or read-only, 75 SIGTERM, 130 Ctrl-C, or the `exit_code` of an EncodeOnceError.

    Raises:
        Exception: The error concerns no path and no code that the user gave, so it is a bug; Python prints a traceback and
            returns 1.

    """
    try:
        returned = run()
    except click.ClickException as error:
        error.show(file=(message := io.StringIO()))
        click.echo(without_credentials(message.getvalue()), err=True, nl=False)
        return 2
    except click.Abort:
        click.echo("interrupted; what is done is kept: run the same command again to go on", err=True)
        return 130
    except (EncodeOnceError, Interrupted) as error:
        click.echo(f"error: {without_credentials(str(error))}", err=True)
        return error.exit_code
    except OSError as error:
        code, advice = _code_and_advice(error)
        click.echo(f"error: {error.strerror}: {_printable(error.filename or 'the output folder')}; {advice}", err=True)
        return code
    except Exception as error:
        source_line = line_of_a_path(error)
        if source_line is None:
            raise
        click.echo(without_credentials("".join(traceback.format_exception(error))), err=True)
        sentence = f"error: {source_line} raised {type(error).__name__} ({error}): mend the file"
        click.echo(without_credentials(sentence), err=True)
        return 2
    return returned if isinstance(returned, int) else 0


def _code_and_advice(error: OSError) -> tuple[int, str]:
    """Return the exit code and the advice for an error of the file system.

    Raises `error` itself where it does not concern a path that the user gave.
    """
    if error.errno in NO_SPACE_OR_READ_ONLY:
        return 7, "free space there and run again"
    if error.filename is None or error.errno not in WRONG_PATHS:
        raise error
    return WRONG_PATHS[error.errno]


def _printable(path: object) -> str:
    """Write the path that an error names, even if the path is bytes or cannot be encoded."""
    return os.fsdecode(path).encode(errors="backslashreplace").decode() if isinstance(path, str | bytes) else str(path)


def _require_utf8() -> None:
    """Restart this process in Python's UTF-8 mode if the locale is not UTF-8, because no locale may change file names (ids).

    The process replaces itself, with the same arguments; its children inherit the mode.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (no shell is wanted)


def _ignore_signals() -> None:
    """Ignore signals while Python shuts down: it resets handlers, so that SIGTERM would turn exit code 0 into 143."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on_sigint(number: int, frame: FrameType | None) -> None:
    """End the running work cleanly at the first Ctrl-C; a second Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, _leave_now)
    raise KeyboardInterrupt


def _leave_now(number: int, frame: FrameType | None) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(130 if number == signal.SIGINT else Interrupted.exit_code)
