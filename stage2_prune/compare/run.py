"""Compare saved results with each other, question by question."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from configs.counted import counted
from configs.experiment import EvalSection
from configs.parsing.nearest import did_you_mean
from stage2_prune.compare import conditions
from stage2_prune.compare.results import MethodResult, load
from stage2_prune.compare.rows import describe, difference, right_answers
from stage2_prune.compare.significance import holm
from stage2_prune.errors import NotComparable
from stage2_prune.evaluation.shortcuts import shortcut

ENOUGH_SEEDS = 5
_SHOWN = 5
"""The largest number of question ids that a note lists."""
_DEFAULT = EvalSection()


def run(
    paths: Sequence[Path],
    only: Sequence[str] = (),
    against: str | None = None,
    factors: Collection[str] = (),
    resamples: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Compare results on the questions that all of them answered, and return the comparison as JSON.

    Args:
        paths: run folders and prediction files.
        only: patterns, of which a result's name must match at least one; if there are none, all results are compared.
        against: the name of the result to pair with each of the others; None pairs all results.
        factors: what else may differ between results, because the user compares it.
        resamples: the number of resamples for intervals; None takes the number of the results' own evaluation.
        seed: the seed of the resamples; None takes the seed of the results' own evaluation. With both None, intervals are
            those of the evaluation's table.

    Raises:
        NotComparable: (exit 4) if results differ in more than method, budget and the named `factors`.
    """
    results, notes = load(paths, only)
    pairs = _pairs(results, against)
    notes += conditions.check(results, factors)
    resamples, seed = _bootstrap(results, resamples, seed)
    questions, left_out = _common(results)
    images = [results[0].seeds[0][name].image for name in questions]
    right = {result.name: right_answers(result, questions) for result in results}
    rows = [describe(result, results, right[result.name], questions, images, resamples, seed) for result in results]
    notes += [*left_out, *_few_seeds(results), *_one_image(images), *_about_rows(results, rows)]
    compared = [difference(a.name, b.name, right[a.name], right[b.name], images, resamples, seed) for a, b in pairs]
    return {
        "schema": 1,
        "n_questions": len(questions),
        "n_images": len(set(images)),
        "factors": sorted(factors),
        "resamples": resamples,
        "results": rows,
        "pairs": _adjusted(compared),
        "notes": notes,
    }


def _pairs(results: Sequence[MethodResult], against: str | None) -> list[tuple[MethodResult, MethodResult]]:
    """Pair all results, or the result named `against` with each of the others."""
    if len(results) < 2:
        raise NotComparable(f"expected two results or more, got only {results[0].name}: name another run or file")
    if against is None:
        return list(combinations(results, 2))
    fixed = next((result for result in results if result.name == against), None)
    if fixed is None:
        names = [result.name for result in results]
        raise NotComparable(f"--against: no such result (got {against!r}){did_you_mean(against, names)}")
    return [(fixed, result) for result in results if result is not fixed]


def _bootstrap(results: Sequence[MethodResult], resamples: int | None, seed: int | None) -> tuple[int, int]:
    """Choose resamples and seed: as given, else as the first evaluation with a record used them, else the defaults."""
    recorded = (result.bootstrap for result in results if result.bootstrap)
    own_resamples, own_seed = next(recorded, (_DEFAULT.bootstrap, _DEFAULT.seed))
    return own_resamples if resamples is None else resamples, own_seed if seed is None else seed


def _common(results: Sequence[MethodResult]) -> tuple[list[str], list[str]]:
    """List the questions that every result answered, in the first result's order, and describe what results lack."""
    every = list(dict.fromkeys(name for result in results for seed in result.seeds for name in seed))
    answered = [set(result.questions) for result in results]
    common = [name for name in every if all(name in names for names in answered)]
    if not common:
        raise NotComparable("expected questions that all results answered, there is none: evaluate them on one split")
    notes = [
        f"{result.name} also answers {counted(len(result.left_out), 'question')} that its last evaluation did not ask: left out"
        for result in results
        if result.left_out
    ]
    for result, names in zip(results, answered, strict=True):
        lacks = [name for name in every if name not in names]
        if lacks:
            more = ", …" if len(lacks) > _SHOWN else ""
            notes.append(
                f"{len(lacks)} of {len(every)} questions are not in {result.name} ({', '.join(lacks[:_SHOWN])}{more}): "
                "left out of all results"
            )
    return common, notes


def _few_seeds(results: Sequence[MethodResult]) -> list[str]:
    """Point out random methods with few seeds: luck is part of their result until it is averaged away."""
    return [
        f"{result.name} is random and has {counted(len(result.seeds), 'seed')}, expected "
        f"{ENOUGH_SEEDS} or more: raise prune.seeds"
        for result in results
        if result.random and len(result.seeds) < ENOUGH_SEEDS
    ]


def _one_image(images: Sequence[str]) -> list[str]:
    """Point out that all questions are about one image, if so."""
    if len(set(images)) > 1:
        return []
    return ["all questions are about one image: how results vary over images cannot be known from it"]


def _about_rows(results: Sequence[MethodResult], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Point out trained methods that found a shortcut, and results without the unpruned model's answers beside them."""
    shortcuts = (
        shortcut(result.name, row["accuracy"], row["agreement"])
        for result, row in zip(results, rows, strict=True)
        if result.trained
    )
    notes = [sentence for sentence in shortcuts if sentence]
    lacking = [row["result"] for row in rows if row["unpruned"] is None]
    if lacking:
        notes.append(f"no keep_all beside {', '.join(lacking)}: agreement with the unpruned answers is left out")
    return notes


def _adjusted(compared: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the p-values that are adjusted for all pairs."""
    adjusted = zip(*(holm([pair[p] for pair in compared]) for p in ("mcnemar_p", "by_image_p")), strict=True)
    return [
        pair | {"holm_p": by_question, "by_image_holm_p": by_image}
        for pair, (by_question, by_image) in zip(compared, adjusted, strict=True)
    ]
