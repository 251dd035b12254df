"""The base of every error that a user can cause or fix; its `exit_code` is what `python -m …` returns."""

import errno

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


class Interrupted(EncodeOnceError):
    """The process was asked to stop (SIGTERM); running the same command again continues the work."""

    exit_code = 75
