"""Write results for people: Markdown tables, and the plot of accuracy against kept tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from configs import plugin
from configs.budgets import in_words
from configs.counted import counted
from configs.parsing.parameters import adapter_of
from stage2_prune import pruners
from stage2_prune.evaluation.cells import OWN
from stage2_prune.evaluation.plot import plot
from stage2_prune.evaluation.shortcuts import unseeing
from stage2_prune.language.price import one_convention
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.features import left_out

NOT_EXACT = (
    "Not exact: features were rounded, or projected on another device, or questions about an image shared a prefill "
    "(docs/exactness.md)."
)
"""The note of a table whose answers need not be those of the full model, bit for bit."""

__all__ = ["describe_pruners", "markdown", "plot", "pruner_table", "si", "table"]


def table(summary: dict[str, Any]) -> str:
    """Format a summary as Markdown: one line per result, what was left out, then what each result costs."""
    kinds = list(dict.fromkeys(kind for row in summary["results"] for kind in row["by_kind"]))
    header = [
        "pruner",
        "tokens/image",
        "positions",
        "accuracy",
        "95 % interval",
        *kinds,
        "ranked",
        "disagree",
    ]
    lines = [_line(row, kinds) for row in summary["results"]]
    notes = [
        f"{counted(summary['n_questions'], 'question')} about {counted(summary['n_images'], 'image')}, split {summary['split']}; "
        "accuracy: exact match of greedy answers; interval: bootstrap over images; ranked: likeliest of the "
        "given choices; disagree: answers in which the two differ, over all seeds."
    ]
    notes += left_out(question["reason"] for question in summary["excluded"])
    notes += [
        f"{unmet['pruner']} at {in_words(unmet['keep'])}, {unmet['positions']} positions, is infeasible: {unmet['reason']}."
        for unmet in summary["infeasible"]
    ]
    notes += [f"{method['pruner']} is unavailable: {method['reason']}." for method in summary["unavailable"]]
    notes += [f"{row['shortcut']}." for row in summary["results"] if row["shortcut"]]
    notes += [doubt] if (doubt := unseeing(summary["results"])) else []
    if summary["match"] != "mean-tokens":
        notes.append(
            f"The budgets of methods inside the language model were matched by {summary['match']} (docs/comparing.md)."
        )
    if not summary["exact"]:
        notes.append(NOT_EXACT)
    return markdown(header, lines, left=(0, 2)) + "\n" + "\n\n".join([*notes, *_prices(summary)]) + "\n"


def _prices(summary: dict[str, Any]) -> list[str]:
    """Tabulate tokens, cache and operations of each result; the column's name says by which convention they are counted."""
    if not summary["results"]:
        return []
    convention = one_convention(summary["results"])
    header = ["pruner", "budget", "tokens/layer", "KV cache", convention, "selector ms/image"]
    lines = [
        [
            row["pruner"],
            OWN if row["keep"] is None else str(row["keep"]),
            f"{row['tokens_per_layer_mean']:g}",
            si(row["kv_bytes"], "B"),
            si(row["flops"][convention]),
            _milliseconds(row),
        ]
        for row in {(row["pruner"], row["keep"]): row for row in summary["results"]}.values()
    ]
    note = (
        "The table shows what a question's visual tokens cost the language model: tokens that enter a layer (mean over layers), "
        f"their KV cache, and the prefill as {convention} counts operations: {summary['flops_conventions'][convention]}. The "
        "tower and the projector cost the same for all methods and are left out. The selector's time (mean, in parentheses the "
        "fastest and the slowest batch) is in no other column."
    )
    return [markdown(header, lines, left=(0,)) + "\n" + note]


def _milliseconds(row: dict[str, Any]) -> str:
    """Format the selector's time with its noise; a dash if only one batch was timed."""
    if row["selector_ms_range"] is None:
        return "-"
    low, high = row["selector_ms_range"]
    return f"{row['selector_ms_per_image']:.2f} ({low:.2f} to {high:.2f})"


def si(number: float | int, unit: str = "", digits: int = 4) -> str:
    """Format a number with `digits` digits and an SI prefix: `3.817 T`, `302 MB`."""
    prefixes = ["", "k", "M", "G", "T"]
    while number >= 1000 and len(prefixes) > 1:
        number, prefixes = number / 1000, prefixes[1:]
    return f"{number:.{digits}g} {prefixes[0]}{unit}".rstrip()


def describe_pruners() -> list[dict[str, Any]]:
    """Describe every method that has a name: parameters with defaults, needs, place, budget, positions, whether it is trained.

    A method of an installed distribution that cannot be used is left out with a note.
    """
    rows: list[dict[str, Any]] = []
    for name, (pruner, _) in plugin.usable(plugin.find_all(pruners, Pruner), adapter_of).items():
        assert dataclasses.is_dataclass(pruner), f"{name} must be a frozen dataclass"
        parameters = {field.name: field.default for field in dataclasses.fields(pruner)}
        summary = " ".join((pruner.__doc__ or "").strip().partition("\n\n")[0].split())
        rows.append(
            {
                "name": name,
                "summary": summary,
                "parameters": parameters,
                "needs": sorted(pruner.needs),
                "reads": sorted(pruner.reads),
                "place": pruner.place,
                "budget": pruner.budget,
                "positions": pruner.positions,
                "randomised": pruner.randomised,
                "trained": issubclass(pruner, TrainedPruner),
            }
        )
    return rows


def pruner_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the result of `describe_pruners` as Markdown."""
    header = ["pruner", "parameters", "reads", "place", "budget", "positions", "what it keeps"]
    lines = [
        [
            row["name"],
            ", ".join(f"{key}={value}" for key, value in row["parameters"].items()) or "-",
            ", ".join([*row["needs"], *row["reads"]]) or "-",
            row["place"],
            row["budget"],
            row["positions"],
            row["summary"],
        ]
        for row in rows
    ]
    return markdown(header, lines, left=range(len(header)))


def _line(row: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    seeds = f" (mean of {counted(len(row['seeds']), 'seed')})" if row["seeds"] else ""
    by_kind = [f"{row['by_kind'][kind]:.3f}" if kind in row["by_kind"] else "-" for kind in kinds]
    ranked = "-" if row["accuracy_ranked"] is None else f"{row['accuracy_ranked']:.3f}"
    return [
        row["pruner"] + seeds,
        f"{row['tokens_per_layer_mean']:g}",
        row["positions"],
        f"{row['accuracy']:.3f}",
        "-" if row["ci95"] is None else f"{row['ci95'][0]:.3f} - {row['ci95'][1]:.3f}",
        *by_kind,
        ranked,
        str(row["disagree"]),
    ]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Format an aligned Markdown table; columns are aligned right, unless `left` holds their number."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |\n"

    rule = [":" + "-" * (w - 1) if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return row(header) + row(rule) + "".join(row(line) for line in lines)
