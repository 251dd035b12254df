"""VisionTrim's text-guided complement: the rest of an image, merged into what is most like the question."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.nearest import complement, one_hot
from stage2_prune.primitives.top_k import top_k


def text_guided(
    patches: Float[Tensor, "patch clip"],
    words: Float[Tensor, "token clip"],
    dominant: Int[Tensor, " dominant"],
    count: int,
    rounds: int,
) -> Float[Tensor, "{count} patch"]:
    """Weights of `count` tokens, made of the patches that are not `dominant`, in the raster order of their targets.

    Targets are the patches with the highest mean cosine to the words. In each round every other patch goes to the target
    that is most like it through the words, by the sum over words of cosine x cosine; a target adds the mean of its patches,
    and looks for the next round as the sum that it then is.
    """
    if not count:
        return patches.new_zeros(0, len(patches))
    rest, spoken = complement(dominant, len(patches)), F.normalize(words, dim=-1)
    likeness = F.normalize(patches[rest], dim=-1) @ spoken.T
    chosen = top_k(likeness.mean(dim=1)[None], count)[0]
    others = complement(chosen, len(rest))
    weights = one_hot(rest[chosen], len(patches))
    for _ in range(rounds):
        target = F.normalize(
            weights @ patches, dim=-1
        )  # projecting is linear: the projected sum is the sum of projections
        nearest = (likeness[others] @ (spoken @ target.T)).argmax(dim=1)
        members = torch.zeros_like(weights)
        members[nearest, rest[others]] = 1
        weights = weights + members / members.sum(dim=1, keepdim=True).clamp_min(1)
    return weights
