"""Seals of text files: the last line is a comment with the sha256 of all lines above it, so that an edit can be detected."""

import hashlib

_SEAL = b"# sha256 of the lines above: "


def sealed(text: str) -> str:
    """Return `text` with a seal as its last line."""
    return text + _seal_of(text.encode()).decode()


def sealed_as(text: str, original: bytes) -> str:
    """Return `text`, which replaces the file `original`: with a seal if that file has a seal."""
    return sealed(text) if _SEAL in original else text


def is_as_sealed(data: bytes) -> bool:
    """Check whether a file is unchanged since it was written.

    A file without a seal is accepted: an earlier version wrote it, so an edit cannot be detected.
    """
    lines, _, last = data.rstrip(b"\n").rpartition(b"\n")
    if not last.startswith(b"#") and _SEAL.strip(b"# ") not in last:
        return True
    return data == lines + b"\n" + _seal_of(lines + b"\n")


def _seal_of(data: bytes) -> bytes:
    return _SEAL + hashlib.sha256(data).hexdigest().encode() + b"\n"
