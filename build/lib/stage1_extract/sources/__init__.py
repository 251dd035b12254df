"""Which distinct images there are: every file hashed once, names grouped by content."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from configs.experiment import Experiment
from configs.progress import ProgressBar
from stage1_extract.errors import BadImage
from stage1_extract.sources.detect import open_images
from stage1_extract.sources.image_source import ImageSource
from stage1_extract.sources.images import content_id, name_id
from store.errors import DataMissing
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.questions.question import image_names, read_questions
from store.questions.splits import SPLITS, say, used


@dataclass(frozen=True)
class Source:
    """One distinct image: a row of the store."""

    sha: str
    names: tuple[str, ...]
    """Names with this content; the first is read. None where the file has other content by now."""


@dataclass(frozen=True)
class Sources:
    """All images of an experiment, in order of first appearance."""

    images: ImageSource
    names: int
    """How many names were given."""
    rows: tuple[Source, ...]
    unreadable: dict[str, str]
    """Names whose file could not be read, with the reason: rows of their own that will fail."""
    by_content: bool

    def ids(self) -> ImageIds:
        """As the store keeps them."""
        return ImageIds.build([(source.sha, source.names) for source in self.rows])


def find_sources(experiment: Experiment) -> Sources:
    """The images that the experiment's questions name, or all there are; raises DataMissing (exit 5) if there are none."""
    data = experiment.data
    questions = read_questions(data)
    images = open_images(data.images, data.format, data.image_column, data.follow_links)
    if questions:
        say(questions, data, SPLITS)
    names = images.names() if data.questions is None else image_names(used(questions, data))
    if not names and data.questions is not None:
        raise DataMissing(f"expected questions about images in {data.questions}, found none: check data.questions")
    if not names:
        raise DataMissing(f"expected images in {data.images}, found none: check data.images and data.questions")
    by_content = data.identity == "content"
    unreadable: dict[str, str] = {}
    shas = (
        _hash_all(images, names, experiment.extract.decode_threads, unreadable) if by_content else map(name_id, names)
    )
    grouped: dict[str, list[str]] = {}
    for name, sha in zip(names, shas, strict=True):
        grouped.setdefault(sha, []).append(name)
    rows = tuple(Source(sha, tuple(given)) for sha, given in grouped.items())
    return Sources(images, len(names), rows, unreadable, by_content)


def _hash_all(images: ImageSource, names: Sequence[str], threads: int, unreadable: dict[str, str]) -> list[str]:
    def hash_one(name: str) -> str:
        try:
            return content_id(images.read(name))
        except BadImage as bad:
            unreadable[name] = bad.reason
            return name_id(name)

    in_place = sorted(names, key=images.place)
    with ThreadPoolExecutor(threads) as pool:
        hashed = ProgressBar(pool.map(hash_one, in_place), "hash", len(names), unit="images")
        shas = dict(zip(in_place, hashed, strict=True))
    return [shas[name] for name in names]


def rows_of(plan: Plan, ids: ImageIds) -> tuple[Source, ...]:
    """The rows of a store; those without an image have no name."""
    return tuple(Source(ids.sha_of_row(row), tuple(ids.names(row))) for row in range(plan.n_rows))


def stored_sources(experiment: Experiment, plan: Plan, ids: ImageIds) -> Sources:
    """The images of a store's plan, for a worker that joins: nothing is hashed again."""
    rows = rows_of(plan, ids)
    by_content = plan.identity == "content"
    data = experiment.data
    images = open_images(data.images, data.format, data.image_column, data.follow_links)
    return Sources(images, sum(len(row.names) for row in rows), rows, {}, by_content)
