"""What the command `teach` has computed of the unpruned language model, as a training reads it.

<run_dir>/teacher/, or `teach.path`; each part is a store as docs/store-format.md describes it, with rows of another kind
answers/     a row per answer token: `top_ids`, `top_log_probabilities`, `log_rest`, and `span`: the first row of the token's
             question and how many rows the question has
attention/   a row per question: `attention`, of the prompt's last token over the visual tokens, mean over heads, by layer

The id of a question's first row is its key: sha256 of image, prompt and answer.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from configs.counted import counted
from configs.errors import TEACH
from configs.experiment import StoreLocation
from stage2_prune.errors import NotTaught
from stage2_prune.session.identity import digest
from stage2_prune.session.session import Session
from stage2_prune.session.weights import semantics
from stage2_prune.training.distil import TeacherRows, kl_to_teacher
from stage2_prune.training.packed import Lesson
from store.layout.environment import torch_environment
from store.layout.fingerprint import Fingerprint, require_equal
from store.layout.plan import FEATURES
from store.layout.tensors import from_storage
from store.reading.reader import FeatureStore

ANSWERS, ATTENTION = "answers", "attention"
IDS, LOG_PROBABILITIES, LOG_REST, SPAN = "top_ids", "top_log_probabilities", "log_rest", "span"
"""The arrays of `answers`."""
OTHER_TEACHER = "teach into another folder (--teach.path), or replace this one with `teach --overwrite`"
"""What a user can do with the signals of another language model, or of other features."""
ImageLessons = tuple[str, Sequence[Lesson]]
"""The sha256 of an image, and lessons about it."""


def key_of(image_id: str, lesson: Lesson) -> str:
    """Return the key of a question: the sha256 of its image, its prompt's token ids and its answer's."""
    return digest([image_id, lesson.prompt.before, lesson.prompt.after, lesson.answer])


def row_id(key: str, number: int) -> str:
    """Return the id of the row of a question's answer token `number`, from 0; the first row has the key itself."""
    return key if number == 0 else hashlib.sha256(f"{key} {number}".encode()).hexdigest()


def fingerprint(session: Session, **chosen: Any) -> Fingerprint:
    """Record what the teacher's signals depend on: language model, features, dtype, environment, and what was `chosen`."""
    features, source = session.features, session.features.source
    semantic = {
        "language_model": session.language_digest,
        "features": semantics(features, {source})[source],
        "dtype": session.experiment.model.dtype,
        **chosen,
    }
    numeric = {
        **torch_environment(session.language.device),
        "transformers": transformers.__version__,
        "features": features.store.fingerprint(source).numeric,
    }
    return Fingerprint.model_validate(json.loads(json.dumps({"semantic": semantic, "numeric": numeric})))


def chosen_top(session: Session) -> dict[str, Any]:
    """Return what the config chooses about `answers`, as the fingerprint records it."""
    return {"top": session.experiment.teach.top}


@dataclass(frozen=True)
class Teacher:
    """The opened signals of the unpruned model."""

    answers: FeatureStore
    device: torch.device
    """The device of the language model, which rows are brought to."""

    @property
    def identity(self) -> str:
        """Return the digest of what made the signals, which a training depends on."""
        return digest(self.answers.fingerprint(LOG_REST).model_dump())

    def divergence(
        self, asked: Iterable[ImageLessons], logits: Iterable[Float[Tensor, "_ vocab"]]
    ) -> Float[Tensor, ""]:
        """Sum the KL divergences of a pruned model's answer distributions from the teacher's.

        Args:
            asked: the lessons of each pack.
            logits: the pruned model's logits at each pack's scored indices.
        """
        distances = [kl_to_teacher(ours, self.rows(*about)) for about, ours in zip(asked, logits, strict=True)]
        return torch.stack(distances).sum()

    def rows(self, image_id: str, lessons: Sequence[Lesson]) -> TeacherRows:
        """Read what the unpruned model expects at each answer token of lessons about one image, in the order of a pack.

        Raises NotTaught (exit 5) for a lesson that the teacher does not know.
        """
        rows: list[int] = []
        for lesson in lessons:
            known = self._rows_of(image_id, lesson)
            if known is None:
                raise _not_taught(self.answers.path, f"a question about the image {image_id} is not in it")
            rows += known
        ids, log_probabilities, log_rest = (self._read(name, rows) for name in (IDS, LOG_PROBABILITIES, LOG_REST))
        return TeacherRows(ids.long(), log_probabilities, log_rest[:, 0])

    def missing(self, asked: Iterable[ImageLessons]) -> int:
        """Count the lessons of which the teacher does not know every answer token."""
        committed = {*self.answers.committed_shards}
        lacking = 0
        for image_id, lessons in asked:
            for lesson in lessons:
                rows = self._rows_of(image_id, lesson)
                lacking += rows is None or not {row // self.answers.plan.shard_images for row in rows} <= committed
        return lacking

    def _rows_of(self, image_id: str, lesson: Lesson) -> range | None:
        start = self.answers.ids.row_of_sha(key_of(image_id, lesson))
        return None if start is None else range(start, start + len(lesson.answer))

    def _read(self, name: str, rows: Sequence[int]) -> Any:
        return from_storage(self.answers.gather(name, rows), self.answers.arrays[name].dtype).to(self.device)


def open_teacher(session: Session, asked: Collection[ImageLessons]) -> Teacher:
    """Open the signals of the unpruned model, and check that they are this language model's and cover what is asked.

    Args:
        session: the opened store and language model.
        asked: every lesson of the training.

    Raises:
        NotTaught: (exit 5) naming `teach`, if signals are missing.
        FingerprintMismatch: (exit 4) with every field that differs, if the signals come from another language model or from
            other features.
    """
    folder = session.experiment.teacher_path / ANSWERS
    if not (folder / FEATURES).is_dir():
        raise _not_taught(folder, "there are none")
    store = FeatureStore.open(folder)
    expected, found = fingerprint(session, **chosen_top(session)).semantic, store.fingerprint(LOG_REST).semantic
    require_equal(f"what made the teacher's signals in {folder}", expected, found, OTHER_TEACHER)
    teacher = Teacher(store, session.language.device)
    lacking = teacher.missing(asked)
    if lacking:
        raise _not_taught(folder, f"{lacking} of {counted(len(asked), 'question')} are not in it")
    return teacher


def _not_taught(folder: StoreLocation, problem: str) -> NotTaught:
    return NotTaught(
        f"expected the unpruned model's answers in {folder}, {problem}: run {TEACH} with this config first"
    )
