"""Splits: which questions of a file an experiment takes, and the note that tells the user.

Either every question names its split, or none does: then images are dealt out, all questions about an image to one split.
"""

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from configs.experiment import DataSection
from store.errors import InvalidQuestions
from store.questions.answers import normalise
from store.questions.fields import first_few
from store.questions.question import Question, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHARES: Mapping[Split, int] = {"test": 20, "val": 20, "train": 60}
"""Shares in per cent of the questions of splits without a number, in the order in which splits are dealt out."""
_log = logging.getLogger(__name__)


def select(questions: Sequence[Question], data: DataSection, split: Split) -> list[Question]:
    """Take the first `data.<split>` questions of a split: in file order, or in the order in which images are dealt out."""
    return divided(questions, data)[split][: getattr(data, split)]


def used(questions: Sequence[Question], data: DataSection) -> list[Question]:
    """Return the questions that any split takes, in file order: an experiment needs their images encoded."""
    splits = divided(questions, data)
    wanted = {question.question_id for split in SPLITS for question in splits[split][: getattr(data, split)]}
    return [question for question in questions if question.question_id in wanted]


def divided(questions: Sequence[Question], data: DataSection) -> dict[Split, list[Question]]:
    """Return all questions of each split, without the limits that `data` gives.

    Raises InvalidQuestions (exit 2) where only some of the questions name a split.
    """
    named = [question.split is not None for question in questions]
    if any(named) and not all(named):
        raise InvalidQuestions(
            f"{named.count(False)} of {len(named)} questions name no split: name it in all rows or in none"
        )
    if not any(named):
        return _dealt(questions, data)
    return {split: [question for question in questions if question.split == split] for split in SPLITS}


def account(
    questions: Sequence[Question], data: DataSection, splits: Collection[Split], limit: int | None = None
) -> str:
    """Write how many questions and images the `splits` take, of how many in all, and which setting limits each split.

    Args:
        questions: All questions of the file.
        data: The section of the experiment, with a limit for each split.
        splits: The splits that a command asks.
        limit: The value of `--limit`, which applies to each split.

    """
    by_split = divided(questions, data)
    parts: list[str] = []
    taken: list[Question] = []
    for split in SPLITS:
        if split not in splits:
            continue
        available, wanted = by_split[split], getattr(data, split)
        chosen = available[:wanted][:limit]
        taken += chosen
        cause = "--limit" if limit is not None and len(chosen) == limit else f"data.{split}"
        if len(chosen) == len(available):
            parts.append(f"all {len(available):,} in {split}" if available else f"none are in {split}")
        else:
            parts.append(f"{len(chosen):,} of {len(available):,} in {split}, as {cause} is {len(chosen):,}")
    others = [f"{len(by_split[split]):,} in {split}" for split in SPLITS if split not in splits and by_split[split]]
    parts += [f"{' and '.join(others)} are not asked here"] if others else []
    dealing = "" if any(question.split for question in questions) else f"; {_dealing(len(questions), data)}"
    return (
        f"{len(taken):,} of {len(questions):,} questions are taken, about {_images(taken):,} of {_images(questions):,} "
        f"images: {'; '.join(parts)}{dealing}"
    )


def say(questions: Sequence[Question], data: DataSection, splits: Collection[Split], limit: int | None = None) -> None:
    """Note which questions the `splits` take, and which of these cannot be scored; a command calls this function once."""
    _log.warning("note: %s: %s", data.questions, account(questions, data, splits, limit))
    taken = [question for split in splits for question in select(questions, data, split)[:limit]]
    silent = [question.question_id for question in taken if not question.can_be_scored]
    if silent:
        _log.warning("note: %d of them have no answer, and cannot be scored (%s)", len(silent), first_few(silent))
    outside = [question for question in taken if not answer_is_a_choice(question)]
    if outside:
        listed = [
            f"{question.question_id}: {question.answers[0]!r:.80} is none of {', '.join(question.choices or ())!r:.80}"
            for question in outside
        ]
        _log.warning(
            "note: %d of them have an answer that is not among their choices, so that ranking cannot be right (%s)",
            len(outside), first_few(listed),
        )  # fmt: skip


def answer_is_a_choice(question: Question) -> bool:
    """Check whether any answer of a question is among its choices; True also for a question without answers or choices."""
    if not question.choices or not question.can_be_scored:
        return True
    choices = {normalise(choice) for choice in question.choices}
    return not choices.isdisjoint(normalise(answer) for answer in question.answers)


def _dealt(questions: Sequence[Question], data: DataSection) -> dict[Split, list[Question]]:
    """Deal images out in the order of their names' hashes, to each split until it has its number of questions.

    The last split takes the rest. So splits share no image and do not depend on the order of the file; if there are at least
    as many images as splits, no split is empty.
    """
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    sizes = _sizes(len(questions), data)
    dealt: dict[Split, list[Question]] = {split: [] for split in sizes}
    remaining = list(sizes)
    images = sorted(by_image, key=lambda name: hashlib.sha256(name.encode()).digest())
    for index, image in enumerate(images):
        current, left = dealt[remaining[0]], len(images) - index
        if current and len(remaining) > 1 and (len(current) >= sizes[remaining[0]] or left < len(remaining)):
            remaining.pop(0)
        dealt[remaining[0]] += by_image[image]
    return dealt


def _sizes(total: int, data: DataSection) -> dict[Split, float]:
    """Return how many questions each split is dealt, in the order of dealing: the splits with a number in `data` come first.

    If there are enough questions, these splits get their number, and the other splits share the rest by SHARES. Otherwise the
    other splits get their part of all questions by SHARES, and the splits with a number share the rest in proportion.
    """
    counts = _counts(data)
    free: dict[Split, int] = {split: share for split, share in SHARES.items() if split not in counts}
    asked = sum(counts.values())
    rest = total - asked if _is_enough(total, data) else total * sum(free.values()) / sum(SHARES.values())
    sizes: dict[Split, float] = {split: count * (total - rest) / asked for split, count in counts.items()}
    return {**sizes, **{split: rest * share / sum(free.values()) for split, share in free.items()}}


def _counts(data: DataSection) -> dict[Split, int]:
    """Return the number of questions of each split that has a number in `data`."""
    counts: dict[Split, int | None] = {split: getattr(data, split) for split in SHARES}
    return {split: count for split, count in counts.items() if count is not None}


def _is_enough(total: int, data: DataSection) -> bool:
    """Check whether `total` questions are enough for every number in `data`, with one question for each other split."""
    counts = _counts(data)
    return bool(counts) and sum(counts.values()) + len(SHARES) - len(counts) <= total


def _dealing(total: int, data: DataSection) -> str:
    """Describe how questions that name no split were dealt out."""
    counts = _counts(data)
    shares = "train, val and test 60/20/20"
    how = f"to {shares}"
    if counts:
        *others, last = (f"data.{split}" for split in SPLITS if split in counts)
        numbers = " and ".join([*filter(None, [", ".join(others)]), last])
        enough = _is_enough(total, data)
        how = f"by {numbers}" if enough else f"in proportion to {numbers}, for which there are too few"
        if len(counts) < len(SHARES):
            how += f", the others by their part of {shares}"
    return f"they name no split, so their images are dealt out by the hashes of their names, {how}"


def _images(questions: Iterable[Question]) -> int:
    """Count the distinct images of the questions."""
    return len({question.image for question in questions})
