"""What methods keep, for people and for spreadsheets."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from configs.budgets import in_words
from stage2_prune.evaluation.report import markdown
from stage2_prune.session.features import left_out


def table(found: Mapping[str, Any]) -> str:
    """Markdown: the metrics, then a Jaccard matrix per budget, then what each number is and what is not there."""
    measured = [name for name in found["metrics"] if name not in found["not_measured"]]
    header = ["pruner", "tokens/image", *measured]
    lines = [
        [_label(row), f"{row['tokens_mean']:g}", *(_cell(row["metrics"][name]) for name in measured)]
        for row in found["results"]
    ]
    parts = [markdown(header, lines, left=(0,))]
    for matrix in found["jaccard"]:
        numbers = [str(number) for number in range(1, len(matrix["methods"]) + 1)]
        rows = [
            [number, name, *(f"{value:.2f}" for value in values)]
            for number, name, values in zip(numbers, matrix["methods"], matrix["mean"], strict=True)
        ]
        head = f"Jaccard index at {matrix['keep']} tokens (two random choices: {matrix['by_chance']:.3f})\n\n"
        parts.append(head + markdown(["", "pruner", *numbers], rows, left=(1,)))
    return "\n".join(parts) + "\n" + "\n\n".join(_notes(found)) + "\n"


def _label(row: Mapping[str, Any]) -> str:
    return row["pruner"] + (f" (mean of {len(row['seeds'])} seeds)" if row["seeds"] else "")


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    low, high = value["ci95"]
    return f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _notes(found: Mapping[str, Any]) -> list[str]:
    notes = [
        f"{found['n_questions']} questions about {found['n_images']} images of {found['patches']} patches, split "
        f"{found['split']}; in brackets the 95 % interval, bootstrap over images. A merged token counts as the patch that it "
        "stands for: where the method says that it stands, otherwise the one with its largest weight."
    ]
    notes += [f"{name} ({one['unit']}): {one['definition']}" for name, one in found["metrics"].items()]
    notes.append(
        "Jaccard index: patches that two methods both keep / patches that either keeps, mean over images, at the same number "
        "of tokens."
    )
    notes += [f"{name} is not measured: {reason}." for name, reason in found["not_measured"].items()]
    notes += [
        f"{one['pruner']} at {in_words(one['keep'])} is infeasible: {one['reason']}." for one in found["infeasible"]
    ]
    notes += [f"{one['pruner']} is left out: {one['reason']}." for one in found["left_out"]]
    return notes + left_out(one["reason"] for one in found["excluded"])


def metrics_csv(found: Mapping[str, Any]) -> str:
    """Tidy: a line per method, budget and metric that has a value."""
    lines = [
        [
            *(row[key] for key in ("pruner", "keep", "tokens_mean")),
            name,
            found["metrics"][name]["unit"],
            one["mean"],
            *one["ci95"],
            one["n"],
            one["n_images"],
        ]
        for row in found["results"]
        for name, one in row["metrics"].items()
        if one is not None
    ]
    return _csv(["pruner", "keep", "tokens_mean", "metric", "unit", "mean", "low95", "high95", "n", "n_images"], lines)


def jaccard_csv(found: Mapping[str, Any]) -> str:
    """Tidy: a line per budget and unordered pair of different methods."""
    lines = [
        [matrix["keep"], one, other, *(matrix[value][i][j] for value in ("mean", "low", "high")), matrix["by_chance"]]
        for matrix in found["jaccard"]
        for j, other in enumerate(matrix["methods"])
        for i, one in enumerate(matrix["methods"][:j])
    ]
    return _csv(["keep", "pruner", "other", "jaccard", "low95", "high95", "by_chance"], lines)


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return buffer.getvalue()
