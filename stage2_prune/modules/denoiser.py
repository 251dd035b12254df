"""A network that cleans noisy patches, each from itself alone."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DiagonalDenoiser(nn.Module):
    """Removes noise from each patch by itself: attention whose only key is the query's own token, which is a network per token.

    It sees how much of the patch is left. What it adds is weighed by the share of noise, so that a patch without noise is
    returned to the bit.
    """

    def __init__(self, embed: int, width: int) -> None:
        super().__init__()
        self.own, self.amount = nn.Linear(embed, width), nn.Linear(1, width, bias=False)
        self.correct = nn.Linear(width, embed)

    def forward(
        self, noisy: Float[Tensor, "image patch embed"], weights: Float[Tensor, "image patch"]
    ) -> Float[Tensor, "image patch embed"]:
        """Clean patches of which the share `weights` is left."""
        left = weights[..., None]
        size = noisy.detach().std((1, 2), keepdim=True)
        hidden = F.gelu(self.own(noisy / size.clamp_min(torch.finfo(size.dtype).tiny)) + self.amount(left))
        return noisy + (1 - left) * size * self.correct(hidden)
