"""The parts of a teacher, each a store of its own: its arrays, which rows it has and in what order, and how it grows.

Rows are in the order in which the questions name their images first; a question that is new later begins a new shard, as an
appended image does in a store of features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.experiment import Experiment
from stage2_prune.session.features import Features
from stage2_prune.training.packed import Lesson
from stage2_prune.training.step import make_lesson
from stage2_prune.training.teacher import (
    ANSWERS,
    ATTENTION,
    IDS,
    LOG_PROBABILITIES,
    LOG_REST,
    OTHER_TEACHER,
    SPAN,
    key_of,
    row_id,
)
from store.checkpoint.text import TextSide
from store.layout.environment import use_threads
from store.layout.fingerprint import Fingerprint, require_equal
from store.layout.geometry import Geometry
from store.layout.ids import ImageIds
from store.layout.plan import Plan, newest_generation, read_plan
from store.layout.schema import ArraySpec
from store.questions.question import Question
from store.reading.opening import stored_ids
from store.writing.growth import grown

NOTE = "rows are not images: see stage2_prune/training/teacher.py"


@dataclass(frozen=True)
class Asked:
    """One question that the unpruned model is asked, with the answer that its distribution is wanted for."""

    question: Question
    image_id: str
    lesson: Lesson
    key: str

    @property
    def company(self) -> tuple[str, tuple[int, ...]]:
        """Return what questions must have in common to share a forward pass: the image, and the text before the image."""
        return self.image_id, self.lesson.prompt.before


@dataclass(frozen=True)
class Part:
    """One store of a teacher."""

    folder: Path
    arrays: tuple[ArraySpec, ...]
    per_token: bool
    """Whether a question has a row for each token of its answer, or a single row."""

    def rows(self, asked: Asked) -> int:
        """Return how many rows a question has."""
        return len(asked.lesson.answer) if self.per_token else 1

    def made_by(self) -> Fingerprint | None:
        """Return the record of what made the rows that are there; None if there are none yet."""
        if newest_generation(self.folder) is None:
            return None
        return read_plan(self.folder).fingerprints[self.arrays[0].name]


def ask_once(text: TextSide, features: Features, questions: Sequence[Question], post_prompt: str) -> list[Asked]:
    """Tokenise questions, each distinct one once, and order them by image."""
    of_image: dict[str, dict[str, Asked]] = {}
    for question in questions:
        image_id, lesson = features.image_id(question), make_lesson(text, question, post_prompt)
        key = key_of(image_id, lesson)
        of_image.setdefault(image_id, {}).setdefault(key, Asked(question, image_id, lesson, key))
    return [asked for questions_about in of_image.values() for asked in questions_about.values()]


def answers_part(experiment: Experiment, text: TextSide) -> Part:
    """Describe the part that holds answer distributions."""
    top = min(experiment.teach.top, text.vocabulary or experiment.teach.top)
    return Part(
        experiment.teacher_path / ANSWERS,
        (
            ArraySpec(name=IDS, axes=("top",), shape=(top,), dtype="int32"),
            ArraySpec(name=LOG_PROBABILITIES, axes=("top",), shape=(top,), dtype="float32"),
            ArraySpec(name=LOG_REST, axes=("rest",), shape=(1,), dtype="float32", logarithms=True),
            ArraySpec(name=SPAN, axes=("span",), shape=(2,), dtype="int32"),
        ),
        per_token=True,
    )


def attention_part(experiment: Experiment, patches: int) -> Part:
    """Describe the part that holds the attention of each prompt's last token."""
    layers = sorted(experiment.teach.attention_layers)
    spec = ArraySpec(
        name=ATTENTION, axes=("layer", "patch"), shape=(len(layers), patches), dtype="float32",
        attributes={"published_layers": layers},
    )  # fmt: skip
    return Part(experiment.teacher_path / ATTENTION, (spec,), per_token=False)


def plan_of(
    part: Part,
    asked: Sequence[Asked],
    made_by: Fingerprint | None,
    geometry: Geometry,
    shard_rows: int,
    anew: bool = False,
) -> tuple[Plan, ImageIds]:
    """Plan a part as it is, or as it grows by the questions that it lacks; return the ids of its rows too.

    Args:
        part: the part.
        asked: the questions that the part should have.
        made_by: what the rows depend on; None leaves it open, to say a price.
        geometry: the visual tokens of the images.
        shard_rows: rows per shard of a new part.
        anew: whether to plan a new part whatever is there.

    Raises:
        FingerprintMismatch: (exit 4) with every field that differs, if the part was made by something else.
    """
    if anew or newest_generation(part.folder) is None:
        ids = ImageIds.build(_rows(part, asked))
        fingerprints = {} if made_by is None else {spec.name: made_by for spec in part.arrays}
        return Plan(
            n_images=len(ids), shard_images=shard_rows, arrays=part.arrays, fingerprints=fingerprints, geometry=geometry,
            identity="content", ids_digest=ids.digest(), notes=(NOTE,), maker="teach",
        ), ids  # fmt: skip
    stored = read_plan(part.folder)
    if made_by is not None:
        found = stored.fingerprints[part.arrays[0].name].model_dump()
        require_equal(f"what made the signals in {part.folder}", made_by.model_dump(), found, OTHER_TEACHER)
    known = stored_ids(part.folder, stored)
    new = [question for question in asked if known.row_of_sha(question.key) is None]
    return grown(stored, known, _rows(part, new), ()) if new else (stored, known)


def use_recorded_threads(part: Part) -> None:
    """Compute with the number of CPU threads that the rows of a part were computed with."""
    made_by = part.made_by()
    if made_by is not None:
        use_threads(made_by.numeric)


def _rows(part: Part, asked: Sequence[Asked]) -> list[tuple[str, list[str]]]:
    """List the id of each row, with the question's own id as the name of its first row."""
    return [
        (row_id(question.key, number), [] if number else [question.question.question_id])
        for question in asked
        for number in range(part.rows(question))
    ]
