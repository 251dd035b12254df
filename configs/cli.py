"""What the three command lines share: flags derived from the config's fields, and errors turned into exit codes."""

import errno
import io
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click
import yaml

from configs.errors import EncodeOnceError, Interrupted
from configs.experiment import Experiment, Section, StoreLocation, store_location
from configs.load import load

Command = TypeVar("Command", bound=Callable[..., Any])
NO_SPACE_OR_READ_ONLY = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}


class _StoreParameter(click.Path):
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> StoreLocation:  # fmt: skip
        return store_location(value)


SHORT = {"model.clip", "prune.match"}
"""Fields that answer to their bare name on every command that takes their section."""
STORE = _StoreParameter()
"""Type of an argument that is the folder or the URL of a store."""


def experiment_options(own: str, *others: str) -> Callable[[Command], Command]:
    """Click decorator: `--config`, `--run-dir`, and one flag for each field of the named sections.

    Fields of `own` and of SHORT answer to their bare name too: `--max-pixels` as well as `--extract.max-pixels`.
    The command receives the flags as keyword arguments; pass them to `experiment_from`.
    """

    def decorate(command: Command) -> Command:
        for section in reversed((own, *others)):
            command = _section_flags(section, bare=section == own)(command)
        command = click.option("--run-dir", "run_dir", default=None, help="Folder of everything the run writes.")(
            command
        )
        default = Path("configs/demo.yaml")
        return click.option(
            "--config", "config_path", type=click.Path(path_type=Path), default=default, show_default=True,
            help="YAML file of the experiment.",
        )(command)  # fmt: skip

    return decorate


def experiment_from(config_path: Path, flags: dict[str, Any], pruners: dict[str, type] | None = None) -> Experiment:
    """The experiment of a config file with the flags the user typed laid over it."""
    given = {key.replace("__", "."): _parse(value) for key, value in flags.items() if value is not None}
    return load(config_path, given, pruners)


def _parse(value: str) -> Any:
    """Lists, mappings and null of a flag are YAML; all else is the text that was typed, which the config's types read.

    So a path keeps what YAML would take for a comment, and a revision of digits its zeros.
    """
    try:
        parsed: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return value
    is_text = isinstance(parsed, str | int | float | date)
    return value if is_text else parsed


def _section_flags(section: str, bare: bool) -> Callable[[Command], Command]:
    model = Experiment.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, Section)

    def decorate(command: Command) -> Command:
        for name, field in reversed(model.model_fields.items()):
            dashed = name.replace("_", "-")
            is_short = bare or f"{section}.{name}" in SHORT
            flags = [f"--{section}.{dashed}", *([f"--{dashed}"] if is_short else [])]
            command = click.option(*flags, f"{section}__{name}", default=None, help=field.description)(command)
        return command

    return decorate


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
