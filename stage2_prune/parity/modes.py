"""Run the four ways from an image to an answer that parity compares, all on one batch layout.

baseline       the full model on pixel values, run by `stage1_extract reference`
emb_direct     the store's projected features
emb_replaced   the store's raw features through the store's projector
soft_pruning   as emb_replaced, times the configured pruner's mask, overridden to all ones after real scoring; a trained method
               inside the language model scores at each of its layers too (stage2_prune/parity/inside.py)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.language.assemble import PromptLayout, fill
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.features import FeatureBatch, Features
from stage2_prune.session.prune_batch import (
    ABOUT_QUESTIONS,
    QuestionReader,
    by_length,
    per_question,
    prune_batch,
    with_projector,
)

BASELINE, EMB_DIRECT, EMB_REPLACED, SOFT_PRUNING = MODES = ("baseline", "emb_direct", "emb_replaced", "soft_pruning")


@dataclass(frozen=True)
class Outcome:
    """The result of one mode on one batch."""

    features: Float[Tensor, "image patch embed"]
    """The features in the image slots."""
    logits: Float[Tensor, "question step vocab"]
    tokens: Int[Tensor, "question step"]


def reasons(features: Features, pruner: Pruner) -> dict[str, str]:
    """Name the modes that this store cannot run, each with the reason."""
    store = features.store
    without: dict[str, str] = {}
    if "projected" not in store.arrays:
        without[EMB_DIRECT] = "the store has no array `projected`: make it with `python -m store derive projected`"
    if "raw" not in store.arrays or features.projector is None:
        lacks = "array `raw`" if "raw" not in store.arrays else "projector"
        reason = f"the store has no {lacks}, so nothing can be projected again"
        without |= {EMB_REPLACED: reason, SOFT_PRUNING: reason}
    elif absent := sorted(pruner.needs - store.arrays.keys()):
        without[SOFT_PRUNING] = f"the pruner reads {', '.join(absent)}, which the store does not have"
    return without


def slot_features(
    batch: FeatureBatch, pruner: Pruner, keep: int, reader: QuestionReader, without: Mapping[str, str]
) -> dict[str, Float[Tensor, "image patch embed"]]:
    """Make the features for the image slots, in every stage-2 mode that is not in `without`."""
    slots: dict[str, Tensor] = {}
    if EMB_DIRECT not in without:
        slots[EMB_DIRECT] = batch.projected
    if EMB_REPLACED not in without:
        slots[EMB_REPLACED] = reader.features.project(batch.tokens.arrays["raw"])
    if SOFT_PRUNING not in without:
        replaced = slots[EMB_REPLACED]
        ones = all_ones(pruner, batch, keep, reader)
        slots[SOFT_PRUNING] = replaced * ones.to(replaced.dtype)[..., None]
    return slots


def all_ones(pruner: Pruner, batch: FeatureBatch, keep: int, reader: QuestionReader) -> Float[Tensor, "image patch"]:
    """Let the pruner decide at `keep`, then override every entry of its decision to 1."""
    if isinstance(pruner, TrainedPruner):
        batch = with_projector(pruner, batch, reader)
        if pruner.reads & ABOUT_QUESTIONS:
            for _, tokens in by_length(pruner, per_question(batch), range(len(batch.questions)), reader):
                pruner.soft(tokens.only(pruner.needs, pruner.reads), keep)
        else:
            return torch.ones_like(pruner.soft(batch.tokens.only(pruner.needs, pruner.reads), keep))
    else:
        prune_batch(pruner, batch, keep, reader)
    return torch.ones(batch.projected.shape[:2], device=batch.projected.device)


def answer(
    language: Language,
    layout: PromptLayout,
    batch: FeatureBatch,
    visual: Float[Tensor, "image patch embed"],
    steps: int,
) -> Outcome:
    """Generate from features in the image slots, with the code of every stage-2 mode and of an evaluation."""
    answers = generate(language, fill(language, layout, visual[batch.of_question]), steps)
    return Outcome(visual, answers.logits, answers.tokens)
