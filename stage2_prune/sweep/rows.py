"""Make the rows of a sweep: each cell's evaluation, the factors that made the cell, and its latency; write them as CSV."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from configs.budgets import file_part
from stage2_prune.compare.gap import LOWER_BOUND, TARGETS, BesideOracle, OnOracleQuestions
from stage2_prune.evaluation.cells import OWN, Cell
from stage2_prune.language.price import CONVENTIONS
from stage2_prune.sweep.grid import Grid, Variant
from stage2_prune.sweep.latency import Latency

Key = tuple[str, int | float | str | None, str]
"""Label, budget and positions, which the seeds of a cell share."""
FACTORS = ("method", "label", "parameters", "place", "quirks", "order", "positions", "match", "budget")
STATUS = ("status", "reason")
PRICE = ("tokens_per_layer_mean", "kept", "kv_bytes", *CONVENTIONS)
ACCURACY = ("accuracy", "ci95_low", "ci95_high", "n", "n_images", "seeds", "accuracy_ranked", "n_ranked", "disagree")
CLOCK = (
    "selector_ms_per_image",
    "select_ms",
    "prefill_ms",
    "prefill_ratio",
    "latency_ratio",
    "latency_low",
    "latency_high",
)
EXPLAINED = (
    "prefill_graph_ms",
    "graph_ratio",
    "flops_ratio",
    "memory_ratio",
    "roofline_ratio",
    "roofline_ms",
    "bound_by",
    "no_graph",
)
GAP = ("gap_closed", "gap_low", "gap_high", "gap_n")
COLUMNS = (*FACTORS, *STATUS, *PRICE, *ACCURACY, *CLOCK, *EXPLAINED, *GAP)
"""Columns of the CSV. Those in CLOCK and EXPLAINED depend on the machine, all others only on the experiment; those in GAP are
empty where no search lies beside the sweep."""


def key(cell: Cell) -> Key:
    """Return the label, budget and positions that a cell shares with its other seeds."""
    return cell.label, cell.keep, cell.positions


def complete(
    summary: Mapping[str, Any],
    grid: Grid,
    variants: Mapping[str, Variant],
    measured: Mapping[Key, Latency],
    patches: int,
) -> dict[str, Any]:
    """Turn an evaluation's summary into a sweep's: list results, and what could not run, each with its factors.

    Args:
        summary: the summary of the evaluation.
        grid: the grid of the sweep.
        variants: all variants that the config names, by label.
        measured: the latencies.
        patches: the number of visual tokens per image.
    """
    cells = {key(cell): cell for cell in grid.cells}
    results: list[dict[str, Any]] = []
    for row in summary["results"]:
        cell_key = row["pruner"], row["keep"], row["positions"]
        cell = cells[cell_key]
        budget = row["keep"] if cell.pruner.budget != "fixed" else None
        made_by = factors(variants[cell.label], budget, cell.positions) | {"status": "ok", "reason": None}
        results.append(row | made_by | {"kept": _kept(cell, row, patches)} | asdict(measured[cell_key]))
    infeasible = [
        factors(variants[unmet.pruner], unmet.keep or None, unmet.positions)
        | {"status": "infeasible", "reason": unmet.reason}
        for unmet in grid.infeasible
    ]
    unavailable = [
        factors(variants[method.pruner], None, None) | {"status": "unavailable", "reason": method.reason}
        for method in grid.unavailable
    ]
    return {"results": results, "infeasible": infeasible, "unavailable": unavailable}


def with_gaps(summary: dict[str, Any], measured: BesideOracle) -> dict[str, Any]:
    """Add the gap that each result closes, and rows of the searched patches, which `ceiling` lists.

    Args:
        summary: what `complete` returns, with the numbers of questions and images.
        measured: the sweep's results on the questions of a search.
    """
    for row in summary["results"]:
        stem = f"{row['label']}-{OWN if row['keep'] is None else file_part(row['keep'])}-{row['positions']}"
        row |= _gap(measured.results.get(stem), measured.questions)
    ceiling = [
        dict.fromkeys(FACTORS)
        | {"method": target, "label": target, "parameters": {}, "place": "before_llm", "order": "default"}
        | {"positions": "original", "budget": measured.budgets[stem], "status": "ok", "reason": LOWER_BOUND}
        | {"accuracy": result.accuracy, "ci95": result.ci95, "n": measured.questions, "n_images": measured.images}
        for stem, result in measured.results.items()
        if (target := stem.partition("-")[0]) in TARGETS
    ]
    return summary | {"ceiling": ceiling, "not_compared": list(measured.left_out)}


def _gap(result: OnOracleQuestions | None, questions: int) -> dict[str, Any]:
    if result is None or result.gap_closed is None:
        return dict.fromkeys(GAP)
    low, high = result.gap_ci95 or (None, None)
    return dict(zip(GAP, (result.gap_closed, low, high, questions), strict=True))


def factors(variant: Variant, budget: int | float | str | None, positions: str | None) -> dict[str, Any]:
    """List the factors of a cell: method, parameters, budget and the like."""
    pruner = variant.pruner
    parameters = {name: value for name, value in pruner.parameters().items() if name != "seed" or not pruner.randomised}
    return {
        "method": variant.method,
        "label": variant.label,
        "parameters": parameters,
        "place": pruner.place,
        "quirks": parameters.get("quirks"),
        "order": variant.order,
        "positions": positions,
        "match": variant.match if pruner.place == "in_llm" else None,
        "budget": budget,
    }


def _kept(cell: Cell, row: Mapping[str, Any], patches: int) -> float:
    """Count the visual tokens behind the first drop; a selection before the language model counts as a drop."""
    if cell.pruner.adaptive:  # its schedule holds the most that it may keep, so take the mean number that it kept
        return float(row["tokens_per_layer"][0])
    return float(cell.schedule.kept(patches))


def csv_text(summary: Mapping[str, Any]) -> str:
    """Format the sweep as CSV: a row per cell, seeds averaged; a field without a value is empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in [*summary["results"], *summary["ceiling"], *summary["infeasible"], *summary["unavailable"]]:
        table.writerow({name: value for name, value in _flat(row, summary).items() if name in COLUMNS})
    return text.getvalue()


def _flat(row: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(row) | {"parameters": json.dumps(row["parameters"])}
    if row["status"] == "ok":
        low, high = row["ci95"] or (None, None)
        flat |= {"ci95_low": low, "ci95_high": high}
    if "flops" in row:
        flat |= row["flops"]
        flat |= {"n_images": summary["n_images"], "seeds": max(len(row["seeds"]), 1)}
    return flat
