"""What trained pruners that score patches have in common: one ranking for every budget, and a soft top-k while training."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor, nn

from stage2_prune.primitives.ranked import ranking_of
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.primitives.temperature import cooled
from stage2_prune.pruning.practice import Practice, Shown
from stage2_prune.pruning.pruner import ModuleSpec, TrainedPruner
from stage2_prune.pruning.tokens import Pruned, VisualTokens


@dataclass(frozen=True)
class ScoredPruner(TrainedPruner, ABC):
    """Keeps the patches that `policy` scores highest; a subclass gives the module and the scores.

    While training, a soft top-k weighs the patches, and its temperature falls from `first_temperature` to `last_temperature`.
    """

    nested: ClassVar[bool] = True

    first_temperature: PositiveFloat = 2.0
    """Softness of the top-k when a training begins, in units of the scores."""
    last_temperature: PositiveFloat = 0.1
    """Softness of the top-k when a training ends; towards 0 a patch is either kept or not."""
    tie_seed: int = 0
    """Seed of the order of patches whose scores are exactly equal; it is drawn for each image."""

    @abstractmethod
    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Return differentiable float32 log-scores, by whose order the method selects."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` highest scores of each image, highest first."""
        return ranking_of(self.policy(tokens), tokens.image_ids, self.tie_seed)[:, :keep]

    def soft(self, tokens: VisualTokens, keep: int) -> Float[Tensor, "image patch"]:
        """Return the weights of the soft top-k at the end of a training."""
        return soft_top_k(self.policy(tokens), keep, self.last_temperature)

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Let each patch count in every softmax as much as the soft top-k weighs it, unless overridden."""
        return Shown(soft_top_k(self.policy(tokens), practice.keep, self.temperature(practice.progress)))

    def temperature(self, progress: float) -> float:
        """Return the temperature when the share `progress` of a training is done."""
        return cooled(self.first_temperature, self.last_temperature, progress)


@dataclass(frozen=True)
class ThresholdPruner(ScoredPruner, ABC):
    """A scoring method that may keep different numbers of patches: all whose score reaches one threshold for all images.

    The threshold of each budget is that at which the validation questions keep as many patches in the mean. A training
    calibrates thresholds before each validation (stage2_prune/training/calibration), and they are saved as weights.
    """

    count: Literal["budget", "threshold"] = "budget"
    """Whether each image keeps the budget to the token, or as many patches as reach the threshold, which meets the budget in
    the mean over images.
    """

    @property
    def adaptive(self) -> bool:
        """Return whether a threshold decides."""
        return self.count == "threshold"

    @property
    def takes_budget(self) -> bool:
        """Return True: thresholds meet a budget too, in the mean."""
        return True

    @abstractmethod
    def network(self, spec: ModuleSpec) -> nn.Module:
        """Build the network that scores patches, initialised from torch's global generator."""

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the network and, where a threshold decides, a threshold of 0 for every budget but all patches."""
        module = self.network(spec)
        if self.adaptive:
            patches = spec.grid[0] * spec.grid[1]
            lowest = torch.tensor([torch.finfo(torch.float32).min])  # finite, as saved weights have to be
            module.register_buffer("thresholds", torch.cat([torch.zeros(patches - 1), lowest]))
        return module

    @property
    def thresholds(self) -> Float[Tensor, " patch"]:
        """Return the module's threshold of each budget: the first is that of one token."""
        return self.module.get_buffer("thresholds")

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Return the patches that reach the threshold, but the best patch at the least, or as many as the budget."""
        if not self.adaptive:
            return super().prune(tokens, keep)
        scores = self.policy(tokens)
        counts = (scores >= self.thresholds[keep - 1]).sum(1).clamp_min(1)
        ranked = ranking_of(scores, tokens.image_ids, self.tie_seed)
        most = int(counts.max())
        rows = [
            F.pad(row[:count].sort().values, (0, most - count))
            for row, count in zip(ranked, counts.tolist(), strict=True)
        ]
        return Pruned(torch.stack(rows), counts=counts)
