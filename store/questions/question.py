"""The questions asked about the stored images, and the images that they name.

A file of questions is JSONL, or one JSON list; each entry is a question or a conversation in LLaVA's format. Image names
are relative to the image root; this module never opens the images.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, StringConstraints, ValidationError

from configs.counted import agreeing, counted
from configs.errors import or_the_demos_data
from configs.experiment import DataSection
from store.errors import DataMissing, InvalidQuestions
from store.questions.conversations import Conversations, is_conversation
from store.questions.fields import first_few, is_object, misspelt
from store.questions.image_files import relative_name

Split = Literal["train", "val", "test"]
MAX_PROBLEMS = 20
"""Largest number of problems that a message lists."""
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
    """One question about one image: a row of a questions JSONL."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    question_id: _Name
    image: _Name
    """Path of the image, relative to the image root."""
    question: str
    answers: tuple[str, ...] = ()
    """The right answers; a prediction is right if it equals any of these."""
    choices: tuple[str, ...] | None = None
    """All possible answers, if there is a closed list of them."""
    kind: str | None = None
    """The group that the question's accuracy is reported in."""
    split: Split | None = None
    """The split that the question is in; None in all questions of a file whose questions are dealt out."""
    patches: tuple[NonNegativeInt, ...] | None = None
    """Raster indices of the patches that show what the question is about, if these are known."""
    region: tuple[Box, ...] | None = None
    """The part of the image that shows what the question is about, as boxes, for towers with any patches; `patches` wins."""

    @property
    def can_be_scored(self) -> bool:
        """Whether a prediction can be compared with an answer; blank answers do not count."""
        return any(answer.strip() for answer in self.answers)


def read_questions(data: DataSection) -> list[Question]:
    """Read all questions of `data`, in file order; the list is empty for a plain image folder.

    Turns of a conversation that are not questions with an answer are left out; a warning counts and names them. Images that
    are named by an absolute path below the image root get their relative names, and a warning counts them.

    Raises:
        DataMissing: (exit 5) The file does not exist.
        InvalidQuestions: (exit 2) Rows cannot be read, or have a field whose name is nearly a known name; the message lists
            the first of them.

    """
    if data.questions is None:
        return []
    if not data.questions.is_file():
        missing = no_questions(f"questions at {data.questions.absolute()}", "there is no such file")
        raise DataMissing(f"{missing}{or_the_demos_data(data.questions.parent)}")
    problems: list[str] = []
    conversations = Conversations(problems)
    rows = _rows(data.questions, conversations, problems)
    read = [(where, question) for where, row in rows if (question := _question(where, row, problems))]
    questions = [question for _, question in read]
    problems += _given_twice(read)
    if problems:
        more = f"\n  … and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:MAX_PROBLEMS])
        raise InvalidQuestions(f"{data.questions}: {_rows_in_words(len(problems))}:{listed}{more}")
    for line in conversations.notes():
        _log.warning("note: %s: %s", data.questions, line)
    return _by_relative_names(questions, data)


def _by_relative_names(questions: Sequence[Question], data: DataSection) -> list[Question]:
    """Name images relative to the image root, so that no image has two names and no machine's path becomes an id."""
    names = {name: relative_name(data.images, name) for name in image_names(questions)}
    changed = sum(relative != name for name, relative in names.items())
    if changed:
        _log.warning(
            "note: %s names %s by absolute paths below %s: %s taken relative to it",
            data.questions, counted(changed, "image"), data.images, agreeing(changed, "its name is", "their names are"),
        )  # fmt: skip
    return [
        question if names[question.image] == question.image
        else question.model_copy(update={"image": names[question.image]})
        for question in questions
    ]  # fmt: skip


def _given_twice(read: Sequence[tuple[str, Question]]) -> list[str]:
    """Describe each id that several questions have, with the places of the first two."""
    counts = Counter(question.question_id for _, question in read)
    places: dict[str, list[str]] = {name: [] for name, count in counts.items() if count > 1}
    for where, question in read:
        if question.question_id in places:
            places[question.question_id].append(where)
    return [
        f"question_id {name!r} is given more than once: {first} and {second}"
        for name, (first, second, *_) in places.items()
    ]


def _rows_in_words(count: int) -> str:
    return f"{counted(count, 'row')} cannot be used, correct or remove {agreeing(count, 'it', 'them')}"


def no_questions(expected: str, actual: str) -> str:
    """Compose the message about questions that are missing.

    >>> no_questions("questions in the val split", "there are none")
    'expected questions in the val split, there are none: check data.questions'
    """
    return f"expected {expected}, {actual}: check data.questions"


def image_names(questions: Sequence[Question]) -> list[str]:
    """Return the distinct image names in order of first appearance."""
    return list(dict.fromkeys(question.image for question in questions))


def _question(where: str, row: Any, problems: list[str]) -> Question | None:
    """Read one row; None, with the problem noted, for a row that is not a question."""
    if is_object(row) and (wrong := misspelt(row, Question.model_fields)):
        problems += [f"{where}: unknown field {given!r:.80}: did you mean {meant!r}?" for given, meant in wrong.items()]
        return None
    if is_object(row) and not row.keys() & {"question_id", "question"}:
        problems.append(
            f"{where}: expected a question (question_id, image, question) or a conversation (image, conversations), it has "
            + (first_few(list(row)) or "no field")
        )
        return None
    try:
        return Question.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field, given = ".".join(map(str, first["loc"])) or "row", first["input"]
        message = first["msg"]
        if first["type"] == "tuple_type":
            example = f" such as {json.dumps([given], ensure_ascii=False):.80}" if isinstance(given, str) else ""
            message = f"expected a list{example}"
        problems.append(f"{where}: {field}: {message} (got {given!r:.80})")
        return None


def _rows(path: Path, conversations: Conversations, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the position and the content of each question; a conversation yields several."""
    for where, number, entry in _entries(path, problems):
        if is_conversation(entry):
            yield from conversations.rows(where, number, entry)
        else:
            yield where, entry


def _entries(path: Path, problems: list[str]) -> Iterator[tuple[str, int, Any]]:
    """Yield the position, the number and the content of each line, or of each member of the file's list."""
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
    """Describe JSON that cannot be read; it may also have numbers of thousands of digits, or lists nested too deeply."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {line or error.lineno}: not JSON ({error.msg})"
    position = "the file" if line is None else f"line {line}"
    return f"{position}: not JSON that can be read ({error})"
