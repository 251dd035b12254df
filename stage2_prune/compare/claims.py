"""Test what a config claims of trained methods: chosen on the validation split, then shown on the test split.

For each model and budget the validation sweep chooses the best training-free method and the best trained one. The test sweep
then compares the best trained one, and the method that `claims.ours` names, with the best training-free one. All these tests are
one family: their p-values are adjusted together. A difference is claimed if its adjusted p-value is below `claims.level` and
every training seed has the same sign.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import typed
from configs.experiment import ClaimsSection, Experiment
from configs.files.atomic import write_atomically
from configs.find_config import load_experiment
from stage2_prune.compare import conditions
from stage2_prune.compare.results import MethodResult, load
from stage2_prune.compare.rows import both_answered, difference, right_answers
from stage2_prune.compare.significance import holm
from stage2_prune.errors import NotComparable, ResultsMissing
from stage2_prune.evaluation.intervals import number_clusters, seeds_and_images
from stage2_prune.evaluation.report import markdown
from stage2_prune.evaluation.shortcuts import UNPRUNED, WITHOUT_IMAGE

REFERENCES = (UNPRUNED, WITHOUT_IMAGE)
"""Results that no method competes with."""
TOLERANCE = 0.5
"""Tokens by which the mean over layers may miss a budget."""
BEST, OURS = "best trained", "ours"


@dataclass(frozen=True)
class Candidate:
    """A method at one budget, as a sweep of one split answered it."""

    method: str
    """Its label, which both splits share."""
    result: MethodResult

    @property
    def accuracy(self) -> float:
        """Return the share of right answers: the mean over seeds."""
        return float(right_answers(self.result, list(self.result.questions)).mean())


ByBudget = dict[Any, list[Candidate]]
"""The methods of a sweep by the budget that they meet."""


def run(experiment: Experiment) -> dict[str, Any]:
    """Test the claims of a config, and of the configs that `claims.beside` names; return the outcome as JSON.

    Raises:
        ResultsMissing: (exit 5) naming the sweep that is to be run first.
        NotComparable: (exit 4) for results that were made with different settings.
    """
    section = experiment.claims
    experiments = [experiment, *(load_experiment(path) for path in section.beside)]
    swept = [(one, _candidates(one, "val"), _candidates(one, "test")) for one in experiments]
    rows = [row for one, val, test in swept for row in _of_model(one, val, test, section)]
    adjusted = holm([row["by_image_p"] for row in rows])
    claims = [
        row | {"holm_p": p, "claimed": bool(p < section.level and abs(sum(row["signs"])) == len(row["signs"]) > 0)}
        for row, p in zip(rows, adjusted, strict=True)
    ]
    others = [row for one, _, test in swept for row in _beside_ours(one, test, section)]
    return {"schema": 1, "level": section.level, "claims": claims, "above_ours": _adjusted(others, section.level)}


def _of_model(experiment: Experiment, val: ByBudget, test: ByBudget, section: ClaimsSection) -> list[dict[str, Any]]:
    """Compare the methods of one config that the validation sweep chooses at every budget."""
    ours, budgets = section.ours, section.budgets
    rows: list[dict[str, Any]] = []
    for budget in budgets:
        free = _best(experiment, val, budget, trained=False)
        named = {BEST: _best(experiment, val, budget, trained=True)}
        named |= {} if ours is None else {OURS: _labelled(experiment, val.get(budget, ()), budget, ours)}
        for role, method in named.items():
            rows.append(_compared(experiment, test, budget, method, free) | {"role": role})
    return rows


def _beside_ours(experiment: Experiment, test: ByBudget, section: ClaimsSection) -> list[dict[str, Any]]:
    """Compare every other trained method with ours."""
    if section.ours is None:
        return []
    return [
        _compared(experiment, test, budget, candidate.method, own)
        for budget in section.budgets
        for own in [_labelled(experiment, test.get(budget, ()), budget, section.ours)]
        for candidate in test.get(budget, ())
        if candidate.result.trained and candidate.method != own
    ]


def _labelled(experiment: Experiment, candidates: Sequence[Candidate], budget: Any, name: str) -> str:
    """Return the label of the method that a config calls `name`; parameters may stand behind it in the label."""
    labels = [one.method for one in candidates if name in (one.method, one.method.partition("@")[0])]
    if name in labels or len(labels) == 1:
        return name if name in labels else labels[0]
    found = f"there are {', '.join(labels)}: name one" if labels else "there is none: sweep over it"
    raise NotComparable(
        f"claims.ours: expected one method {name} at {budget} tokens in the sweep of {experiment.name}, {found}"
    )


def _adjusted(rows: Sequence[dict[str, Any]], level: float) -> list[dict[str, Any]]:
    """Adjust a family's p-values, and return the rows whose method is significantly better."""
    p_values = holm([row["by_image_p"] for row in rows]) if rows else []
    adjusted = [row | {"holm_p": p} for row, p in zip(rows, p_values, strict=True)]
    return [row for row in adjusted if row["holm_p"] < level and row["difference"] > 0]


