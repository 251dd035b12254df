"""Write what was read of a trained pruner for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from configs.counted import counted
from stage2_prune.evaluation.report import markdown


def table(reading: Mapping[str, Any]) -> str:
    """Format a reading as Markdown."""
    parts = [
        f"{reading['method']} (it) and {reading['against']} (the other) at {reading['keep']} tokens: "
        f"{counted(reading['n_questions'], 'question')} about {counted(reading['n_images'], 'image')}, split "
        f"{reading['split']}. Intervals: bootstrap over images.\n",
        markdown(
            ["share of patches", "mean", "95 % interval", "questions"],
            [[row["share"], f"{row['mean']:.3f}", _interval(row["ci95"]), str(row["n"])] for row in reading["counts"]],
            left=(0,),
        ),
    ]
    if reading["region_unknown"] is not None:
        parts.append(f"What is asked about is not known everywhere: {reading['region_unknown']}.\n")
    if reading["no_answers"] is not None:
        parts.append(f"Nothing is known of the answers: {reading['no_answers']}.\n")
    if reading["by_kind"]:
        parts.append(_by_kind(reading["by_kind"]))
    if reading["transfer"]:
        parts.append(_transfer(reading["transfer"]))
    return "\n".join(parts)


def _by_kind(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            row["kind"],
            str(row["keep"]),
            f"{row['accuracy']:.3f}",
            f"{row['other']:.3f}",
            f"{row['gain']:+.3f}",
            _interval(row["ci95"], "+"),
            str(row["n"]),
        ]
        for row in rows
    ]
    return markdown(["kind", "budget", "it", "the other", "gain", "95 % interval", "questions"], lines, left=(0,))


def _transfer(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate trained methods; a budget outside those of the training is marked."""
    lines = [
        [
            row["method"],
            "-" if row["trained_at"] is None else "{} to {}".format(*row["trained_at"]),
            ", ".join(row["trained_kinds"] or ["all"]),
            f"{row['keep']}{' *' if row['within_trained_budgets'] is False else ''}",
            _share(row["on_trained_kinds"]),
            _share(row["on_other_kinds"]),
        ]
        for row in rows
    ]
    header = ["trained method", "trained at", "on kinds", "used at", "accuracy on these kinds", "on the others"]
    return markdown(header, lines, left=(0, 2)) + "\n\\* a budget that the training never drew.\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    return "-" if ends is None else f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}"
