"""What a trained pruner is given in a training step beside the tokens, and what the language model is then shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Signal = Literal["regions", "attention"]
"""A signal that a method learns from beside the answers; Practice has a field for each."""


@dataclass(frozen=True)
class Practice:
    """One training step, as its pruner sees it. The images are those of the tokens.

    An image stands for all its questions of the step; of a method that reads the question, for one question.
    """

    keep: int
    """The budget of the step, in visual tokens per image."""
    progress: float
    """The share of the training's steps that are done, from 0 up to 1, for what changes in its course."""
    projected: Float[Tensor, "image patch embed"]
    """The features that the language model reads."""
    regions: Bool[Tensor, "image patch"] | None = None
    """The patches that the questions are about, for methods that learn from `regions`; an image without any is all False."""
    attention: Float[Tensor, "image patch"] | None = None
    """The attention of the prompt's last token to each patch in the unpruned model, for methods that learn from `attention`: the
    mean over heads, and over the questions of an image.
    """

    def at(self, images: Sequence[int]) -> "Practice":
        """Return the practice for the images at the positions `images`."""
        chosen = list(images)
        return replace(
            self,
            projected=self.projected[chosen],
            regions=None if self.regions is None else self.regions[chosen],
            attention=None if self.attention is None else self.attention[chosen],
        )


@dataclass(frozen=True)
class Shown:
    """What the language model is shown of the images in a training step, and what else is to be learnt."""

    weights: Float[Tensor, "image patch"] | None = None
    """How much each patch counts in every softmax, in [0, 1]; None lets all patches count fully."""
    visual: Float[Tensor, "image patch embed"] | None = None
    """Features in place of the projected ones; None leaves them as they are."""
    losses: Mapping[str, Float[Tensor, " image"]] = field(default_factory=dict[str, Tensor])
    """Further losses of each image, weighted already: those that the method's `losses` names."""


def joined(parts: Sequence[Shown], order: Sequence[int]) -> Shown:
    """Join what is shown of several groups of images.

    Args:
        parts: what is shown of each group.
        order: for each image of the result, its index among the images of all groups, laid one after another.
    """

    def rows(tensors: Sequence[Tensor | None]) -> Tensor | None:
        given = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(given)[list(order)] if given else None

    losses = {name: torch.cat([part.losses[name] for part in parts])[list(order)] for name in parts[0].losses}
    return Shown(rows([part.weights for part in parts]), rows([part.visual for part in parts]), losses)
