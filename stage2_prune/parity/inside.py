"""Let a trained method score inside the stock model, at each of its layers, and override every decision to all ones."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.errors import PrunerMisused
from stage2_prune.language.assemble import PromptLayout
from stage2_prune.language.language import Language
from stage2_prune.language.layer_loop import require_loop
from stage2_prune.pruning.in_llm import Site
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.trained_inside import TrainedInside


@contextmanager
def scored_inside(language: Language, pruner: Pruner, layout: PromptLayout) -> Generator[None, None, None]:
    """Multiply hidden states by a method's mask of all ones within the block, before each layer at which it scores.

    The method scores what enters the layer while the prompts of `layout` are read; nothing is scored while an answer is written.
    Methods that do not score inside the language model change nothing. Raises PrunerMisused (exit 2) for a model whose layers
    are not known, and where scores are not finite.
    """
    handles: list[Any] = []
    if isinstance(pruner, TrainedInside):
        decoder = language.model.model
        require_loop(decoder)
        scorer = _Scorer(pruner, decoder, layout)
        for number in pruner.scored_layers(language.depth):
            hook = scorer.before(number)
            handles.append(decoder.layers[number].register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Scorer:
    """The scoring of one batch of prompts."""

    def __init__(self, pruner: TrainedInside, decoder: Any, layout: PromptLayout) -> None:
        self.pruner, self.decoder, self.layout = pruner, decoder, layout

    def before(self, number: int) -> Any:
        """Make the hook of layer `number`."""

        def hook(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden, *rest = given
            if hidden.shape[1] != self.layout.slots.shape[1]:  # a token of the answer
                return given, named
            ones = self._ones(number, hidden, named["position_embeddings"])
            return (hidden * ones.to(hidden.dtype)[..., None], *rest), named

        return hook

    def _ones(
        self, number: int, hidden: Float[Tensor, "question token embed"], rotary: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "question token"]:
        """Score every question without its padding, and override each score to 1."""
        ones = torch.ones(hidden.shape[:2], device=hidden.device)
        for question, (slots, valid) in enumerate(zip(self.layout.slots, self.layout.attention_mask, strict=True)):
            padding = len(valid) - int(valid.sum())
            image = slots[padding:]
            cos, sin = (part.expand(len(hidden), -1, -1)[question, padding:] for part in rotary)
            start, visual = int(image.int().argmax()), int(image.sum())
            own = hidden[question, padding:]
            site = Site.entering(number, start, visual, own, own, (cos, sin), self.decoder)
            scores = self.pruner.score(site)
            if not scores.isfinite().all():
                raise PrunerMisused(f"expected finite scores before layer {number}, some are not: check the weights")
            ones[question, padding:][image] = torch.ones_like(scores)
        return ones
