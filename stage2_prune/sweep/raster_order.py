"""Put a method's kept patches in raster order: for methods that return their patches in an order of their own."""

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
    """A pruner that keeps the patches of another pruner, `inner`, but returns them sorted by their place in the image."""

    inner: Pruner

    def __post_init__(self) -> None:
        for name in ("needs", "reads", "place", "budget", "positions", "randomised"):
            object.__setattr__(self, name, getattr(self.inner, name))  # the dataclass is frozen

    @property
    def adaptive(self) -> bool:
        """Answer as `inner` does."""
        return self.inner.adaptive

    @property
    def takes_budget(self) -> bool:
        """Answer as `inner` does."""
        return self.inner.takes_budget

    @property
    def file(self) -> Path:
        """Answer as `inner` does."""
        return self.inner.file

    @property
    def code(self) -> str:
        """Answer as `inner` does."""
        return self.inner.code

    def fixed_keep(self, patches: int) -> int:
        """Answer as `inner` does."""
        return self.inner.fixed_keep(patches)

    def tower_layers(self, layers: int) -> dict[str, int]:
        """Answer as `inner` does."""
        return self.inner.tower_layers(layers)

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Select the patches of `inner`, with ascending indices."""
        return self.inner.select(tokens, keep).sort(dim=-1).values

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Prune as `inner` does and sort the tokens; raise PrunerMisused for merged tokens, which have no place."""
        return in_raster_order(self.inner.prune(tokens, keep))

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of `inner`, and `order: raster`."""
        return self.inner.parameters() | {"order": "raster"}


def in_raster_order(pruned: Pruned) -> Pruned:
    """Sort a result by its index; padding behind an image's count stays at the end.

    Raises:
        PrunerMisused: (exit 2) for merged tokens without an index.
    """
    if pruned.index is None:
        raise PrunerMisused("merged tokens have no places to sort them by: leave this method in its own order")
    places = pruned.index.clone()
    if pruned.counts is not None:
        behind = places.new_tensor(range(pruned.kept))[None] >= pruned.counts[:, None]
        places[behind] = places.max() + 1
    order = places.argsort(dim=-1, stable=True)

    def sorted_rows(rows: Tensor) -> Tensor:
        return rows.gather(1, order[..., None].expand(-1, -1, rows.shape[-1]))

    merge = pruned.merge
    return replace(
        pruned,
        index=pruned.index.gather(1, order),
        merge=None if merge is None else Merge(sorted_rows(merge.weights), merge.space),
        tokens=None if pruned.tokens is None else sorted_rows(pruned.tokens),
    )
