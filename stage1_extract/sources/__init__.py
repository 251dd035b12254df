"""List the distinct images of an experiment: every file is hashed once, and names are grouped by content."""

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
from store.questions.question import image_names, no_questions, read_questions
from store.questions.splits import SPLITS, say, used

FILE_THREADS = 2
"""Threads that read files to hash them, unless `extract.decode_threads` names a number."""


@dataclass(frozen=True)
class ImageRow:
    """One distinct image, which is a row of the store."""

    sha: str
    """Identity of the image, in hex; see `content_id` and `name_id`."""
    names: tuple[str, ...]
    """Names with this content, of which the first is read; empty where the file has other content by now."""


@dataclass(frozen=True)
class Sources:
    """All images of an experiment, in order of first appearance."""

    images: ImageSource
    names: int
    """Number of names that were given."""
    rows: tuple[ImageRow, ...]
    unreadable: dict[str, str]
    """Names whose file could not be read, with the reason; each has a row of its own, which will fail."""
    by_content: bool
    """Whether an image is identified by its content; if not, by its name."""
    not_asked_for: frozenset[int] = frozenset()
    """Rows of a store whose image the experiment does not name now; their failures do not count."""

    def ids(self) -> ImageIds:
        """Return the identities and names in the form that a store keeps."""
        return ImageIds.build([(source.sha, source.names) for source in self.rows])


def find_sources(experiment: Experiment) -> Sources:
    """List the images that the experiment's questions name, or all images where there are no questions.

    Raises DataMissing (exit 5) if the list is empty.
    """
    data = experiment.data
    questions = read_questions(data)
    images = open_images(data.images, data.format, data.image_column, data.follow_links)
    if questions:
        say(questions, data, SPLITS)
    names = images.names() if data.questions is None else image_names(used(questions, data))
    if not names and data.questions is not None:
        raise DataMissing(no_questions(f"questions about images in {data.questions}", "found none"))
    if not names:
        raise DataMissing(
            f"expected images in {data.images.absolute()}, found none: check data.images and data.questions"
        )
    by_content = data.identity == "content"
    unreadable: dict[str, str] = {}
    threads = file_threads(experiment)
    shas = _hash_all(images, names, threads, unreadable) if by_content else map(name_id, names)
    grouped: dict[str, list[str]] = {}
    for name, sha in zip(names, shas, strict=True):
        grouped.setdefault(sha, []).append(name)
    rows = tuple(ImageRow(sha, tuple(given)) for sha, given in grouped.items())
    return Sources(images, len(names), rows, unreadable, by_content)


def file_threads(experiment: Experiment) -> int:
    """Return how many threads read files: `extract.decode_threads`, or a few for `auto`."""
    asked = experiment.extract.decode_threads
    return FILE_THREADS if asked == "auto" else asked


def _hash_all(images: ImageSource, names: Sequence[str], threads: int, unreadable: dict[str, str]) -> list[str]:
    """Return the identity of each image; add names that cannot be read to `unreadable`, with the reason."""

    def hash_one(name: str) -> str:
        try:
            return content_id(images.read(name))
        except BadImage as bad:
            unreadable[name] = bad.reason
            return name_id(name)

    in_file_order = sorted(names, key=images.position)
    with ThreadPoolExecutor(threads) as pool:
        hashed = ProgressBar(pool.map(hash_one, in_file_order), "hash", len(names), unit="images")
        shas = dict(zip(in_file_order, hashed, strict=True))
    return [shas[name] for name in names]


def rows_of(plan: Plan, ids: ImageIds) -> tuple[ImageRow, ...]:
    """Return the source of every row of a store; a row without an image has no name."""
    return tuple(ImageRow(ids.sha_of_row(row), tuple(ids.names(row))) for row in range(plan.n_rows))


def stored_sources(experiment: Experiment, plan: Plan, ids: ImageIds) -> Sources:
    """Return the images of a store's plan, without hashing them again."""
    rows = rows_of(plan, ids)
    by_content = plan.identity == "content"
    data = experiment.data
    images = open_images(data.images, data.format, data.image_column, data.follow_links)
    return Sources(images, sum(len(row.names) for row in rows), rows, {}, by_content)
