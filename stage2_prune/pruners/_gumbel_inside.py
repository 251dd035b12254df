"""Decisions drawn with Gumbel noise in training, hard in the forward pass and soft in the backward pass, and held to a ratio.

An evaluation draws nothing and keeps the highest scores, as the released code of Dynamic-LLaVA does.
"""

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from stage2_prune.primitives.straight_through import straight_through
from stage2_prune.primitives.temperature import cooled
from stage2_prune.pruning.practice import Practice
from stage2_prune.pruning.trained_inside import Decision, TrainedInside


@dataclass(frozen=True)
class GumbelInside(TrainedInside, ABC):
    """A method whose score is the logit of keeping a token minus that of dropping it."""

    losses: ClassVar[tuple[str, ...]] = ("ratio",)

    first_temperature: PositiveFloat = 1.0
    """Temperature of the decisions at the beginning of a training; it falls by the same factor in every step."""
    last_temperature: PositiveFloat = 0.1
    """Temperature at the end."""
    ratio_weight: NonNegativeFloat = 100.0
    """Weight of the squared difference between the share of tokens that a layer should keep and the share that it keeps."""

    def decide(
        self, scores: Float[Tensor, "image patch"], present: Float[Tensor, "image patch"], keep: int, practice: Practice
    ) -> Decision:  # fmt: skip
        """Draw for each token whether it stays; the number is held to `keep` by the loss alone."""
        noise = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6).logit()  # the difference of two Gumbel variables
        soft = torch.sigmoid(
            (scores + noise) / cooled(self.first_temperature, self.last_temperature, practice.progress)
        )
        kept = (present * straight_through(soft > 0.5, soft, floor=0.0)).mean(-1)
        losses = {"ratio": self.ratio_weight * (keep / scores.shape[-1] - kept).square()}
        return Decision(straight_through(soft > 0.5, soft), losses)
