"""The word that was likely meant where one is misspelt."""

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 12
"""Names that a sentence lists where none is near."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return the end of a sentence about a word that is not known: the nearest known word, or the known ones.

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
    """Return the sentence about a name that is not known.

    >>> no_such("pruner", "randon", ["random", "keep_all"])
    "no such pruner (got 'randon'): did you mean random?"
    """
    return f"no such {kind} (got {word!r}){did_you_mean(word, known)}"