def _candidates(experiment: Experiment, split: str) -> ByBudget:
    """Read the sweep of a split; return the methods that met each budget as a mean over layers."""
    section = experiment.eval.model_copy(update={"split": split})
    folder = experiment.model_copy(update={"eval": section}).sweep_dir
    if not (folder / "summary.json").is_file():
        flag = "" if split == "test" else f"--eval.split {split}"
        raise ResultsMissing(
            f"expected a finished sweep over the {split} split in {folder}, there is none: run {typed('sweep', flag)} with the "
            "config of that folder"
        )
    found, _ = load([folder], ())
    conditions.check(found, ("positions",))
    by_budget: dict[Any, list[Candidate]] = {}
    for result in found:
        keep, mean, label = result.keep, result.mean_tokens, result.label or result.stem
        met = mean is None or (isinstance(keep, int | float) and abs(mean - keep) <= TOLERANCE)
        if label.partition("@")[0] not in REFERENCES and met:
            by_budget.setdefault(keep, []).append(Candidate(label, result))
    return by_budget


def _best(experiment: Experiment, val: ByBudget, budget: Any, trained: bool) -> str:
    """Return the method with the highest validation accuracy; of equal ones the first by name."""
    among = [candidate for candidate in val.get(budget, ()) if candidate.result.trained == trained]
    if not among:
        kind = "trained" if trained else "training-free"
        raise NotComparable(
            f"expected a {kind} method at {budget} tokens in the validation sweep of {experiment.name}, there is none: sweep "
            "over one, or take the budget out of claims.budgets"
        )
    return max(sorted(among, key=lambda one: one.method), key=lambda one: one.accuracy).method


def _compared(experiment: Experiment, test: ByBudget, budget: Any, method: str, against: str) -> dict[str, Any]:
    """Compare two methods on the test split, with intervals over images and seeds."""
    by_name = {candidate.method: candidate.result for candidate in test.get(budget, ())}
    lacking = [name for name in (method, against) if name not in by_name]
    if lacking:
        raise ResultsMissing(
            f"expected {lacking[0]} at {budget} tokens in the test sweep of {experiment.name}, it has {', '.join(by_name)}: run "
            f"{typed('sweep')} with the methods of the validation sweep"
        )
    a, b = by_name[against], by_name[method]
    questions = both_answered(a, b)
    images = [a.seeds[0][name].image for name in questions]
    right_a, right_b = right_answers(a, questions), right_answers(b, questions)
    resamples, seed = experiment.eval.bootstrap, experiment.eval.seed
    shown = difference(against, method, right_a, right_b, images, resamples, seed)
    per_seed = right_b.mean(1) - right_a.mean()
    change = right_b.astype(float) - right_a.mean(0)
    return {
        "model": experiment.name,
        "budget": budget,
        "method": method,
        "against": against,
        "accuracy": float(right_b.mean()),
        "accuracy_against": float(right_a.mean()),
        "difference": shown["difference"],
        "ci95": list(seeds_and_images(change, number_clusters(images), resamples, seed)),
        "by_image_p": shown["by_image_p"],
        "n_seeds": len(right_b),
        "signs": [int(np.sign(value)) for value in per_seed],
    }


def as_text(outcome: Mapping[str, Any]) -> str:
    """Format the outcome as a Markdown table and the sentences that explain it."""
    header = [
        "model",
        "tokens",
        "role",
        "method",
        "training-free",
        "accuracy",
        "against",
        "difference",
        "95 % interval",
        "p",
    ]
    lines = [
        [
            row["model"], str(row["budget"]), row["role"], row["method"], row["against"],
            f"{row['accuracy']:.4f}", f"{row['accuracy_against']:.4f}", f"{row['difference']:+.4f}",
            f"{row['ci95'][0]:+.4f} to {row['ci95'][1]:+.4f}", f"{row['holm_p']:.2g}", "yes" if row["claimed"] else "no",
        ]
        for row in outcome["claims"]
    ]  # fmt: skip
    table = markdown([*header, "claimed"], lines, left=(0, 2, 3, 4))
    explained = (
        f"Methods were chosen on the validation split. p: exact sign-flip test by image, adjusted by Holm for {len(lines)} "
        f"tests; claimed below {outcome['level']:g} where all training seeds have the same sign. Interval: bootstrap over images "
        "and seeds."
    )
    above = [
        f"{row['method']} is above {row['against']} at {row['budget']} tokens on {row['model']}"
        for row in outcome["above_ours"]
    ]
    return "\n".join([table, explained, *above]) + "\n"


def file_of(experiment: Experiment) -> Path:
    """Return the file that keeps the outcome."""
    return experiment.run_dir / "claims.json"


def write(experiment: Experiment, outcome: Mapping[str, Any]) -> None:
    """Keep the outcome in the run folder."""
    write_atomically(file_of(experiment), json.dumps(outcome, indent=2) + "\n")
