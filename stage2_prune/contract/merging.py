"""The rules for methods that merge patches before the language model."""

from dataclasses import replace

import torch

from stage2_prune.contract.rule import Broken, Case, Rule, chosen, pruned, require, same, shown
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.merging import make_merged


def _budget(pruner: Pruner, case: Case) -> None:
    """Check the number of tokens and what each is made of."""
    tokens = case.tokens()
    for keep in case.budgets(pruner):
        check_merge(pruner, tokens, pruned(pruner, tokens, keep), keep, f"{case}, keep {keep}")


def check_merge(pruner: Pruner, tokens: VisualTokens, result: Pruned, keep: int, where: str) -> None:
    """Check the weights of a result and, if it has an index, the places of its tokens."""
    merge = merge_of(result, where)
    weights, images = merge.weights, len(tokens.image_ids)
    rows = tokens.patches + (weights.shape[2] > tokens.patches)
    returned = f"{tuple(weights.shape)} of {str(weights.dtype).removeprefix('torch.')}"
    require(
        weights.shape == (images, keep, rows) and weights.dtype == torch.float32,
        f"{where}: expected weights of the shape {(images, keep, tokens.patches)} in float32, came {returned}",
    )
    require(torch.isfinite(weights).all(), f"{where}: a weight is not finite")
    require((weights != 0).any(-1).all(), f"{where}: a token is made of nothing")
    require(
        rows == tokens.patches or (merge.space == "raw" and "cls_hidden" in pruner.needs),
        f'{where}: {rows} rows are patches and CLS, which needs space="raw" and cls_hidden in `needs`',
    )
    require(merge.space == "projected" or "raw" in pruner.needs, f"{where}: it merges raw rows, and `needs` lacks raw")
    if result.index is None:
        return
    returned = f"{tuple(result.index.shape)} of {str(result.index.dtype).removeprefix('torch.')}"
    require(
        result.index.shape == (images, keep) and result.index.dtype == torch.long,
        f"{where}: expected an index of the shape {(images, keep)} in int64, came {returned}",
    )
    for image, kept in enumerate(result.index):
        stands = f"{where}, image {image}: its tokens stand at {shown([kept])}"
        require((kept.diff() > 0).all(), f"{stands}, not ascending or one place twice")
        require(((kept >= 0) & (kept < tokens.patches)).all(), f"{stands}, patches are 0 to {tokens.patches - 1}")
        parts = weights[image].gather(1, kept[:, None])
        require((parts > 0).all(), f"{stands}, and one stands where it has no part")


def merge_of(result: Pruned, where: str) -> Merge:
    """Return the merge of a result, which a merging method always gives."""
    if result.merge is None:
        raise Broken(f"{where}: expected a merge as at other budgets, came an index alone")
    return result.merge


def _placed(pruner: Pruner, case: Case) -> None:
    """Check that merged tokens stand somewhere, or that the method's positions are compact."""
    tokens = case.tokens()
    for keep in case.budgets(pruner):
        result = pruned(pruner, tokens, keep)
        require(
            result.merge is None or result.index is not None or pruner.positions == "compact",
            f"{case}, keep {keep}: merged tokens without an index have no original positions: write "
            '`positions = "compact"` in the class, or return an index too',
        )


def _in_float32(pruner: Pruner, case: Case) -> None:
    """Check that features in 16 bit are merged as their values in float32 are."""
    tokens = replace(case, dtype=torch.bfloat16).tokens()
    upcast = replace(tokens, arrays={name: array.float() for name, array in tokens.arrays.items()})
    for keep in case.budgets(pruner):
        half, full = pruned(pruner, tokens, keep), pruned(pruner, upcast, keep)
        check_merge(pruner, tokens, half, keep, f"{case}, keep {keep}, features in bfloat16")
        for image in range(case.images):
            some, others = chosen(half, image), chosen(full, image)
            require(
                same(some, others),
                f"{case}, keep {keep}, image {image}: bfloat16 features gave {shown(some)}, the same values in float32 gave "
                f"{shown(others)} or other weights",
            )


def _blank(pruner: Pruner, case: Case) -> None:
    """Check that an image of equal patches is merged to exactly the budget."""
    for value in (0, 1):
        tokens = case.tokens()
        blank = replace(tokens, arrays={name: torch.full_like(array, value) for name, array in tokens.arrays.items()})
        for keep in case.budgets(pruner):
            where = f"{case}, keep {keep}, every value {value}"
            weights = merge_of(pruned(pruner, blank, keep), where).weights
            require(weights.shape[1] == keep, f"{where}: it made {weights.shape[1]} tokens")
            require(torch.isfinite(weights).all(), f"{where}: a weight is not finite")
            again = merge_of(pruned(pruner, blank, keep), where).weights
            require(torch.equal(weights, again), f"{where}: other weights the second time")


def _made(pruner: Pruner, case: Case) -> None:
    """Check that the merged tokens can be made."""
    tokens = case.tokens()
    of_question = torch.arange(case.images)
    batch = FeatureBatch((), of_question, tokens.only(pruner.needs, pruner.reads), tokens.arrays["projected"])
    budgets = case.budgets(pruner)
    for keep in (budgets[0], budgets[-1]):
        result = pruned(pruner, tokens, keep)
        made = make_merged(result, batch, lambda raw: raw * 2)
        assert made.tokens is not None, "make_merged turns a merge into tokens"
        expected = (case.images, result.kept)
        shape = tuple(made.tokens.shape[:2])
        require(shape == expected, f"{case}, keep {keep}: expected tokens of the shape {expected}, came {shape}")
        require(torch.isfinite(made.tokens).all(), f"{case}, keep {keep}: a merged token is not finite")
        lost = result.counts is not None and (made.counts is None or not torch.equal(made.counts, result.counts))
        require(not lost, f"{case}, keep {keep}: the counts were lost")


BUDGET = Rule("Every budget is kept to the token, and every token is made of something", _budget)
PLACED = Rule("Merged tokens have an index, or the class says that positions are compact", _placed)
IN_FLOAT32 = Rule("Half-precision features are merged in float32", _in_float32)
BLANK = Rule("An image of equal patches is merged to exactly the budget", _blank)
MADE = Rule("The merged tokens can be made", _made)
