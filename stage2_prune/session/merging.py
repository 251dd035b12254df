"""Make merged visual tokens from the weights that a pruner returns."""

import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.tokens import Merge, Project, Pruned
from stage2_prune.session.features import FeatureBatch


def make_merged(pruned: Pruned, batch: FeatureBatch, project: Project) -> Pruned:
    """Replace a pruner's merge weights by the tokens that they make; a selection is returned unchanged.

    Sums are taken in float32, image by image, and rounded once to the features' dtype.

    Args:
        pruned: the result of a pruner.
        batch: the batch that was pruned.
        project: the store's projector, for weights over raw features.

    Raises:
        PrunerMisused: (exit 2) if a token has another number of weights than there are rows.
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
    tokens = project(merged) if pruned.merge.space == "raw" else merged
    return Pruned(pruned.index, tokens=tokens, counts=pruned.counts)


def _rows(merge: Merge, batch: FeatureBatch) -> Float[Tensor, "image row width"]:
    """Return the rows that the weights belong to: patches, and in raw space also the CLS row if there is a weight for it."""
    if merge.space == "projected":
        return batch.projected
    arrays = batch.tokens.arrays
    needed = {"raw"} if merge.weights.shape[-1] == batch.tokens.patches else {"raw", "cls_hidden"}
    if not needed <= arrays.keys():
        raise PrunerMisused(
            f"a merge of these rows needs {' and '.join(sorted(needed))}: name them in the pruner's `needs`"
        )
    return torch.cat([arrays["raw"], arrays["cls_hidden"][:, None]], 1) if "cls_hidden" in needed else arrays["raw"]
