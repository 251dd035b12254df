"""How many tokens an image keeps, where a method lets its scores decide."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stage2_prune.pruning.tokens import Merge, Pruned


def outliers(scores: Float[Tensor, " patch"]) -> int:
    """Scores more than 1.5 interquartile ranges above the third quartile, as PruMerge and TRIM count them.

    Of a share of all patches, as released: where the share is no float that multiplies back, one fewer.
    """
    found = scores.float().cpu().numpy()
    first, third = np.percentile(found, [25, 75])
    above = int((found > third + 1.5 * (third - first)).sum())
    return int(len(found) * (above / len(found)))


def ragged(weights: Sequence[Float[Tensor, "_ row"]]) -> Pruned:
    """Images with tokens of their own number, in raw space: rows of zeros fill up to the most."""
    counts = [len(image) for image in weights]
    filled = [F.pad(image, (0, 0, 0, max(counts) - len(image))) for image in weights]
    return Pruned(merge=Merge(torch.stack(filled), "raw"), counts=torch.tensor(counts, device=weights[0].device))
