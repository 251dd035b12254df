"""What a pruner sees, and what it returns."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.errors import PrunerMisused


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
    """Embedded question, for methods that look at it; None for all others."""
    device: str | torch.device = "cpu"
    """Where the arrays lie and where indices are expected."""

    @property
    def patches(self) -> int:
        """Visual tokens of an unpruned image."""
        return self.grid[0] * self.grid[1]

    def only(self, names: Collection[str]) -> "VisualTokens":
        """The same images with no other arrays than `names`: what a pruner did not declare it cannot read."""
        return replace(self, arrays={name: array for name, array in self.arrays.items() if name in names})

    def one(self, image: int) -> "VisualTokens":
        """The image at position `image`, as a batch of its own."""
        at = slice(image, image + 1)
        arrays = {name: array[at] for name, array in self.arrays.items()}
        question = None if self.question is None else self.question[at]
        return replace(self, image_ids=self.image_ids[at], arrays=arrays, question=question)


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
    positions need. `tokens` are in the language model's embedding space: what `stage2_prune.merging` makes of a `merge`.
    """

    index: Int[Tensor, "image kept"] | None = None
    merge: Merge | None = None
    tokens: Float[Tensor, "image kept embed"] | None = None

    def __post_init__(self) -> None:
        lengths = {found.shape[1] for found in self._said}
        if len(lengths) != 1:
            raise PrunerMisused(
                f"expected from a pruner the index or the merge of its kept tokens, or both for as many, got {len(lengths)} "
                "different numbers of them: give at least one"
            )

    @property
    def kept(self) -> int:
        """Visual tokens per image that enter the language model."""
        return self._said[0].shape[1]

    @property
    def _said(self) -> list[Tensor]:
        weights = None if self.merge is None else self.merge.weights
        return [found for found in (self.index, weights, self.tokens) if found is not None]
