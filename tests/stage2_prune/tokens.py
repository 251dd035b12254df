"""Random cached arrays on any grid, as a pruner would be given them."""

import torch

from stage2_prune.pruner import ModuleSpec, Pruner, TrainedPruner
from stage2_prune.tokens import VisualTokens

TINY = (8, 2, 12)
"""Width of `raw`, heads of `cls_attention`, width of `projected`."""
REAL = (1024, 16, 4096)


def visual_tokens(
    grid: tuple[int, int] = (4, 4),
    images: int = 3,
    dtype: torch.dtype = torch.float32,
    widths: tuple[int, int, int] = TINY,
    seed: int = 0,
) -> VisualTokens:
    patches = grid[0] * grid[1]
    hidden, heads, embed = widths
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(images, heads, patches, generator=generator).softmax(-1)
    arrays = {
        "raw": torch.randn(images, patches, hidden, generator=generator).to(dtype),
        "cls_hidden": torch.randn(images, hidden, generator=generator).to(dtype),
        "cls_attention": attention,
        "projected": torch.randn(images, patches, embed, generator=generator).to(dtype),
    }
    return VisualTokens(tuple(f"{image:064x}" for image in range(images)), grid, arrays)


def ready(pruner: Pruner, grid: tuple[int, int], widths: tuple[int, int, int] = TINY) -> Pruner:
    """A trained pruner with a freshly seeded module, any other as it is."""
    if not isinstance(pruner, TrainedPruner):
        return pruner
    shapes = {name: tuple(array.shape[1:]) for name, array in visual_tokens(grid, 1, widths=widths).arrays.items()}
    spec = ModuleSpec(grid, {name: shapes[name] for name in pruner.needs}, widths[2])
    return pruner.fresh(spec, seed=0)
