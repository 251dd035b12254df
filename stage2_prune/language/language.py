"""The language half of a checkpoint: what turns token ids and visual tokens into an answer."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from store.checkpoint.text import Text


@dataclass(frozen=True, kw_only=True)
class Language(Text):
    """A language model in eval mode with its text.

    Called under no_grad; whoever trains through it freezes its weights first (and not before: see
    families/llava.py).
    """

    model: Any
    """A stock transformers `…ForCausalLM`, whose calls are not typed."""
    device: torch.device

    def embed(self, ids: Int[Tensor, "*batch token"]) -> Float[Tensor, "*batch token embed"]:
        """Text embeddings."""
        return self.model.get_input_embeddings()(ids)

    def answering(self, slots: Bool[Tensor, "question token"], continued: int = 0) -> Any:
        """The model to call for a batch of prompts whose visual tokens stand at `slots`.

        `continued` tokens of an answer follow each prompt in the same call, as in ranking. The stock model, whatever
        the batch; a language model that prunes inside (stage2_prune/language/layer_loop.py) makes one for it.
        """
        return self.model

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the text embeddings, which visual tokens are cast to."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.model.get_input_embeddings().weight.shape[1]
