"""Ask the unpruned language model every question of the training and validation splits, once.

Its signals lie in `teach.path`, as stage2_prune/training/teacher.py draws it. The test split is never read.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from configs.counted import counted
from configs.experiment import Experiment
from configs.load import save_resolved
from configs.progress import say
from stage2_prune.find_family import open_text
from stage2_prune.language.layer_loop import require_loop
from stage2_prune.session.choose import choose_scored
from stage2_prune.session.features import Features, left_out
from stage2_prune.session.session import Session, open_features, open_session
from stage2_prune.teaching.compute import Compute, answers, attention
from stage2_prune.teaching.parts import (
    Asked,
    Part,
    answers_part,
    ask_once,
    attention_part,
    plan_of,
    use_recorded_threads,
)
from stage2_prune.teaching.write import commit_missing
from stage2_prune.training.teacher import chosen_layers, chosen_top, fingerprint
from store.checkpoint.text import TextSide
from store.layout.fingerprint import Fingerprint
from store.log.progress import bytes_of, missing_parts
from store.questions.question import Question
from store.writing.lock import STALL_SECONDS
from store.writing.own_entries import remove_store, require_store_or_empty


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Compute and commit what is missing; an interrupted run goes on, to the same bytes.

    Args:
        experiment: the config.
        overwrite: whether to replace signals of another language model or of other features.
        allow_foreign_device: whether to accept a store whose re-projection differs as little as another device explains.

    Returns:
        How many questions and answer tokens there are, and how many questions each part computed.

    Raises:
        FingerprintMismatch: (exit 4) with every field that differs, if the signals there were made by something else.
        StoreLocked: (exit 6) while another process writes there.
        NonFiniteTeacher: (exit 3) naming the question for which the model gives no finite numbers.
        StoreMissing, NotExtracted: (exit 5) naming `make extract`.
    """
    questions = _chosen(experiment)
    session = open_session(experiment, frozenset(), allow_foreign_device)
    asked = _asked(experiment, session.features, session.language, questions)
    if experiment.teach.attention_layers:
        require_loop(session.language.model.model)
    computed: dict[str, int] = {}
    for part in _parts(experiment, session.language, session.features.patches):
        require_store_or_empty(part.folder)
        if overwrite:
            remove_store(part.folder, STALL_SECONDS)
        use_recorded_threads(part)
        compute, made_by = _computation(session, part)
        geometry = session.features.store.plan.geometry
        plan, ids = plan_of(part, asked, made_by, geometry, experiment.teach.shard_rows)
        computed[part.folder.name] = commit_missing(session, part, plan, ids, asked, compute)
        save_resolved(experiment, experiment.teacher_path)
    return _counts(experiment, asked) | {"computed": computed}


def price(experiment: Experiment, overwrite: bool = False) -> dict[str, Any]:
    """Say how many bytes `run` will write; no weights are loaded but a projector's where the store lacks `projected`."""
    questions = _chosen(experiment)
    features, text = open_features(experiment, frozenset()), open_text(experiment.model)
    asked = _asked(experiment, features, text, questions)
    parts: dict[str, int] = {}
    for part in _parts(experiment, text, features.patches):
        plan, _ = plan_of(part, asked, None, features.store.plan.geometry, experiment.teach.shard_rows, overwrite)
        whole = [(0, shard) for shard in range(plan.n_shards)]
        parts[part.folder.name] = bytes_of(plan, whole if overwrite else missing_parts(part.folder, plan))
    return _counts(experiment, asked) | {"bytes": parts}


def as_text(result: Mapping[str, Any]) -> str:
    """Format what `run` or `price` returned for a reader."""
    lines = [f"{counted(result['questions'], 'question')} with {counted(result['answer_tokens'], 'answer token')}"]
    for name, size in result.get("bytes", {}).items():
        lines += [f"{name}: {size / 1e6:,.1f} MB to write"]
    for name, count in result.get("computed", {}).items():
        lines += [f"{name}: {counted(count, 'question')} computed, the rest was there"]
    return "\n".join([*lines, f"in {result['path']}"])


def _chosen(experiment: Experiment) -> list[Question]:
    """Choose the questions of the training and validation splits, as `train` does."""
    return [question for chosen in choose_scored(experiment, "train", "val") for question in chosen.questions]


def _asked(experiment: Experiment, features: Features, text: TextSide, questions: list[Question]) -> list[Asked]:
    answerable, excluded = features.answerable(questions)
    for sentence in left_out(question.reason for question in excluded):
        say(f"note: {sentence}")
    return ask_once(text, features, answerable, experiment.data.post_prompt)


def _parts(experiment: Experiment, text: TextSide, patches: int) -> Iterator[Part]:
    yield answers_part(experiment, text)
    if experiment.teach.attention_layers:
        yield attention_part(experiment, patches)


def _computation(session: Session, part: Part) -> tuple[Compute, Fingerprint]:
    """Return how the rows of a part are computed, and what they depend on."""
    section = session.experiment.teach
    if part.per_token:
        return answers(section.top), fingerprint(session, **chosen_top(session))
    chosen = chosen_layers(session)
    return attention(chosen["layers"]), fingerprint(session, **chosen)


def _counts(experiment: Experiment, asked: list[Asked]) -> dict[str, Any]:
    tokens = sum(len(question.lesson.answer) for question in asked)
    return {"path": str(experiment.teacher_path), "questions": len(asked), "answer_tokens": tokens}
