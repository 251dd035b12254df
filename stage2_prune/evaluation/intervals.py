"""Accuracy with its uncertainty: questions about one image hang together, so images are resampled."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

_DRAWS_AT_ONCE = 4_000_000


def interval(
    right: Float[np.ndarray, " question"],
    image: Int[np.ndarray, " question"],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap percentile interval of mean `right`, clustered by `image` (0, 1, …); it contains the mean.

    `right` is a question's share of correct seeds. The same images are drawn for every method with the same
    seed, so intervals of two methods move together.
    """
    sums, counts = np.bincount(image, weights=right), np.bincount(image)
    generator = np.random.default_rng(seed)
    clusters = len(counts)
    at_once = max(1, _DRAWS_AT_ONCE // clusters)
    means: list[Float[np.ndarray, " resample"]] = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(clusters, size=(min(at_once, resamples - start), clusters))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    estimate = float(right.mean())
    return min(float(low), estimate), max(float(high), estimate)


def accuracy_interval(
    right: Float[np.ndarray, " question"], images: Sequence[str], resamples: int, seed: int
) -> list[float] | None:
    """`interval` of answers about the images of these names; None for one image, of which resampling says nothing."""
    clusters = number_clusters(images)
    return list(interval(right, clusters, resamples, seed)) if clusters.max() > 0 else None


def number_clusters(images: Sequence[str]) -> Int[np.ndarray, " question"]:
    """Number the images of questions 0, 1, … in the order of their first question."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(image, len(number)) for image in images])


def intervals(
    values: Float[np.ndarray, "image column"], resamples: int, seed: int, level: float = 0.95
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """`interval` of every column, whose values are one per image; the same images are drawn for all."""
    generator = np.random.default_rng(seed)
    images = len(values)
    at_once = max(1, _DRAWS_AT_ONCE // images)
    means: list[Float[np.ndarray, "resample column"]] = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(images, size=(min(at_once, resamples - start), images))
        times = np.stack([np.bincount(row, minlength=images) for row in drawn])
        means.append(times @ values / images)
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    estimate = values.mean(0)
    return np.minimum(low, estimate), np.maximum(high, estimate)


def by_kind(right: Float[np.ndarray, " question"], kinds: Sequence[str | None]) -> dict[str, float]:
    """Mean of `right` for each kind of question that is named, in alphabetical order."""
    named = np.array([kind or "" for kind in kinds])
    return {str(kind): float(right[named == kind].mean()) for kind in sorted(set(named) - {""})}
