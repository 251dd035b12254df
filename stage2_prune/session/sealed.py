"""JSON that a later command reads back, closed by a checksum so that no flipped byte is taken for data.

A sealed object is plain JSON, on a line or in a file of its own. Its last field is `"crc32c": "9ae0daaf"`, the checksum of
every byte before that field's comma. Files of earlier versions lack the field: they are read, and a command says so once.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from configs.files.atomic import write_atomically
from stage2_prune.errors import DamagedRun
from store.layout.shard import crc

FIELD = "crc32c"
_SEAL = re.compile(rb', "crc32c": "([0-9a-f]{8})"\}\Z')
_SHAPE = b', "crc32c": "________"}'
_BROKEN_SEAL = 10
"""Bytes of a seal's fixed part, of which there are 15, from which on an end of a file counts as a damaged seal."""
_said: set[str] = set()


def seal(text: str) -> str:
    """Close the text of a JSON object, which is not empty, with its checksum."""
    body = text.removesuffix("}").rstrip()
    return f'{body}, "{FIELD}": "{crc(body.encode()):08x}"}}'


def unseal(data: bytes) -> tuple[bytes, bool]:
    """Return the object without its seal, and whether it had one; ValueError where the checksum is another."""
    found = _SEAL.search(data)
    if found is None:
        if _resembles_seal(data):
            raise ValueError("its checksum cannot be read")
        return data, False
    if crc(data[: found.start()]) != int(found[1], 16):
        raise ValueError("its checksum does not match")
    return data[: found.start()] + b"}", True


def _resembles_seal(data: bytes) -> bool:
    end = data.rstrip()[-len(_SHAPE) :]
    return b'"crc32c"' in end or sum(a == b for a, b in zip(end, _SHAPE, strict=False)) >= _BROKEN_SEAL


def write_object(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a file by the sealed JSON of `content`; returns the content with its seal."""
    text = seal(json.dumps(content, indent=1, ensure_ascii=False))
    write_atomically(path, text + "\n")
    return {**content, FIELD: text[-10:-2]}


def read_object(path: Path, remedy: str) -> dict[str, Any] | None:
    """Read the JSON object in a file; None where there is no file.

    Raises DamagedRun (exit 4) ending in `remedy` for anything but an object whose checksum matches, or that has none.
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
    """Read a file of a run; None where there is none, DamagedRun (exit 4) ending in `remedy` where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedRun(f"expected a file that can be read at {path}, got {error.strerror!r}: {remedy}") from None


def say_unsealed(path: Path) -> None:
    """Say once per command, on stderr, that files of an earlier version cannot be checked."""
    context = click.get_current_context(silent=True)
    said = _said if context is None else context.meta.setdefault(__name__, set[str]())
    if "unsealed" not in said:
        said.add("unsealed")
        click.echo(
            f"note: {path} was written by an earlier version and is not sealed: such files are read as they are, damage in "
            "them is not noticed",
            err=True,
        )
