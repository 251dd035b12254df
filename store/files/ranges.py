"""Whole numbers as ascending ranges, so that a claim of 300 million of them costs nothing."""

from bisect import bisect_left
from collections.abc import Collection, Iterable


def ranges_of(numbers: Iterable[int]) -> list[range]:
    """Numbers as ranges of consecutive ones, ascending.

    >>> ranges_of([5, 0, 1, 2])
    [range(0, 3), range(5, 6)]
    """
    known = set(numbers)
    firsts, lasts = (sorted(n for n in known if n + step not in known) for step in (-1, 1))
    return [range(first, last + 1) for first, last in zip(firsts, lasts, strict=True)]


def joined(ranges: Iterable[range]) -> list[range]:
    """Ascending ranges, those that touch as one."""
    found: list[range] = []
    for one in ranges:
        if found and found[-1].stop == one.start:
            found[-1] = range(found[-1].start, one.stop)
        else:
            found.append(one)
    return found


def without(ranges: Iterable[range], numbers: Collection[int]) -> list[range]:
    """Ascending ranges, some numbers left out.

    >>> without([range(0, 9)], [3, 4])
    [range(0, 3), range(5, 9)]
    """
    ordered, left = sorted(numbers), list[range]()
    for one in ranges:
        begin = one.start
        for number in ordered[bisect_left(ordered, one.start) : bisect_left(ordered, one.stop)]:
            left.append(range(begin, number))
            begin = number + 1
        left.append(range(begin, one.stop))
    return [one for one in left if one]
