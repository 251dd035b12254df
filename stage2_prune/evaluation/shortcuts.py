"""Detect results that say little about pruning: from a method that learned the answers, or a model that ignores the image.

A trained method that learned the answers themselves, not which patches the model needs to see, is often right where the
unpruned model is wrong. Where the unpruned model answers no better than one without the image, no method can lose anything.
"""

from collections.abc import Iterable, Mapping
from typing import Any

UNPRUNED, WITHOUT_IMAGE = "keep_all", "keep_none"
"""The method that keeps every visual token, and the method that keeps none."""

SHORTFALL = 0.10
"""How far the share of answers that agree with the unpruned model may lie below the share of right answers."""


def shortcut(name: str, accuracy: float, agreement: float | None) -> str | None:
    """Point out a trained method whose answers agree with the unpruned model's far less often than they are right.

    A pruner that only removes tokens agrees with the unpruned model at least about as often as it is right.

    Args:
        name: the method's name, for the sentence.
        accuracy: the share of its answers that are right.
        agreement: the share of its answers that equal the unpruned model's; None if that is unknown.

    Returns:
        A sentence about the method; None if nothing is wrong or the agreement is unknown.
    """
    if agreement is None or accuracy - agreement <= SHORTFALL:
        return None
    return (
        f"{name} answers {accuracy:.3f} of the questions right, but only {agreement:.3f} as the unpruned model does: its "
        "training found a shortcut to the answers, so its accuracy says little about what it keeps of the image"
    )


def unseeing(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Point out a model that answers no better with all visual tokens than with none.

    Args:
        rows: the results of a summary.

    Returns:
        A sentence about the model; None if the image helps, or if one of keep_all and keep_none was not evaluated.
    """
    accuracies = {row["pruner"].partition("@")[0]: row["accuracy"] for row in rows}
    seeing, blind = accuracies.get(UNPRUNED), accuracies.get(WITHOUT_IMAGE)
    if seeing is None or blind is None or seeing > blind:
        return None
    return (
        f"{UNPRUNED} answers {seeing:.3f} of the questions right, and {WITHOUT_IMAGE} {blind:.3f}: the model answers no better "
        "with the image than without it; are these images and questions like those that it was trained on?"
    )
