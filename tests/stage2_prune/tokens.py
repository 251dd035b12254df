"""Random cached arrays on any grid, as a pruner would be given them."""

import torch

from stage2_prune.pruner import ModuleSpec, Pruner, TrainedPruner
from stage2_prune.tokens import VisualTokens

HIDDEN, HEADS, EMBED, WIDTH, LAYERS = 8, 2, 12, 4, 5


def visual_tokens(
    grid: tuple[int, int] = (4, 4),
    images: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: int = LAYERS,
) -> VisualTokens:
    patches = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(images, HEADS, patches, generator=generator).softmax(-1)
    arrays = {
        "raw": torch.randn(images, patches, HIDDEN, generator=generator).to(dtype),
        "cls_hidden": torch.randn(images, HIDDEN, generator=generator).to(dtype),
        "cls_attention": attention,
    }
    arrays |= {name: array.to(dtype) for name, array in _features(images, patches, generator).items()}
    arrays |= _attention(images, patches, layers, generator)
    return VisualTokens(tuple(f"{image:064x}" for image in range(images)), grid, arrays)


def _features(images: int, patches: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Side arrays in the compute dtype."""
    shapes = {
        "projected": (patches, EMBED),
        "keys": (patches + 1, WIDTH),
        "hidden_mean": (patches, HIDDEN),
        "last_layer_keys": (patches, HIDDEN),
    }
    return {name: torch.randn(images, *shape, generator=generator) for name, shape in shapes.items()}


def _attention(images: int, patches: int, layers: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Side arrays that are float32 whatever the compute dtype: parts of softmax rows."""
    shapes = {
        "cls_attention_layers": (layers, patches),
        "received_attention": (layers, patches),
        "self_attention_diagonal": (patches,),
        "last_layer_attention": (patches,),
    }
    return {name: (3 * torch.rand(images, *shape, generator=generator)).softmax(-1) for name, shape in shapes.items()}


def ready(pruner: Pruner, grid: tuple[int, int]) -> Pruner:
    """A trained pruner with a freshly seeded module, any other as it is."""
    if not isinstance(pruner, TrainedPruner):
        return pruner
    shapes = {name: tuple(array.shape[1:]) for name, array in visual_tokens(grid).arrays.items()}
    spec = ModuleSpec(grid, {name: shapes[name] for name in pruner.needs}, EMBED)
    return pruner.fresh(spec, seed=0)
