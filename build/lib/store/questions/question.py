"""The questions asked about the stored images, and the images that they name.

A file of questions is JSONL, or one JSON list; each entry is a question or a conversation in LLaVA's format. Image names
are data relative to the image root; they are never opened here.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, StringConstraints, ValidationError

from configs.experiment import DataSection
from store.errors import DataMissing, InvalidQuestions
from store.questions.conversations import Conversations, is_conversation
from store.questions.fields import is_object, misspelt

Split = Literal["train", "val", "test"]
MAX_PROBLEMS = 20
_log = logging.getLogger(__name__)
_Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


def _in_order(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    if left < right and top < bottom:
        return box
    raise ValueError("expected left < right and top < bottom")


_Share = Annotated[float, Field(ge=0, le=1)]
Box = Annotated[tuple[_Share, _Share, _Share, _Share], AfterValidator(_in_order)]
"""Left, top, right, bottom, in fractions of the image's width and height from the top left."""


class Question(BaseModel):
    """One row of a questions JSONL."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    question_id: _Name
    image: _Name
    """Path of the image, relative to the image root."""
    question: str
    answers: tuple[str, ...] = ()
    """Any of them counts as right."""
    choices: tuple[str, ...] | None = None
    """All possible answers, where they are a closed list."""
    kind: str | None = None
    """Group that accuracy is reported by."""
    split: Split | None = None
    patches: tuple[NonNegativeInt, ...] | None = None
    """Raster indices of the patches that show what the question is about, where that is known."""
    region: tuple[Box, ...] | None = None
    """The same as boxes in the image file, whatever the tower's patches are; `patches`, where given, has the last word."""

    @property
    def can_be_scored(self) -> bool:
        """Whether there is an answer to compare with: blank ones are none."""
        return any(answer.strip() for answer in self.answers)


def read_questions(data: DataSection) -> list[Question]:
    """Read all questions of `data`, in file order; none for a plain image folder.

    What of a conversation is no question is left out, counted and named in a warning.

    Raises:
        DataMissing: (exit 5) The file is absent.
        InvalidQuestions: (exit 2) Rows cannot be read, or have a field that is nearly a known one; they are listed.

    """
    if data.questions is None:
        return []
    if not data.questions.is_file():
        raise DataMissing(
            f"expected questions at {data.questions}, there is no such file: check data.questions, "
            "or write the demo's with `make data`"
        )
    problems: list[str] = []
    conversations = Conversations(problems)
    rows = _rows(data.questions, conversations, problems)
    questions = [question for where, row in rows if (question := _question(where, row, problems))]
    twice = [name for name, count in Counter(q.question_id for q in questions).items() if count > 1]
    problems += [f"question_id {name!r} is given more than once" for name in twice]
    if problems:
        more = f"\n  … and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:MAX_PROBLEMS])
        raise InvalidQuestions(
            f"{data.questions}: {len(problems)} rows cannot be used, correct or remove them:{listed}{more}"
        )
    for line in conversations.notes():
        _log.warning("note: %s: %s", data.questions, line)
    return questions


def image_names(questions: Sequence[Question]) -> list[str]:
    """Distinct image names in order of first appearance."""
    return list(dict.fromkeys(question.image for question in questions))


def _question(where: str, row: Any, problems: list[str]) -> Question | None:
    if is_object(row) and (wrong := misspelt(row, Question.model_fields)):
        problems += [f"{where}: unknown field {given!r:.80}: did you mean {meant!r}?" for given, meant in wrong.items()]
        return None
    try:
        return Question.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        problems.append(
            f"{where}: {'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']} (got {first['input']!r:.80})"
        )
        return None


def _rows(path: Path, conversations: Conversations, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the place and the content of each question; a conversation is several."""
    for where, number, entry in _entries(path, problems):
        if is_conversation(entry):
            yield from conversations.rows(where, number, entry)
        else:
            yield where, entry


def _entries(path: Path, problems: list[str]) -> Iterator[tuple[str, int, Any]]:
    """Yield the place, the number and the content of each line, or of each member of one list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"byte {error.start}: not utf-8")
        return
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.append(_not_json(error))
            return
        yield from ((f"entry {number}", number, entry) for number, entry in enumerate(entries))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(_not_json(error, number))
            continue
        yield f"line {number}", number, row


def _not_json(error: ValueError | RecursionError, line: int | None = None) -> str:
    """Also numbers of thousands of digits, and lists inside each other without end."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {line or error.lineno}: not JSON ({error.msg})"
    where = "the file" if line is None else f"line {line}"
    return f"{where}: not JSON that can be read ({error})"
