"""The rows of a sweep: what an evaluation says of each cell, with the factors that made it and its latency; as tidy CSV."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stage2_prune.evaluation.cells import Cell
from stage2_prune.language.price import CONVENTIONS
from stage2_prune.sweep.grid import Grid, Variant
from stage2_prune.sweep.latency import Latency

Key = tuple[str, int | float | str | None, str]
"""What seeds of a cell share: label, budget, positions."""
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
COLUMNS = (*FACTORS, *STATUS, *PRICE, *ACCURACY, *CLOCK)
"""Of the CSV: CLOCK depends on the machine, all else on the experiment alone."""


def key(cell: Cell) -> Key:
    """Of a cell."""
    return cell.label, cell.keep, cell.positions


def complete(
    summary: Mapping[str, Any],
    grid: Grid,
    variants: Mapping[str, Variant],
    measured: Mapping[Key, Latency],
    patches: int,
) -> dict[str, Any]:
    """What a sweep says beyond an evaluation: its results, and what could not be had, each with its factors."""
    cells = {key(cell): cell for cell in grid.cells}
    results: list[dict[str, Any]] = []
    for row in summary["results"]:
        place = row["pruner"], row["keep"], row["positions"]
        cell = cells[place]
        asked = row["keep"] if cell.pruner.budget != "fixed" else None
        said = factors(variants[cell.label], asked, cell.positions) | {"status": "ok", "reason": None}
        results.append(row | said | {"kept": _kept(cell, row, patches)} | asdict(measured[place]))
    infeasible = [
        factors(variants[one.pruner], one.keep or None, one.positions) | {"status": "infeasible", "reason": one.reason}
        for one in grid.infeasible
    ]
    unavailable = [
        factors(variants[one.pruner], None, None) | {"status": "unavailable", "reason": one.reason}
        for one in grid.unavailable
    ]
    return {"results": results, "infeasible": infeasible, "unavailable": unavailable}


def factors(variant: Variant, budget: int | float | str | None, positions: str | None) -> dict[str, Any]:
    """What was asked for."""
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
    """Visual tokens behind the first drop, which a selection before the language model is."""
    if cell.pruner.adaptive:  # the mean of what it kept; its schedule has the most that it may keep
        return float(row["tokens_per_layer"][0])
    return float(cell.schedule.kept(patches))


def csv_text(summary: Mapping[str, Any]) -> str:
    """One row per cell, seeds averaged, an empty field where there is nothing to say."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in [*summary["results"], *summary["infeasible"], *summary["unavailable"]]:
        table.writerow({name: value for name, value in _flat(row, summary).items() if name in COLUMNS})
    return text.getvalue()


def _flat(row: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(row) | {"parameters": json.dumps(row["parameters"])}
    if row["status"] == "ok":
        low, high = row["ci95"] or (None, None)
        flat |= row["flops"] | {"ci95_low": low, "ci95_high": high}
        flat |= {"n_images": summary["n_images"], "seeds": max(len(row["seeds"]), 1)}
    return flat
