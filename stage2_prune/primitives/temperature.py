"""How a soft decision hardens in the course of a training."""


def cooled(first: float, last: float, progress: float) -> float:
    """Compute the temperature at `progress` in 0..1: it falls from `first` to `last` by the same factor in every step."""
    return first * (last / first) ** progress
