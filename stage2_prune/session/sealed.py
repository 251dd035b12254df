"""Seal JSON that a later command reads back: a checksum closes it, so that no flipped byte is taken for data.

A sealed object is plain JSON, on a line or in a file of its own. Its last field is `"crc32c": "9ae0daaf"`, the checksum of
every byte before that field's comma. Files of earlier versions lack the field: a command reads them, and says once
that they cannot be checked.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from configs.files.atomic import write_atomically
from configs.progress import say_once
from stage2_prune.errors import DamagedRun
from store.layout.shard import crc

FIELD = "crc32c"
_SEAL = re.compile(rb', "crc32c": "([0-9a-f]{8})"\}\Z')
_SHAPE = b', "crc32c": "________"}'
_BROKEN_SEAL = 10
"""If this many of the 15 fixed bytes of a seal are at the end of a file, that end counts as a damaged seal."""


def seal(text: str) -> str:
    """Close the text of a JSON object with its checksum; the object must not be empty."""
    body = text.removesuffix("}").rstrip()
    return f'{body}, "{FIELD}": "{crc(body.encode()):08x}"}}'


def unseal(data: bytes) -> tuple[bytes, bool]:
    """Return the object without its seal, and whether it was sealed; raise ValueError if the checksum does not match."""
    closing = _SEAL.search(data)
    if closing is None:
        if _resembles_seal(data):
            raise ValueError("its checksum cannot be read")
        return data, False
    if crc(data[: closing.start()]) != int(closing[1], 16):
        raise ValueError("its checksum does not match")
    return data[: closing.start()] + b"}", True


def _resembles_seal(data: bytes) -> bool:
    end = data.rstrip()[-len(_SHAPE) :]
    return b'"crc32c"' in end or sum(a == b for a, b in zip(end, _SHAPE, strict=False)) >= _BROKEN_SEAL


def write_object(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a file by the sealed JSON of `content`, and return the content with its seal."""
    text = sealed_object(content)
    write_atomically(path, text)
    return {**content, FIELD: text[-11:-3]}


def sealed_object(content: Mapping[str, Any]) -> str:
    """Write the sealed JSON of `content` as the text of a file."""
    return seal(json.dumps(content, indent=1, ensure_ascii=False)) + "\n"


def read_object(path: Path, remedy: str) -> dict[str, Any] | None:
    """Read the JSON object in a file; None if there is no file.

    Raises:
        DamagedRun: (exit 4) if the file holds no JSON object, or an object whose checksum does not match. An object
            without a checksum is accepted. `remedy` ends the message.
    """
    data = read_bytes(path, remedy)
    if data is None:
        return None
    try:
        body, is_sealed = unseal(data.removesuffix(b"\n"))
        content = json.loads(body.decode())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (ValueError, RecursionError) as error:
        raise DamagedRun(f"{path} is damaged ({'it is empty' if not data else error}): {remedy}") from None
    if not is_sealed:
        say_unsealed(path)
    return cast(dict[str, Any], content)


def read_bytes(path: Path, remedy: str) -> bytes | None:
    """Read a file of a run; None if there is no file.

    Raises:
        DamagedRun: (exit 4) if the file cannot be read. `remedy` ends the message.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedRun(f"expected a file that can be read at {path}, got {error.strerror!r}: {remedy}") from None


def say_unsealed(path: Path) -> None:
    """Say once per command, on stderr, that files of an earlier version cannot be checked."""
    say_once(
        f"note: {path} was written by an earlier version and is not sealed: such files are read as they are, damage in "
        "them is not noticed",
        about="unsealed",
    )
