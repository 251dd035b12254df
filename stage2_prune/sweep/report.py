"""Write a sweep for people: the accuracy of each method at each budget, its cost, and what could not run."""

from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import median, mode
from typing import Any

from configs.budgets import ascending, in_words
from configs.counted import counted
from stage2_prune.compare.gap import CEILING, LOWER_BOUND
from stage2_prune.evaluation.report import NOT_EXACT, markdown, si
from stage2_prune.language.price import one_convention
from stage2_prune.session.features import left_out

Row = dict[str, Any]
PUBLISHED = (
    "A `published` column shows each method at the schedule to which its paper or code gives this name, and in parentheses the "
    "mean of the tokens that enter a layer: such a column compares settings of equal name, not of equal cost.\n"
)


def table(summary: dict[str, Any]) -> str:
    """Format the summary of a sweep as Markdown."""
    parts = [
        _intro(summary),
        *_accuracy(summary),
        *_clock(summary),
        *_explained(summary),
        *_prices(summary),
        *_not_had(summary),
    ]
    return "\n".join(parts)


def _intro(summary: dict[str, Any]) -> str:
    inexact = "" if summary["exact"] else f" {NOT_EXACT}"
    without = "".join(f" {sentence}" for sentence in left_out(question["reason"] for question in summary["excluded"]))
    return (
        f"{counted(summary['n_questions'], 'question')} about {counted(summary['n_images'], 'image')}, split "
        f"{summary['split']}. Accuracy: exact match of greedy answers, and its 95 % interval (bootstrap over images); "
        f"random methods are averaged over their seeds.{without}{inexact}\n"
    )


def _accuracy(summary: dict[str, Any]) -> list[str]:
    """Tabulate accuracies: methods x budgets, then the methods that take no budget."""
    parts: list[str] = []
    if _comparable(summary):
        parts.append(_matrix([*_comparable(summary), *_ceiling(summary)], "accuracy at", _accurate))
        parts += _closed(summary)
        if any(isinstance(row["budget"], str) for row in _comparable(summary)):
            parts.append(PUBLISHED)
    kept = [row for row in _budgeted(summary) if row["match"] == "kept"]
    if kept:
        parts.append(
            "Budgets as tokens kept behind the first drop, as papers of these methods count them; in parentheses the mean "
            "of the tokens that enter a layer, which the table above is about.\n"
        )
        parts.append(_matrix(kept, "accuracy at", _with_tokens))
    own = [row for row in summary["results"] if row["budget"] is None]
    if own:
        header = ["takes no budget", "positions", "tokens/layer", "accuracy", "95 % interval", "latency"]
        lines = [
            [
                row["label"],
                row["positions"],
                f"{row['tokens_per_layer_mean']:.4g}",
                f"{row['accuracy']:.3f}",
                _interval(row),
                _latency(row),
            ]
            for row in own
        ]
        parts.append(markdown(header, lines, left=(0, 1)))
    return parts


def _clock(summary: dict[str, Any]) -> list[str]:
    rows = _budgeted(summary)
    if not rows:
        return []
    return [
        "Selecting and prefill together, one question at a time, as a share of the unpruned prefill (median of interleaved "
        f"runs, in parentheses the fastest and the slowest of them; {summary['machine']}): above 1, pruning is slower "
        "than not pruning.\n",
        _matrix(rows, "latency at", _latency),
    ]


def _explained(summary: dict[str, Any]) -> list[str]:
    """Tabulate measured and predicted prefills; methods that cost the same share a row, with the median of their times."""
    payers: dict[tuple[str, int | float | str | None, float], list[Row]] = {}
    for row in sorted(summary["results"], key=lambda row: (row["place"], _payer(row)[0])):
        payers.setdefault(_payer(row), []).append(row)
    if not payers:
        return []
    measured = ("prefill_ms", "prefill_graph_ms", "roofline_ms", "prefill_ratio", "graph_ratio")
    predicted = ("flops_ratio", "memory_ratio", "roofline_ratio")
    lines = [
        [payer, "-" if budget is None else str(budget), f"{tokens:.4g}"]
        + [_median(rows, name) for name in (*measured, *predicted)]
        + [mode(row["bound_by"] for row in rows)]
        for (payer, budget, tokens), rows in payers.items()
    ]
    reasons = dict.fromkeys(row["no_graph"] for row in summary["results"] if row["no_graph"])
    without = f" No graph (`-`): {'; '.join(reasons)}." if reasons else ""
    note = (
        "The prefill alone, with every kernel launched by Python (eager) and as one CUDA graph, beside the least time that this "
        "device needs for its arithmetic and its bytes of weights, keys and values (roofline, peaks as measured); then each as "
        "a share of the unpruned prefill, with the shares that FLOPs, bytes and the roofline predict. `bound by` names what the "
        f"eager prefill waits for.{without}\n"
    )
    header = [
        "prefill of", "budget", "tokens/layer", "eager ms", "graph ms", "roofline ms", "eager", "graph", "FLOPs", "bytes",
        "roofline", "bound by",
    ]  # fmt: skip
    return [note, markdown(header, lines, left=(0, 11))]


def _median(rows: Sequence[Row], name: str) -> str:
    """Format the median of a measured column; `-` where nothing was measured."""
    values = [row[name] for row in rows if row[name] is not None]
    return f"{median(values):.3g}" if values else "-"


