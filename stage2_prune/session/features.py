"""Rows of a store for questions: arrays for pruners to look at, projected features to select from."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from stage2_prune.errors import NotExtracted, NothingToAsk, PrunerMisused
from stage2_prune.pruning.pruner import ModuleSpec, Pruner
from stage2_prune.pruning.tokens import VisualTokens
from store.layout.environment import threads_of
from store.layout.tensors import from_storage, torch_dtype
from store.projectors import Projector, build, project_image
from store.questions.question import Question
from store.reading.prefetch import prefetched
from store.reading.reader import FeatureStore

Source = Literal["projected", "raw"]
AHEAD = 2
"""Batches that are read before they are asked for."""
SHOWN = 3
"""Reasons that are listed, at most."""


@dataclass(frozen=True)
class Excluded:
    """A question that is not scored: its image could not be encoded, or it has no answer. It never counts as wrong."""

    question_id: str
    reason: str


def left_out(reasons: Iterable[str]) -> list[str]:
    """Say how many questions were left out and why, in one sentence; none where none was."""
    counted = Counter(reasons).most_common()
    listed = [f"{reason} ({count})" for reason, count in counted[:SHOWN]] + ["…"] * (len(counted) > SHOWN)
    total = sum(count for _, count in counted)
    return [f"{total} questions were left out: {', '.join(listed)}."] if counted else []


@dataclass(frozen=True)
class FeatureBatch:
    """A batch of questions and the distinct images that they are about."""

    questions: tuple[Question, ...]
    of_question: Int[Tensor, " question"]
    """Which image of the batch each question is about."""
    tokens: VisualTokens
    projected: Float[Tensor, "image patch embed"]


@dataclass(frozen=True)
class _Read:
    """A batch on the CPU."""

    questions: tuple[Question, ...]
    of_question: Int[Tensor, " question"]
    image_ids: tuple[str, ...]
    arrays: dict[str, Tensor]


class Features:
    """One store, opened for the arrays that a run needs.

    `projected` features come from the store; where it holds only `raw`, they are made by its own projector.
    """

    def __init__(self, store: FeatureStore, needs: Collection[str], device: torch.device) -> None:
        self.store = store
        self.device = device
        self.source: Source = "projected" if "projected" in store.arrays else "raw"
        self.needs = frozenset(needs)
        store.require(sorted(self.needs | {self.source}))
        state = store.projector
        self.projector: Projector | None = None if state is None else build(state, device)
        if self.source == "raw" and self.projector is None:
            raise NotExtracted(
                f"expected `projected` features or a projector in {store.path}, it has neither: "
                "add `projected` to store.arrays and run `make extract`"
            )

    @property
    def patches(self) -> int:
        """Visual tokens per image."""
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
        """Rows and columns of patches; one row of all tokens where they are no grid."""
        return self.store.plan.geometry.patch_grid or (1, self.patches)

    def spec(self, pruner: Pruner, embed: int) -> ModuleSpec:
        """What a learned module's shape may depend on."""
        shapes = {name: self.store.arrays[name].shape for name in sorted(pruner.needs)}
        return ModuleSpec(self.grid, shapes, embed)

    def check(self, name: str, pruner: Pruner) -> None:
        """Refuse a pruner that reads another number of patches than there are visual tokens, or a projector that is not
        there.
        """
        if "projector" in pruner.reads and self.projector is None:
            raise NotExtracted(
                f"{name} needs the projector in {self.store.path}, it has none: leave this method out, or extract from a "
                "checkpoint whose projector can be reached"
            )
        for array in pruner.needs:
            spec = self.store.arrays[array]
            found = dict(zip(spec.axes, spec.shape, strict=True)).get("patch", self.patches)
            if found != self.patches:
                raise PrunerMisused(
                    f"{name} needs {array} for each of {self.patches} visual tokens, it has {found} patches "
                    "(the CLS row is a token under the strategy `full`): leave this method out"
                )

    def answerable(self, questions: Sequence[Question]) -> tuple[list[Question], list[Excluded]]:
        """The questions whose image is in the store, and those whose image could not be encoded.

        Raises NotExtracted (exit 5) if an image was never given to stage 1 or its shard is not committed yet, NothingToAsk
        (exit 3) if the image of no question could be encoded.
        """
        absent = sorted({q.image for q in questions if self.store.ids.row_of_name(q.image) is None})
        if absent:
            raise NotExtracted(
                f"expected the images of all {len(questions)} questions in {self.store.path}, {len(absent)} "
                f"are not in it ({', '.join(absent[:3])}): run `make extract` with this config first"
            )
        rows = {q.question_id: self.row(q) for q in questions}
        reasons = self.store.failed(self.needs | {self.source})
        self.store.require_complete(self.needs | {self.source}, sorted(set(rows.values()) - reasons.keys()))
        failed = {q.question_id: reasons.get(rows[q.question_id]) for q in questions}
        kept = [q for q in questions if failed[q.question_id] is None]
        if questions and not kept:
            first = questions[0]
            raise NothingToAsk(
                f"expected a question whose image was encoded, none of {len(questions)} has one ({first.image}: "
                f"{failed[first.question_id]}): mend the images and run `make extract ARGS=--retry-failed`"
            )
        return kept, [Excluded(name, reason) for name, reason in failed.items() if reason is not None]

    def batches(self, batches: Sequence[Sequence[Question]], source: Source | None = None) -> Iterator[FeatureBatch]:
        """The features of each batch, read ahead by a thread; `source` overrides where they come from.

        On the CPU a batch is valid until the next one is asked for: it lies in one of a few buffers that take turns, as
        returning and faulting in tens of megabytes per batch would cost more than reading them.
        """
        source = self.source if source is None else source
        names = sorted(self.needs | {source})
        longest = max((len(batch) for batch in batches), default=0)
        # Those that wait, the one being read, the one in use.
        buffers = cycle([self._buffers(names, longest) for _ in range(AHEAD + 2)])

        def read(batch: Sequence[Question]) -> _Read:
            return self._read_batch(batch, next(buffers))

        for batch in prefetched(batches, read, AHEAD):
            yield self._on_device(batch, source)

    def project(self, raw: Float[Tensor, "image patch hidden"]) -> Float[Tensor, "image patch embed"]:
        """Project with the store's own projector, one image at a time, as stage 1 did."""
        assert self.projector is not None, "a store without a projector holds `projected`"
        projector = self.projector
        with threads_of(self.store.fingerprint(self.source).numeric):
            return torch.cat([project_image(projector, image[None].contiguous()) for image in raw])

    def _buffers(self, names: Sequence[str], images: int) -> dict[str, np.ndarray]:
        specs = [self.store.arrays[name] for name in names]
        return {spec.name: np.empty((images, *spec.shape), spec.storage) for spec in specs}

    def _read_batch(self, questions: Sequence[Question], buffers: dict[str, np.ndarray]) -> _Read:
        """All that can be done ahead, in another thread."""
        rows = [self.row(question) for question in questions]
        distinct = list(dict.fromkeys(rows))
        at = {row: place for place, row in enumerate(distinct)}
        count = len(distinct)
        arrays = {name: self.store.gather(name, distinct, out=buffer[:count]) for name, buffer in buffers.items()}
        return _Read(
            tuple(questions),
            torch.tensor([at[row] for row in rows]),
            tuple(self.store.ids.sha_of_row(row) for row in distinct),
            {name: from_storage(array, self.store.arrays[name].dtype) for name, array in arrays.items()},
        )

    def _on_device(self, read: _Read, source: Source) -> FeatureBatch:
        arrays = {name: array.to(self.device) for name, array in read.arrays.items()}
        projected = arrays["projected"] if source == "projected" else self.project(arrays["raw"])
        seen = {name: arrays[name] for name in self.needs}
        tokens = VisualTokens(read.image_ids, self.grid, seen, device=self.device)
        return FeatureBatch(read.questions, read.of_question.to(self.device), tokens, projected)

    def row(self, question: Question) -> int:
        """The store's row of a question's image."""
        row = self.store.ids.row_of_name(question.image)
        assert row is not None, "answerable() has looked"
        return row

    def sample(self, images: int) -> list[int]:
        """The first rows that hold features, raw and projected where there are both."""
        return self.store.rows_with({"raw", "projected"} & self.store.arrays.keys())[:images]

    def fingerprints(self, names: Collection[str]) -> dict[str, Any]:
        """What the store says of some arrays' making, as JSON."""
        found = {name: self.store.fingerprint(name) for name in sorted(names)}
        return {name: {"semantic": one.semantic, "numeric": one.numeric} for name, one in found.items()}

    def read(self, name: str, rows: Sequence[int]) -> Float[Tensor, "image ..."]:
        """One array of some rows."""
        return self._tensor(name, self.store.gather(name, rows))

    def _tensor(self, name: str, array: Shaped[np.ndarray, "..."]) -> Tensor:
        return from_storage(array, self.store.arrays[name].dtype).to(self.device)
