"""Random cached arrays on any grid, as a pruner would be given them."""

import torch

from stage2_prune.pruner import ModuleSpec, Pruner, TrainedPruner
from stage2_prune.tokens import VisualTokens

HIDDEN, HEADS, EMBED = 8, 2, 12


def visual_tokens(grid: tuple[int, int] = (4, 4), images: int = 3, dtype: torch.dtype = torch.float32) -> VisualTokens:
    patches = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(images, HEADS, patches, generator=generator).softmax(-1)
    arrays = {
        "raw": torch.randn(images, patches, HIDDEN, generator=generator).to(dtype),
        "cls_hidden": torch.randn(images, HIDDEN, generator=generator).to(dtype),
        "cls_attention": attention,
    }
    return VisualTokens(tuple(f"{image:064x}" for image in range(images)), grid, arrays)


def ready(pruner: Pruner, grid: tuple[int, int]) -> Pruner:
    """A trained pruner with a freshly seeded module, any other as it is."""
    if not isinstance(pruner, TrainedPruner):
        return pruner
    shapes = {name: tuple(array.shape[1:]) for name, array in visual_tokens(grid).arrays.items()}
    spec = ModuleSpec(grid, {name: shapes[name] for name in pruner.needs}, EMBED)
    return pruner.fresh(spec, seed=0)
