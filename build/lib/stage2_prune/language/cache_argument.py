"""The name that the installed transformers gives a key-value cache: `past_key_values` until 5.23, `cache` since 5.24.

Forwards take a cache under this name, decoder layers receive it under this name, and outputs carry it. The signatures decide,
not the version: a third name is refused instead of lost in some `**kwargs`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transformers import LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from stage2_prune.errors import StockDiffers
from store.checkpoint.versions import remedy

NAMES = ("cache", "past_key_values")


def name_in(*owners: Callable[..., Any]) -> str:
    """Return the one name under which all `owners` take a cache; raise StockDiffers (exit 4) where there is none."""
    signatures = {owner.__qualname__: inspect.signature(owner).parameters for owner in owners}
    for name in NAMES:
        if all(name in parameters for parameters in signatures.values()):
            return name
    raise StockDiffers(
        f"expected all of {', '.join(signatures)} to take a cache as {' or as '.join(NAMES)}, they do not; {remedy()}"
    )


def refuse_unknown(owner: str, arguments: Mapping[str, object]) -> None:
    """Raise StockDiffers (exit 4) for arguments that `owner` was called with and does not know."""
    if arguments:
        raise StockDiffers(
            f"expected only arguments that {owner} knows, transformers also hands it {', '.join(arguments)}; {remedy()}"
        )


CACHE = name_in(
    LlamaForCausalLM.forward, LlamaModel.forward, LlamaDecoderLayer.forward, BaseModelOutputWithPast.__init__
)
