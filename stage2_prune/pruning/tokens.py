"""What a pruner sees, and what it returns."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.errors import PrunerMisused

Beside = Literal["question", "clip_text", "projector"]
"""What a pruner may look at beside arrays: VisualTokens has a field for each."""
Project = Callable[[Float[Tensor, "image row hidden"]], Float[Tensor, "image row embed"]]


@dataclass(frozen=True)
class ClipText:
    """Questions as CLIP's text encoder reads them, one for each image of a batch; nothing is normalised."""

    pooled: Float[Tensor, "image segment clip"]
    """float32. Of each segment of as many tokens as the encoder reads at once; nearly all questions are one segment."""
    tokens: Float[Tensor, "image token clip"]
    """float32. Of every token, begin and end included, all segments behind each other; projected as `pooled` is."""
    scale: float
    """By which CLIP multiplies cosines."""

    def at(self, places: Sequence[int]) -> "ClipText":
        """Those of some images."""
        return replace(self, pooled=self.pooled[places], tokens=self.tokens[places])


@dataclass(frozen=True)
class VisualTokens:
    """One batch of cached arrays; every image of it is pruned on its own.

    Arrays bear the store's names and shapes with the image axis first, such as `raw` (image, patch, hidden),
    `cls_hidden` (image, hidden) or `cls_attention` (image, head, patch). They are shared with other pruners:
    never write to them.
    """

    image_ids: tuple[str, ...]
    """sha256 of each image's file: what randomness hangs on."""
    grid: tuple[int, int]
    """Rows and columns of patches; patch `row * columns + column` is raster order."""
    arrays: Mapping[str, Tensor]
    """The arrays that the pruner's `needs` name."""
    question: Float[Tensor, "image token embed"] | None = None
    """The language model's embeddings of each image's question, for methods that read it; None for all others."""
    clip_text: ClipText | None = None
    """The same questions in CLIP's space, for methods that read `clip_text`."""
    projector: Project | None = None
    """The store's projector, for methods that read it: any rows in, in the dtype of `raw`; differentiable."""
    device: str | torch.device = "cpu"
    """Where the arrays lie and where indices are expected."""

    @property
    def patches(self) -> int:
        """Visual tokens of an unpruned image."""
        return self.grid[0] * self.grid[1]

    def only(self, names: Collection[str], beside: Collection[Beside] = ()) -> "VisualTokens":
        """The same images with nothing but the arrays `names` and what is named `beside`: a pruner cannot read what it
        did not declare.
        """
        hidden: dict[str, Any] = {name: None for name in get_args(Beside) if name not in beside}
        arrays = {name: array for name, array in self.arrays.items() if name in names}
        return replace(self, arrays=arrays, **hidden)

    def at(self, places: Sequence[int]) -> "VisualTokens":
        """The images at `places`, as a batch of their own."""
        chosen = list(places)
        return replace(
            self,
            image_ids=tuple(self.image_ids[place] for place in chosen),
            arrays={name: array[chosen] for name, array in self.arrays.items()},
            question=None if self.question is None else self.question[chosen],
            clip_text=None if self.clip_text is None else self.clip_text.at(chosen),
        )

    def one(self, image: int) -> "VisualTokens":
        """The image at position `image`, as a batch of its own."""
        return self.at([image])


@dataclass(frozen=True)
class Merge:
    """Visual tokens as weighted sums of an image's rows: the one form in which methods merge."""

    weights: Float[Tensor, "image kept row"]
    """float32. Rows are the patches in raster order; one row more is the CLS row, which comes after them."""
    space: Literal["raw", "projected"]
    """`raw`: of raw rows (and `cls_hidden`), projected afterwards; `projected`: of projected rows, where the CLS row has none."""


@dataclass(frozen=True)
class Pruned:
    """The visual tokens that go on to the language model.

    A selection names patches by `index`, and their projected features are gathered from the store. A merging method says
    by `merge` what its tokens are made of; with an `index` too, it also says where each of them stands, as `original`
    positions need. `tokens` are in the language model's embedding space: what `stage2_prune.session.merging` makes of a `merge`.
    """

    index: Int[Tensor, "image kept"] | None = None
    merge: Merge | None = None
    tokens: Float[Tensor, "image kept embed"] | None = None
    counts: Int[Tensor, " image"] | None = None
    """Of a method that decides by itself how many tokens an image keeps: what is behind so many is padding."""

    def __post_init__(self) -> None:
        lengths = {found.shape[1] for found in self._said}
        if len(lengths) != 1:
            raise PrunerMisused(
                f"expected from a pruner the index or the merge of its kept tokens, or both for as many, got {len(lengths)} "
                "different numbers of them: give at least one"
            )

    @property
    def kept(self) -> int:
        """Visual tokens per image that enter the language model; where `counts` differ, the most."""
        return self._said[0].shape[1]

    @property
    def _said(self) -> list[Tensor]:
        weights = None if self.merge is None else self.merge.weights
        return [found for found in (self.index, weights, self.tokens) if found is not None]
