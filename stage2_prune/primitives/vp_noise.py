"""Variance-preserving noise: a patch of weight 0 is nothing but noise, and a patch of weight 1 is left as it is."""

import torch
from jaxtyping import Float
from torch import Tensor


def vp_noise(
    features: Float[Tensor, "image patch embed"], weights: Float[Tensor, "image patch"]
) -> Float[Tensor, "image patch embed"]:
    """Return `sqrt(weight) * feature + sqrt(1 - weight) * noise`, drawn from torch's global generator, in float32.

    The noise is as large as the features: it is scaled by the standard deviation of each image's features. Unlike a scale, which
    a norm undoes, noise takes away what a patch says.
    """
    features = features.float()
    noise = torch.randn_like(features) * features.std((1, 2), keepdim=True)
    return _root(weights)[..., None] * features + _root(1 - weights)[..., None] * noise


def _root(amount: Float[Tensor, "image patch"]) -> Float[Tensor, "image patch"]:
    """Take the square root; at 0 the gradient is 0, and not infinity times the 0 that comes before it."""
    positive = amount > 0
    return torch.where(positive, torch.where(positive, amount, 1).sqrt(), 0)
