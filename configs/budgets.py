"""Budgets: a number of visual tokens per image, or the name of a schedule that a paper fixes."""

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

PREFIX = "published:"
_PUBLISHED = re.compile(PREFIX + r"[\w.%+-]+")


def _budget(given: Any) -> int | float | str:
    """Read a budget; whole numbers become integers, so that `64.0` and `64` are the same budget in every file."""
    if isinstance(given, str) and _PUBLISHED.fullmatch(given):
        return given
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        number = math.nan
    if number <= 0:
        raise ValueError(
            "expected tokens such as 64 or 206.5, or published:192, greater than 0; keep_none keeps nothing"
        )
    if not number < math.inf:
        raise ValueError("expected tokens such as 64 or 206.5, or published:192")
    return int(number) if number.is_integer() else number


Budget = Annotated[int | float | str, BeforeValidator(_budget)]
"""Visual tokens per image, a mean over layers that may be a fraction, or `published:NAME`."""


def published_name(budget: str) -> str:
    """Return the name of the schedule in `published:NAME`."""
    return budget.removeprefix(PREFIX)


def ascending(budget: int | float | str) -> tuple[bool, float, str]:
    """Return the sort key of a budget: numbers by size, then published schedules by the number in their names.

    >>> sorted(["published:96", 206.5, "published:192", 64], key=ascending)
    [64, 206.5, 'published:96', 'published:192']
    """
    if not isinstance(budget, str):
        return False, float(budget), ""
    digits = re.search(r"\d+", budget)
    return True, float(digits[0]) if digits else 0.0, budget


def in_words(budget: int | float | str) -> str:
    """Write a budget for a sentence or for the head of a column.

    >>> in_words(64), in_words(206.5), in_words("published:192")
    ('64 tokens', '206.5 tokens', 'published:192')
    """
    return budget if isinstance(budget, str) else f"{budget} tokens"


def file_part(budget: int | float | str) -> str:
    """Spell a budget as part of a file's name.

    >>> file_part(206.5), file_part("published:192")
    ('206.5', 'published_192')
    """
    return str(budget).replace(":", "_")
