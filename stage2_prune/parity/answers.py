"""Answer the batches of a parity run from the store, and compare the answers of all modes, one batch at a time."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from configs.experiment import Experiment
from configs.progress import ProgressBar
from stage2_prune.errors import NotTrained
from stage2_prune.find_family import open_language
from stage2_prune.language.language import Language
from stage2_prune.language.score import is_right
from stage2_prune.parity.findings import Findings
from stage2_prune.parity.inside import scored_inside
from stage2_prune.parity.modes import BASELINE, EMB_REPLACED, SOFT_PRUNING, Outcome, answer, slot_features
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session import weights
from stage2_prune.session.features import FeatureBatch, Features
from stage2_prune.session.prune_batch import QuestionReader
from stage2_prune.session.session import check_width
from store.checkpoint.text import TextSide
from store.questions.exchange import read_reference


def compare_answers(
    experiment: Experiment, features: Features, pruner: Pruner, findings: Findings, folder: Path
) -> None:
    """Answer all batches in every stage-2 mode, and gather in `findings` how the modes differ.

    Args:
        experiment: the config.
        features: the opened store.
        pruner: the method whose mask is overridden, as the config describes it.
        findings: what to compare; the results are added to it.
        folder: the folder of the full model's answers.
    """
    language = open_language(experiment.model)
    check_width(features, language)
    if SOFT_PRUNING not in findings.without:
        pruner = bound(experiment, features, pruner, language, findings)
    patches, reader = features.patches, QuestionReader(experiment, features, language)
    keep = pruner.asked_tokens(patches, min(experiment.train.val_keep, patches))
    findings.scorer.keep = keep
    steps = experiment.eval.max_new_tokens
    batches = features.batches([batch.questions for batch in findings.batches])
    bar = ProgressBar(findings.batches, "parity", unit="batches")
    with torch.no_grad():
        for number, (asked, batch) in enumerate(zip(bar, batches, strict=True)):
            full = read_reference(folder, number, language.device)
            outcomes = {BASELINE: Outcome(full.image_features, full.logits, full.tokens)}
            slots = slot_features(batch, pruner, keep, reader, findings.without)
            for mode, visual in slots.items():
                with scored_inside(language, pruner, asked.layout) if mode == SOFT_PRUNING else nullcontext():
                    outcomes[mode] = answer(language, asked.layout, batch, visual, steps)
            for pair in findings.pairs:
                pair.add(outcomes)
            _count_right(findings, language, batch, outcomes)
            findings.shapes |= _shapes(full.raw, outcomes)


def bound(experiment: Experiment, features: Features, pruner: Pruner, language: Language, findings: Findings) -> Pruner:
    """Give a trained pruner its weights; a pruner that was not trained yet gets fresh weights.

    Fresh weights are good enough, because the pruner's decision is overridden.
    """
    if not isinstance(pruner, TrainedPruner):
        return pruner
    label, spec = findings.scorer.label, features.spec(pruner, language.width)
    try:
        belongs_to = weights.belongings(features, pruner, language.digest)
        pruner, _ = weights.load(pruner, label, spec, weights.folder(experiment.run_dir, label, pruner), belongs_to)
        findings.scorer.weights = "trained"
    except NotTrained:
        if pruner.weights is not None:
            raise
        findings.notes.append(f"{label} is not trained yet: its mask came from a freshly seeded module")
        findings.scorer.weights = "freshly seeded"
        pruner = pruner.fresh(spec, experiment.train.seed)
    return pruner.with_module(pruner.module.to(features.device))


def _count_right(findings: Findings, text: TextSide, batch: FeatureBatch, outcomes: Mapping[str, Outcome]) -> None:
    """Add each mode's right answers to `findings`."""
    for mode, outcome in outcomes.items():
        answers = zip(text.decode(outcome.tokens), batch.questions, strict=True)
        findings.right[mode] += sum(
            is_right(answer, question.answers) for answer, question in answers if question.can_be_scored
        )


def _shapes(raw: Tensor | None, outcomes: Mapping[str, Outcome]) -> dict[str, tuple[int, ...]]:
    """Give the shapes of one image's features, by the names in the report's first lines."""
    named = {"vision_in_emb": outcomes[BASELINE].features}
    if raw is not None:
        named = {"vision_features_raw": raw} | named
    if EMB_REPLACED in outcomes:
        named["vision_reprojected"] = outcomes[EMB_REPLACED].features
    return {name: tuple(tensor.shape[1:]) for name, tensor in named.items()}
