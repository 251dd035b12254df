"""Write and read an answered question as a line of JSON, sealed, with a digest of the settings that made the answer."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stage2_prune.errors import DamagedRun
from stage2_prune.session.ask import Prediction
from stage2_prune.session.identity import digest
from stage2_prune.session.sealed import read_bytes, say_unsealed, seal, unseal

ANEW = "move it away and run eval (or sweep) again, which answers these questions anew"
_MADE_WITH = re.compile(rb', "made_with": "([0-9a-f]{16})"\}\Z')
_PREDICTION = TypeAdapter(Prediction)


@dataclass(frozen=True)
class Line:
    """One line of a predictions file, as it was read."""

    prediction: Prediction
    made_with: str | None
    """Digest of the settings, as the function `made_with` takes it; None in files of earlier versions."""


def made_with(identity: Mapping[str, Any]) -> str:
    """Digest a cell's settings to the short form that each of its lines holds."""
    return digest(identity)[:16]


def read_lines(path: Path) -> tuple[list[Line], bool]:
    """Read the lines of a predictions file; no lines if there is no file.

    Returns:
        The lines, and whether the last line is cut. A cut line is left out.

    Raises:
        DamagedRun: (exit 4) naming the first damaged line.
    """
    data = read_bytes(path, ANEW)
    if data == b"" and path.suffix == ".jsonl":
        raise DamagedRun(f"{path} is damaged (it is empty): {ANEW}")
    *whole, end = (data or b"").split(b"\n")
    lines = [_line(path, number, line) for number, line in enumerate(whole, start=1)]
    if not end:
        return lines, False
    try:
        return [*lines, _line(path, len(lines) + 1, end)], False
    except DamagedRun:
        return lines, True  # the process that wrote it was killed


def holds_predictions(path: Path) -> bool:
    """Tell whether any line of a file looks like a prediction, damaged or not; an empty .jsonl counts as a cut file."""
    data = read_bytes(path, ANEW) or b""
    fields = (b'"question_id"', b'"prediction"')
    cut = not data and path.suffix == ".jsonl"
    return cut or any(all(field in line for field in fields) for line in data.split(b"\n"))


def _line(path: Path, number: int, line: bytes) -> Line:
    try:
        body, is_sealed = unseal(line)
        settings = _MADE_WITH.search(body) if is_sealed else None
        if is_sealed and settings is None:
            raise ValueError("it is no line of predictions")
        prediction = _PREDICTION.validate_json(body if settings is None else body[: settings.start()] + b"}")
    except ValueError as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DamagedRun(
            f"line {number} of {path} is damaged ({problem}): delete this line and run eval (or sweep) again, which answers "
            "its question anew"
        ) from None
    if settings is None:
        say_unsealed(path)
    return Line(prediction, None if settings is None else settings[1].decode())


def as_line(prediction: Prediction, settings: str) -> str:
    """Format a prediction as a sealed line; `settings` is the digest that `made_with` takes of its cell's identity."""
    return seal(json.dumps(asdict(prediction) | {"made_with": settings}, ensure_ascii=False)) + "\n"
