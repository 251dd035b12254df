"""Call a pruner, and refuse what is no result: the way by which all commands prune before the language model."""

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.returned import came, check_selected, source
from stage2_prune.pruning.tokens import Pruned, VisualTokens


def prune_images(pruner: Pruner, tokens: VisualTokens, keep: int) -> Pruned:
    """Prune tokens, of which the pruner sees only what it declares.

    Raises:
        PrunerMisused: (exit 2) if the pruner returns anything but a result for these images.
    """
    result = as_pruned(pruner, pruner.prune(tokens.only(pruner.needs, pruner.reads), keep))
    images = len(tokens.image_ids)
    for form in (result.index, None if result.merge is None else result.merge.weights):
        if form is not None and len(form) != images:
            raise PrunerMisused(
                f"expected a row for each of {images} images from {_written(pruner)}, got {came(form)}: return one for each"
            )
    if result.index is not None and result.index.dtype != torch.long:
        raise PrunerMisused(
            f"expected indices in int64 from {_written(pruner)}, got {came(result.index)}: convert them with `.long()`"
        )
    return result


def rank_images(pruner: Pruner, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
    """Let a nested pruner rank the patches of images, of which it sees only what it declares.

    Raises:
        PrunerMisused: (exit 2) if the pruner returns anything but `keep` patches for each image.
    """
    ranking = pruner.ranking(tokens.only(pruner.needs, pruner.reads), keep)
    check_selected(ranking, type(pruner), len(tokens.image_ids), keep)
    return ranking


def as_pruned(pruner: Pruner, result: object) -> Pruned:
    """Return what `prune` returned, if it is a Pruned; raise PrunerMisused (exit 2) for anything else."""
    if isinstance(result, Pruned):
        return result
    raise PrunerMisused(
        f"expected a Pruned from {source(type(pruner), 'prune')}, got {came(result)}: return Pruned(index), or "
        "Pruned(merge=Merge(weights, space))"
    )


def _written(pruner: Pruner) -> str:
    """Name the method that the pruner's author wrote."""
    return source(type(pruner), "select" if type(pruner).prune is Pruner.prune else "prune")
