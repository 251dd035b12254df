"""Conversations in LLaVA's format, read as questions: each human turn becomes a question with the model's answer.

    {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                    {"from": "gpt", "value": "A cat."}]}

Turns are paired by who speaks, never by their position. A first turn that is not the human's is skipped, as LLaVA's own
training (`preprocess_v1`) skips it. Every other turn that is not a question with an answer is left out, counted and named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from configs.counted import counted
from store.questions.fields import first_few, is_list, is_object, misspelt

Speaker = Literal["human", "model", "system"]
PLACEHOLDER = "<image>"
SPEAKERS: dict[str, Speaker] = {
    "human": "human", "user": "human",
    "gpt": "model", "assistant": "model", "model": "model", "bot": "model", "chatgpt": "model",
    "system": "system",
}  # fmt: skip
"""Values of `from` or `role`, in lower case, and who speaks; a file may use any case."""
TURNS, IMAGES = ("conversations", "messages"), ("image", "images")
SPEAKER, TEXT = ("from", "role"), ("value", "content")
"""Names that files use for a field; the first name of each field is LLaVA's."""

Reason = tuple[str, str]
"""What is left out, in the singular, and what is wrong with it."""
NO_IMAGE = ("conversation", "without an image")
NO_TURNS = ("conversation", "without turns")
SEVERAL_IMAGES = ("conversation", "about several images")
MODEL_BEGINS = ("first turn", "spoken by the model, not the human, which LLaVA's own training skips too")
NOT_ANSWERED = ("human turn", "without an answer")
NOT_ASKED = ("answer", "without a human turn before it")
SYSTEM = ("system prompt", "among the turns")
NOBODY = ("turn", f"without its speaker, by `from` or `role` as one of {', '.join(SPEAKERS)}")
BEFORE_IMAGE = ("question", "asked before the image is shown")


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    where: str
    """The position in the file, for messages."""
    speaker: Speaker | None
    """None where the file does not say who speaks."""
    text: Any
    """The text of the message; where the file is wrong, whatever the file has in its place."""
    images: int
    """Number of images that the message shows."""


def is_conversation(entry: Any) -> TypeGuard[dict[str, Any]]:
    """Check whether an entry of a file of questions is a conversation, or is meant to be one although a field is misspelt."""
    return is_object(entry) and "question" not in entry and any(
        name in entry or name in misspelt(entry, TURNS).values() for name in TURNS
    )  # fmt: skip


class Conversations:
    """Reads the conversations of one file, and remembers which parts of them it leaves out.

    Errors are appended to the list `problems`, which the caller shares.
    """

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._names: set[str] = set()
        self._left_out: dict[Reason, list[str]] = {}
        self._not_shown: list[str] = []

    def rows(self, where: str, number: int, entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the questions of one conversation.

        Ids repeat in LLaVA's own file, so a repeated id gets the conversation's number in the file appended.

        Args:
            where: The position of the conversation in the file, for messages.
            number: The number of the conversation in the file.
            entry: The conversation.

        Yields:
            For each question its position in the file and its fields, by the names of `Question`.

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
        """Write the notes on a file: what was left out and why, and which conversations do not mark their image's place."""
        left_out = [
            f"{counted(len(places), noun)} {problem} ({first_few(places)})"
            for (noun, problem), places in self._left_out.items()
        ]
        notes = [f"left out: {'; '.join(left_out)}"] if left_out else []
        if self._not_shown:
            notes.append(
                f"{counted(len(self._not_shown), 'conversation')} without {PLACEHOLDER} ({first_few(self._not_shown)}): each "
                "is taken to be about its image all the same"
            )
        return notes

    def _is_misspelt(self, where: str, given: Mapping[str, Any], *fields: tuple[str, ...]) -> bool:
        """Note a problem for each name that is nearly the name of a missing field; `fields` holds the names of each field.

        Returns:
            True if there is such a name.

        """
        absent = [name for names in fields if not any(name in given for name in names) for name in names]
        wrong = misspelt(given, absent) if absent else {}
        self._problems += [
            f"{where}: unknown field {name!r:.80}: did you mean {meant!r}?" for name, meant in wrong.items()
        ]
        return bool(wrong)

    def _leave_out(self, reason: Reason, where: str) -> None:
        self._left_out.setdefault(reason, []).append(where)

    def _image(self, where: str, entry: Mapping[str, Any]) -> Any:
        """Return the only image of a conversation; None where it has no image or several, and leave the conversation out."""
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
        """Read the turns of a conversation; None, with a problem noted, for anything but a list of objects."""
        if not is_list(given) or not all(is_object(turn) for turn in given):
            self._problems.append(f"{where}: {TURNS[0]}: expected a list of turns (got {given!r:.80})")
            return None
        turns: list[Turn] = []
        for number, turn in enumerate(given):
            position = f"{where} message {number}"
            self._is_misspelt(position, turn, SPEAKER, TEXT)
            speaker, content = (turn.get(_present(turn, names)) for names in (SPEAKER, TEXT))
            turns.append(Turn(position, SPEAKERS.get(str(speaker).strip().lower()), *_text(content)))
        return turns

    def _asked(self, where: str, turns: list[Turn]) -> list[tuple[Turn, Turn]]:
        """Pair the human turns of a conversation about one image with their answers; turns before the image are left out."""
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
        """Pair each human turn with the model's turn that follows it; leave out the other turns."""
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
    """Return the name under which a field is given, or the first of its names where the field is missing."""
    return next((name for name in names if name in given), names[0])


def _text(content: Any) -> tuple[Any, int]:
    """Return the text of a message and the number of images that it shows; a list of parts is joined.

    Chat templates take such lists, of parts such as `{"type": "text", "text": …}` and `{"type": "image"}`.
    """
    if is_list(content) and all(is_object(part) for part in content):
        shown = sum(part.get("type") in ("image", "image_url") for part in content)
        text, more = _text("".join(str(part.get("text", "")) for part in content))
        return text, shown + more
    return content, content.count(PLACEHOLDER) if isinstance(content, str) else 0


def _without_placeholder(text: Any) -> Any:
    """Remove the image's placeholder from a human's words; LLaVA's own training moves it to the front."""
    return text.replace(PLACEHOLDER, "").strip() if isinstance(text, str) else text
