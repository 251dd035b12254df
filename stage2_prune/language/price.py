"""What visual tokens cost inside the language model: tokens per layer, cache bytes, FLOPs by named convention."""

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
"""Names that text configs have for what `LanguageShape` holds."""


@dataclass(frozen=True)
class LanguageShape:
    """All of a language model that a price depends on."""

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
        """Keys and values of one token in one layer, in bytes."""
        return 2 * self.kv_heads * self.head * self.itemsize


def shape_of(language: Language) -> LanguageShape:
    """Read the shape of an opened language model from its config.

    What a config leaves out is what stock attention layers take in its place: heads that share the width, each with keys
    of its own. Raises PrunerMisused (exit 2) naming a size that nothing stands in for.
    """
    config = language.model.config
    sizes: dict[str, Any] = {name: getattr(config, name, None) for name in SIZES}
    absent = [name for name in SIZES if name not in ("num_key_value_heads", "head_dim") and sizes[name] is None]
    if absent:
        raise PrunerMisused(
            f"expected {' and '.join(absent)} in the config of the language model, {type(config).__name__} has none: what "
            "visual tokens cost inside it cannot be counted, take a language model that is made as Llama is"
        )
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    return LanguageShape(
        layers=sizes["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=sizes["num_key_value_heads"] or heads,
        head=sizes["head_dim"] or width // heads,
        mlp=sizes["intermediate_size"],
        itemsize=language.dtype.itemsize,
    )


@dataclass(frozen=True)
class Convention:
    """One way in which papers count the language model's prefill; never the tower, the projector or the head."""

    per_mac: Literal[1, 2]
    """1 counts multiply-accumulates, 2 counts a multiplication and an addition."""
    mlp_matrices: Literal[2, 3]
    """3 is what a gated MLP has."""
    text: bool
    """Whether the prompt's text tokens are counted with the visual ones."""
    users: str

    @property
    def description(self) -> str:
        """In words, for tables and summaries."""
        operations = {1: "MACs", 2: "2 x MACs"}[self.per_mac]
        tokens = "visual and text tokens" if self.text else "visual tokens only"
        return f"{operations}, {self.mlp_matrices} MLP matrices, {tokens} ({self.users})"

    def count(self, shape: LanguageShape, tokens_per_layer: Iterable[int], text: int) -> int:
        """Operations of one question's prefill: per layer 4nd^2 + 2n^2d + cndm (less where heads share keys)."""
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
    """Keys and values of the visual tokens over all layers: each layer caches what enters it."""
    flops: dict[Flops, float]
    """Of the prefill, under every convention."""

    @property
    def tokens_per_layer_mean(self) -> float:
        """Mean over layers, the number that methods are compared at."""
        return sum(self.tokens_per_layer) / len(self.tokens_per_layer)


def price(shape: LanguageShape, asked: Iterable[tuple[Schedule, int]]) -> Price:
    """The mean price of questions, each with its visual tokens and its number of text tokens."""
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


def one_convention(rows: Sequence[Mapping[str, Any]]) -> Flops:
    """The convention that rows of one table share; NotComparable (exit 4) where they mix several."""
    found = sorted({row["flops_convention"] for row in rows})
    if len(found) != 1:
        raise NotComparable(
            f"expected one FLOPs convention in a table, its rows were made with {' and '.join(found)}: "
            "set eval.flops to one of them and run eval again, which computes no answer twice"
        )
    return found[0]
