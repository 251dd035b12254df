"""Find the results of a trained pruner in the summaries of evaluations and sweeps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stage2_prune.errors import DamagedRun
from stage2_prune.evaluation.shortcuts import UNPRUNED
from stage2_prune.session.sealed import read_bytes

SUMMARIES = ("eval/summary.json", "sweep/summary.json")


def results_of(digest: str, runs: Sequence[Path]) -> list[list[str]]:
    """List the results of the weights with this sha256 in run folders, as rows of the card's table.

    Raises DamagedRun (exit 4) for a summary that cannot be read.
    """
    return [
        _row(row, summary, name.partition("/")[0])
        for run in runs
        for name in SUMMARIES
        if (summary := _read(run / name)) is not None
        for row in _with_weights(summary, digest)
    ]


def _read(path: Path) -> dict[str, Any] | None:
    again = "delete it and run the command that wrote it again"
    data = read_bytes(path, again)
    if data is None:
        return None
    try:
        summary = json.loads(data)
        if not (isinstance(summary, dict) and isinstance(summary.get("results"), list)):
            raise ValueError("it holds no results")
    except (ValueError, RecursionError) as error:
        raise DamagedRun(f"{path} is damaged ({error}): {again}") from None
    return summary


def _with_weights(summary: Mapping[str, Any], digest: str) -> Iterator[Mapping[str, Any]]:
    return (row for row in summary["results"] if (row.get("weights") or {}).get("sha256") == digest)


def _row(row: Mapping[str, Any], summary: Mapping[str, Any], command: str) -> list[str]:
    unpruned = next(
        (one["accuracy"] for one in summary["results"] if one["pruner"].partition("@")[0] == UNPRUNED), None
    )
    return [
        summary["split"],
        str(row["keep"]),
        row["positions"],
        number_in_words(row["accuracy"]),
        interval_in_words(row["ci95"]),
        number_in_words(unpruned),
        str(row["n"]),
        str(summary["n_images"]),
        command,
    ]


def interval_in_words(interval: Sequence[float] | None) -> str:
    """Write a confidence interval, or a dash where there is none."""
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def number_in_words(accuracy: float | None) -> str:
    """Write an accuracy, or a dash where there is none."""
    return "-" if accuracy is None else f"{accuracy:.3f}"
