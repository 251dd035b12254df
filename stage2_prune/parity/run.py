"""Prove on demand that four ways to the answer give the same bits; no config has to be edited for this.

The exact batches of an evaluation are written to a folder, `python -m stage1_extract reference` answers them with the
full model (the only process that holds a vision tower, and it ends before a language model is loaded here), then the
other modes answer them from the store.
"""

import json
from collections.abc import Sequence
from itertools import combinations

import click

from configs.experiment import Experiment
from configs.files.atomic import write_atomically
from stage2_prune.errors import PrunerMisused
from stage2_prune.evaluation.batching import Batching
from stage2_prune.evaluation.cells import available, configured_pruners
from stage2_prune.find_family import open_text
from stage2_prune.language.assemble import lay_out
from stage2_prune.parity.answers import compare_answers
from stage2_prune.parity.differences import Pair
from stage2_prune.parity.findings import AskedBatch, Findings, ParityScorer
from stage2_prune.parity.full_model import ask_full_model
from stage2_prune.parity.modes import MODES, reasons
from stage2_prune.parity.report import as_json, as_text
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.trained_inside import TrainedInside
from stage2_prune.session.ask import prepare
from stage2_prune.session.batch_size import settled
from stage2_prune.session.choose import choose
from stage2_prune.session.features import Features
from stage2_prune.session.session import open_features
from store.log.scratch import scratch
from store.questions.exchange import BatchImages
from store.questions.question import Question

IDENTICAL, INCOMPLETE, DIFFERENT = 0, 3, 4
"""Exit codes of the command."""


def run(experiment: Experiment, limit: int | None, as_json_text: bool) -> int:
    """Compare the four modes on the evaluation's split, print the result, and write `parity.json`.

    Args:
        experiment: the config.
        limit: the largest number of questions; None for the whole split.
        as_json_text: whether to print JSON instead of the table.

    Returns:
        The exit code: 0 if all bits are the same, 4 if something differs, 3 if a mode could not run.

    Raises:
        StoreMissing: (exit 5) if there is no store.
        StoreMismatch: (exit 4) if the fingerprints already disagree.
        ReferenceFailed: with the exit code of the full model's process.
    """
    label, pruner = soft_pruner(experiment)
    questions = choose(experiment, experiment.eval.split, limit)
    features, without = _open(experiment, pruner)
    asked, excluded = features.answerable(questions)
    batches = _batches(experiment, features, asked)
    modes = [mode for mode in MODES if mode not in without]
    findings = Findings(
        experiment.store_location,
        batches,
        excluded,
        without,
        right=dict.fromkeys(modes, 0),
        pairs=[Pair(a, b) for a, b in combinations(modes, 2)],
        scorer=ParityScorer(label, pruner.parameters()),
    )
    experiment.run_dir.mkdir(parents=True, exist_ok=True)
    with scratch("parity", experiment.run_dir) as folder:
        findings.notes += ask_full_model(experiment, features, batches, folder)
        compare_answers(experiment, features, pruner, findings, folder)
    result = as_json(findings)
    write_atomically(experiment.run_dir / "parity.json", json.dumps(result, indent=2) + "\n")
    click.echo(json.dumps(result) if as_json_text else as_text(findings))
    return {True: IDENTICAL, None: INCOMPLETE, False: DIFFERENT}[findings.identical]


def soft_pruner(experiment: Experiment) -> tuple[str, Pruner]:
    """Choose the method whose mask is overridden: the method that `train.pruner` names, else the first that takes a budget.

    Of the methods inside the language model only trained ones have a mask that could be multiplied into hidden states; the
    others are left out.

    Raises:
        PrunerMisused: (exit 2) if no method has a mask.
    """
    methods, _ = available(configured_pruners(experiment), experiment.model)
    configured = {
        label: pruner
        for label, pruner in methods.items()
        if pruner.place == "before_llm" or isinstance(pruner, TrainedInside)
    }
    if not configured:
        raise PrunerMisused(
            "expected a method that prunes before the language model, or a trained one inside it, prune.methods has none: add "
            "one, such as keep_all"
        )
    if experiment.train.pruner in configured:
        return experiment.train.pruner, configured[experiment.train.pruner]
    budgeted = ((label, pruner) for label, pruner in configured.items() if pruner.budget != "fixed")
    return next(budgeted, next(iter(configured.items())))


def _open(experiment: Experiment, pruner: Pruner) -> tuple[Features, dict[str, str]]:
    """Open the store with every array that it has and the modes read; name the modes that the store cannot serve."""
    features = open_features(experiment, (), exact=True, optional=pruner.needs | {"raw"})
    return features, reasons(features, pruner)


def _batches(experiment: Experiment, features: Features, asked: Sequence[Question]) -> list[AskedBatch]:
    """Lay out the batches of an evaluation that keeps every visual token."""
    text, patches = open_text(experiment.model), features.patches
    batches: list[AskedBatch] = []
    for questions in Batching.of(settled(experiment)).cut(asked):
        prompts = prepare(text, questions, experiment.data.post_prompt).prompts
        layout = lay_out(text, prompts, [patches] * len(prompts), None, patches, "compact")
        batches.append(AskedBatch(questions, layout, _images_of(features, questions)))
    return batches


def _images_of(features: Features, questions: Sequence[Question]) -> BatchImages:
    """List the distinct images of a batch, in the order in which `Features.batches` reads them."""
    rows = [features.row(question) for question in questions]
    names = dict(reversed([(row, question.image) for row, question in zip(rows, questions, strict=True)]))
    distinct = list(dict.fromkeys(rows))
    return BatchImages(
        images=tuple(names[row] for row in distinct),
        sha256=tuple(features.store.ids.sha_of_row(row) for row in distinct),
        of_question=tuple(distinct.index(row) for row in rows),
    )
