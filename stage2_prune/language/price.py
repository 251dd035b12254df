"""Compute what visual tokens cost inside the language model: tokens per layer, cache bytes, and FLOPs by named convention."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from configs.experiment import Flops
from stage2_prune.errors import NotComparable, PrunerMisused
from stage2_prune.language.language import Language
from stage2_prune.pruning.schedule import Schedule

SIZES = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
)  # fmt: skip
"""Names that text configs give the sizes in `LanguageShape`."""


@dataclass(frozen=True)
class LanguageShape:
    """Everything about a language model that a price depends on."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    """Width of one head."""
    mlp: int
    """Width between the MLP's matrices."""
    itemsize: int
    """Bytes of one cached value."""

    @property
    def kv_bytes(self) -> int:
        """Return the bytes that keys and values of one token take in one layer."""
        return 2 * self.kv_heads * self.head * self.itemsize


def shape_of(language: Language) -> LanguageShape:
    """Read the shape of an opened language model from its config.

    Where a config leaves out `head_dim` or `num_key_value_heads`, the shape holds the default of stock attention layers: the
    heads share the width, and each has keys of its own. Raises PrunerMisused (exit 2) naming any other size that is left out.
    """
    return shape_from(language.model.config, language.dtype.itemsize)


def shape_from(config: Any, itemsize: int) -> LanguageShape:
    """Read the shape of a language model from its config, as `shape_of` does; a cached value has `itemsize` bytes."""
    sizes: dict[str, Any] = {name: getattr(config, name, None) for name in SIZES}
    absent = [name for name in SIZES if name not in ("num_key_value_heads", "head_dim") and sizes[name] is None]
    if absent:
        raise PrunerMisused(
            f"expected {' and '.join(absent)} in the config of the language model, {type(config).__name__} has none: what "
            "visual tokens cost inside it cannot be counted; use a language model with the sizes of a Llama"
        )
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    return LanguageShape(
        layers=sizes["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=sizes["num_key_value_heads"] or heads,
        head=sizes["head_dim"] or width // heads,
        mlp=sizes["intermediate_size"],
        itemsize=itemsize,
    )


@dataclass(frozen=True)
class Convention:
    """A way in which papers count the language model's prefill; no convention counts the tower, the projector or the head."""

    per_mac: Literal[1, 2]
    """1 counts multiply-accumulates, 2 counts a multiplication and an addition."""
    mlp_matrices: Literal[2, 3]
    """A gated MLP has 3 matrices; conventions of 2 leave its gate out."""
    text: bool
    """Whether the prompt's text tokens are counted with the visual ones."""
    users: str
    """The papers and tools that use the convention."""

    @property
    def description(self) -> str:
        """Return the convention in words, for tables and summaries."""
        operations = {1: "MACs", 2: "2 x MACs"}[self.per_mac]
        tokens = "visual and text tokens" if self.text else "visual tokens only"
        return f"{operations}, {self.mlp_matrices} MLP matrices, {tokens} ({self.users})"

    def count(self, shape: LanguageShape, tokens_per_layer: Iterable[int], text: int) -> int:
        """Count the operations of one question's prefill, with `text` text tokens.

        Per layer they are 4nd^2 + 2n^2d + cndm, and fewer where heads share keys.
        """
        attended = shape.heads * shape.head
        projections = 2 * shape.width * (attended + shape.kv_heads * shape.head)
        per_token = projections + self.mlp_matrices * shape.width * shape.mlp
        tokens = [visual + text if self.text else visual for visual in tokens_per_layer]
        return self.per_mac * sum(n * per_token + 2 * n * n * attended for n in tokens)


CONVENTIONS: dict[Flops, Convention] = {
    "macs_vision": Convention(1, 3, False, "SparseVLM, VScan and most tables, where it is often called FLOPs"),
    "macs_all": Convention(1, 3, True, "the 4.24 T of several tables"),
    "macs_vision_2mlp": Convention(1, 2, False, "FastV's code"),
    "macs_all_2mlp": Convention(1, 2, True, "DivPrune's code"),
    "flops_vision_2mlp": Convention(2, 2, False, "Nüwa"),
    "flops_all": Convention(2, 3, True, "DiffPrune, and what a FLOP counter finds"),
}


@dataclass(frozen=True)
class Price:
    """What the visual tokens of a question cost, as means over questions."""

    tokens_per_layer: tuple[float, ...]
    kv_bytes: int
    """Bytes of keys and values of the visual tokens over all layers: each layer caches what enters it."""
    flops: dict[Flops, float]
    """Operations of the prefill, under every convention."""

    @property
    def tokens_per_layer_mean(self) -> float:
        """Return the mean over layers, the number at which methods are compared."""
        return sum(self.tokens_per_layer) / len(self.tokens_per_layer)


def price(shape: LanguageShape, asked: Iterable[tuple[Schedule, int]]) -> Price:
    """Compute the mean price of questions, each given by its visual tokens and its number of text tokens."""
    counts = Counter(asked)
    total = counts.total()

    def mean(value: Callable[[Schedule, int], int]) -> float:
        return sum(times * value(*question) for question, times in counts.items()) / total

    def operations(convention: Convention) -> float:
        return mean(lambda schedule, text: convention.count(shape, schedule.tokens_per_layer, text))

    return Price(
        tuple(mean(lambda schedule, _, layer=layer: schedule.tokens_per_layer[layer]) for layer in range(shape.layers)),
        round(mean(lambda schedule, _: sum(schedule.tokens_per_layer) * shape.kv_bytes)),
        {name: operations(convention) for name, convention in CONVENTIONS.items()},
    )


def one_convention(results: Sequence[Mapping[str, Any]]) -> Flops:
    """Return the convention that the results of one table share; raise NotComparable (exit 4) where they mix several."""
    conventions = sorted({result["flops_convention"] for result in results})
    if len(conventions) != 1:
        raise NotComparable(
            f"expected one FLOPs convention in a table, its rows were made with {' and '.join(conventions)}: "
            "set eval.flops to one of them and run eval again, which computes no answer twice"
        )
    return conventions[0]
