"""Write a comparison for people: a table of the results, a table of the pairs, and an explanation of both."""

from typing import Any

from configs.counted import counted
from stage2_prune.evaluation.report import markdown

EXPLANATION = (
    "Interval: bootstrap over images, the same draws for both results of a pair, not widened for many pairs. Flips: questions "
    "that A has right and B wrong, and the other way round; of several seeds, the mean over pairs of seeds. p: exact McNemar "
    "test, which takes questions about one image as independent; of several seeds, its generalisation to their sums. By image: "
    "the same test with all questions of an image flipped together. Holm: adjusted for all pairs of this table. KL: in nats, "
    "from the unpruned model's probabilities of a question's choices."
)


def as_text(comparison: dict[str, Any]) -> str:
    """Format a comparison as two Markdown tables and notes."""
    results = markdown(
        ["result", "seeds", "accuracy", "95 % interval", "same answer as unpruned", "KL to unpruned"],
        [
            [
                row["result"],
                str(row["n_seeds"]),
                f"{row['accuracy']:.4f}",
                _interval(row["ci95"], ""),
                _number(row["agreement"], ".4f"),
                _number(row["kl_to_unpruned"], ".3g"),
            ]
            for row in comparison["results"]
        ],
        left=(0,),
    )
    pairs = markdown(
        ["A", "B", "B - A", "95 % interval", "right -> wrong", "wrong -> right", "p", "Holm", "p by image", "Holm"],
        [
            [
                pair["a"],
                pair["b"],
                f"{pair['difference']:+.4f}",
                _interval(pair["ci95"], "+"),
                f"{pair['right_to_wrong']:g}",
                f"{pair['wrong_to_right']:g}",
                *(f"{pair[p]:.2g}" for p in ("mcnemar_p", "holm_p", "by_image_p", "by_image_holm_p")),
            ]
            for pair in comparison["pairs"]
        ],
        left=(0, 1),
    )
    asked = f"{counted(comparison['n_questions'], 'question')} about {counted(comparison['n_images'], 'image')}, "
    asked += f"{counted(len(comparison['pairs']), 'pair')}. "
    notes = [f"note: {note}" for note in comparison["notes"]]
    return "\n".join([results, pairs, asked + EXPLANATION, *notes]) + "\n"


def _interval(ends: list[float] | None, sign: str) -> str:
    return "-" if ends is None else f"{ends[0]:{sign}.4f} to {ends[1]:{sign}.4f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
