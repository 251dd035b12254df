"""The language half of a checkpoint: it turns token ids and visual tokens into an answer."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from store.checkpoint.text import TextSide
from store.checkpoint.weights import weights_digest


@dataclass(frozen=True, kw_only=True)
class Language(TextSide):
    """A language model in eval mode, with its text side.

    It is called under no_grad. Code that trains through it freezes its weights first (and not before: see families/llava.py).
    """

    model: Any
    """A stock transformers `…ForCausalLM`; stock calls are not typed."""
    device: torch.device
    weights: str | None = None
    """sha256 of the model's weights, where the family's file took it while the weights were still in the host's memory."""

    @property
    def digest(self) -> str | None:
        """Return the sha256 of the model's weights; None for a stand-in that has only embeddings.

        It is taken from the loaded weights where the family's file did not take it: copying them back costs seconds.
        """
        if self.weights is None and isinstance(self.model, torch.nn.Module):
            return weights_digest(self.model.state_dict())
        return self.weights

    def embed(self, ids: Int[Tensor, "*batch token"]) -> Float[Tensor, "*batch token embed"]:
        """Embed token ids as text."""
        return self.model.get_input_embeddings()(ids)

    def answering(self, slots: Bool[Tensor, "question token"], continued: int = 0) -> Any:
        """Return the model to call for a batch of prompts whose visual tokens stand at `slots`.

        `continued` tokens of an answer follow each prompt in the same call, as in ranking. This class returns the stock model
        for every batch; a language model that prunes inside (stage2_prune/language/layer_loop.py) makes a model for each.
        """
        return self.model

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the text embeddings, to which visual tokens are cast."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def width(self) -> int:
        """Return the width of the embeddings."""
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def depth(self) -> int:
        """Return the number of layers."""
        return self.model.config.num_hidden_layers
