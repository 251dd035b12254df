"""The rules for methods that decide by themselves how many tokens an image keeps."""

import torch

from stage2_prune.contract.rule import Broken, Case, Rule, chosen, pruned, require, same, shown
from stage2_prune.pruning.pruner import Pruner


def _reported(pruner: Pruner, case: Case) -> None:
    """Check that the reported counts are the counts of the returned tokens."""
    tokens = case.tokens()
    result = pruned(pruner, tokens, _asked(pruner, tokens.patches))
    counts = result.counts
    if counts is None:
        raise Broken(f"{case}: it returned no `counts`")
    returned = f"{tuple(counts.shape)} of {str(counts.dtype).removeprefix('torch.')}"
    require(
        counts.shape == (case.images,) and counts.dtype == torch.long,
        f"{case}: expected counts of the shape {(case.images,)} in int64, came {returned}",
    )
    require(
        ((counts >= 1) & (counts <= tokens.patches)).all(),
        f"{case}: counts {counts.tolist()} of {tokens.patches} patches",
    )
    require(result.kept == counts.max(), f"{case}: {result.kept} tokens where the largest count is {int(counts.max())}")
    for image, count in enumerate(counts.tolist()):
        where = f"{case}, image {image} with a count of {count}"
        if result.merge is not None:
            weights = result.merge.weights[image]
            require((weights[:count] != 0).any(-1).all(), f"{where}: a token is made of nothing")
            require((weights[count:] == 0).all(), f"{where}: a token stands behind the count")
        if result.index is not None:
            kept = result.index[image, :count]
            require((kept.sort().values.diff() > 0).all(), f"{where}: it kept {shown([kept])}, one patch twice")


def _alone(pruner: Pruner, case: Case) -> None:
    """Check that an image keeps as many tokens alone as in a batch, and the same ones."""
    tokens = case.tokens()
    keep = _asked(pruner, tokens.patches)
    together = pruned(pruner, tokens, keep)
    for image in range(case.images):
        alone, among = pruned(pruner, tokens.one(image), keep), chosen(together, image)
        own = chosen(alone, 0)
        require(
            same(own, among),
            f"{case}, image {image}: alone it kept {shown(own)}, among {case.images} {shown(among)}",
        )
        require(
            alone.kept == len(own[0]),
            f"{case}, image {image}: alone it returned padding behind its {len(own[0])} tokens",
        )


def _asked(pruner: Pruner, patches: int) -> int:
    """Return what `prune` is called with: half of the patches, for a method that meets a budget in the mean over images."""
    return pruner.asked_tokens(patches, -(-patches // 2))


REPORTED = Rule("What is reported is what was returned", _reported)
ALONE = Rule("An image keeps as many tokens alone as in a batch, and the same ones", _alone)
