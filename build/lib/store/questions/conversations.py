"""Conversations in LLaVA's format, read as questions: each human turn with the model's answer to it.

    {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                    {"from": "gpt", "value": "A cat."}]}

Turns are paired by who speaks, never by their position. A first turn that is not the human's is skipped, as LLaVA's own
training (`preprocess_v1`) skips it; what else is no question with an answer is left out, counted and named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from store.questions.fields import is_list, is_object, misspelt

Speaker = Literal["human", "model", "system"]
PLACEHOLDER = "<image>"
SPEAKERS: dict[str, Speaker] = {
    "human": "human", "user": "human",
    "gpt": "model", "assistant": "model", "model": "model", "bot": "model", "chatgpt": "model",
    "system": "system",
}  # fmt: skip
"""What `from`, or `role`, may say, in any case."""
TURNS, IMAGES = ("conversations", "messages"), ("image", "images")
SPEAKER, TEXT = ("from", "role"), ("value", "content")
"""The names that a field has in the wild; the first one is LLaVA's."""
SHOWN = 3

NO_IMAGE = "conversations have no image"
NO_TURNS = "conversations have no turns"
SEVERAL_IMAGES = "conversations are about several images"
MODEL_BEGINS = "first turns are not the human's, LLaVA's own training skips them too"
NOT_ANSWERED = "human turns are not answered"
NOT_ASKED = "answers follow no human turn"
SYSTEM = "turns are system prompts"
NOBODY = f"turns do not say who speaks, by `from` or `role` as one of {', '.join(SPEAKERS)}"
BEFORE_IMAGE = "questions are asked before the image is shown"


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    where: str
    speaker: Speaker | None
    text: Any
    """As the file has it; something else than text where the file is wrong."""
    images: int
    """How many images the message shows."""


def is_conversation(entry: Any) -> TypeGuard[dict[str, Any]]:
    """Whether an entry of a file of questions is a conversation, or is meant to be one."""
    return is_object(entry) and "question" not in entry and any(
        name in entry or name in misspelt(entry, TURNS).values() for name in TURNS
    )  # fmt: skip


