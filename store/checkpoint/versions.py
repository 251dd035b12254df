"""The versions of transformers that were tested, and a warning about any other version; this module imports nothing heavy."""

import logging
from functools import cache
from importlib.metadata import version

from packaging.version import Version

OLDEST_TESTED, NEWEST_TESTED = "5.18.0", "5.24.0"
"""The two ends of the supported window: `make test-versions` runs the tests with both (tests/versions)."""
_log = logging.getLogger(__name__)


def installed() -> str:
    """Return the version of transformers that is installed."""
    return version("transformers")


def remedy() -> str:
    """Return the end of a message: which version is installed, which version was tested, and what to do."""
    return (
        f"transformers {installed()} is installed, the newest version that was tested is {NEWEST_TESTED}: "
        f'run `pip install "transformers=={NEWEST_TESTED}"`'
    )


@cache
def note_untested() -> None:
    """Warn once in a process that the installed transformers is outside the tested versions."""
    if Version(installed()) > Version(NEWEST_TESTED):
        _log.warning(
            "note: transformers %s is newer than %s, the newest version that was tested", installed(), NEWEST_TESTED
        )
    elif Version(installed()) < Version(OLDEST_TESTED):
        _log.warning(
            "note: transformers %s is older than %s, the oldest version that was tested", installed(), OLDEST_TESTED
        )
