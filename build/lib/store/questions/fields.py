"""Fields of JSON objects that people wrote: a typo in a field's name must not turn the field into nothing."""

from collections.abc import Collection, Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, TypeGuard

NEAR = 0.8
"""Similarity, as difflib measures it, from which a name is taken for a misspelt one."""


def is_object(content: Any) -> TypeGuard[dict[str, Any]]:
    """Whether parsed JSON is an object, whose names are text."""
    return isinstance(content, dict)


def is_list(content: Any) -> TypeGuard[list[Any]]:
    """Whether parsed JSON is a list, of anything."""
    return isinstance(content, list)


def misspelt(given: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Find the given names that are close to a known name which is not given itself: the name meant, by the name given.

    >>> misspelt(["question", "question_type", "anwsers"], ["question", "answers"])
    {'anwsers': 'answers'}
    """
    given = list(given)
    absent = [name for name in known if name not in given]
    found: dict[str, str] = {}
    for name in given:
        near = [(likeness, one) for one in absent if name not in known and (likeness := _likeness(name, one)) >= NEAR]
        if near:
            found[name] = max(near)[1]
    return found


@lru_cache(maxsize=4096)  # a file has the same names in every row
def _likeness(given: str, known: str) -> float:
    """Compare two names whatever their case and their separators; letters in another order are as good as equal."""
    given, known = (name.lower().replace("_", "").replace("-", "").replace(" ", "") for name in (given, known))
    return 1.0 if sorted(given) == sorted(known) else SequenceMatcher(None, given, known).ratio()
