"""Detect trained methods that learned the answers themselves, not which patches the model needs to see.

Such a method is often right where the unpruned model is wrong.
"""

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
