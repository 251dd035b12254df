"""What a result was made with, as JSON, and how two such records differ, in words."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from store.questions.question import Question

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN_OF_DIGEST = 12
_MISSING = "nothing"


def digest(content: Any) -> str:
    """sha256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def of_questions(questions: Sequence[Question]) -> dict[str, Any]:
    """Identify a list of questions by its length and its content."""
    listed = [question.model_dump(exclude_defaults=True) for question in questions]
    return {"questions": len(questions), "sha256": digest(listed)}


def differences(old: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name each setting that differs, with both values: `eval.batch_size 4, now 2`; `train: 10 questions, were 20`."""
    found: list[str] = []
    for key in sorted(old.keys() | now.keys()):
        name, was, value = f"{prefix}{key}", old.get(key, _MISSING), now.get(key, _MISSING)
        if was == value:
            continue
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            found += [_questions(name, was, value)] if "questions" in value else differences(was, value, f"{name}.")
        else:
            found.append(f"{name} {_short(was)}, now {_short(value)}")
    return found


def _questions(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if was.get("questions") != now["questions"]:
        return f"{name}: {now['questions']} questions, were {was.get('questions')}"
    return f"{name}: {now['questions']} questions as before, but not the same ones"


def _short(value: Any) -> str:
    """A value as Python writes it; of a digest the beginning."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:_SHOWN_OF_DIGEST]}…"
    return value if value is _MISSING else repr(value)
