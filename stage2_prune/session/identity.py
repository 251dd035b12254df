"""Record the settings that a result was made with, as JSON, and compare such a record with today's settings.

Every command that goes on with files of an earlier run compares the record beside them here: predictions, trainings,
weights and analyses.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from configs.counted import counted
from stage2_prune.errors import OtherRun, PruneError
from store.questions.question import Question

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN_OF_DIGEST = 12
"""Number of a digest's characters that are shown."""
_SHOWN_OF_VALUE = 60
"""Number of a value's characters that are shown."""
_SHOWN = 5
"""The largest number of settings that a message names, and of added or removed names that it lists."""
_MISSING = "nothing"


def digest(content: Any) -> str:
    """Take the sha256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def of_questions(questions: Sequence[Question]) -> dict[str, Any]:
    """Identify a list of questions by its length and its content."""
    listed = [question.model_dump(exclude_defaults=True) for question in questions]
    return {"questions": len(questions), "sha256": digest(listed)}


def earlier_digest(questions: Sequence[Question]) -> str:
    """Digest a list of questions as earlier versions of `analyse` did."""
    return hashlib.sha256(json.dumps([question.model_dump() for question in questions]).encode()).hexdigest()


def questions_as_now(recorded: Any, now: Mapping[str, Any], digest_now: str, count: Any) -> Any:
    """Bring a record of questions to the form of `of_questions`; earlier versions recorded their digest alone.

    Args:
        recorded: the record: a digest, or what `of_questions` returned.
        now: today's questions, as `of_questions` returns them.
        digest_now: the digest of today's questions, taken as the earlier version took it.
        count: the number of questions, recorded elsewhere.
    """
    if isinstance(recorded, Mapping):
        return recorded
    return now if recorded == digest_now else {"questions": count, "sha256": recorded}


def in_both(old: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reduce two records to the settings that both hold; versions differ in what they record."""
    both = old.keys() & now.keys()
    return {key: old[key] for key in both}, {key: now[key] for key in both}


def require_same(
    what: str,
    old: Mapping[str, Any],
    now: Mapping[str, Any],
    remedy: str,
    error: type[PruneError] = OtherRun,
) -> None:
    """Refuse files that were made with other settings than today's.

    Args:
        what: the clause that begins the message, such as "the pruner in … was trained with other settings".
        old: the settings that lie beside the files.
        now: today's settings.
        remedy: the clause that ends the message, and says what to do.
        error: the error to raise.

    Raises:
        OtherRun: (exit 2), or `error`, naming the first settings that differ with both values, and counting the rest.
    """
    differing = differences(old, now)
    if differing:
        shown = differing[:_SHOWN]
        more = f" and {len(differing) - len(shown)} more" if len(shown) < len(differing) else ""
        raise error(f"{what} ({'; '.join(shown)}{more}): {remedy}")


def differences(old: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name each setting that differs, with both values: `eval.batch_size 4, now 2`; `train: 10 questions, were 20`.

    Where a setting holds things by name, such as pruners, the names that were added or removed are listed without their values.
    """
    sentences: list[str] = []
    added, removed = (_names(new, old) if prefix else [] for new, old in ((now, old), (old, now)))
    sentences += [f"{prefix[:-1]}: now also {_listed(added)}"] * bool(added)
    sentences += [f"{prefix[:-1]}: no longer {_listed(removed)}"] * bool(removed)
    for key in sorted((old.keys() | now.keys()) - {*added, *removed}):
        name, was, value = f"{prefix}{key}", old.get(key, _MISSING), now.get(key, _MISSING)
        if was == value:
            continue
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            nested = [_questions(name, was, value)] if "questions" in value else differences(was, value, f"{name}.")
            sentences += nested
        else:
            sentences.append(f"{name} {_short(was)}, now {_short(value)}")
    return sentences


def _names(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """List the names of settings with parts of their own, such as a pruner's parameters, that `old` lacks."""
    return sorted(name for name, value in new.items() if isinstance(value, Mapping) and name not in old)


def _listed(names: Sequence[str]) -> str:
    left = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {left} more" if left > 0 else "")


def _questions(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if was.get("questions") != now["questions"]:
        return f"{name}: {counted(now['questions'], 'question')}, were {was.get('questions')}"
    return f"{name}: {counted(now['questions'], 'question')} as before, but not the same ones"


def _short(value: Any) -> str:
    """Write a value as Python does; of a digest and of a long value only the beginning."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:_SHOWN_OF_DIGEST]}…"
    text = value if value is _MISSING else repr(value)
    return text if len(text) <= _SHOWN_OF_VALUE else f"{text[:_SHOWN_OF_VALUE]}…"
