"""Train one pruner through the frozen language model, from the store alone.

The epoch with the highest validation accuracy at `train.val_keep` tokens is chosen. Validation answers as an evaluation does,
by hard selection and greedy generation. Epoch 0, the freshly seeded module, is a candidate too:
`train.epochs: 0` saves it, and a training whose epochs are all worse loses against it.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.experiment import Experiment
from configs.load import save_resolved
from configs.progress import say
from stage2_prune.errors import PrunerMisused
from stage2_prune.evaluation.cells import configured_pruners
from stage2_prune.evaluation.predictions import alone
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session import weights
from stage2_prune.session.choose import choose_scored
from stage2_prune.session.identity import digest, of_questions, questions_as_now, require_same
from stage2_prune.session.session import Session, open_session
from stage2_prune.sharing.card import CARD, write_card
from stage2_prune.sharing.images import IMAGES, refuse_test_images, write_images
from stage2_prune.training.ranks import Ranks, joined_ranks
from stage2_prune.training.signals import guidance_for, identity_of
from stage2_prune.training.state import CURVES, LOG, STATE, read_state
from stage2_prune.training.trainer import Trainer
from store.questions.question import Question

CONFIG = "config.yaml"
HOW = {"images_at_once", "gradient_checkpointing", "teacher", "licence"}
"""Fields that say how the same loss is computed, or what the card says. The number of images can change bits; `auto` is what the
device carries. A cached teacher is recorded by what made it."""
ONCE = "train.images_at_once"


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Train the configured pruner and write the folder that stage2_prune/training/state.py draws.

    An interrupted training is resumed, and a finished training of the same settings is left as it is.

    Args:
        experiment: the config.
        overwrite: whether to replace a training of other settings.
        allow_foreign_device: whether to accept a store whose re-projection differs as little as another device explains.

    Returns:
        What `pruner.json` records about the training.

    Raises:
        OtherRun: (exit 2) for a training of other settings, unless `overwrite`.
        LeakedImages: (exit 2) if an image of the test split is among those of training or validation.
        PrunerMisused: (exit 2) for a method without weights.
        StoreMissing, NotExtracted: (exit 5) naming `make extract`.
        NonFiniteLoss: (exit 3) if the training diverges.
        MemoryTooSmall: (exit 7) if a GPU's memory does not carry a step.
        RunLocked: (exit 6) while another command trains this pruner.
        DamagedRun: (exit 4) for damaged files.
        NotTaught: (exit 5) naming `teach`, if signals of the unpruned model are missing.
    """
    with joined_ranks(experiment.model.device) as ranks:
        return _run(experiment, overwrite, allow_foreign_device, ranks)


def _run(experiment: Experiment, overwrite: bool, allow_foreign_device: bool, ranks: Ranks) -> dict[str, Any]:
    """Train as one of several ranks, of which the first alone locks and empties the folder."""
    label, pruner = _trainable(experiment)
    train, val = (_of_kinds(chosen.questions, experiment) for chosen in choose_scored(experiment, "train", "val"))
    session = open_session(ranks.placed(experiment), pruner.needs, allow_foreign_device)
    session = replace(session, experiment=experiment)  # files hold the config as it was given, not one rank's device
    session.features.check(label, pruner)
    train, val = _answerable(session, train), _answerable(session, val)
    refuse_test_images(session.features, experiment.data, {"train": train, "val": val})
    guidance = guidance_for(session, pruner, train)
    identity = _identity(session, pruner, train, val) | identity_of(guidance)
    folder = weights.folder(experiment.run_dir, label, pruner)
    with alone(folder) if ranks.first else nullcontext():
        if overwrite and ranks.first:
            for name in (STATE, weights.RECORD, weights.WEIGHTS, LOG, CURVES, CONFIG, IMAGES, CARD):
                (folder / name).unlink(missing_ok=True)
        ranks.wait()
        _refuse_other_training(session, folder, identity)
        if (folder / weights.RECORD).is_file():
            return _trained_already(session, label, pruner, folder, ranks)
        trainer = Trainer(session, label, pruner, train, val, identity, guidance, ranks)
        ranks.wait()  # every rank has read the state before the first one writes it again
        if ranks.first:
            save_resolved(experiment, folder)
            write_images(session.features, {"train": train, "val": val}, folder)
        trained = trainer.run()
        if ranks.first:
            write_card(folder)
        return trained


