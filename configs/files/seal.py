"""A text file that says of itself whether it is as it was written: its last line is a comment with a sha256 of the others."""

import hashlib

_SEAL = b"# sha256 of the lines above: "


def sealed(text: str) -> str:
    """A text with its seal."""
    return text + _seal_of(text.encode()).decode()


def sealed_as(text: str, original: bytes) -> str:
    """A text that takes the place of another: with a seal where that has one."""
    return sealed(text) if _SEAL in original else text


def is_as_sealed(data: bytes) -> bool:
    """Whether a file is as it was written; a file without a seal is of an earlier version, and nobody can tell."""
    lines, _, last = data.rstrip(b"\n").rpartition(b"\n")
    if not last.startswith(b"#") and _SEAL.strip(b"# ") not in last:
        return True
    return data == lines + b"\n" + _seal_of(lines + b"\n")


def _seal_of(data: bytes) -> bytes:
    return _SEAL + hashlib.sha256(data).hexdigest().encode() + b"\n"
