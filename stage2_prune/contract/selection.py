"""The rules for methods that select patches before the language model."""

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.contract.rule import Broken, Case, Rule, pruned, require, shown
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


def _budget(pruner: Pruner, case: Case) -> None:
    """Check the number of patches, that they are distinct, and their order."""
    tokens = case.tokens()
    for keep in case.budgets(pruner):
        index = _index_of(pruner, tokens, keep, str(case))
        returned = f"{tuple(index.shape)} of {str(index.dtype).removeprefix('torch.')}"
        require(
            index.shape == (case.images, keep) and index.dtype == torch.long,
            f"{case}, keep {keep}: expected indices of the shape {(case.images, keep)} in int64, came {returned}",
        )
        for image, kept in enumerate(index):
            where, ascending = f"{case}, keep {keep}, image {image}: it kept {shown([kept])}", kept.sort().values
            require(((kept >= 0) & (kept < tokens.patches)).all(), f"{where}, patches are 0 to {tokens.patches - 1}")
            require((ascending.diff() > 0).all(), f"{where}, one patch twice")
            if pruner.order == "raster" and pruner == type(pruner)():  # quirks of a method may change its order
                require(
                    torch.equal(kept, ascending),
                    f'{where}, not ascending: sort the indices, or say `order = "own"` and document the order',
                )


def _everything(pruner: Pruner, case: Case) -> None:
    """Check that every patch is kept where all are asked for."""
    tokens = case.tokens()
    if pruner.budget == "fixed":
        return
    index = _index_of(pruner, tokens, tokens.patches, str(case))
    for image, kept in enumerate(index):
        require(
            kept.sort().values.equal(torch.arange(tokens.patches)),
            f"{case}, keep {tokens.patches}, image {image}: it kept {shown([kept])}",
        )


def _nested(pruner: Pruner, case: Case) -> None:
    """Check that the first k of one ranking of all patches are the choice at every k."""
    tokens = case.tokens()
    whole = pruner.ranking(tokens.only(pruner.needs, pruner.reads), tokens.patches)
    for keep in case.budgets(pruner):
        chosen, ranked = _index_of(pruner, tokens, keep, str(case)), pruner.arrange(whole[:, :keep])
        for image, (kept, first) in enumerate(zip(chosen, ranked, strict=True)):
            require(
                torch.equal(kept, first),
                f"{case}, keep {keep}, image {image}: it kept {shown([kept])}, the first {keep} of its ranking are "
                f"{shown([first])}: rank alike for every `keep`, or leave `nested` out",
            )


def _index_of(pruner: Pruner, tokens: VisualTokens, keep: int, where: str) -> Int[Tensor, "image kept"]:
    """Prune tokens, and return the index, which a selection always gives."""
    index = pruned(pruner, tokens, keep).index
    if index is None:
        raise Broken(f"{where}, keep {keep}: `prune` returned no index")
    return index


BUDGET = Rule("Every budget is kept to the token, with distinct patches in order", _budget)
NESTED = Rule("The first k of one ranking are the choice at every budget k", _nested)
EVERYTHING = Rule("Every patch is kept where all are asked for", _everything)
