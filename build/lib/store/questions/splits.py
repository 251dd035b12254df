"""Which questions an experiment takes of those that there are, and how it says so.

A split is named by every question, or by none: then images are dealt out, all questions about an image to one split.
"""

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from configs.experiment import DataSection
from store.errors import InvalidQuestions
from store.layout.ids import printable
from store.questions.answers import normalise
from store.questions.question import Question, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHARES: Mapping[Split, int] = {"test": 20, "val": 20, "train": 60}
"""Per cent of the questions, where no number says otherwise; in the order in which splits are dealt out."""
SHOWN = 3
_log = logging.getLogger(__name__)


def select(questions: Sequence[Question], data: DataSection, split: Split) -> list[Question]:
    """Take the first `data.<split>` questions of a split: in file order, or in the order in which images are dealt out."""
    return divided(questions, data)[split][: getattr(data, split)]


def used(questions: Sequence[Question], data: DataSection) -> list[Question]:
    """The questions that any split takes, in file order: what an experiment needs encoded."""
    splits = divided(questions, data)
    wanted = {question.question_id for split in SPLITS for question in splits[split][: getattr(data, split)]}
    return [question for question in questions if question.question_id in wanted]


def divided(questions: Sequence[Question], data: DataSection) -> dict[Split, list[Question]]:
    """All questions of each split, whatever its limit.

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
    """Say how many of how many questions the `splits` take, about how many of how many images, and why not more.

    `limit` is what `--limit` says of one split.
    """
    there = divided(questions, data)
    parts: list[str] = []
    taken: list[Question] = []
    for split in SPLITS:
        if split not in splits:
            continue
        found, wanted = there[split], getattr(data, split)
        chosen = found[:wanted][:limit]
        taken += chosen
        cause = "--limit" if limit is not None and len(chosen) == limit else f"data.{split}"
        if len(chosen) == len(found):
            parts.append(f"all {len(found):,} in {split}" if found else f"none are in {split}")
        else:
            parts.append(f"{len(chosen):,} of {len(found):,} in {split}, as {cause} is {len(chosen):,}")
    others = [f"{len(there[split]):,} in {split}" for split in SPLITS if split not in splits and there[split]]
    parts += [f"{' and '.join(others)} are not asked here"] if others else []
    dealing = "" if any(question.split for question in questions) else f"; {_dealing(len(questions), data)}"
    return (
        f"{len(taken):,} of {len(questions):,} questions are taken, about {_images(taken):,} of {_images(questions):,} "
        f"images: {'; '.join(parts)}{dealing}"
    )


def say(questions: Sequence[Question], data: DataSection, splits: Collection[Split], limit: int | None = None) -> None:
    """Warn, once per command, of what the `splits` take of the questions and of what cannot be scored among it."""
    _log.warning("note: %s: %s", data.questions, account(questions, data, splits, limit))
    taken = [one for split in splits for one in select(questions, data, split)[:limit]]
    silent = [question.question_id for question in taken if not question.can_be_scored]
    if silent:
        _log.warning("note: %d of them have no answer, and cannot be scored (%s)", len(silent), _first(silent))
    outside = [question for question in taken if not answer_is_a_choice(question)]
    if outside:
        listed = [
            f"{one.question_id}: {one.answers[0]!r:.80} is none of {', '.join(one.choices or ())!r:.80}"
            for one in outside
        ]
        _log.warning(
            "note: %d of them have an answer that is not among their choices, so that ranking cannot be right (%s)",
            len(outside), _first(listed),
        )  # fmt: skip


def answer_is_a_choice(question: Question) -> bool:
    """Whether any of a question's answers is among its choices; also where one of the two is missing."""
    if not question.choices or not question.can_be_scored:
        return True
    choices = {normalise(choice) for choice in question.choices}
    return not choices.isdisjoint(normalise(answer) for answer in question.answers)


def _dealt(questions: Sequence[Question], data: DataSection) -> dict[Split, list[Question]]:
    """Deal images out in the order of their names' hashes, to each split until it has its number of questions.

    The last split takes the rest. So splits share no image and do not depend on the order of the file; and where there are
    as many images as splits, none is empty.
    """
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    sizes = _sizes(len(questions), data)
    dealt: dict[Split, list[Question]] = {split: [] for split in sizes}
    remaining = list(sizes)
    images = sorted(by_image, key=lambda name: hashlib.sha256(name.encode()).digest())
    for place, image in enumerate(images):
        now, left = dealt[remaining[0]], len(images) - place
        if now and len(remaining) > 1 and (len(now) >= sizes[remaining[0]] or left < len(remaining)):
            remaining.pop(0)
        dealt[remaining[0]] += by_image[image]
    return dealt


def _sizes(total: int, data: DataSection) -> dict[Split, float]:
    """How many questions each split is dealt, in the order of dealing: first the splits whose number `data` gives.

    Where there are enough, these have their number, and the others share the rest by SHARES. Otherwise the others have
    their part of all by SHARES, and the numbers say in which proportion the rest is shared.
    """
    counts = _counts(data)
    free: dict[Split, int] = {split: share for split, share in SHARES.items() if split not in counts}
    asked = sum(counts.values())
    rest = total - asked if _is_enough(total, data) else total * sum(free.values()) / sum(SHARES.values())
    sizes: dict[Split, float] = {split: count * (total - rest) / asked for split, count in counts.items()}
    return {**sizes, **{split: rest * share / sum(free.values()) for split, share in free.items()}}


def _counts(data: DataSection) -> dict[Split, int]:
    counts: dict[Split, int | None] = {split: getattr(data, split) for split in SHARES}
    return {split: count for split, count in counts.items() if count is not None}


def _is_enough(total: int, data: DataSection) -> bool:
    """Whether there are questions for every number that `data` gives, and one for each of the other splits."""
    counts = _counts(data)
    return bool(counts) and sum(counts.values()) + len(SHARES) - len(counts) <= total


def _dealing(total: int, data: DataSection) -> str:
    """Say how questions that name no split were dealt out."""
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
    return len({question.image for question in questions})


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
