"""The weight of a chunk of an image when HoloV divides a budget: attention, and how varied the chunk's patches are."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.chunks import EPSILON


def chunk_weights(
    features: Float[Tensor, "image patch embed"],
    attention: Float[Tensor, "image patch"],
    chunks: list[Int[Tensor, "_"]],
    alpha: float,
    lone: float,
) -> Float[Tensor, "image chunk"]:
    """Compute the mean over patches of 1000 x attention + `alpha` x the rescaled variance of cosines, for every chunk.

    A chunk of one patch has no variance: its weight is `lone` x attention. Chunks of one size are weighed together.
    """
    weights = attention.new_empty(len(features), len(chunks))
    for size in {len(chunk) for chunk in chunks}:
        alike = [number for number, chunk in enumerate(chunks) if len(chunk) == size]
        members = torch.stack([chunks[number] for number in alike])
        weights[:, alike] = _weights(features[:, members], attention[:, members], alpha, lone)
    return weights


def _weights(
    features: Float[Tensor, "image chunk part embed"],
    attention: Float[Tensor, "image chunk part"],
    alpha: float,
    lone: float,
) -> Float[Tensor, "image chunk"]:
    if (others := features.shape[2] - 1) == 0:
        return lone * attention.mean(dim=-1)
    scaled = 1e3 * attention
    units = (F.normalize(image, dim=-1) for image in features)
    similarity = torch.stack([unit @ unit.transpose(1, 2) for unit in units])  # image by image, as everywhere
    similarity.diagonal(dim1=2, dim2=3).fill_(0)
    mean = similarity.sum(dim=-1, keepdim=True) / others
    variance = (similarity - mean).square().sum(dim=-1) / others  # the official code too counts the diagonal's zero
    rescale = scaled.abs().mean(dim=-1, keepdim=True) / (variance.mean(dim=-1, keepdim=True) + EPSILON)
    return (scaled + alpha * rescale * variance).mean(dim=-1)