def _trained_already(session: Session, label: str, pruner: TrainedPruner, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Return what `pruner.json` records about a finished training, after checking that its weights can be loaded."""
    spec = session.features.spec(pruner, session.language.width)
    belongs_to = weights.belongings(session.features, pruner, session.language_digest)
    _, record = weights.load(pruner, label, spec, folder, belongs_to)
    if ranks.first and not (folder / CARD).is_file():  # it was killed before the last file
        write_card(folder)
    say(f"{label} is trained already with these settings, see {folder}: --overwrite trains it again")
    return record["training"]


def _trainable(experiment: Experiment) -> tuple[str, TrainedPruner]:
    """Find the method of `prune.methods` that `train.pruner` names; raise PrunerMisused (exit 2) if it cannot be trained."""
    configured = configured_pruners(experiment)
    name = experiment.train.pruner
    pruner = configured.get(name)
    if isinstance(pruner, TrainedPruner) and pruner.weights is not None:
        raise PrunerMisused(
            f"train.pruner: expected a method without named weights, prune.methods names {pruner.weights} for {name}: remove "
            "`weights` from prune.methods, or list the method once more without them"
        )
    if isinstance(pruner, TrainedPruner):
        return name, pruner
    trainable = [label for label, method in configured.items() if isinstance(method, TrainedPruner)]
    problem = "is not among them" if pruner is None else "has no weights to train"
    raise PrunerMisused(
        f"train.pruner: expected a trainable method of prune.methods ({', '.join(trainable) or 'it has none'}), "
        f"{name!r} {problem}: change train.pruner or prune.methods"
    )


def _of_kinds(questions: Sequence[Question], experiment: Experiment) -> list[Question]:
    """Return the questions of the kinds that `train.kinds` names; raise PrunerMisused (exit 2) for a kind without questions."""
    kinds = experiment.train.kinds
    if kinds is None:
        return list(questions)
    known = {question.kind for question in questions if question.kind is not None}
    if absent := [kind for kind in kinds if kind not in known]:
        raise PrunerMisused(
            f"train.kinds: expected kinds of training and of validation questions ({', '.join(sorted(known)) or 'none'}), "
            f"{absent[0]!r} is not among them: change train.kinds, or leave it out to train on all"
        )
    return [question for question in questions if question.kind in kinds]


def _answerable(session: Session, questions: Sequence[Question]) -> list[Question]:
    """Return the questions whose image could be encoded; print each of the others with the reason."""
    asked, excluded = session.features.answerable(questions)
    for question in excluded:
        say(f"question {question.question_id} is left out: {question.reason}")
    return asked


def _identity(
    session: Session, pruner: TrainedPruner, train: Sequence[Question], val: Sequence[Question]
) -> dict[str, Any]:
    """Gather everything that the trained weights depend on, as JSON."""
    experiment = session.experiment
    return session.conditions | {
        "parameters": pruner.parameters(),
        **{f"train.{key}": value for key, value in experiment.train.model_dump(mode="json", exclude=HOW).items()},
        **({} if experiment.train.images_at_once in ("auto", 1) else {ONCE: experiment.train.images_at_once}),
        "features": {name: digest(made) for name, made in session.fingerprints.items()},
        "train_questions": of_questions(train),
        "val_questions": of_questions(val),
        "prune.positions": experiment.prune.positions[0],
    }


def _refuse_other_training(session: Session, folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise OtherRun (exit 2), naming the settings that differ, if the folder holds a training of other settings."""
    record, state = weights.read_record(folder), read_state(folder)
    training = {} if record is None else record["training"]
    recorded: dict[str, Any] | None = training.get("identity", None if state is None else state.identity)
    if recorded is None:
        return
    now: dict[str, Any] = json.loads(json.dumps(identity))
    require_same(
        f"the pruner in {folder} was trained with other settings",
        _as_now(recorded, now, session, training),
        now,
        remedy="run again with --overwrite to replace it, or with another --run-dir to keep it",
    )


def _as_now(
    recorded: Mapping[str, Any], now: Mapping[str, Any], session: Session, training: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Bring recorded settings to today's form; earlier versions recorded only digests of features and questions."""
    if isinstance(recorded.get("features"), Mapping):
        return recorded
    known = {
        key: now[key] for key in now.keys() - recorded.keys()
    }  # settings that were not recorded cannot be compared
    if recorded.get("features") == digest(session.fingerprints):
        known["features"] = now["features"]
    for key in ("train_questions", "val_questions"):
        known[key] = questions_as_now(recorded.get(key), now[key], now[key]["sha256"], training.get(key))
    return {**recorded, **known}
