"""The weight of a chunk of an image when HoloV divides a budget: attention, and how varied the chunk's patches are."""

from jaxtyping import Float
from torch import Tensor

from stage2_prune.primitives.chunks import EPSILON
from stage2_prune.primitives.similarity import cosine_similarity


def chunk_weight(
    features: Float[Tensor, "part embed"], attention: Float[Tensor, " part"], alpha: float, lone: float
) -> Float[Tensor, ""]:
    """Compute the mean over patches of 1000 x attention + `alpha` x the rescaled variance of cosines.

    A chunk of one patch has no variance: its weight is `lone` x attention.
    """
    if (others := len(features) - 1) == 0:
        return lone * attention.mean()
    scaled = 1e3 * attention
    similarity = cosine_similarity(features[None])[0].fill_diagonal_(0)
    mean = similarity.sum(dim=1, keepdim=True) / others
    variance = (similarity - mean).square().sum(dim=1) / others  # the official code too counts the diagonal's zero
    rescale = scaled.abs().mean() / (variance.mean() + EPSILON)
    return (scaled + alpha * rescale * variance).mean()
