"""A method's kept patches in raster order: the same patches, for methods that hand them over in an order of their own."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class RasterOrder(Pruner):
    """What `inner` keeps, sorted by where it stands in the image."""

    inner: Pruner

    def __post_init__(self) -> None:
        for name in ("needs", "reads", "place", "budget", "positions", "randomised"):
            object.__setattr__(self, name, getattr(self.inner, name))  # the dataclass is frozen

    @property
    def adaptive(self) -> bool:
        """As `inner`."""
        return self.inner.adaptive

    @property
    def file(self) -> Path:
        """As `inner`."""
        return self.inner.file

    @property
    def code(self) -> str:
        """As `inner`."""
        return self.inner.code

    def fixed_keep(self, patches: int) -> int:
        """As `inner`."""
        return self.inner.fixed_keep(patches)

    def tower_layers(self, layers: int) -> dict[str, int]:
        """As `inner`."""
        return self.inner.tower_layers(layers)

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Ascending indices."""
        return self.inner.select(tokens, keep).sort(dim=-1).values

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """The tokens of `inner`, sorted; PrunerMisused where they are merged and have no places."""
        return in_raster_order(self.inner.prune(tokens, keep))

    def parameters(self) -> dict[str, Any]:
        """Those of `inner`, and that the order is not its own."""
        return self.inner.parameters() | {"order": "raster"}


def in_raster_order(pruned: Pruned) -> Pruned:
    """A result sorted by its index; what is behind an image's count is padding, and stays there."""
    if pruned.index is None:
        raise PrunerMisused("merged tokens have no places to sort them by: leave this method in its own order")
    places = pruned.index.clone()
    if pruned.counts is not None:
        behind = places.new_tensor(range(pruned.kept))[None] >= pruned.counts[:, None]
        places[behind] = places.max() + 1
    order = places.argsort(dim=-1, stable=True)

    def sorted_rows(found: Tensor) -> Tensor:
        return found.gather(1, order[..., None].expand(-1, -1, found.shape[-1]))

    merge = pruned.merge
    return replace(
        pruned,
        index=pruned.index.gather(1, order),
        merge=None if merge is None else Merge(sorted_rows(merge.weights), merge.space),
        tokens=None if pruned.tokens is None else sorted_rows(pruned.tokens),
    )
