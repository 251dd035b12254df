"""What a training step does, as pure functions of (seed, epoch, step): resuming repeats it."""

import math
from collections.abc import Sequence

import numpy as np

WARM_UP = 0.1
"""Share of all steps over which the learning rate rises linearly."""
_ORDER, _BUDGET, _NOISE = 0, 1, 2


def epoch_batches(images: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Positions of the questions of each batch: every question once, in an order of (seed, epoch).

    `images` names each question's image. Questions about one image stay together: its prefix serves them all.
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
    """The batch's budget between `low` and `high`, both included: uniform in its logarithm.

    Halving the tokens matters as much at 32 as at 192; a uniform draw would rarely visit the small budgets.
    """
    drawn = np.random.default_rng([seed, epoch, step, _BUDGET]).uniform(math.log(low), math.log(high + 1))
    return min(int(math.exp(drawn)), high)


def step_seed(seed: int, epoch: int, step: int) -> int:
    """Seed of whatever the pruner draws in a step, such as noise or dropout."""
    return int(np.random.default_rng([seed, epoch, step, _NOISE]).integers(2**63))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Of the step number `step` of `steps` (from 0): linear warm-up to `peak`, then a cosine towards 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