def _prices(summary: dict[str, Any]) -> list[str]:
    """Tabulate tokens, cache and operations, which are equal for all methods before the language model and all quirks."""
    if not summary["results"]:
        return []
    convention = one_convention(summary["results"])
    rows = {_payer(row): row for row in summary["results"]}
    lines = [
        [
            payer,
            "-" if budget is None else str(budget),
            f"{tokens:.4g}",
            f"{row['kept']:.4g}",
            si(row["kv_bytes"], "B"),
            si(row["flops"][convention]),
        ]
        for (payer, budget, tokens), row in sorted(rows.items(), key=lambda item: (item[1]["place"], item[0][0]))
    ]
    note = (
        "The table shows what a question's visual tokens cost inside the language model: tokens that enter a layer (mean over "
        f"layers), tokens kept behind the first drop, their KV cache, and the prefill as {convention} counts operations: "
        f"{summary['flops_conventions'][convention]}.\n"
    )
    header = ["cost of", "budget", "tokens/layer", "kept", "KV cache", convention]
    return [note, markdown(header, lines, left=(0,))]


def _payer(row: Row) -> tuple[str, int | float | str | None, float]:
    """Identify the rows that cost the same: a name for the table, the budget, and the mean of tokens per layer."""
    inside = row["place"] == "in_llm"
    kept = ", budgets as tokens kept" if row["match"] == "kept" else ""
    name = row["method"] + kept if inside else "before the language model"
    return name, row["budget"], row["tokens_per_layer_mean"]


def _not_had(summary: dict[str, Any]) -> list[str]:
    """List shortcuts, results not compared, methods that cannot be served, and budgets that cannot be met, grouped by reason."""
    lines = [f"- {row['shortcut']}." for row in summary["results"] if row["shortcut"]]
    lines += [f"- {sentence}." for sentence in summary["not_compared"]]
    lines += [f"- {row['label']} is unavailable: {row['reason']}." for row in summary["unavailable"]]
    same = groupby(summary["infeasible"], key=lambda row: (row["label"], row["positions"], _bare(row["reason"])))
    for (label, positions, _), group in same:
        rows = list(group)
        budgets = ", ".join(in_words(row["budget"]) for row in rows if row["budget"])
        at = f" at {budgets}" if budgets else ""
        lines.append(f"- {label}{at}, {positions} positions, is infeasible: {rows[0]['reason']}.")
    return ["\n".join(lines) + "\n"] if lines else []


def _bare(reason: str) -> str:
    """Remove the numbers from a reason, because they differ from budget to budget."""
    return "".join(letter for letter in reason if not letter.isdigit())


def _matrix(rows: Sequence[Row], title: str, say: Callable[[Row], str]) -> str:
    """Tabulate methods x budgets, with methods before the language model first; `say` formats the entry of a row."""
    budgets = sorted({row["budget"] for row in rows}, key=ascending, reverse=True)
    entries: dict[tuple[str, str, str], dict[int | float | str, str]] = {}
    for row in rows:
        by_budget = entries.setdefault((row["place"], row["label"], row["positions"]), {})
        by_budget[row["budget"]] = say(row) if row["status"] == "ok" else "infeasible"
    lines = [
        [label, positions, *(by_budget.get(keep, "-") for keep in budgets)]
        for (_, label, positions), by_budget in sorted(entries.items())
    ]
    header = ["method", "positions", f"{title} {in_words(budgets[0])}", *map(str, budgets[1:])]
    return markdown(header, lines, left=(0, 1))


def _budgeted(summary: dict[str, Any]) -> list[Row]:
    """Choose the rows whose method takes a budget."""
    return [row for row in [*summary["results"], *summary["infeasible"]] if row["budget"] is not None]


def _comparable(summary: dict[str, Any]) -> list[Row]:
    """Choose the rows whose budget is a mean over layers, as for every method before the language model."""
    return [row for row in _budgeted(summary) if row["match"] != "kept"]


def _ceiling(summary: dict[str, Any]) -> list[Row]:
    """List the rows of searched patches, each named as the lower bound that it is."""
    return [
        row | {"label": f"{row['label']} ({row['reason']}, {counted(row['n'], 'question')})"}
        for row in summary["ceiling"]
    ]


def _closed(summary: dict[str, Any]) -> list[str]:
    """Tabulate how much of the gap between random and searched patches each method closes, if there are any."""
    rows = [row for row in _comparable(summary) if row.get("gap_closed") is not None]
    if not rows:
        return []
    return [
        f"Gap closed, with its 95 % interval, on the {rows[0]['gap_n']} questions that were searched: (method - random) / "
        f"({CEILING} - random). {CEILING} is a {LOWER_BOUND}, so more than 1 is possible.\n",
        _matrix(rows, "gap closed at", _share),
    ]


def _share(row: Row) -> str:
    ends = "" if row["gap_low"] is None else f" [{row['gap_low']:.2f}, {row['gap_high']:.2f}]"
    return f"{row['gap_closed']:.2f}{ends}"


def _accurate(row: Row) -> str:
    """Format accuracy and interval; for a published schedule also the mean number of tokens that enter a layer."""
    return _with_tokens(row) if isinstance(row["budget"], str) else f"{row['accuracy']:.3f} {_interval(row)}"


def _with_tokens(row: Row) -> str:
    return f"{row['accuracy']:.3f} {_interval(row)} ({row['tokens_per_layer_mean']:.4g})"


def _interval(row: Row) -> str:
    if row["ci95"] is None:
        return "-"
    low, high = row["ci95"]
    return f"[{low:.3f}, {high:.3f}]"


def _latency(row: Row) -> str:
    """Format the latency with its noise: the fastest and the slowest of the interleaved runs."""
    return f"{row['latency_ratio']:.2f} ({row['latency_low']:.2f} to {row['latency_high']:.2f})"
