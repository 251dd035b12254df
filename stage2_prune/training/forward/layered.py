"""Run the layers of a language model one after another over packed lessons, with a mask of its own for each layer.

This is the training of methods that prune inside the language model: after a decision before layer L the image's rows are
multiplied by the shares that stay, and their attention columns get log(weight), from layer L on. A patch whose weight is 0 is
seen by no other token from there on, as if it had been dropped; at weights of 1 the logits are those of the stock call to the
bit. Positions are the `original` ones.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from configs.experiment import Match, TrainSection
from stage2_prune.errors import Infeasible
from stage2_prune.language.language import Language
from stage2_prune.language.layer_loop import require_loop
from stage2_prune.pruning.in_llm import Site
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.pruning.trained_inside import TrainedInside
from stage2_prune.training.packed import PackedLessons, answer_logits_together, lay_out


def require_budgets(pruner: TrainedPruner, section: TrainSection, patches: int, depth: int, match: Match) -> None:
    """Raise Infeasible (exit 2) where a method inside the language model cannot meet a budget of its training."""
    if not isinstance(pruner, TrainedInside):
        return
    drawn = range(section.min_keep, section.max_keep + 1)
    for keep, name in {**dict.fromkeys(drawn, "min_keep to train.max_keep"), section.val_keep: "val_keep"}.items():
        try:
            pruner.schedule(patches, depth, keep, match)
        except Infeasible as impossible:
            raise Infeasible(f"train.{name}: {impossible}") from None


class Layered:
    """One forward pass over the lessons about several images: the Course of stage2_prune/pruning/trained_inside.py."""

    def __init__(
        self,
        language: Language,
        visual: Float[Tensor, "image patch embed"],
        packed: Sequence[PackedLessons],
        asks: bool = False,
    ) -> None:
        """Lay out the lessons, before layer 0; raise PrunerMisused (exit 2) for a model whose layers are not known.

        With `asks` each image has a single lesson, whose question is seen beside the image.
        """
        require_loop(language.model.model)
        assert not asks or all(int(lessons.segment[-1]) == 1 for lessons in packed), "each question has its own image"
        self.asks = asks
        self.language, self.decoder = language, language.model.model
        self.laid, self.visual = lay_out(language, visual, packed), visual
        self.layer = 0
        self.hidden = self.laid.embeds
        self.weights = torch.ones(visual.shape[:2], device=language.device)
        self.mask = self.laid.mask(None, language.dtype)
        self.rotary: tuple[Tensor, Tensor] = self.decoder.rotary_emb(self.hidden, position_ids=self.laid.positions)

    @property
    def answers(self) -> list[Int[Tensor, " _"]]:
        """Return the right token at each place where an image's answers are predicted."""
        return [lessons.answer for lessons in self.laid.packed]

    def reach(self, layer: int) -> None:
        """Run the layers up to `layer`."""
        for number in range(self.layer, layer):
            self.hidden = self.decoder.layers[number](
                self.hidden, attention_mask=self.mask, use_cache=False, position_embeddings=self.rotary
            )
        self.layer = max(self.layer, layer)

    def sites(self) -> list[Site]:
        """Return the prompt of each image's question with `asks`, else the text before the image and the image."""
        return [self._site(image) for image in range(len(self.hidden))]

    def _site(self, image: int) -> Site:
        lessons, patches = self.laid.packed[image], self.laid.patches
        start = len(lessons.before)
        end = start + patches + (int(lessons.scored[0]) + 1 if self.asks else 0)  # the answer is none of its prompt
        cos, sin = (part.expand(len(self.hidden), -1, -1)[image, :end] for part in self.rotary)
        hidden, embedded = self.hidden[image, :end], self.laid.embeds[image, :end]
        return Site.entering(self.layer, start, patches, hidden, embedded, (cos, sin), self.decoder)

    def weigh(self, share: Float[Tensor, "image patch"]) -> None:
        """Multiply the patches' rows and weights by their shares."""
        befores = [len(lessons.before) for lessons in self.laid.packed]
        behind = self.hidden.shape[1] - self.laid.patches
        rows = zip(share, befores, strict=True)
        factors = torch.stack([F.pad(row, (before, behind - before), value=1) for row, before in rows])
        self.hidden = self.hidden * factors.to(self.hidden.dtype)[..., None]
        self.weights = self.weights * share
        self.mask = self.laid.mask(self.weights, self.language.dtype)

    def read(self, hidden: Float[Tensor, "image token embed"]) -> list[Float[Tensor, "_ vocab"]]:
        """Apply the last norm and the head, as the stock model does, where answers are predicted."""
        return self.laid.of_images(self.language.model.lm_head(self.decoder.norm(hidden)[:, self.laid.wanted]))

    def logits(self) -> list[Float[Tensor, "_ vocab"]]:
        """Run the layers that are left; where nothing was decided, make the stock call with the stock mask."""
        if self.layer == 0 and self.hidden is self.laid.embeds:
            return answer_logits_together(self.language, self.visual, None, self.laid.packed)
        self.reach(len(self.decoder.layers))
        return self.read(self.hidden)
