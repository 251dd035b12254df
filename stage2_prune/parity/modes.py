"""The four ways from an image to an answer that parity compares, all on one batch layout.

baseline       the full model on pixel values, run by `stage1_extract reference`
emb_direct     the store's projected features
emb_replaced   the store's raw features through the store's projector
soft_pruning   as emb_replaced, times the configured pruner's mask, overridden to all ones after real scoring
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.language.assemble import Layout, fill
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.features import FeatureBatch, Features
from stage2_prune.session.prune_batch import Reader, prune_batch

BASELINE, EMB_DIRECT, EMB_REPLACED, SOFT_PRUNING = MODES = ("baseline", "emb_direct", "emb_replaced", "soft_pruning")


@dataclass(frozen=True)
class Outcome:
    """What one mode made of one batch."""

    features: Float[Tensor, "image patch embed"]
    """What goes into the image slots."""
    logits: Float[Tensor, "question step vocab"]
    tokens: Int[Tensor, "question step"]


def reasons(features: Features, pruner: Pruner) -> dict[str, str]:
    """The modes that this store cannot run, and why."""
    store = features.store
    found: dict[str, str] = {}
    if "projected" not in store.arrays:
        found[EMB_DIRECT] = "the store has no array `projected`: make it with `python -m store derive projected`"
    if "raw" not in store.arrays or features.projector is None:
        lacks = "array `raw`" if "raw" not in store.arrays else "projector"
        why = f"the store has no {lacks}, so nothing can be projected again"
        found |= {EMB_REPLACED: why, SOFT_PRUNING: why}
    elif absent := sorted(pruner.needs - store.arrays.keys()):
        found[SOFT_PRUNING] = f"the pruner reads {', '.join(absent)}, which the store does not have"
    return found


def slot_features(
    batch: FeatureBatch, pruner: Pruner, keep: int, reader: Reader, without: Mapping[str, str]
) -> dict[str, Float[Tensor, "image patch embed"]]:
    """The features of every stage-2 mode that is not in `without`."""
    found: dict[str, Tensor] = {}
    if EMB_DIRECT not in without:
        found[EMB_DIRECT] = batch.projected
    if EMB_REPLACED not in without:
        found[EMB_REPLACED] = reader.features.project(batch.tokens.arrays["raw"])
    if SOFT_PRUNING not in without:
        replaced = found[EMB_REPLACED]
        ones = all_ones(pruner, batch, keep, reader)
        found[SOFT_PRUNING] = replaced * ones.to(replaced.dtype)[..., None]
    return found


def all_ones(pruner: Pruner, batch: FeatureBatch, keep: int, reader: Reader) -> Float[Tensor, "image patch"]:
    """The pruner's real decision at `keep`, with every entry overridden to 1."""
    if isinstance(pruner, TrainedPruner):
        return torch.ones_like(pruner.soft(batch.tokens.only(pruner.needs), keep))
    prune_batch(pruner, batch, keep, reader)
    return torch.ones(batch.projected.shape[:2], device=batch.projected.device)


def answer(
    language: Language, layout: Layout, batch: FeatureBatch, visual: Float[Tensor, "image patch embed"], steps: int
) -> Outcome:
    """Generate from features in the image slots: the code of every stage-2 mode, and of an evaluation."""
    said = generate(language, fill(language, layout, visual[batch.of_question]), steps)
    return Outcome(visual, said.logits, said.tokens)
