"""The versions of transformers that the tests ran with, and a word about any other; nothing heavy is imported here."""

import logging
from functools import cache
from importlib.metadata import version

from packaging.version import Version

OLDEST_TESTED, NEWEST_TESTED = "5.18.0", "5.24.0"
"""Versions of transformers: `make test-versions` runs the tests with both (tests/versions)."""
_log = logging.getLogger(__name__)


def installed() -> str:
    """Return the version of transformers that is installed."""
    return version("transformers")


def remedy() -> str:
    """Return what is installed, what was tested and what to do, to end a message with."""
    return (
        f"transformers {installed()} is installed, the newest version that was tested is {NEWEST_TESTED}: "
        f'run `pip install "transformers=={NEWEST_TESTED}"`'
    )


@cache
def note_untested() -> None:
    """Say once in a process, on the log, that the installed transformers lies outside the tested versions."""
    if Version(installed()) > Version(NEWEST_TESTED):
        _log.warning(
            "note: transformers %s is newer than %s, the newest version that was tested", installed(), NEWEST_TESTED
        )
    elif Version(installed()) < Version(OLDEST_TESTED):
        _log.warning(
            "note: transformers %s is older than %s, the oldest version that was tested", installed(), OLDEST_TESTED
        )
