"""Write numbers of things in sentences, with the grammar of one thing and of several."""

_ENDINGS = {"y": "ies", "s": "ses", "x": "xes", "ch": "ches"}
"""Endings of nouns whose plural does not just add an s, each with the ending of the plural."""


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless the number is 1.

    >>> counted(1, "image"), counted(5000, "image"), counted(0, "batch"), counted(2, "entry")
    ('1 image', '5,000 images', '0 batches', '2 entries')
    """
    if number == 1:
        return f"1 {noun}"
    for ending, plural in _ENDINGS.items():
        if noun.endswith(ending):
            return f"{number:,} {noun.removesuffix(ending)}{plural}"
    return f"{number:,} {noun}s"


def agreeing(number: int, one: str, several: str) -> str:
    """Choose the word that agrees with a number of things.

    >>> agreeing(1, "is", "are"), agreeing(2, "is", "are")
    ('is', 'are')
    """
    return one if number == 1 else several
