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
from typing import Any, ClassVar

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from configs.counted import counted
from configs.errors import TEACH
from configs.experiment import StoreLocation
from configs.published_layers import language_layers
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


def chosen_layers(session: Session) -> dict[str, Any]:
    """Return what the config chooses about `attention`, as the fingerprint records it: the layers of this language model."""
    return {"layers": language_layers(session.experiment.teach.attention_layers, session.language.depth)}


@dataclass(frozen=True)
class Signals:
    """One opened part of a teacher."""

    store: FeatureStore
    device: torch.device
    """The device of the language model, which rows are brought to."""
    per_token: ClassVar[bool]
    """Whether a question has a row for each token of its answer, or a single row."""

    @property
    def identity(self) -> str:
        """Return the digest of what made the signals, which a training depends on."""
        return digest(self._made_by.model_dump())

    def require(self, expected: Fingerprint, asked: Collection[ImageLessons]) -> None:
        """Refuse this part unless something semantically equal made it, and it covers what is asked; see `open_teacher`."""
        made_by = self._made_by
        require_equal(f"what made the signals in {self.store.path}", expected.semantic, made_by.semantic, OTHER_TEACHER)
        committed = {*self.store.committed_shards}
        lessons = [(image_id, lesson) for image_id, about in asked for lesson in about]
        lacking = sum(not self._shards_of(*lesson) <= committed for lesson in lessons)
        if lacking:
            raise _not_taught(self.store.path, f"{lacking} of {counted(len(lessons), 'question')} are not in it")

    def _rows_of(self, image_id: str, lessons: Iterable[Lesson]) -> list[int]:
        """Find the rows of lessons about one image; raises NotTaught (exit 5) for a lesson that is not there."""
        rows: list[int] = []
        for lesson in lessons:
            first = self.store.ids.row_of_sha(key_of(image_id, lesson))
            if first is None:
                raise _not_taught(self.store.path, f"a question about the image {image_id} is not in it")
            rows += range(first, first + (len(lesson.answer) if self.per_token else 1))
        return rows

    def _shards_of(self, image_id: str, lesson: Lesson) -> set[int]:
        """Return the shards that hold a lesson's rows; a number that no shard has if there are no such rows."""
        if self.store.ids.row_of_sha(key_of(image_id, lesson)) is None:
            return {-1}
        return {row // self.store.plan.shard_images for row in self._rows_of(image_id, [lesson])}

    def _read(self, name: str, rows: Sequence[int]) -> Tensor:
        return from_storage(self.store.gather(name, rows), self.store.arrays[name].dtype).to(self.device)

    @property
    def _made_by(self) -> Fingerprint:
        return next(self.store.fingerprint(name) for name in self.store.arrays)


@dataclass(frozen=True)
class Teacher(Signals):
    """The unpruned model's answer distributions."""

    per_token = True

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
        """Read what the unpruned model expects at each answer token of lessons about one image, in the order of a pack."""
        rows = self._rows_of(image_id, lessons)
        ids, log_probabilities, log_rest = (self._read(name, rows) for name in (IDS, LOG_PROBABILITIES, LOG_REST))
        return TeacherRows(ids.long(), log_probabilities, log_rest[:, 0])


@dataclass(frozen=True)
class CachedAttention(Signals):
    """The unpruned model's attention of each prompt's last token over the visual tokens."""

    per_token = False

    def of(self, image_id: str, lessons: Sequence[Lesson]) -> Float[Tensor, "lesson layer patch"]:
        """Read the attention of lessons about one image, at the layers of `teach.attention_layers` in ascending order."""
        return self._read(ATTENTION, self._rows_of(image_id, lessons))


def open_teacher(session: Session, asked: Collection[ImageLessons]) -> Teacher:
    """Open the unpruned model's answers, and check that they are this language model's and cover what is asked.

    Args:
        session: the opened store and language model.
        asked: every lesson of the training.

    Raises:
        NotTaught: (exit 5) naming `teach`, if signals are missing.
        FingerprintMismatch: (exit 4) with every field that differs, if the signals come from another language model or from
            other features.
    """
    teacher = Teacher(_opened(session, ANSWERS), session.language.device)
    teacher.require(fingerprint(session, **chosen_top(session)), asked)
    return teacher


def open_attention(session: Session, asked: Collection[ImageLessons]) -> CachedAttention:
    """Open the unpruned model's attention as `open_teacher` opens its answers; raises as that function does."""
    attention = CachedAttention(_opened(session, ATTENTION), session.language.device)
    attention.require(fingerprint(session, **chosen_layers(session)), asked)
    return attention


def _opened(session: Session, part: str) -> FeatureStore:
    folder = session.experiment.teacher_path / part
    if not (folder / FEATURES).is_dir():
        raise _not_taught(folder, "there are none")
    return FeatureStore.open(folder)


def _not_taught(folder: StoreLocation, problem: str) -> NotTaught:
    return NotTaught(
        f"expected the unpruned model's signals in {folder}, {problem}: run {TEACH} with this config first"
    )
