"""Give accuracies with their uncertainty by resampling images, because questions about one image depend on each other."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

_DRAWS_AT_ONCE = 4_000_000
"""Number of random integers that lie in memory at a time."""


def interval(
    right: Float[np.ndarray, " question"],
    image: Int[np.ndarray, " question"],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Estimate the bootstrap percentile interval of mean `right`, clustered by image; the interval contains the mean.

    The same images are drawn for every method with the same seed, so the intervals of two methods move together.

    Args:
        right: each question's share of seeds that answered right.
        image: the number of each question's image (0, 1, …).
        resamples: the number of times that images are drawn.
        seed: the seed of these draws.
        level: the share of resampled means that lie in the interval.
    """
    sums, counts = np.bincount(image, weights=right), np.bincount(image)
    means = [sums[drawn].sum(1) / counts[drawn].sum(1) for drawn in _drawn(len(counts), resamples, seed)]
    low, high = _around(right.mean(), means, level)
    return float(low), float(high)


def ratio_interval(
    above: Float[np.ndarray, " question"],
    below: Float[np.ndarray, " question"],
    image: Int[np.ndarray, " question"],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Estimate the interval of the ratio of two means, as `interval` does; the same images are drawn for both.

    Returns:
        The interval; None where `below` is not positive in so many draws that an end of the interval would depend on them.
    """
    drawn = list(_drawn(int(image.max()) + 1, resamples, seed))
    sums = [
        np.concatenate([np.bincount(image, weights=values)[part].sum(1) for part in drawn]) for values in (above, below)
    ]
    positive = sums[1] > 0
    if positive.mean() <= (1 + level) / 2:
        return None
    low, high = _around(above.mean() / below.mean(), [sums[0][positive] / sums[1][positive]], level)
    return float(low), float(high)


def intervals(
    values: Float[np.ndarray, "image column"], resamples: int, seed: int, level: float = 0.95
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """Estimate the interval of each column's mean, as `interval` does; the same images are drawn for all columns."""
    images = len(values)
    means: list[Float[np.ndarray, "resample column"]] = []
    for drawn in _drawn(images, resamples, seed):
        times = np.stack([np.bincount(row, minlength=images) for row in drawn])
        means.append(times @ values / images)
    return _around(values.mean(0), means, level)


def seeds_and_images(
    right: Float[np.ndarray, "seed question"],
    image: Int[np.ndarray, " question"],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Estimate the bootstrap interval of mean `right` over seeds and questions, drawing both seeds and images anew.

    Args:
        right: what is averaged, for each seed.
        image: the number of each question's image (0, 1, …).
        resamples: the number of draws.
        seed: the seed of these draws.
        level: the share of resampled means that lie in the interval.
    """
    sums = np.stack([np.bincount(image, weights=row) for row in right])
    counts, generator = np.bincount(image), np.random.default_rng([seed, 1])
    means: list[np.ndarray] = []
    for drawn in _drawn(len(counts), resamples, seed):
        seeds = generator.integers(len(right), size=(len(drawn), len(right)))
        of_draw = np.stack([sums[chosen].mean(0)[images].sum() for chosen, images in zip(seeds, drawn, strict=True)])
        means.append(of_draw / counts[drawn].sum(1))
    low, high = _around(right.mean(), means, level)
    return float(low), float(high)


def _drawn(images: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "resample image"]]:
    """Draw as many images as there are, with replacement, `resamples` times; yield a part of the draws at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // images)
    for start in range(0, resamples, at_once):
        yield generator.integers(images, size=(min(at_once, resamples - start), images))


def _around(estimate: Any, means: Sequence[np.ndarray], level: float) -> tuple[Any, Any]:
    """Take the percentile interval of resampled means, widened to contain the estimate."""
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.minimum(low, estimate), np.maximum(high, estimate)


def accuracy_interval(
    right: Float[np.ndarray, " question"], images: Sequence[str], resamples: int, seed: int
) -> list[float] | None:
    """Estimate the `interval` of answers about named images; None for a single image, which resampling cannot vary."""
    clusters = number_clusters(images)
    return list(interval(right, clusters, resamples, seed)) if clusters.max() > 0 else None


def number_clusters(images: Sequence[str]) -> Int[np.ndarray, " question"]:
    """Number the images of questions 0, 1, … in the order of their first question."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(image, len(number)) for image in images])


def by_kind(right: Float[np.ndarray, " question"], kinds: Sequence[str | None]) -> dict[str, float]:
    """Average `right` over each kind of question that is named, in alphabetical order."""
    named = np.array([kind or "" for kind in kinds])
    return {str(kind): float(right[named == kind].mean()) for kind in sorted(set(named) - {""})}
