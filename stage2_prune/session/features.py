"""Read a store for batches of questions: the arrays that pruners look at, and the projected features to select from."""

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from configs.counted import agreeing, counted
from configs.errors import EXTRACT, typed
from stage2_prune.errors import NotExtracted, NothingToAsk, PrunerMisused
from stage2_prune.pruning.pruner import ModuleSpec, Pruner
from stage2_prune.pruning.tokens import VisualTokens
from stage2_prune.session.transfer import Buffer, Moved, Transfer
from store.layout.environment import threads_of
from store.layout.tensors import torch_dtype
from store.projectors import Projector, build, project_image
from store.questions.question import Question
from store.reading.by_name import read_rows
from store.reading.prefetch import prefetched
from store.reading.reader import FeatureStore

FeatureSource = Literal["projected", "raw"]
AHEAD = 2
"""Number of batches that are read before they are asked for."""
SHOWN = 3
"""The largest number of reasons that are listed."""


@dataclass(frozen=True)
class Excluded:
    """A question that is not scored and never counts as wrong, as its image could not be encoded or it has no answer."""

    question_id: str
    reason: str


def left_out(reasons: Iterable[str]) -> list[str]:
    """Say in one sentence how many questions were left out and why; return no sentence if none was left out."""
    counts = Counter(reasons).most_common()
    listed = [f"{reason} ({count})" for reason, count in counts[:SHOWN]] + ["…"] * (len(counts) > SHOWN)
    total = sum(count for _, count in counts)
    were = agreeing(total, "was", "were")
    return [f"{counted(total, 'question')} {were} left out: {', '.join(listed)}."] if counts else []


@dataclass(frozen=True)
class FeatureBatch:
    """A batch of questions, and the distinct images that these questions are about."""

    questions: tuple[Question, ...]
    of_question: Int[Tensor, " question"]
    """For each question, the index of its image within the batch."""
    tokens: VisualTokens
    """The arrays that pruners look at."""
    projected: Float[Tensor, "image patch embed"]
    """The features to select from."""


@dataclass(frozen=True)
class _Read:
    """A batch as it was read: on its way to the device, and not yet projected."""

    questions: tuple[Question, ...]
    of_question: Int[Tensor, " question"]
    image_ids: tuple[str, ...]
    moved: Moved


