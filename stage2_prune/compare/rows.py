"""Compute the rows of a comparison: one for each result, and one for each pair of results."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Bool

from stage2_prune.compare import conditions
from stage2_prune.compare.results import MethodResult, unpruned_beside
from stage2_prune.compare.significance import kl_divergence, sign_flips
from stage2_prune.evaluation.intervals import accuracy_interval, number_clusters
from store.questions.answers import normalise


def right_answers(result: MethodResult, questions: Sequence[str]) -> Bool[np.ndarray, "seed question"]:
    """Tell for each seed which questions the result answered right."""
    return np.array([[seed[name].right for name in questions] for seed in result.seeds])


def both_answered(a: MethodResult, b: MethodResult) -> list[str]:
    """List the questions that two results answered, in the order of the first."""
    others = set(b.questions)
    return [name for name in a.questions if name in others]


def describe(
    result: MethodResult,
    results: Sequence[MethodResult],
    right: Bool[np.ndarray, "seed question"],
    questions: Sequence[str],
    images: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Describe one result: its accuracy with an interval, and how it compares with the unpruned model's answers.

    Args:
        result: the result.
        results: all results, among which the unpruned model's answers may be.
        right: the right answers of `result`.
        questions: ids of the questions.
        images: the image of each question.
        resamples: the number of resamples for the interval.
        seed: the seed of the resamples.
    """
    unpruned = _unpruned(result, results)
    row: dict[str, Any] = {
        "result": result.name,
        "n_seeds": len(result.seeds),
        "accuracy": float(right.mean(0).mean()),
        "ci95": accuracy_interval(right.mean(0), images, resamples, seed),
        "unpruned": None if unpruned is None else unpruned.name,
    }
    return row | (_nothing() if unpruned is None else _to_unpruned(result, unpruned, questions))


def _unpruned(result: MethodResult, results: Sequence[MethodResult]) -> MethodResult | None:
    """Find the unpruned model's answers: of the same run, or else of a run with the same settings."""
    candidates = [candidate for candidate in results if candidate.unpruned]
    same_run = next((candidate for candidate in candidates if candidate.folder == result.folder), None)
    same_run = same_run or unpruned_beside(result)
    return same_run or next((candidate for candidate in candidates if conditions.alike(candidate, result)), None)


def _nothing() -> dict[str, Any]:
    return {"agreement": None, "kl_to_unpruned": None, "n_kl": 0}


def _to_unpruned(result: MethodResult, unpruned: MethodResult, questions: Sequence[str]) -> dict[str, Any]:
    """Measure how far a result is from the unpruned model: the share of equal answers, and the divergence over choices."""
    own = unpruned.seeds[0]
    both = [(own[name], seed[name]) for seed in result.seeds for name in questions if name in own]
    if not both:
        return _nothing()
    divergences = [
        kl_divergence(all_tokens.choices, pruned.choices)
        for all_tokens, pruned in both
        if all_tokens.choices and pruned.choices and all_tokens.choices.keys() == pruned.choices.keys()
    ]
    return {
        "agreement": float(np.mean([normalise(a.prediction) == normalise(b.prediction) for a, b in both])),
        "kl_to_unpruned": float(np.mean(divergences)) if divergences else None,
        "n_kl": len(divergences) // len(result.seeds),
    }


def difference(
    a: str,
    b: str,
    right_a: Bool[np.ndarray, "seed_a question"],
    right_b: Bool[np.ndarray, "seed_b question"],
    images: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Describe the change from result `a` to result `b`.

    Flips are means over all pairs of seeds; the tests look at sums over these pairs.
    """
    seeds = list(product(right_a, right_b))
    net = right_b.sum(0) * len(right_a) - right_a.sum(0) * len(right_b)
    return {
        "a": a,
        "b": b,
        "difference": float(net.mean() / len(seeds)),
        "ci95": accuracy_interval(net / len(seeds), images, resamples, seed),
        "right_to_wrong": float(np.mean([(x & ~y).sum() for x, y in seeds])),
        "wrong_to_right": float(np.mean([(y & ~x).sum() for x, y in seeds])),
        "mcnemar_p": sign_flips(net),
        "by_image_p": sign_flips(np.bincount(number_clusters(images), weights=net).astype(int)),
    }
