"""Non-maximum suppression: of patches that repeat each other the best one survives."""

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor


def survivors(repeats: Bool[Tensor, "patch patch"]) -> Bool[Tensor, " patch"]:
    """Return which patches, given by falling score, repeat no earlier survivor; the result is on the CPU."""
    suppresses = repeats.triu(1).cpu().numpy()
    survive = np.ones(len(suppresses), dtype=bool)
    for patch in range(len(suppresses)):
        if survive[patch]:
            survive &= ~suppresses[patch]
    return torch.from_numpy(survive)
