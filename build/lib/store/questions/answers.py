"""How answers are compared: the same text counts as the same answer whatever its case, punctuation and white space."""

import string

NORMALISATION = "lower case, ASCII punctuation removed, white space folded and stripped; articles stay"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return text as it is compared: see NORMALISATION.

    An answer of nothing but punctuation keeps it, so that it cannot equal an empty prediction.

    >>> normalise("  A red\\n Circle. ")
    'a red circle'
    """
    folded = " ".join(text.lower().split())
    return " ".join(folded.translate(_PUNCTUATION).split()) or folded
