"""Keep what a search has found, question by question, so that a killed search goes on and ends with the same bytes.

<run_dir>/oracle/
  search.json    the settings of the search, sealed
  search.jsonl   a sealed line per question: the patches in the order in which they were found, for both answers
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from configs.files.atomic import write_atomically
from stage2_prune.errors import DamagedRun
from stage2_prune.session.identity import digest, require_same
from stage2_prune.session.sealed import read_bytes, read_object, seal, unseal, write_object
from store.questions.question import Question

AGAIN = "run oracle again with --overwrite, which searches anew"


@dataclass(frozen=True)
class Found:
    """The patches of one question, in the order in which a search found them: the first k are the choice at a budget of k."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    question_id: str
    made_with: str
    """Digest of the settings of the search."""
    oracle_answer: tuple[int, ...]
    """Found by the log-probability of the right answer."""
    oracle_self: tuple[int, ...]
    """Found by the log-probability of the unpruned model's own answer."""


_FOUND = TypeAdapter(Found)


class SearchLog:
    """The results of a search in its folder, to which each question's result is appended."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
        """Read what was found before with the same settings.

        Raises:
            OtherRun: (exit 2) for a search of other settings, unless `overwrite`.
            DamagedRun: (exit 4) for a damaged file.
        """
        self._path, settings = folder / "search.jsonl", folder / "search.json"
        if overwrite:
            for path in (self._path, settings):
                path.unlink(missing_ok=True)
        recorded = read_object(settings, AGAIN)
        now = json.loads(json.dumps(identity))
        if recorded is not None:
            require_same(
                f"the search in {folder} was made with other settings",
                recorded["identity"],
                now,
                remedy="run again with --overwrite to replace it, or with another --run-dir to keep it",
            )
        self.digest = digest(now)
        self.found = {found.question_id: found for found in self._read()}
        folder.mkdir(parents=True, exist_ok=True)
        if recorded is None:
            write_object(settings, {"schema": 1, "identity": now})

    def left(self, asked: Sequence[Question]) -> list[Question]:
        """Return the questions that were not searched yet."""
        return [question for question in asked if question.question_id not in self.found]

    def append(self, question: Question, answer: Sequence[int], own: Sequence[int]) -> None:
        """Add what was found for a question."""
        found = Found(question.question_id, self.digest, tuple(answer), tuple(own))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(seal(json.dumps(asdict(found))) + "\n")
        self.found[found.question_id] = found

    def _read(self) -> list[Found]:
        """Read the whole lines, and cut off the end of a line that was being written when the process was killed."""
        data = read_bytes(self._path, AGAIN) or b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_atomically(self._path, whole)
        return [self._line(number, line) for number, line in enumerate(whole.splitlines(), start=1)]

    def _line(self, number: int, line: bytes) -> Found:
        try:
            body, is_sealed = unseal(line)
            found = _FOUND.validate_json(body)
            if not is_sealed or found.made_with != self.digest:
                raise ValueError("it is no line of this search")
        except ValueError as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise DamagedRun(f"line {number} of {self._path} is damaged ({problem}): {AGAIN}") from None
        return found
