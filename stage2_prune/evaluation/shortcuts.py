"""A trained method that is right where the unpruned model is not has learned the answers, not what the model needs to see."""

SHORTFALL = 0.10
"""How far agreement with the unpruned model may lie below accuracy."""


def shortcut(name: str, accuracy: float, agreement: float | None) -> str | None:
    """Point out a trained method whose answers agree with the unpruned model's far less often than they are right.

    A pruner that only removes tokens agrees with the unpruned model at least about as often as it is right. None where
    nothing is wrong, or nothing is known.
    """
    if agreement is None or accuracy - agreement <= SHORTFALL:
        return None
    return (
        f"{name} answers {accuracy:.3f} of the questions right, but only {agreement:.3f} as the unpruned model does: its "
        "training found a shortcut to the answers, so its accuracy says little about what it keeps of the image"
    )
