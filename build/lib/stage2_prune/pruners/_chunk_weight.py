"""What a chunk of an image weighs when HoloV divides a budget: attention, and how varied its patches are."""

from jaxtyping import Float
from torch import Tensor

from stage2_prune.primitives.chunks import EPSILON
from stage2_prune.primitives.similarity import cosine_similarity


def chunk_weight(
    features: Float[Tensor, "part embed"], attention: Float[Tensor, " part"], alpha: float, lone: float
) -> Float[Tensor, ""]:
    """The mean over patches of 1000 x attention + `alpha` x the rescaled variance of cosines; `lone` x attention of one patch."""
    if (others := len(features) - 1) == 0:
        return lone * attention.mean()
    scaled = 1e3 * attention
    similarity = cosine_similarity(features[None])[0].fill_diagonal_(0)
    mean = similarity.sum(dim=1, keepdim=True) / others
    variance = (similarity - mean).square().sum(dim=1) / others  # the official one counts the diagonal's zero too
    rescale = scaled.abs().mean() / (variance.mean() + EPSILON)
    return (scaled + alpha * rescale * variance).mean()
