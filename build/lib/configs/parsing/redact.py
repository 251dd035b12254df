"""Removing credentials from messages: the user and the password before the @ of a URL, and its secret parameters."""

import logging
import re

_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_SECRET = re.compile(
    r"([?&][\w.-]*(?:key|token|secret|signature|password|credential)[\w.-]*=)[^&\s'\"]+", re.IGNORECASE
)


def without_credentials(text: str) -> str:
    """Replace user names, passwords and secret parameters of URLs by three dots.

    >>> without_credentials("no answer from https://me:pw@host/x?X-Amz-Signature=ab&part=2")
    'no answer from https://...@host/x?X-Amz-Signature=...&part=2'
    """
    return _SECRET.sub(r"\1...", _USER.sub("...@", text))


class Redacting(logging.Formatter):
    """A log formatter that writes messages without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as the base class does, then remove credentials."""
        return without_credentials(super().format(record))
