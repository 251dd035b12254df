"""Fields of JSON objects that people wrote: a typo in a field's name must be noticed, or the field would be ignored."""

from collections.abc import Collection, Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, TypeGuard

from store.layout.ids import printable

NEAR = 0.8
"""Similarity, as difflib measures it, from which a name is taken for a misspelling of a known name."""
SHOWN = 3
"""Largest number of names that a message lists."""


def is_object(content: Any) -> TypeGuard[dict[str, Any]]:
    """Check whether parsed JSON is an object, whose names are text."""
    return isinstance(content, dict)


def is_list(content: Any) -> TypeGuard[list[Any]]:
    """Check whether parsed JSON is a list, of anything."""
    return isinstance(content, list)


def misspelt(given: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Find the given names that are close to a known name that is missing; return the name meant, by the name given.

    >>> misspelt(["question", "question_type", "anwsers"], ["question", "answers"])
    {'anwsers': 'answers'}
    """
    given = list(given)
    absent = [name for name in known if name not in given]
    meant: dict[str, str] = {}
    for name in given:
        if name in known:
            continue
        near = [(likeness, other) for other in absent if (likeness := _likeness(name, other)) >= NEAR]
        if near:
            meant[name] = max(near)[1]
    return meant


def first_few(names: Sequence[str]) -> str:
    """List the first names, with dots in place of the others.

    >>> first_few(["a", "b"]), first_few(["a", "b", "c", "d"])
    ('a, b', 'a, b, c, …')
    """
    return ", ".join(map(printable, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")


@lru_cache(maxsize=4096)  # because a file has the same names in every row
def _likeness(given: str, known: str) -> float:
    """Measure how alike two names are, ignoring case, separators and, if the names have the same letters, their order."""
    given, known = (name.lower().replace("_", "").replace("-", "").replace(" ", "") for name in (given, known))
    return 1.0 if sorted(given) == sorted(known) else SequenceMatcher(None, given, known).ratio()
