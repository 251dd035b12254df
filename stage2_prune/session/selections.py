"""Remember what methods chose, so that an image is pruned once by a method, however many questions and budgets there are."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from stage2_prune.language.clock import seconds_after_work
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.result import rank_images
from stage2_prune.pruning.tokens import Pruned
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.merging import make_merged
from stage2_prune.session.prune_batch import (
    ABOUT_QUESTIONS,
    QuestionReader,
    choose_batch,
    joined,
    prune_batch,
    with_projector,
)

T = TypeVar("T")
LIMIT = 256_000_000
"""Bytes of choices that are remembered; the oldest are forgotten first."""
Key = tuple[int, int, str]
"""A pruner, a budget, and an image's id."""


@dataclass(frozen=True)
class _Chosen:
    """What a method chose of one image."""

    pruned: Pruned
    """With the image axis of length 1; of a nested method the index is its ranking."""
    seconds: float
    """The image's share of the time that choosing took."""

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors."""
        merge = self.pruned.merge
        tensors = (self.pruned.index, None if merge is None else merge.weights, self.pruned.tokens, self.pruned.counts)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@dataclass(frozen=True)
class Pruning:
    """A pruned batch, and how long the method took for it."""

    batch: FeatureBatch
    pruned: Pruned
    seconds: float
    """Seconds of the method itself for the images that this cell met for the first time."""
    images: int
    """Number of those images."""


class Selections:
    """The choices of a run so far, of methods that do not look at the question."""

    def __init__(self, cells: Iterable[tuple[Pruner, int]]) -> None:
        """Take the pruner and the budget of every cell: a nested method ranks up to the largest of its budgets."""
        self._largest: defaultdict[int, int] = defaultdict(int)
        for pruner, keep in cells:
            self._largest[id(pruner)] = max(self._largest[id(pruner)], keep)
        self._chosen: OrderedDict[Key, _Chosen] = OrderedDict()
        self._bytes = 0

    def prune(
        self, pruner: Pruner, batch: FeatureBatch, keep: int, reader: QuestionReader, met: set[str]
    ) -> Pruning:  # fmt: skip
        """Prune a batch as `prune_batch` does, and call the method only for images of which it has not chosen.

        Args:
            pruner: the pruner.
            batch: the batch.
            keep: the budget, in visual tokens per image.
            reader: reads what pruners read beside arrays.
            met: ids of the images that the cell has met; the batch's are added.
        """
        if pruner.place == "in_llm" or pruner.reads & ABOUT_QUESTIONS:
            (batch, pruned), seconds = _timed(batch, lambda: prune_batch(pruner, batch, keep, reader))
            return Pruning(batch, pruned, seconds, len(batch.tokens.image_ids))
        most = max(keep, self._largest[id(pruner)]) if _ranks(pruner) else keep
        ids = batch.tokens.image_ids
        kept = {image: choice for image in ids if (choice := self._chosen.get((id(pruner), most, image)))}
        lacking = [number for number, image in enumerate(ids) if image not in kept]
        kept |= self._choose(pruner, batch, lacking, most, reader)
        chosen = [kept[image] for image in ids]
        pruned = joined([choice.pruned for choice in chosen], range(len(chosen)))
        if _ranks(pruner):
            assert pruned.index is not None, "a ranking consists of indices"
            pruned = Pruned(pruner.arrange(pruned.index[:, :keep]))
        new = {image: choice.seconds for image, choice in zip(ids, chosen, strict=True) if image not in met}
        met.update(new)
        merged, merging = _timed(batch, lambda: make_merged(pruned, batch, reader.features.project))
        return Pruning(batch, merged, sum(new.values(), merging * len(new) / len(ids)), len(new))

    def _choose(
        self, pruner: Pruner, batch: FeatureBatch, lacking: list[int], most: int, reader: QuestionReader
    ) -> dict[str, _Chosen]:
        """Choose for the images at the positions `lacking`, and remember the choices."""
        if not lacking:
            return {}
        whole = len(lacking) == len(batch.tokens.image_ids)
        part = batch if whole else replace(batch, tokens=batch.tokens.at(lacking))
        pruned, seconds = _timed(part, lambda: _pruned(pruner, part, most, reader))
        made = {
            image: _Chosen(pruned.of_image(number), seconds / len(lacking))
            for number, image in enumerate(part.tokens.image_ids)
        }
        for image, choice in made.items():
            self._chosen[id(pruner), most, image] = choice
            self._bytes += choice.nbytes
        while self._bytes > LIMIT:
            self._bytes -= self._chosen.popitem(last=False)[1].nbytes
        return made


def _ranks(pruner: Pruner) -> bool:
    """Return whether one ranking serves all budgets of a method; not where it decides how many tokens an image keeps."""
    return pruner.nested and not pruner.adaptive


def _pruned(pruner: Pruner, batch: FeatureBatch, most: int, reader: QuestionReader) -> Pruned:
    """Let a method choose, and a nested one rank; merges stay the weights that the method returned."""
    if _ranks(pruner):
        return Pruned(rank_images(pruner, with_projector(pruner, batch, reader).tokens, most))
    return choose_batch(pruner, batch, most, reader)[1]


def _timed(batch: FeatureBatch, run: Callable[[], T]) -> tuple[T, float]:
    """Return what a run returns, and the seconds that it takes on the device of a batch."""
    begun = seconds_after_work(batch.projected.device)
    result = run()
    return result, seconds_after_work(batch.projected.device) - begun
