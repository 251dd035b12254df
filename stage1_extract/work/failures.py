"""How many images may fail in an extraction, and the refusal when more do."""

from fractions import Fraction

from configs.counted import agreeing, counted
from stage1_extract.errors import TooManyFailures
from stage1_extract.sources import Sources
from store.layout.ids import printable
from store.log.commits import SUPERSEDED

_LISTED = 20
"""Failed images that the message of a refusal lists."""


def allowed_failures(max_failures: str, images: int) -> int:
    """Return how many of `images` images may fail: `5` means five, `1%` means one in a hundred, rounded down."""
    if max_failures.endswith("%"):
        return int(Fraction(max_failures[:-1]) * images / 100)  # in floats, 29 % of 100 would be 28
    return int(max_failures)


def surplus(failures: dict[int, str], max_failures: str, sources: Sources) -> list[str]:
    """Say that an extraction will stop, if more images are known to fail than it tolerates; an empty list if not."""
    allowed = allowed_failures(max_failures, len(sources.rows))
    if len(failures) <= allowed:
        return []
    return [
        f"the extraction will stop, as {counted(len(failures), 'image')} cannot be read and {_tolerated(allowed)}: correct "
        "these images, or raise --max-failures"
    ]


def require_few(failures: dict[int, str], allowed: int, sources: Sources) -> None:
    """Raise TooManyFailures (exit 3) and list the failed images when more than `allowed` failed.

    Args:
        failures: Reasons by row. Rows whose image was superseded by a changed file, or is not asked for now, do not count.
        allowed: Failures that the config tolerates.
        sources: Gives the names of the failed rows.

    """
    others = sources.not_asked_for
    failures = {row: reason for row, reason in failures.items() if row not in others and reason != SUPERSEDED}
    if len(failures) <= allowed:
        return
    listed = "".join(
        f"\n  {', '.join(map(printable, sources.rows[row].names))}: {reason}"
        for row, reason in list(failures.items())[:_LISTED]
    )
    more = f"\n  … and {len(failures) - _LISTED} more" if len(failures) > _LISTED else ""
    raise TooManyFailures(
        f"{counted(len(failures), 'image')} cannot be encoded, {_tolerated(allowed)}: correct what is listed, or raise "
        f"--max-failures; shards that are committed stay:{listed}{more}"
    )


def _tolerated(allowed: int) -> str:
    return f"{allowed:,} {agreeing(allowed, 'is', 'are')} tolerated"
