"""Check that results may be compared: they may differ in method and budget, and in the factors that the user names."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, get_args

from stage2_prune.compare.results import MethodResult
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
"""Settings that may change last bits, and so an answer now and then: differences are noted, not refused."""
_SHOWN = 60
"""The largest number of characters of a value that are shown."""


def check(results: Sequence[MethodResult], factors: Collection[str]) -> list[str]:
    """Refuse results that differ in more than method, budget and `factors`.

    Returns:
        Sentences about what was not checked, and about differences that may change last bits.

    Raises:
        NotComparable: (exit 4) naming the factors, and the flags that allow them.
    """
    for a, b in combinations(results, 2):
        differing = {factor: shown for factor in FACTORS if (shown := _difference(factor, a, b))}
        refused = [factor for factor in differing if factor not in factors]
        if refused:
            listed = ", ".join(f"{factor} ({differing[factor]})" for factor in refused)
            flags = " ".join(f"--factor {factor}" for factor in refused)
            raise NotComparable(
                f"expected results that differ in method and budget alone, {a.name} and {b.name} also "
                f"differ in {listed}: make them alike, or say with {flags} that this is what you compare"
            )
    _check_questions(results)
    unknown = [result.name for result in results if not all(result.identities)]
    notes = [f"what {name} was made with is not recorded beside it, and not checked" for name in unknown]
    return notes + [
        f"{key} differs between results ({', '.join(values)}): last bits may differ too, and with them an answer now and then"
        for key in _NUMERIC
        if len(values := sorted({str(made[key]) for result in results for made in result.identities if key in made}))
        > 1
    ]


def alike(a: MethodResult, b: MethodResult) -> bool:
    """Tell whether two results differ only in method, budget and positions."""
    return not any(_difference(factor, a, b) for factor in FACTORS if factor != "positions")


def _difference(factor: Factor, a: MethodResult, b: MethodResult) -> str | None:
    """Return both values of the first setting that differs; settings that a result does not record are not compared."""
    if factor == "positions" and (a.unpruned or b.unpruned):
        return None  # with every patch kept, both kinds of positions are the same
    for made_a in a.identities:
        for made_b in b.identities:
            for key in _RECORDED[factor]:
                if key in made_a and key in made_b and not _alike(made_a[key], made_b[key]):
                    return f"{_short(made_a[key])} and {_short(made_b[key])}"
    return None


def _alike(a: Any, b: Any) -> bool:
    """Compare two recorded values; of two mappings, only the keys that both have.

    Methods read different arrays of one store, so only the arrays that both methods read can be compared.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        both = a.keys() & b.keys()
        return bool(both) and all(a[name] == b[name] for name in both)
    return a == b


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _check_questions(results: Sequence[MethodResult]) -> None:
    """Refuse results in which one id stands for different questions (NotComparable, exit 4)."""
    seen: dict[str, tuple[MethodResult, Prediction]] = {}
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
