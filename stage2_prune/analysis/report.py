"""Write what methods keep, for people and for spreadsheets."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from configs.budgets import in_words
from configs.counted import counted
from stage2_prune.evaluation.report import markdown
from stage2_prune.session.features import left_out


def table(analysis: Mapping[str, Any]) -> str:
    """Format an analysis as Markdown: the metrics, a Jaccard matrix per budget, definitions, and what is missing."""
    measured = [name for name in analysis["metrics"] if name not in analysis["not_measured"]]
    header = ["pruner", "tokens/image", *measured]
    lines = [
        [_label(row), f"{row['tokens_mean']:g}", *(_cell(row["metrics"][name]) for name in measured)]
        for row in analysis["results"]
    ]
    parts = [markdown(header, lines, left=(0,))]
    for matrix in analysis["jaccard"]:
        numbers = [str(number) for number in range(1, len(matrix["methods"]) + 1)]
        rows = [
            [number, name, *(f"{value:.2f}" for value in values)]
            for number, name, values in zip(numbers, matrix["methods"], matrix["mean"], strict=True)
        ]
        head = f"Jaccard index at {matrix['keep']} tokens (two random choices: {matrix['by_chance']:.3f})\n\n"
        parts.append(head + markdown(["", "pruner", *numbers], rows, left=(1,)))
    return "\n".join(parts) + "\n" + "\n\n".join(_notes(analysis)) + "\n"


def _label(row: Mapping[str, Any]) -> str:
    return row["pruner"] + (f" (mean of {counted(len(row['seeds']), 'seed')})" if row["seeds"] else "")


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    low, high = value["ci95"]
    return f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _notes(analysis: Mapping[str, Any]) -> list[str]:
    notes = [
        f"{counted(analysis['n_questions'], 'question')} about {counted(analysis['n_images'], 'image')} of "
        f"{counted(analysis['patches'], 'patch')}, split {analysis['split']}; in brackets the 95 % "
        "interval, bootstrap over images. A merged token counts as the patch that it stands for: the patch at the place that the "
        "method gives it, or else the patch with its largest weight."
    ]
    notes += [f"{name} ({metric['unit']}): {metric['definition']}" for name, metric in analysis["metrics"].items()]
    notes.append(
        "Jaccard index: patches that two methods both keep / patches that either keeps, mean over images, at the same number "
        "of tokens."
    )
    notes += [f"{name} is not measured: {reason}." for name, reason in analysis["not_measured"].items()]
    notes += [
        f"{unmet['pruner']} at {in_words(unmet['keep'])} is infeasible: {unmet['reason']}."
        for unmet in analysis["infeasible"]
    ]
    notes += [f"{method['pruner']} is left out: {method['reason']}." for method in analysis["left_out"]]
    return notes + left_out(question["reason"] for question in analysis["excluded"])


def metrics_csv(analysis: Mapping[str, Any]) -> str:
    """Format the metrics as tidy CSV: a line per method, budget and metric that has a value."""
    lines = [
        [
            *(row[key] for key in ("pruner", "keep", "tokens_mean")),
            name,
            analysis["metrics"][name]["unit"],
            value["mean"],
            *value["ci95"],
            value["n"],
            value["n_images"],
        ]
        for row in analysis["results"]
        for name, value in row["metrics"].items()
        if value is not None
    ]
    return _csv(["pruner", "keep", "tokens_mean", "metric", "unit", "mean", "low95", "high95", "n", "n_images"], lines)


def jaccard_csv(analysis: Mapping[str, Any]) -> str:
    """Format the Jaccard indices as tidy CSV: a line per budget and unordered pair of different methods."""
    lines = [
        [matrix["keep"], a, b, *(matrix[value][i][j] for value in ("mean", "low", "high")), matrix["by_chance"]]
        for matrix in analysis["jaccard"]
        for j, b in enumerate(matrix["methods"])
        for i, a in enumerate(matrix["methods"][:j])
    ]
    return _csv(["keep", "pruner", "other", "jaccard", "low95", "high95", "by_chance"], lines)


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return buffer.getvalue()
