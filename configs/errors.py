"""The base of every error that a user can cause or fix, and the commands that messages name.

An error's `exit_code` is what `python -m …` returns.
"""

import errno
from pathlib import Path

_IN_A_CHECKOUT = (Path(__file__).parents[1] / "Makefile").is_file()


def typed(command: str, flag: str = "") -> str:
    """Write a command as its user types it: with `make` in a checkout, with `encode-once` where the package is installed."""
    if _IN_A_CHECKOUT:
        return f"`make {command} ARGS={flag}`" if flag else f"`make {command}`"
    return f"`encode-once {command} {flag}`" if flag else f"`encode-once {command}`"


def or_the_demos_data(folder: Path) -> str:
    """Name the command that writes missing data, if `folder` is a folder of a demo: `data/demo_large`, `data/scenes_hard`, …."""
    if not (folder.parent.name == "data" and folder.name.startswith(("demo", "scenes_hard"))):
        return ""
    return f", or write the demo's with {typed('data') if _IN_A_CHECKOUT else '`encode-once demo`'}"


EXTRACT, TRAIN, EVAL = map(typed, ("extract", "train", "eval"))
"""The commands that messages name most."""
TEACH = "`python -m stage2_prune teach`" if _IN_A_CHECKOUT else "`encode-once teach`"
"""The command that computes the signals of the unpruned model."""

NO_SPACE_OR_READ_ONLY = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG})
"""The system's errors that mean that a disk is full or read-only: exit code 7."""


class EncodeOnceError(Exception):
    """An error that the user can act on: one sentence with what was expected, what came, and what to do next."""

    exit_code = 1


class ConfigError(EncodeOnceError):
    """The configuration or the command line is wrong; no work has begun."""

    exit_code = 2


class WrongCall(ConfigError):
    """A function was called from Python with arguments that do not fit it, or that do not fit each other."""


class Interrupted(BaseException):
    """The process was asked to stop (SIGTERM); running the same command again continues the work.

    Like KeyboardInterrupt, it is no Exception: code that turns any error into a sentence must not swallow a signal.
    """

    exit_code = 75
