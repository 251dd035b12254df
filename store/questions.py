# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (JSON may hold anything)
"""The questions asked about the stored images, and which images a config names.

Three inputs: a folder of images (nothing asked), a JSONL file of questions, or LLaVA's own conversation JSON. Image names
are data relative to the image root; they are never opened here.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, StringConstraints, ValidationError

from configs.experiment import DataSection
from store.errors import DataMissing, InvalidQuestions

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


def read_questions(data: DataSection) -> list[Question]:
    """All questions of `data`, in file order; none for a plain image folder.

    Raises DataMissing if the file is absent and InvalidQuestions listing the rows that cannot be read.
    """
    if data.questions is None:
        return []
    if not data.questions.is_file():
        raise DataMissing(
            f"expected questions at {data.questions}, there is no such file: check data.questions, "
            "or write the demo's with `make data`"
        )
    problems: list[str] = []
    questions = [q for where, row in _rows(data.questions, problems) if (q := _question(where, row, problems))]
    twice = [name for name, count in Counter(q.question_id for q in questions).items() if count > 1]
    problems += [f"question_id {name!r} is given more than once" for name in twice]
    if problems:
        more = f"\n  … and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:MAX_PROBLEMS])
        raise InvalidQuestions(
            f"{data.questions}: {len(problems)} rows cannot be used, correct or remove them:{listed}{more}"
        )
    return questions


def image_names(questions: Sequence[Question]) -> list[str]:
    """Distinct image names in order of first appearance."""
    return list(dict.fromkeys(question.image for question in questions))


def select(questions: Sequence[Question], data: DataSection, split: Split) -> list[Question]:
    """The first `data.<split>` questions of a split, in file order.

    Where no row names a split, images are dealt out in the order of their names' hashes: to test, then val, then train,
    until each has its number of questions. So splits share no image and do not depend on the order of the file.
    """
    named = [question.split is not None for question in questions]
    if any(named) and not all(named):
        raise InvalidQuestions(
            f"{named.count(False)} of {len(named)} questions name no split: name it in all rows or in none"
        )
    limits: dict[Split, int | None] = {"test": data.test, "val": data.val, "train": data.train}
    if not any(named):
        return _dealt(questions, limits)[split][: limits[split]]
    chosen = [question for question in questions if question.split == split]
    return chosen[: limits[split]]


def used(questions: Sequence[Question], data: DataSection) -> list[Question]:
    """The questions that any split uses, in file order: what an experiment needs encoded."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    wanted = {question.question_id for split in splits for question in select(questions, data, split)}
    return [question for question in questions if question.question_id in wanted]


def _dealt(questions: Sequence[Question], limits: dict[Split, int | None]) -> dict[Split, list[Question]]:
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    dealt: dict[Split, list[Question]] = {"test": [], "val": [], "train": []}
    remaining = list(limits)
    for image in sorted(by_image, key=lambda name: hashlib.sha256(name.encode()).digest()):
        while remaining and (limit := limits[remaining[0]]) is not None and len(dealt[remaining[0]]) >= limit:
            remaining.pop(0)
        if remaining:
            dealt[remaining[0]] += by_image[image]
    return dealt


def _question(where: str, row: Any, problems: list[str]) -> Question | None:
    try:
        return Question.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        problems.append(
            f"{where}: {'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']} (got {first['input']!r:.80})"
        )
        return None


def _rows(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
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
        yield from _conversation_rows(path, entries, problems)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(_not_json(error, number))
            continue
        yield f"line {number}", row


def _not_json(error: ValueError | RecursionError, line: int | None = None) -> str:
    """Also numbers of thousands of digits, and lists inside each other without end."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {line or error.lineno}: not JSON ({error.msg})"
    where = "the file" if line is None else f"line {line}"
    return f"{where}: not JSON that can be read ({error})"


def _conversation_rows(path: Path, entries: Iterable[Any], problems: list[str]) -> Iterator[tuple[str, Any]]:
    """LLaVA's conversation JSON: each human turn with the answer that follows is a question asked on its own.

    Its ids repeat: a conversation whose id was there before is told apart by its place in the file.
    """
    without_image = 0
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "image" not in entry:
            without_image += 1
            continue
        turns = entry.get("conversations", [])
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            problems.append(f"entry {number}: conversations: expected a list of turns (got {turns!r:.80})")
            continue
        name = str(entry.get("id", number))
        name = f"{name}@{number}" if name in seen else name
        seen.add(name)
        for turn, (asked, answered) in enumerate(zip(turns[::2], turns[1::2], strict=False)):
            yield (
                f"entry {number} turn {turn}",
                {
                    "question_id": f"{name}/{turn}",
                    "image": entry["image"],
                    "question": str(asked.get("value", "")).replace("<image>", "").strip(),
                    "answers": [answered.get("value")],
                    "split": entry.get("split"),
                },
            )
    if without_image:
        _log.warning("%s: %d conversations have no image and are left out", path, without_image)
