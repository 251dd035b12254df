"""How many tokens an image keeps where its scores decide, and results in which these numbers differ."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stage2_prune.pruning.tokens import Merge, Pruned


def outliers(scores: Float[Tensor, " patch"]) -> int:
    """Count the scores more than 1.5 interquartile ranges above the third quartile, as PruMerge and TRIM count outliers.

    The released code keeps a share of all patches: where the share as a float does not multiply back, the count is one lower.
    """
    values = scores.float().cpu().numpy()
    first, third = np.percentile(values, [25, 75])
    above = int((values > third + 1.5 * (third - first)).sum())
    return int(len(values) * (above / len(values)))


def ragged(weights: Sequence[Float[Tensor, "_ row"]]) -> Pruned:
    """Stack images that keep different numbers of tokens, in raw space; rows of zeros fill up to the largest number."""
    counts = [len(image) for image in weights]
    filled = [F.pad(image, (0, 0, 0, max(counts) - len(image))) for image in weights]
    return Pruned(merge=Merge(torch.stack(filled), "raw"), counts=torch.tensor(counts, device=weights[0].device))
