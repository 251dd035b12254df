"""A ranking by learned scores, whose ties are broken by chance and not by the place in the image."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.draw import permutation
from stage2_prune.primitives.top_k import ranking


def ranking_of(scores: Float[Tensor, "image patch"], image_ids: Sequence[str], seed: int) -> Int[Tensor, "image patch"]:
    """Return each image's patches by falling score; of exactly equal scores in an order drawn from (seed, image id).

    A network that has learnt nothing scores all patches alike: by index, it would keep the top rows of every image and look
    like a method. Raises PrunerMisused where a score is NaN.
    """
    drawn = drawn_order(image_ids, scores.shape[-1], seed).to(scores.device)
    return drawn.gather(1, ranking(scores.gather(1, drawn)))  # stable, so equal scores stay in the drawn order


def drawn_order(image_ids: Sequence[str], patches: int, seed: int) -> Int[Tensor, "image {patches}"]:
    """Draw an order of each image's patches from (seed, image id)."""
    return torch.stack([torch.from_numpy(permutation(seed, image_id, patches)) for image_id in image_ids])
