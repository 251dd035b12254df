"""Messages without credentials: what a URL says before its @ and in its secret parameters is nobody's business."""

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
    """Write a log's messages without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base class, redacted."""
        return without_credentials(super().format(record))
