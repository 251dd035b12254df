"""The proof on demand: four ways to the answer, the same bits. No config is edited for it and none is reverted.

The exact batches of an evaluation are written to a folder, `python -m stage1_extract reference` answers them with the
full model (the only process that holds a vision tower, and it ends before a language model is loaded here), then the
other modes answer them from the store.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from configs.experiment import Experiment
from configs.files.atomic import write_atomically
from configs.progress import ProgressBar
from stage2_prune.errors import NotTrained, PrunerMisused, ReferenceFailed
from stage2_prune.evaluation.cells import available, configured_pruners
from stage2_prune.find_family import open_language, open_text
from stage2_prune.language.assemble import lay_out
from stage2_prune.language.language import Language
from stage2_prune.language.score import is_right
from stage2_prune.parity.differences import Pair
from stage2_prune.parity.findings import Batch, Findings, Scorer
from stage2_prune.parity.modes import (
    BASELINE,
    EMB_REPLACED,
    MODES,
    SOFT_PRUNING,
    Outcome,
    answer,
    reasons,
    slot_features,
)
from stage2_prune.parity.report import as_json, as_text
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session import weights
from stage2_prune.session.ask import prepare
from stage2_prune.session.choose import choose
from stage2_prune.session.features import FeatureBatch, Features
from stage2_prune.session.prune_batch import Reader
from stage2_prune.session.session import check_width, open_features
from store.checkpoint.text import Text
from store.checkpoint.weights import weights_digest
from store.layout.fingerprint import differences
from store.log.scratch import scratch
from store.questions.exchange import ENVIRONMENT, Asked, Order, Prompts, read_reference, write_order
from store.questions.question import Question
from store.reading.reader import FeatureStore

IDENTICAL, INCOMPLETE, DIFFERENT = 0, 3, 4
"""Exit codes."""


def run(experiment: Experiment, limit: int | None, as_json_text: bool) -> int:
    """Compare the four modes on the evaluation's split; prints the table, writes `parity.json`.

    Returns 0 when everything is the same bits, 4 when something differs, 3 when a mode could not run. Raises
    StoreMissing (exit 5), StoreMismatch (exit 4) where fingerprints already disagree, ReferenceFailed with the exit code
    of the full model's process.
    """
    label, pruner = soft_pruner(experiment)
    questions = choose(experiment, experiment.eval.split, limit)
    features, without = _open(experiment, pruner)
    asked, excluded = features.answerable(questions)
    batches = _batches(experiment, features, asked)
    pairs = [Pair(a, b) for a, b in combinations([mode for mode in MODES if mode not in without], 2)]
    right = dict.fromkeys((mode for mode in MODES if mode not in without), 0)
    findings = Findings(
        experiment.store_location, batches, excluded, without, right, pairs, Scorer(label, pruner.parameters())
    )
    experiment.run_dir.mkdir(parents=True, exist_ok=True)
    with scratch("parity", experiment.run_dir) as folder:
        findings.notes += _ask_full_model(experiment, features, batches, folder)
        _compare(experiment, features, label, pruner, findings, folder)
    result = as_json(findings)
    write_atomically(experiment.run_dir / "parity.json", json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps(result) if as_json_text else as_text(findings))
    return {True: IDENTICAL, None: INCOMPLETE, False: DIFFERENT}[findings.identical]


def soft_pruner(experiment: Experiment) -> tuple[str, Pruner]:
    """The method whose mask is overridden: the one that `train.pruner` names, else the first that takes a budget.

    Methods inside the language model are left out: they have no mask over the features that it could multiply in.
    """
    methods, _ = available(configured_pruners(experiment), experiment.model)
    configured = {label: pruner for label, pruner in methods.items() if pruner.place == "before_llm"}
    if not configured:
        raise PrunerMisused(
            "expected a method that prunes before the language model, prune.methods has none: add one, such as keep_all"
        )
    if experiment.train.pruner in configured:
        return experiment.train.pruner, configured[experiment.train.pruner]
    return next(
        ((label, one) for label, one in configured.items() if one.budget != "fixed"), next(iter(configured.items()))
    )


def _open(experiment: Experiment, pruner: Pruner) -> tuple[Features, dict[str, str]]:
    """The store with all that the modes read, as far as it is there, and the modes that it cannot run."""
    stored = FeatureStore.open(experiment.store_location).arrays
    needs = (pruner.needs | {"raw"}) & stored.keys()
    features = open_features(experiment, needs, exact=True)
    return features, reasons(features, pruner)


def _batches(experiment: Experiment, features: Features, asked: Sequence[Question]) -> list[Batch]:
    """The batches of an evaluation that keeps every visual token."""
    text, size, patches = open_text(experiment.model), experiment.eval.batch_size, features.patches
    batches: list[Batch] = []
    for start in range(0, len(asked), size):
        questions = asked[start : start + size]
        prompts = prepare(text, questions, experiment.data.post_prompt).prompts
        layout = lay_out(text, prompts, [patches] * len(prompts), None, patches, "compact")
        batches.append(Batch(list(questions), layout, _images_of(features, questions)))
    return batches


def _images_of(features: Features, questions: Sequence[Question]) -> Asked:
    """The distinct images of a batch, in the order in which `Features.batches` has them."""
    rows = [features.row(question) for question in questions]
    names = dict(reversed([(row, question.image) for row, question in zip(rows, questions, strict=True)]))
    distinct = list(dict.fromkeys(rows))
    return Asked(
        images=tuple(names[row] for row in distinct),
        sha256=tuple(features.store.ids.sha_of_row(row) for row in distinct),
        of_question=tuple(distinct.index(row) for row in rows),
    )


def _ask_full_model(experiment: Experiment, features: Features, batches: Sequence[Batch], folder: Path) -> list[str]:
    """Let the reference process answer all batches into `folder`; returns what differs between its machine and the
    store's.
    """
    text = open_text(experiment.model)
    model, plan = experiment.model, features.store.plan
    order = Order(
        checkpoint=str(Path(model.checkpoint).resolve()) if Path(model.checkpoint).is_dir() else model.checkpoint,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device,
        trust_remote_code=model.trust_remote_code,
        image_root=experiment.data.images.resolve(),
        image_format=experiment.data.format,
        image_column=experiment.data.image_column,
        follow_links=experiment.data.follow_links,
        by_content=plan.identity == "content",
        max_pixels=experiment.extract.max_pixels,
        max_new_tokens=experiment.eval.max_new_tokens,
        eos_token_ids=text.eos_token_ids,
        pad_token_id=text.pad_token_id,
        batches=tuple(batch.asked for batch in batches),
    )
    layouts = [batch.layout for batch in batches]
    write_order(folder, order, [Prompts(one.input_ids, one.attention_mask, one.position_ids) for one in layouts])
    click.echo(_price(features, batches, folder.parent), err=True)
    done = subprocess.run([sys.executable, "-m", "stage1_extract", "reference", str(folder)], stdout=sys.stderr)
    if done.returncode:
        raise ReferenceFailed(done.returncode)
    ran_on = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    return _numeric_notes(features.store.fingerprint(features.source).numeric, ran_on)


def _price(features: Features, batches: Sequence[Batch], where: Path) -> str:
    """What the proof costs on disk, while it runs."""
    arrays = [features.store.arrays[name].row_bytes for name in ("raw", "projected") if name in features.store.arrays]
    images = sum(len(batch.asked.images) for batch in batches)
    questions = sum(len(batch.questions) for batch in batches)
    return (
        f"parity: {questions} questions about {images} images; the full model's features take "
        f"{images * sum(arrays) / 1e9:.2f} GB in {where} until it ends"
    )


def _numeric_notes(stored: Mapping[str, Any], ran_on: Mapping[str, Any]) -> list[str]:
    """Why bits may differ although everything means the same: other versions, another device, another batch."""
    ignored = {"tower_batch", "batch_invariant"}
    ours, theirs = ({k: v for k, v in one.items() if k not in ignored} for one in (stored, ran_on))
    notes = [
        f"the store was made elsewhere ({one.field}: {one.expected!r}, now {one.found!r})"
        for one in differences(ours, theirs)
        if one.field != "raw"
    ]
    notes += [
        f"`projected` was derived from features made elsewhere ({k}: {v!r})" for k, v in ours.get("raw", {}).items()
    ]
    if not stored.get("batch_invariant", True):
        notes.append(
            f"the store was encoded {stored['tower_batch']} images at a time on a device where that changes bits: "
            "parity may be only close; extract with --tower-batch 1 for equal bits"
        )
    return notes


def _compare(
    experiment: Experiment, features: Features, label: str, pruner: Pruner, findings: Findings, folder: Path
) -> None:
    """All modes on all batches, one batch at a time."""
    language = open_language(experiment.model)
    check_width(features, language)
    if SOFT_PRUNING not in findings.without:
        pruner = _bound(experiment, features, label, pruner, language, findings)
    keep, reader = _keep(experiment, pruner, features.patches), Reader(experiment, features, language)
    findings.scorer.keep = keep
    steps = experiment.eval.max_new_tokens
    batches = features.batches([batch.questions for batch in findings.batches])
    bar = ProgressBar(findings.batches, "parity", unit="batches")
    with torch.no_grad():
        for number, (planned, batch) in enumerate(zip(bar, batches, strict=True)):
            full = read_reference(folder, number, language.device)
            outcomes = {BASELINE: Outcome(full.image_features, full.logits, full.tokens)}
            made = slot_features(batch, pruner, keep, reader, findings.without)
            outcomes |= {mode: answer(language, planned.layout, batch, visual, steps) for mode, visual in made.items()}
            for pair in findings.pairs:
                pair.add(outcomes)
            _count_right(findings, language, batch, outcomes)
            findings.shapes |= _shapes(full.raw, outcomes)


def _keep(experiment: Experiment, pruner: Pruner, patches: int) -> int:
    if pruner.budget == "fixed":
        return pruner.fixed_keep(patches)
    return patches if pruner.adaptive else min(experiment.train.val_keep, patches)


def _bound(
    experiment: Experiment, features: Features, label: str, pruner: Pruner, language: Language, findings: Findings
) -> Pruner:
    """The pruner with its trained weights; with fresh ones where there are none, as its decision is overridden anyway."""
    if not isinstance(pruner, TrainedPruner):
        return pruner
    spec = features.spec(pruner, language.width)
    try:
        belongs_to = weights.belongings(features, pruner, weights_digest(language.model.state_dict()))
        pruner, _ = weights.load(pruner, label, spec, weights.folder(experiment.run_dir, label, pruner), belongs_to)
        findings.scorer.weights = "trained"
    except NotTrained:
        if pruner.weights is not None:
            raise
        findings.notes.append(f"{label} is not trained yet: its mask came from a freshly seeded module")
        findings.scorer.weights = "freshly seeded"
        pruner = pruner.fresh(spec, experiment.train.seed)
    return pruner.with_module(pruner.module.to(features.device))


def _count_right(findings: Findings, text: Text, batch: FeatureBatch, outcomes: Mapping[str, Outcome]) -> None:
    for mode, outcome in outcomes.items():
        said = zip(text.decode(outcome.tokens), batch.questions, strict=True)
        findings.right[mode] += sum(is_right(one, question.answers) for one, question in said if question.can_be_scored)


def _shapes(raw: Tensor | None, outcomes: Mapping[str, Outcome]) -> dict[str, tuple[int, ...]]:
    """Shapes of one image's features, by the names that the hunt gave them."""
    named = {"vision_in_emb": outcomes[BASELINE].features}
    if raw is not None:
        named = {"vision_features_raw": raw} | named
    if EMB_REPLACED in outcomes:
        named["vision_reprojected"] = outcomes[EMB_REPLACED].features
    return {name: tuple(tensor.shape[1:]) for name, tensor in named.items()}
