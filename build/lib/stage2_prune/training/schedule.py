"""Decide what a training step does, by pure functions of (seed, epoch, step), so that resuming repeats it."""

import math
from collections.abc import Sequence

import numpy as np

WARM_UP = 0.1
"""Share of all steps over which the learning rate rises linearly."""
_ORDER, _BUDGET, _NOISE = 0, 1, 2


def epoch_batches(images: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Deal all questions into batches, in an order that depends on (seed, epoch).

    Questions about one image stay together, because the image's prefix serves all of them.

    Args:
        images: the name of each question's image.
        batch_size: the number of questions per batch.
        seed: the seed of the training.
        epoch: the number of the epoch.

    Returns:
        For each batch, the indices of its questions.

    """
    groups: dict[str, list[int]] = {}
    for question, image in enumerate(images):
        groups.setdefault(image, []).append(question)
    rng = np.random.default_rng([seed, epoch, _ORDER])
    shuffled = list(groups.values())
    rng.shuffle(shuffled)
    order = [question for group in shuffled for question in rng.permutation(group).tolist()]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def step_budget(seed: int, epoch: int, step: int, low: int, high: int) -> int:
    """Draw a step's budget between `low` and `high`, both included, uniformly in its logarithm.

    Halving the tokens matters as much at 32 as at 192; a uniform draw would rarely visit the small budgets.
    """
    drawn = np.random.default_rng([seed, epoch, step, _BUDGET]).uniform(math.log(low), math.log(high + 1))
    return min(int(math.exp(drawn)), high)


def step_seed(seed: int, epoch: int, step: int) -> int:
    """Derive the seed of everything that the pruner draws in a step, such as noise or dropout."""
    return int(np.random.default_rng([seed, epoch, step, _NOISE]).integers(2**63))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Give the learning rate of step `step` (from 0) of `steps`: linear warm-up to `peak`, then a cosine towards 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
