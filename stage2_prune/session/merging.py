"""Merged visual tokens, made from the weights that a pruner returns."""

import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.tokens import Merge, Project, Pruned
from stage2_prune.session.features import FeatureBatch


def make_merged(pruned: Pruned, batch: FeatureBatch, project: Project) -> Pruned:
    """With the tokens that a merge stands for; a selection as it is.

    Sums are taken in float32, image by image, and rounded once to the features' dtype. Raises PrunerMisused for weights
    over more rows than there are.
    """
    if pruned.merge is None:
        return pruned
    rows = _rows(pruned.merge, batch)
    if pruned.merge.weights.shape[-1] != rows.shape[1]:
        raise PrunerMisused(
            f"expected weights for each of {rows.shape[1]} {pruned.merge.space} rows, got {pruned.merge.weights.shape[-1]}: "
            "one per patch, and in raw space one more for the CLS row"
        )
    sums = [(weights @ image.float()).to(rows.dtype) for weights, image in zip(pruned.merge.weights, rows, strict=True)]
    merged = torch.stack(sums)
    made = project(merged) if pruned.merge.space == "raw" else merged
    return Pruned(pruned.index, tokens=made, counts=pruned.counts)


def _rows(merge: Merge, batch: FeatureBatch) -> Float[Tensor, "image row width"]:
    """What the weights are of."""
    if merge.space == "projected":
        return batch.projected
    arrays = batch.tokens.arrays
    needed = {"raw"} if merge.weights.shape[-1] == batch.tokens.patches else {"raw", "cls_hidden"}
    if not needed <= arrays.keys():
        raise PrunerMisused(
            f"a merge of these rows needs {' and '.join(sorted(needed))}: name them in the pruner's `needs`"
        )
    return torch.cat([arrays["raw"], arrays["cls_hidden"][:, None]], 1) if "cls_hidden" in needed else arrays["raw"]
