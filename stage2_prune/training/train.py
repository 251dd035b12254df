"""Training of one pruner through the frozen language model, from the store alone.

The epoch is chosen on the validation split: the highest accuracy at `train.val_keep` tokens, by the hard
selection and the greedy generation that an evaluation uses. Epoch 0, the freshly seeded module, takes part:
with `train.epochs: 0` it is what is saved, and otherwise a training that only made things worse does not win.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.experiment import Experiment
from configs.load import save_resolved
from configs.progress import say
from stage2_prune import weights
from stage2_prune.cells import configured_pruners
from stage2_prune.errors import OtherRun, PrunerMisused
from stage2_prune.pruner import TrainedPruner
from stage2_prune.session import Session, digest, open_session
from stage2_prune.training.state import CURVES, LOG, STATE, saved_identity
from stage2_prune.training.trainer import Trainer
from store.questions import Question, Split, read_questions, select

CONFIG = "config.yaml"


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Train the configured pruner; returns what `pruner.json` records about it.

    Writes the folder that stage2_prune/training/state.py draws. An interrupted training is resumed, a
    finished one of the same settings is left as it is, one of other settings raises OtherRun (exit 2) unless
    `overwrite`. Raises PrunerMisused (exit 2) for a method without weights, StoreMissing or NotExtracted
    (exit 5) naming `make extract`, NonFiniteLoss (exit 3) when it diverges.
    """
    label, pruner = _trainable(experiment)
    train, val = _questions(experiment, "train"), _questions(experiment, "val")
    session = open_session(experiment, pruner.needs, allow_foreign_device)
    session.features.check(label, pruner)
    train, val = _answerable(session, train), _answerable(session, val)
    identity = _identity(session, pruner, train, val)
    folder = weights.folder(experiment.run_dir, label)
    if overwrite:
        for name in (STATE, weights.RECORD, weights.WEIGHTS, LOG, CURVES, CONFIG):
            (folder / name).unlink(missing_ok=True)
    _refuse_other_training(folder, identity)
    if (folder / weights.RECORD).is_file():
        spec = session.features.spec(pruner, session.language.width)
        _, record = weights.load(pruner, label, spec, folder)
        say(f"{label} is trained already with these settings, see {folder}: --overwrite trains it again")
        return record["training"]
    trainer = Trainer(session, label, pruner, train, val, identity)
    save_resolved(experiment, folder)
    return trainer.run()


def _trainable(experiment: Experiment) -> tuple[str, TrainedPruner]:
    """The method that `train.pruner` names in `prune.methods`."""
    configured = configured_pruners(experiment)
    name = experiment.train.pruner
    pruner = configured.get(name)
    if isinstance(pruner, TrainedPruner) and not pruner.reads:
        return name, pruner
    if isinstance(pruner, TrainedPruner):
        raise PrunerMisused(
            f"train.pruner: expected a method that looks at stored arrays alone, {name} reads {', '.join(sorted(pruner.reads))}: "
            "training shares an image's prefix among its questions (stage2_prune/training/packed.py)"
        )
    trainable = [label for label, one in configured.items() if isinstance(one, TrainedPruner)]
    came = "is not among them" if pruner is None else "has no weights to train"
    raise PrunerMisused(
        f"train.pruner: expected a trainable one of prune.methods ({', '.join(trainable) or 'it has none'}), "
        f"{name!r} {came}: change train.pruner or prune.methods"
    )


def _questions(experiment: Experiment, split: Split) -> list[Question]:
    questions = select(read_questions(experiment.data), experiment.data, split)
    unanswered = [question.question_id for question in questions if not question.answers]
    if questions and not unanswered:
        return questions
    came = f"{len(unanswered)} lack one ({', '.join(unanswered[:3])})" if unanswered else "there are none"
    raise PrunerMisused(f"training expects answered questions in the {split} split, {came}: check data.questions")


def _answerable(session: Session, questions: Sequence[Question]) -> list[Question]:
    """The questions whose image could be encoded; the others are named and left out."""
    asked, excluded = session.features.answerable(questions)
    for one in excluded:
        say(f"question {one.question_id} is left out: {one.reason}")
    return asked


def _identity(
    session: Session, pruner: TrainedPruner, train: Sequence[Question], val: Sequence[Question]
) -> dict[str, Any]:
    """Everything that the trained weights depend on, as JSON."""
    experiment = session.experiment
    return session.conditions | {
        "parameters": pruner.parameters(),
        **{f"train.{key}": value for key, value in experiment.train.model_dump(mode="json").items()},
        "features": digest(session.fingerprints),
        "train_questions": digest([question.model_dump(exclude_defaults=True) for question in train]),
        "val_questions": digest([question.model_dump(exclude_defaults=True) for question in val]),
        "prune.positions": experiment.prune.positions[0],
    }


def _refuse_other_training(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise OtherRun, naming the settings that differ, if what lies in the folder was trained with others."""
    found = saved_identity(folder)
    if (folder / weights.RECORD).is_file():
        found = json.loads((folder / weights.RECORD).read_text())["training"]["identity"]
    if found is None:
        return
    now = json.loads(json.dumps(identity))
    changed = [name for name in sorted(found.keys() | now.keys()) if found.get(name) != now.get(name)]
    differing = [f"{name} {found.get(name)!r}, now {now.get(name)!r}" for name in changed]
    if differing:
        raise OtherRun(
            f"the pruner in {folder} was trained with other settings ({'; '.join(differing)}): "
            "run again with --overwrite to replace it, or with another --run-dir to keep it"
        )
