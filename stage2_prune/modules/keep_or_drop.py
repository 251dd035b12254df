"""A classifier of patches with two answers, keep and drop."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stage2_prune.modules.blocks import encoder


class KeepOrDrop(nn.Module):
    """Transformer blocks, then an MLP on each patch in which half of the channels are the mean over all patches."""

    def __init__(self, hidden: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.GELU())
        self.blocks = encoder(width, heads, layers)
        half, quarter = -(-width // 2), -(-width // 4)
        self.classify = nn.Sequential(
            nn.Linear(width, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2)
        )

    def forward(self, raw: Float[Tensor, "patch hidden"]) -> Float[Tensor, " patch"]:
        """Compute the log-odds of keeping each patch of one image."""
        local, shared = self.blocks(self.enter(raw)[None])[0].chunk(2, dim=1)
        keep, drop = self.classify(torch.cat([local, shared.mean(0).expand_as(shared)], dim=1)).unbind(1)
        return keep - drop
