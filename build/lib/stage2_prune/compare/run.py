"""Saved results against each other, question by question."""

from collections.abc import Collection, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from configs.experiment import EvalSection
from configs.parsing.nearest import did_you_mean
from stage2_prune.compare import conditions
from stage2_prune.compare.results import Result, load, unpruned_beside
from stage2_prune.compare.significance import holm, kl_divergence, sign_flips
from stage2_prune.errors import NotComparable
from stage2_prune.evaluation.intervals import accuracy_interval, number_clusters
from stage2_prune.evaluation.shortcuts import shortcut
from store.questions.answers import normalise

ENOUGH_SEEDS = 5
_SHOWN = 5
_DEFAULT = EvalSection()


def run(
    paths: Sequence[Path],
    only: Sequence[str] = (),
    against: str | None = None,
    factors: Collection[str] = (),
    resamples: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Compare the results in run folders and prediction files, as JSON.

    Intervals are drawn with the `resamples` and the `seed` of the results' own evaluation, unless they are given: so they
    are those of its table.

    All pairs, or those with the result named `against`; on the questions that all results answered. Raises NotComparable
    (exit 4) where results differ in more than method, budget and the named `factors`.
    """
    results, notes = load(paths, only)
    pairs = _pairs(results, against)
    notes += conditions.check(results, factors)
    recorded = next((one.bootstrap for one in results if one.bootstrap), (_DEFAULT.bootstrap, _DEFAULT.seed))
    resamples, seed = (own if given is None else given for own, given in zip(recorded, (resamples, seed), strict=True))
    questions, left_out = _common(results)
    notes += left_out + _few_seeds(results)
    images = [results[0].seeds[0][name].image for name in questions]
    if len(set(images)) == 1:
        notes.append("all questions are about one image: how results vary over images cannot be known from it")
    right = {one.name: _right(one, questions) for one in results}
    rows = [_row(one, results, right[one.name], questions, images, resamples, seed) for one in results]
    notes += [
        said
        for one, row in zip(results, rows, strict=True)
        if one.trained and (said := shortcut(one.name, row["accuracy"], row["agreement"]))
    ]
    lacking = [row["result"] for row in rows if row["unpruned"] is None]
    if lacking:
        notes.append(f"no keep_all beside {', '.join(lacking)}: agreement with the unpruned answers is left out")
    compared = [_pair(a.name, b.name, right[a.name], right[b.name], images, resamples, seed) for a, b in pairs]
    adjusted = zip(*(holm([pair[p] for pair in compared]) for p in ("mcnemar_p", "by_image_p")), strict=True)
    return {
        "schema": 1,
        "n_questions": len(questions),
        "n_images": len(set(images)),
        "factors": sorted(factors),
        "resamples": resamples,
        "results": rows,
        "pairs": [
            pair | {"holm_p": holm_p, "by_image_holm_p": by_image}
            for pair, (holm_p, by_image) in zip(compared, adjusted, strict=True)
        ],
        "notes": notes,
    }


def _pairs(results: Sequence[Result], against: str | None) -> list[tuple[Result, Result]]:
    if len(results) < 2:
        raise NotComparable(f"expected two results or more, got only {results[0].name}: name another run or file")
    if against is None:
        return list(combinations(results, 2))
    fixed = [one for one in results if one.name == against]
    if not fixed:
        raise NotComparable(
            f"--against: no such result (got {against!r}){did_you_mean(against, [one.name for one in results])}"
        )
    return [(fixed[0], one) for one in results if one is not fixed[0]]


def _common(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """The questions that every result answered, in the first one's order; and who lacks which of the others."""
    every = list(dict.fromkeys(name for one in results for seed in one.seeds for name in seed))
    answered = [set(one.questions) for one in results]
    common = [name for name in every if all(name in found for found in answered)]
    if not common:
        raise NotComparable("expected questions that all results answered, there is none: evaluate them on one split")
    notes = [
        f"{one.name} also answers {len(one.left_out)} questions that its last evaluation did not ask: left out"
        for one in results
        if one.left_out
    ]
    for one, found in zip(results, answered, strict=True):
        lacks = [name for name in every if name not in found]
        if lacks:
            more = ", …" if len(lacks) > _SHOWN else ""
            notes.append(
                f"{len(lacks)} of {len(every)} questions are not in {one.name} ({', '.join(lacks[:_SHOWN])}{more}): "
                "left out of all results"
            )
    return common, notes


def _few_seeds(results: Sequence[Result]) -> list[str]:
    """A random method's luck is part of its result until it is averaged away."""
    return [
        f"{one.name} is random and has {len(one.seeds)} seeds, expected {ENOUGH_SEEDS} or more: raise prune.seeds"
        for one in results
        if one.random and len(one.seeds) < ENOUGH_SEEDS
    ]


def _right(result: Result, questions: Sequence[str]) -> Bool[np.ndarray, "seed question"]:
    return np.array([[seed[name].right for name in questions] for seed in result.seeds])


def _row(
    result: Result,
    given: Sequence[Result],
    right: Bool[np.ndarray, "seed question"],
    questions: Sequence[str],
    images: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    unpruned = _unpruned(result, given)
    row: dict[str, Any] = {
        "result": result.name,
        "n_seeds": len(result.seeds),
        "accuracy": float(right.mean(0).mean()),
        "ci95": accuracy_interval(right.mean(0), images, resamples, seed),
        "unpruned": None if unpruned is None else unpruned.name,
    }
    return row | (_nothing() if unpruned is None else _to_unpruned(result, unpruned, questions))


def _unpruned(result: Result, given: Sequence[Result]) -> Result | None:
    """The model's own answers: of the same run, or else of a run that was made alike."""
    candidates = [one for one in given if one.unpruned]
    beside = next((one for one in candidates if one.folder == result.folder), None) or unpruned_beside(result)
    return beside or next((one for one in candidates if conditions.alike(one, result)), None)


def _nothing() -> dict[str, Any]:
    return {"agreement": None, "kl_to_unpruned": None, "n_kl": 0}


def _to_unpruned(result: Result, unpruned: Result, questions: Sequence[str]) -> dict[str, Any]:
    """How often a result says what the unpruned model says, right or wrong, and how far its weighing of choices moved."""
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


def _pair(
    a: str,
    b: str,
    right_a: Bool[np.ndarray, "seed_a question"],
    right_b: Bool[np.ndarray, "seed_b question"],
    images: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """From `a` to `b`: flips are means over all pairs of seeds, the tests look at sums over them."""
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