class Conversations:
    """Reads the conversations of one file, and remembers what of them is left out."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._names: set[str] = set()
        self._left_out: dict[str, list[str]] = {}
        self._not_shown: list[str] = []

    def rows(self, where: str, number: int, entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the place and the fields of each question.

        Ids repeat in LLaVA's own file: a conversation whose id was there before is told apart by its place in the file.
        """
        if self._is_misspelt(where, entry, IMAGES, TURNS, ("split",)):
            return
        image = self._image(where, entry)
        turns = self._turns(where, entry[_present(entry, TURNS)])
        if image is None or turns is None:
            return
        name = str(entry.get("id", number))
        name = f"{name}@{number}" if name in self._names else name
        self._names.add(name)
        for turn, (asked, answered) in enumerate(self._asked(where, turns)):
            yield (
                f"{where} turn {turn}",
                {
                    "question_id": f"{name}/{turn}",
                    "image": image,
                    "question": _without_placeholder(asked.text),
                    "answers": [answered.text],
                    "split": entry.get("split"),
                },
            )

    def notes(self) -> list[str]:
        """Say what was left out, and why; and which images were shown where the file does not show them."""
        left_out = [f"{len(places):,} {reason} ({_first(places)})" for reason, places in self._left_out.items()]
        notes = [f"left out: {'; '.join(left_out)}"] if left_out else []
        if self._not_shown:
            notes.append(
                f"{len(self._not_shown):,} conversations have no {PLACEHOLDER}, they are taken to be about their image all "
                f"the same ({_first(self._not_shown)})"
            )
        return notes

    def _is_misspelt(self, where: str, given: Mapping[str, Any], *fields: tuple[str, ...]) -> bool:
        """Note a problem for each name that is nearly one of a field's, which has none of its names."""
        absent = [name for names in fields if not any(name in given for name in names) for name in names]
        wrong = misspelt(given, absent) if absent else {}
        self._problems += [
            f"{where}: unknown field {name!r:.80}: did you mean {meant!r}?" for name, meant in wrong.items()
        ]
        return bool(wrong)

    def _leave_out(self, reason: str, where: str) -> None:
        self._left_out.setdefault(reason, []).append(where)

    def _image(self, where: str, entry: Mapping[str, Any]) -> Any:
        """The conversation's one image; None, and left out, where there is none or more than one."""
        given = entry.get(_present(entry, IMAGES))
        images = given if is_list(given) else [given]
        if len(images) > 1:
            self._leave_out(SEVERAL_IMAGES, where)
        elif not images or images[0] is None:
            self._leave_out(NO_IMAGE, where)
        else:
            return images[0]
        return None

    def _turns(self, where: str, given: Any) -> list[Turn] | None:
        if not is_list(given) or not all(is_object(turn) for turn in given):
            self._problems.append(f"{where}: {TURNS[0]}: expected a list of turns (got {given!r:.80})")
            return None
        turns: list[Turn] = []
        for number, turn in enumerate(given):
            place = f"{where} message {number}"
            self._is_misspelt(place, turn, SPEAKER, TEXT)
            speaker, said = (turn.get(_present(turn, names)) for names in (SPEAKER, TEXT))
            turns.append(Turn(place, SPEAKERS.get(str(speaker).strip().lower()), *_text(said)))
        return turns

    def _asked(self, where: str, turns: list[Turn]) -> list[tuple[Turn, Turn]]:
        """The human turns of a conversation about one image, each with its answer."""
        showing = [number for number, turn in enumerate(turns) for _ in range(turn.images)]
        if len(showing) > 1:
            self._leave_out(SEVERAL_IMAGES, where)
            return []
        if not turns:
            self._leave_out(NO_TURNS, where)
        elif not showing:
            self._not_shown.append(where)
        unseen = turns[: showing[0]] if showing else []
        pairs = self._pairs(turns)
        for asked, _ in pairs:
            if asked in unseen:
                self._leave_out(BEFORE_IMAGE, asked.where)
        return [pair for pair in pairs if pair[0] not in unseen]

    def _pairs(self, turns: list[Turn]) -> list[tuple[Turn, Turn]]:
        """Each human turn that the model's turn follows; the other turns are left out."""
        pairs: list[tuple[Turn, Turn]] = []
        waiting: Turn | None = None
        for turn in turns:
            if turn.speaker is None or turn.speaker == "system":
                self._leave_out(NOBODY if turn.speaker is None else SYSTEM, turn.where)
            elif turn.speaker == "human":
                if waiting is not None:
                    self._leave_out(NOT_ANSWERED, waiting.where)
                waiting = turn
            elif waiting is None:
                self._leave_out(MODEL_BEGINS if turn is turns[0] else NOT_ASKED, turn.where)
            else:
                pairs.append((waiting, turn))
                waiting = None
        if waiting is not None:
            self._leave_out(NOT_ANSWERED, waiting.where)
        return pairs


def _present(given: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Which of a field's names is given; the first where none is."""
    return next((name for name in names if name in given), names[0])


def _text(said: Any) -> tuple[Any, int]:
    """What was said, and how many images it shows; a list of parts, as chat templates take, is put together."""
    if is_list(said) and all(is_object(part) for part in said):
        shown = sum(part.get("type") in ("image", "image_url") for part in said)
        text, more = _text("".join(str(part.get("text", "")) for part in said))
        return text, shown + more
    return said, said.count(PLACEHOLDER) if isinstance(said, str) else 0


def _without_placeholder(said: Any) -> Any:
    """A human's words without the image's place among them, which LLaVA's own training moves to the front."""
    return said.replace(PLACEHOLDER, "").strip() if isinstance(said, str) else said


def _first(places: list[str]) -> str:
    return ", ".join(places[:SHOWN]) + (", …" if len(places) > SHOWN else "")
