"""How answers are compared: texts that differ only in case, punctuation and white space count as the same answer."""

import string

NORMALISATION = "lower case, ASCII punctuation removed, white space folded and stripped; articles stay"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return the form of a text that is compared with other answers; NORMALISATION says how it is made.

    An answer that is all punctuation keeps its punctuation, so that it cannot equal an empty prediction.

    >>> normalise("  A red\\n Circle. ")
    'a red circle'
    """
    folded = " ".join(text.lower().split())
    return " ".join(folded.translate(_PUNCTUATION).split()) or folded
