"""Write results on the questions of a search for people, each with the share of the gap that it closes."""

from stage2_prune.compare.gap import CEILING, LEAST_GAP, LOWER_BOUND, TARGETS, BesideOracle, OnOracleQuestions
from stage2_prune.evaluation.report import markdown


def table(measured: BesideOracle) -> str:
    """Tabulate results x budgets: accuracy, and the share of the gap that is closed with its interval."""
    if not measured.results:
        return ""
    budgets = sorted(set(measured.budgets.values()), reverse=True)
    entries: dict[str, dict[int, str]] = {}
    for stem, result in measured.results.items():
        keep = measured.budgets[stem]
        name = stem.replace(f"-{keep}-", ", ")
        entries.setdefault(f"{name} ({LOWER_BOUND})" if stem.partition("-")[0] in TARGETS else name, {})[keep] = entry(
            result
        )
    lines = [[name, *(by_budget.get(keep, "-") for keep in budgets)] for name, by_budget in entries.items()]
    header = ["method, positions", f"{budgets[0]} tokens", *map(str, budgets[1:])]
    notes = [
        f"Accuracy on the {measured.questions} questions about {measured.images} images that were searched; in parentheses the "
        f"gap closed, (method - random) / ({CEILING} - random), with its 95 % interval (bootstrap over images). {CEILING} is a "
        f"{LOWER_BOUND}, so more than 1 is possible; a gap below {LEAST_GAP:g} is not divided.\n",
        markdown(header, lines, left=(0,)),
    ]
    if measured.left_out:
        notes.append("".join(f"- {sentence}.\n" for sentence in measured.left_out))
    return "\n".join(notes)


def entry(result: OnOracleQuestions) -> str:
    """Format the accuracy of a result, and the gap that it closes."""
    if result.gap_closed is None:
        return f"{result.accuracy:.3f}"
    ends = "" if result.gap_ci95 is None else " [{:.2f}, {:.2f}]".format(*result.gap_ci95)
    return f"{result.accuracy:.3f} ({result.gap_closed:.2f}{ends})"
