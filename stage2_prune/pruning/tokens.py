"""What a pruner sees, and what it returns."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.returned import came, is_integer

Beside = Literal["question", "clip_text", "projector"]
"""What a pruner may look at beside arrays; VisualTokens has a field for each."""
Project = Callable[[Float[Tensor, "image row hidden"]], Float[Tensor, "image row embed"]]


@dataclass(frozen=True)
class ClipText:
    """Questions as CLIP's text encoder reads them, one for each image of a batch; nothing is normalised."""

    pooled: Float[Tensor, "image segment clip"]
    """float32, one vector per segment. A segment is as many tokens as the encoder reads at once; nearly all questions fit into
    one segment.
    """
    tokens: Float[Tensor, "image token clip"]
    """float32, one vector per token, begin and end included, with the segments behind each other; projected as `pooled` is."""
    scale: float
    """The factor by which CLIP multiplies cosines."""

    def at(self, images: Sequence[int]) -> "ClipText":
        """Return the questions of some images."""
        return replace(self, pooled=self.pooled[images], tokens=self.tokens[images])


@dataclass(frozen=True)
class VisualTokens:
    """One batch of cached arrays; every image of it is pruned on its own.

    Arrays bear the store's names and shapes with the image axis first, such as `raw` (image, patch, hidden), `cls_hidden`
    (image, hidden) or `cls_attention` (image, head, patch). They are shared with other pruners: never write to them.
    """

    image_ids: tuple[str, ...]
    """sha256 of each image's file; randomness depends on this identity."""
    grid: tuple[int, int]
    """Rows and columns of patches; in raster order a patch has the index `row * columns + column`."""
    arrays: Mapping[str, Tensor]
    """The arrays that the pruner's `needs` name."""
    question: Float[Tensor, "image token embed"] | None = None
    """The language model's embeddings of each image's question, for methods that read it; None for all others."""
    clip_text: ClipText | None = None
    """The same questions in CLIP's space, for methods that read `clip_text`."""
    projector: Project | None = None
    """The store's projector, for methods that read it. It takes any number of rows in the dtype of `raw`, and is
    differentiable.
    """
    device: str | torch.device = "cpu"
    """Where the arrays lie and where indices are expected."""

    @property
    def patches(self) -> int:
        """Return the number of visual tokens of an unpruned image."""
        return self.grid[0] * self.grid[1]

    def only(self, names: Collection[str], beside: Collection[Beside] = ()) -> "VisualTokens":
        """Return the same images with the arrays `names` and the fields `beside` alone.

        So a pruner cannot read what it did not declare.
        """
        hidden: dict[str, Any] = {name: None for name in get_args(Beside) if name not in beside}
        arrays = {name: array for name, array in self.arrays.items() if name in names}
        return replace(self, arrays=arrays, **hidden)

    def at(self, images: Sequence[int]) -> "VisualTokens":
        """Return the images at the positions `images`, as a batch of their own."""
        chosen = list(images)
        return replace(
            self,
            image_ids=tuple(self.image_ids[image] for image in chosen),
            arrays={name: array[chosen] for name, array in self.arrays.items()},
            question=None if self.question is None else self.question[chosen],
            clip_text=None if self.clip_text is None else self.clip_text.at(chosen),
        )

    def one(self, image: int) -> "VisualTokens":
        """Return the image at position `image`, as a batch of its own."""
        return self.at([image])


@dataclass(frozen=True)
class Merge:
    """Visual tokens as weighted sums of an image's rows; all merging methods state their merges in this form."""

    weights: Float[Tensor, "image kept row"]
    """float32. Rows are the patches in raster order, and where the CLS row takes part it is one row more, behind them."""
    space: Literal["raw", "projected"]
    """`raw`: sums of raw rows (and `cls_hidden`), projected afterwards; `projected`: sums of projected rows, without CLS."""


@dataclass(frozen=True)
class Pruned:
    """The visual tokens that go on to the language model.

    A selection names patches by `index`, and their projected features are gathered from the store. A merging method says by
    `merge` what its tokens are made of; with an `index` too, it also says where each of them stands, as `original` positions
    need. `tokens` are in the language model's embedding space: `stage2_prune.session.merging` makes them of a `merge`.
    """

    index: Int[Tensor, "image kept"] | None = None
    merge: Merge | None = None
    tokens: Float[Tensor, "image kept embed"] | None = None
    counts: Int[Tensor, " image"] | None = None
    """Tokens of each image, from a method that decides this number itself; whatever stands behind that many is padding."""

    def __post_init__(self) -> None:
        index, weights = self.index, None if self.merge is None else self.merge.weights
        if index is not None and not (isinstance(index, Tensor) and is_integer(index.dtype) and index.dim() == 2):
            raise PrunerMisused(f"expected an integer tensor (image, kept) as the index of a Pruned, got {came(index)}")
        if weights is not None and not (isinstance(weights, Tensor) and weights.dim() == 3):
            raise PrunerMisused(f"expected a tensor (image, kept, row) as the weights of a Merge, got {came(weights)}")
        lengths = {form.shape[1] for form in self._forms}
        if len(lengths) != 1:
            raise PrunerMisused(
                f"expected index and merge of a pruner's kept tokens for one number of tokens, got {len(lengths)} different "
                "numbers: return at least one of the two, and both for the same tokens"
            )

    @property
    def kept(self) -> int:
        """Return the visual tokens per image that enter the language model; where `counts` differ, the largest."""
        return self._forms[0].shape[1]

    def of_image(self, image: int) -> "Pruned":
        """Return a copy of one image's result, as a batch of its own."""
        part = slice(image, image + 1)
        return Pruned(
            None if self.index is None else self.index[part].clone(),
            None if self.merge is None else replace(self.merge, weights=self.merge.weights[part].clone()),
            None if self.tokens is None else self.tokens[part].clone(),
            None if self.counts is None else self.counts[part].clone(),
        )

    @property
    def _forms(self) -> list[Tensor]:
        """Return the forms in which the tokens are given; each has an axis of kept tokens."""
        weights = None if self.merge is None else self.merge.weights
        return [form for form in (self.index, weights, self.tokens) if form is not None]
