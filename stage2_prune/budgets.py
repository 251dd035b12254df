"""What a budget costs inside the language model: tokens, cache bytes, multiply-accumulates."""

from dataclasses import dataclass

from stage2_prune.language import Language


@dataclass(frozen=True)
class Cost:
    """The price of the visual tokens of one question."""

    tokens_per_layer: tuple[int, ...]
    """Visual tokens that enter each layer of the language model."""
    kv_bytes: int
    """Key and value cache of the visual tokens over all layers, in bytes."""
    prefill_macs: int
    """Multiply-accumulates of the visual tokens' prefill (convention: MACS)."""

    @property
    def tokens_per_layer_mean(self) -> float:
        """Mean over layers, the number that methods are compared at."""
        return sum(self.tokens_per_layer) / len(self.tokens_per_layer)


MACS = "MACs (not 2x) of visual tokens: q, k, v, o, attention n^2, 3 MLP matrices; no tower, projector or head"


def cost(language: Language, tokens_per_layer: tuple[int, ...]) -> Cost:
    """The price of visual tokens that enter each layer in these numbers."""
    config = language.model.config
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    width, head = config.hidden_size, config.head_dim
    bytes_per_token = 2 * shared * head * language.dtype.itemsize
    per_token = 2 * width * head * (heads + shared) + 3 * width * config.intermediate_size
    macs = sum(n * per_token + 2 * n * n * heads * head for n in tokens_per_layer)
    return Cost(tokens_per_layer, sum(tokens_per_layer) * bytes_per_token, macs)
