"""Measure how much of the gap between random patches and the best that a search found a method closes.

Gap closed = (method - random) / (oracle_self - random), in accuracy at one budget, on the questions that the search was about.
`oracle_self` is a lower bound of the ceiling, so a method may close more than 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from configs.experiment import EvalSection, Experiment
from stage2_prune.compare.conditions import alike
from stage2_prune.compare.results import MethodResult, load
from stage2_prune.compare.rows import right_answers
from stage2_prune.evaluation.intervals import accuracy_interval, number_clusters, ratio_interval

Target = Literal["oracle_answer", "oracle_self"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""Names of the searched patches, by the answer whose log-probability they were found by."""
CEILING, BASELINE = "oracle_self", "random"
LOWER_BOUND = "lower bound of the ceiling"
LEAST_GAP = 0.05
"""Where `oracle_self` and `random` lie closer together than this, no share of the gap is given: it would be noise."""
SAME_COST = 0.02
"""A mean of tokens over layers that is within this share of a budget counts as that budget."""


@dataclass(frozen=True)
class OnOracleQuestions:
    """A result on the questions that a search was about."""

    accuracy: float
    ci95: list[float] | None
    gap_closed: float | None
    """None where the gap is small, where there is no result of random patches, and for the searched patches themselves."""
    gap_ci95: tuple[float, float] | None
    """None too where the gap of resampled images is not positive often enough for an interval."""


@dataclass(frozen=True)
class BesideOracle:
    """The results of a run on the questions that its search was about."""

    questions: int
    images: int
    results: Mapping[str, OnOracleQuestions]
    """By the name of a result's file, without the seed; the searched patches among them."""
    budgets: Mapping[str, int]
    """The budget of each result, in tokens per image."""
    left_out: tuple[str, ...] = ()
    """Sentences about results that could not be compared."""


NOTHING = BesideOracle(0, 0, {}, {})


def beside(experiment: Experiment) -> BesideOracle:
    """Measure the results of a run's evaluation, and of its sweep, which counts where both have a result of one name."""
    folders = [folder for folder in (experiment.run_dir, experiment.sweep_dir) if _holds_results(folder)]
    return measure(folders, experiment.oracle_dir, experiment.eval)


def measure(results: Sequence[Path], oracle: Path, section: EvalSection) -> BesideOracle:
    """Measure results on the questions of a search; nothing if there are no answers from a search.

    Args:
        results: folders with predictions.
        oracle: the folder of the search.
        section: the number of resamples and their seed.
    """
    if not _holds_results(oracle):
        return NOTHING
    searched = {result.stem: result for result in load([oracle], ())[0]}
    named = searched | {result.stem: result for folder in results for result in load([folder], ())[0]}
    ceilings = {_budget(result): result for result in searched.values() if result.label == CEILING}
    first = next(iter(ceilings.values()))
    questions = list(first.questions)
    images = [first.seeds[0][name].image for name in questions]
    able: dict[str, MethodResult] = {}
    left_out: list[str] = []
    for stem, result in named.items():
        reason = _unable(result, first, ceilings, questions)
        if reason is None:
            able[stem] = result
        elif reason:
            left_out.append(f"{stem} is not compared with {LOWER_BOUND}: {reason}")
    right = {stem: right_answers(result, questions).mean(0) for stem, result in able.items()}
    budgets = {stem: keep for stem, result in able.items() if (keep := _budget(result)) is not None}
    measured = {
        stem: _measured(stem, right, f"{CEILING}-{keep}-original", f"{BASELINE}-{keep}-original", images, section)
        for stem, keep in budgets.items()
    }
    return BesideOracle(len(questions), len(set(images)), measured, budgets, tuple(left_out))


def gap_closed(
    method: Float[np.ndarray, " question"],
    random: Float[np.ndarray, " question"],
    ceiling: Float[np.ndarray, " question"],
    images: Sequence[str],
    resamples: int,
    seed: int,
) -> tuple[float | None, tuple[float, float] | None]:
    """Compute the share of the gap that a method closes, and its interval: the same images are drawn for all three.

    Each array holds the share of seeds that answered a question right. Both results are None for a gap below LEAST_GAP.
    """
    gap = float(ceiling.mean() - random.mean())
    if gap < LEAST_GAP:
        return None, None
    clusters = number_clusters(images)
    ends = ratio_interval(method - random, ceiling - random, clusters, resamples, seed) if clusters.max() > 0 else None
    return float(method.mean() - random.mean()) / gap, ends


def _measured(
    stem: str,
    right: Mapping[str, Float[np.ndarray, " question"]],
    ceiling: str,
    random: str,
    images: Sequence[str],
    section: EvalSection,
) -> OnOracleQuestions:
    accuracy = float(right[stem].mean())
    ci95 = accuracy_interval(right[stem], images, section.bootstrap, section.seed)
    if random not in right or stem.partition("-")[0] in TARGETS:
        return OnOracleQuestions(accuracy, ci95, None, None)
    closed = gap_closed(right[stem], right[random], right[ceiling], images, section.bootstrap, section.seed)
    return OnOracleQuestions(accuracy, ci95, *closed)


def _unable(
    result: MethodResult, first: MethodResult, ceilings: Mapping[int | None, MethodResult], questions: Sequence[str]
) -> str | None:
    """Say why a result cannot be compared; an empty reason for another budget, which needs no words; None if it can."""
    if _budget(result) not in ceilings:
        return ""
    if not alike(result, first):
        return "it was made with another model, store, prompt, dtype or answer length"
    lacking = len(set(questions) - set(result.questions))
    return f"it lacks {lacking} of {len(questions)} questions" if lacking else None


def _budget(result: MethodResult) -> int | None:
    """Return the budget of a result; None for a method without a budget, or whose mean over layers is another number."""
    keep, mean = result.keep, result.mean_tokens
    if not isinstance(keep, int):
        return None
    return keep if mean is None or abs(mean - keep) <= SAME_COST * keep else None


def _holds_results(folder: Path) -> bool:
    return any((folder / "eval" / "predictions").glob("*.jsonl"))
