"""What must be alike before two results may be compared; what differs is refused, unless it is what is compared."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, get_args

from stage2_prune.compare.results import Result
from stage2_prune.errors import NotComparable
from stage2_prune.session.ask import Prediction

Factor = Literal["model", "store", "prompt", "positions", "dtype", "answer-length"]
FACTORS: tuple[Factor, ...] = get_args(Factor)
_RECORDED: dict[Factor, tuple[str, ...]] = {
    "model": ("language_model",),
    "store": ("features",),
    "prompt": ("template", "data.post_prompt"),
    "positions": ("positions",),
    "dtype": ("model.dtype",),
    "answer-length": ("eval.max_new_tokens",),
}
_NUMERIC = ("eval.batch_size", "device", "torch", "transformers")
"""May change last bits, and so an answer now and then: said, not refused."""
_SHOWN = 60


def check(results: Sequence[Result], factors: Collection[str]) -> list[str]:
    """Refuse results that differ in more than method, budget and `factors` (NotComparable, exit 4).

    Returns what a reader should know about the rest, in sentences.
    """
    for a, b in combinations(results, 2):
        differing = {factor: shown for factor in FACTORS if (shown := _difference(factor, a, b))}
        unsaid = [factor for factor in differing if factor not in factors]
        if unsaid:
            listed = ", ".join(f"{factor} ({differing[factor]})" for factor in unsaid)
            flags = " ".join(f"--factor {factor}" for factor in unsaid)
            raise NotComparable(
                f"expected results that differ in method and budget alone, {a.name} and {b.name} also "
                f"differ in {listed}: make them alike, or say with {flags} that this is what you compare"
            )
    _check_questions(results)
    unknown = [one.name for one in results if not all(one.identities)]
    notes = [f"what {name} was made with is not recorded beside it, and not checked" for name in unknown]
    return notes + [
        f"{key} differs between results ({', '.join(values)}): last bits may, and with them an answer now and then"
        for key in _NUMERIC
        if len(values := sorted({str(made[key]) for one in results for made in one.identities if key in made})) > 1
    ]


def alike(a: Result, b: Result) -> bool:
    """Whether two results differ in method, budget and positions alone."""
    return not any(_difference(factor, a, b) for factor in FACTORS if factor != "positions")


def _difference(factor: Factor, a: Result, b: Result) -> str | None:
    """Both values of the first setting that differs; settings that are not recorded are not compared."""
    if factor == "positions" and (a.unpruned or b.unpruned):
        return None  # with every patch kept, both kinds of positions are the same
    for one in a.identities:
        for other in b.identities:
            for key in _RECORDED[factor]:
                if key in one and key in other and not _alike(one[key], other[key]):
                    return f"{_short(one[key])} and {_short(other[key])}"
    return None


def _alike(one: Any, other: Any) -> bool:
    """Methods read different arrays of one store: those that both read must be the same."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        both = one.keys() & other.keys()
        return bool(both) and all(one[name] == other[name] for name in both)
    return one == other


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= _SHOWN else said[:_SHOWN] + "…"


def _check_questions(results: Sequence[Result]) -> None:
    """One id, one question."""
    seen: dict[str, tuple[Result, Prediction]] = {}
    for result in results:
        for name, prediction in result.seeds[0].items():
            first, other = seen.setdefault(name, (result, prediction))
            if _asked(prediction) != _asked(other):
                raise NotComparable(
                    f"expected the same questions under the same ids, {name} is {_asked(other)} in {first.name} and "
                    f"{_asked(prediction)} in {result.name}: evaluate both on one file of questions"
                )


def _asked(prediction: Prediction) -> tuple[object, ...]:
    return prediction.question, prediction.image, prediction.answers
