"""Transformer blocks on the patches of one image."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def image_by_image(module: nn.Module, *arrays: Iterable[Tensor]) -> Float[Tensor, "image ..."]:
    """Call a module on the arrays of each image alone, and stack what it returns, in float32 under autocast too.

    The last bits of a matrix product may depend on its shape, and an image is pruned alike alone and in a batch.
    """
    images = zip(*arrays, strict=True)
    return torch.stack([module(*(array.float() for array in image)) for image in images]).float()


def encoder(width: int, heads: int, layers: int) -> nn.Sequential:
    """Stack transformer blocks without dropout, each normed before it computes."""
    heads = heads_of(width, heads)
    return nn.Sequential(
        *(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
    )


def heads_of(width: int, heads: int) -> int:
    """Return the largest number of heads that divides both `heads` and `width`."""
    return math.gcd(width, heads)


def normed(features: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """Bring each feature to mean 0 and variance 1; raw features have a few dimensions that outweigh all others."""
    return F.layer_norm(features, features.shape[-1:])


class PatchBlocks(nn.Module):
    """Transformer blocks on raw features, and a linear score of each patch behind them."""

    def __init__(self, hidden: int, width: int | None, heads: int, layers: int) -> None:
        """Make blocks of `width`, or of the features' own width where it is None."""
        super().__init__()
        inner = hidden if width is None else width
        self.enter = nn.Identity() if width is None else nn.Linear(hidden, inner)
        self.blocks = encoder(inner, heads, layers)
        self.norm = nn.LayerNorm(inner, bias=False)
        self.score = nn.Linear(inner, 1, bias=False)  # a top-k sees no bias

    def forward(self, raw: Float[Tensor, "patch hidden"]) -> Float[Tensor, " patch"]:
        """Compute the scores of one image."""
        return self.score(self.norm(self.blocks(self.enter(normed(raw))[None])[0]))[:, 0]
