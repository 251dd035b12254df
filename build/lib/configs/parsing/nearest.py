"""Suggestions for misspelt words."""

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 12
"""Largest number of known names that a message lists when no name is near."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown word: the nearest known word, or else the known words.

    >>> did_you_mean("budgest", ["budgets", "methods"])
    ': did you mean budgets?'
    >>> did_you_mean("x", ["budgets", "methods"])
    '; there are budgets, methods'
    """
    names = list(dict.fromkeys(known))
    near = get_close_matches(str(word), names, n=1)
    if near:
        return f": did you mean {near[0]}?"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"; there are {', '.join(names[:MAX_LISTED])}{more}" if names else ""


def no_such(kind: str, word: object, known: Iterable[str]) -> str:
    """Return the sentence about an unknown name.

    >>> no_such("pruner", "randon", ["random", "keep_all"])
    "no such pruner (got 'randon'): did you mean random?"
    """
    return f"no such {kind} (got {word!r}){did_you_mean(word, known)}"