class Features:
    """A store, opened for the arrays that a run needs.

    `projected` features come from the store. If the store holds only `raw`, the store's own projector makes them.
    """

    def __init__(self, store: FeatureStore, needs: Collection[str], device: torch.device) -> None:
        self.store = store
        self.device = device
        self.source: FeatureSource = "projected" if "projected" in store.arrays else "raw"
        self._transfer = Transfer(store, device)
        self.needs = frozenset(needs)
        store.require(sorted(self.needs | {self.source}))
        state = store.projector
        self.projector: Projector | None = None if state is None else build(state, device)
        if self.source == "raw" and self.projector is None:
            raise NotExtracted(
                f"expected `projected` features or a projector in {store.path}, it has neither: "
                f"add `projected` to store.arrays and run {EXTRACT}"
            )

    def reading(self, needs: Collection[str]) -> "Features":
        """Return the same store, opened for other arrays; raises as the constructor does."""
        self.store.require(sorted(needs))
        other = copy.copy(self)
        other.needs = frozenset(needs)
        return other

    @property
    def patches(self) -> int:
        """Number of visual tokens per image."""
        return self.store.arrays[self.source].shape[0]

    @property
    def embed(self) -> int:
        """Width of the projected features."""
        if self.source == "projected":
            return self.store.arrays["projected"].shape[1]
        raw = self.store.arrays["raw"]
        blank = torch.zeros((1, *raw.shape), dtype=torch_dtype(raw.dtype), device=self.device)
        return self.project(blank).shape[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; a single row of all tokens where the tokens do not form a grid."""
        return self.store.plan.geometry.patch_grid or (1, self.patches)

    def spec(self, pruner: Pruner, embed: int) -> ModuleSpec:
        """Describe what the shape of a pruner's learned module may depend on; `embed` is the width of the embeddings."""
        shapes = {name: self.store.arrays[name].shape for name in sorted(pruner.needs)}
        return ModuleSpec(self.grid, shapes, embed)

    def check(self, name: str, pruner: Pruner) -> None:
        """Refuse a pruner that this store cannot serve.

        Args:
            name: the pruner's name, for the message.
            pruner: the pruner.

        Raises:
            NotExtracted: (exit 5) if the pruner reads the projector and the store has no projector.
            PrunerMisused: (exit 2) if an array that the pruner reads has another number of patches than there are visual
                tokens.
        """
        if "projector" in pruner.reads and self.projector is None:
            raise NotExtracted(
                f"{name} needs the projector in {self.store.path}, it has none: leave this method out, or extract from a "
                "checkpoint whose projector can be reached"
            )
        for array in pruner.needs:
            spec = self.store.arrays[array]
            patches = dict(zip(spec.axes, spec.shape, strict=True)).get("patch", self.patches)
            if patches != self.patches:
                raise PrunerMisused(
                    f"{name} needs {array} for each of {self.patches} visual tokens, it has {patches} patches "
                    "(the CLS row is a token under the strategy `full`): leave this method out"
                )

    def answerable(self, questions: Sequence[Question]) -> tuple[list[Question], list[Excluded]]:
        """Split questions into those whose image is in the store and those whose image could not be encoded.

        Raises:
            NotExtracted: (exit 5) if an image was never given to stage 1, or if its shard is not committed yet.
            NothingToAsk: (exit 3) if no question is about an image that could be encoded.
        """
        absent = sorted({q.image for q in questions if self.store.ids.row_of_name(q.image) is None})
        if absent:
            raise NotExtracted(
                f"expected the images of {counted(len(questions), 'question')} in {self.store.path}, {len(absent)} "
                f"are not in it ({', '.join(absent[:3])}): run {EXTRACT} with this config first"
            )
        rows = {q.question_id: self.row(q) for q in questions}
        reasons = self.store.failed(self.needs | {self.source})
        self.store.require_complete(self.needs | {self.source}, sorted(set(rows.values()) - reasons.keys()))
        failed = {q.question_id: reasons.get(rows[q.question_id]) for q in questions}
        kept = [q for q in questions if failed[q.question_id] is None]
        if questions and not kept:
            raise NothingToAsk(
                f"expected a question whose image was encoded, none of {len(questions)} has one ({questions[0].image}: "
                f"{failed[questions[0].question_id]}): mend the images and run {typed('extract', '--retry-failed')}"
            )
        return kept, [Excluded(name, reason) for name, reason in failed.items() if reason is not None]

    def batches(
        self, batches: Sequence[Sequence[Question]], source: FeatureSource | None = None
    ) -> Iterator[FeatureBatch]:
        """Read the features of each batch; a thread reads ahead.

        On the CPU a batch is valid only until the next batch is asked for. Batches lie in a few buffers that take turns,
        because freeing tens of megabytes per batch and faulting them in again would cost more than reading them.

        Args:
            batches: the questions of each batch.
            source: the array that the features to select from come from, in place of `self.source`.
        """
        source = self.source if source is None else source
        names = sorted(self.needs | {source})
        longest = max((len(batch) for batch in batches), default=0)
        # One buffer for each batch that waits, one for the batch being read, one for the batch in use.
        buffers = cycle([self._transfer.buffer(names, longest) for _ in range(AHEAD + 2)])

        def read(batch: Sequence[Question]) -> _Read:
            return self._read_batch(batch, next(buffers))

        for batch in prefetched(batches, read, AHEAD):
            yield self._on_device(batch, source)

    def project(self, raw: Float[Tensor, "image patch hidden"]) -> Float[Tensor, "image patch embed"]:
        """Project raw features with the store's own projector, one image at a time, as stage 1 did."""
        assert self.projector is not None, "a store without a projector holds `projected`"
        projector = self.projector
        with threads_of(self.store.fingerprint(self.source).numeric):
            return torch.cat([project_image(projector, image[None].contiguous()) for image in raw])

    def _read_batch(self, questions: Sequence[Question], buffer: Buffer) -> _Read:
        """Read a batch into a buffer and send it to the device: the part of the work that another thread can do ahead."""
        rows = [self.row(question) for question in questions]
        distinct = list(dict.fromkeys(rows))
        image_of_row = {row: image for image, row in enumerate(distinct)}
        return _Read(
            tuple(questions),
            torch.tensor([image_of_row[row] for row in rows]),
            tuple(self.store.ids.sha_of_row(row) for row in distinct),
            self._transfer.read(distinct, buffer),
        )

    def _on_device(self, read: _Read, source: FeatureSource) -> FeatureBatch:
        arrays = self._transfer.received(read.moved)
        projected = arrays["projected"] if source == "projected" else self.project(arrays["raw"])
        seen = {name: arrays[name] for name in self.needs}
        tokens = VisualTokens(read.image_ids, self.grid, seen, device=self.device)
        return FeatureBatch(read.questions, read.of_question.to(self.device), tokens, projected)

    def row(self, question: Question) -> int:
        """Look up the store's row of a question's image."""
        row = self.store.ids.row_of_name(question.image)
        assert row is not None, "answerable() refuses questions about unknown images"
        return row

    def image_id(self, question: Question) -> str:
        """Return the id of a question's image: the sha256 of its file, unless the store identifies images by name."""
        return self.store.ids.sha_of_row(self.row(question))

    def sample(self, images: int) -> list[int]:
        """Return the first rows that hold features: both `raw` and `projected` where the store has both arrays."""
        return self.store.rows_with({"raw", "projected"} & self.store.arrays.keys())[:images]

    def fingerprints(self, names: Collection[str]) -> dict[str, Any]:
        """Return the fingerprints of some arrays, as JSON."""
        fingerprints = {name: self.store.fingerprint(name) for name in sorted(names)}
        return {name: {"semantic": made.semantic, "numeric": made.numeric} for name, made in fingerprints.items()}

    def read(self, name: str, rows: Sequence[int]) -> Float[Tensor, "image ..."]:
        """Read some rows of one array onto the device."""
        return read_rows(self.store, name, rows).to(self.device)
