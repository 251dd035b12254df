"""Sets of whole numbers as ascending ranges: a damaged file may claim 300 million shards, and listing them would not end."""

from bisect import bisect_left
from collections.abc import Collection, Iterable


def ranges_of(numbers: Iterable[int]) -> list[range]:
    """Group numbers into ascending ranges of consecutive numbers.

    >>> ranges_of([5, 0, 1, 2])
    [range(0, 3), range(5, 6)]
    """
    known = set(numbers)
    firsts, lasts = (sorted(n for n in known if n + step not in known) for step in (-1, 1))
    return [range(first, last + 1) for first, last in zip(firsts, lasts, strict=True)]


def joined(ranges: Iterable[range]) -> list[range]:
    """Join ascending ranges that touch.

    >>> joined([range(0, 3), range(3, 5), range(7, 9)])
    [range(0, 5), range(7, 9)]
    """
    merged: list[range] = []
    for numbers in ranges:
        if merged and merged[-1].stop == numbers.start:
            merged[-1] = range(merged[-1].start, numbers.stop)
        else:
            merged.append(numbers)
    return merged


def without(ranges: Iterable[range], numbers: Collection[int]) -> list[range]:
    """Remove some numbers from ascending ranges.

    >>> without([range(0, 9)], [3, 4])
    [range(0, 3), range(5, 9)]
    """
    ordered, left = sorted(numbers), list[range]()
    for whole in ranges:
        begin = whole.start
        for number in ordered[bisect_left(ordered, whole.start) : bisect_left(ordered, whole.stop)]:
            left.append(range(begin, number))
            begin = number + 1
        left.append(range(begin, whole.stop))
    return [part for part in left if part]
