"""Generate cached arrays on any grid, in the form that pruners are given; the arrays are a function of a seed."""

from dataclasses import replace

import torch

from stage2_prune.pruning.pruner import ModuleSpec, Pruner, TrainedPruner
from stage2_prune.pruning.tokens import ClipText, Project, VisualTokens

TINY = (8, 2, 12)
"""Width of `raw`, heads of `cls_attention`, width of `projected`."""
REAL = (1024, 16, 4096)
"""The same three sizes for LLaVA-1.5."""
LAYERS = 5
"""Layers of the tower, for arrays with an axis of layers."""
CLIP_WIDTH = 6
"""Width of CLIP's space."""


def visual_tokens(
    grid: tuple[int, int] = (4, 4),
    images: int = 3,
    dtype: torch.dtype = torch.float32,
    widths: tuple[int, int, int] = TINY,
    seed: int = 0,
    layers: int = LAYERS,
) -> VisualTokens:
    """Generate all arrays that a store may hold, and all that a pruner may read beside them."""
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
    arrays |= {name: array.to(dtype) for name, array in _features(images, patches, widths, generator).items()}
    arrays |= _attention(images, patches, layers, generator)
    arrays |= _beside_the_tower(images, patches, dtype, generator)
    text = _clip_text(images, generator)
    question = torch.randn(images, 5, embed, generator=generator).to(dtype)
    names = tuple(f"{image:064x}" for image in range(images))
    return VisualTokens(names, grid, arrays, question, text, _projector(embed, generator))


def long_tailed(tokens: VisualTokens) -> VisualTokens:
    """Give the attention of the last layer outliers, as that of a real tower has."""
    shape = (len(tokens.image_ids), tokens.patches)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return replace(tokens, arrays=dict(tokens.arrays) | {"last_layer_attention": (1.3 * logits).softmax(-1)})


def ready(pruner: Pruner, grid: tuple[int, int], widths: tuple[int, int, int] = TINY) -> Pruner:
    """Return a trained pruner with a freshly seeded module, and any other pruner as it is."""
    if not isinstance(pruner, TrainedPruner):
        return pruner
    shapes = {name: tuple(array.shape[1:]) for name, array in visual_tokens(grid, 1, widths=widths).arrays.items()}
    spec = ModuleSpec(grid, {name: shapes[name] for name in pruner.needs}, widths[2])
    return pruner.fresh(spec, seed=0)


def merges(pruner: Pruner) -> bool:
    """Check whether a pruner says by a merge what its tokens are made of, rather than by an index alone."""
    tokens = visual_tokens()
    keep = pruner.asked_tokens(tokens.patches, 2)
    with torch.no_grad():
        return ready(pruner, tokens.grid).prune(tokens.only(pruner.needs, pruner.reads), keep).merge is not None


def _features(
    images: int, patches: int, widths: tuple[int, int, int], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Generate side arrays in the compute dtype."""
    hidden, heads, _ = widths
    shapes = {
        "keys": (patches + 1, hidden // heads),
        "hidden_mean": (patches, hidden),
        "last_layer_keys": (patches, hidden),
    }
    return {name: torch.randn(images, *shape, generator=generator) for name, shape in shapes.items()}


def _attention(images: int, patches: int, layers: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Generate side arrays that are float32 whatever the compute dtype: parts of softmax rows."""
    shapes = {
        "cls_attention_layers": (layers, patches),
        "received_attention": (layers, patches),
        "self_attention_diagonal": (patches,),
        "last_layer_attention": (patches,),
    }
    return {name: (3 * torch.rand(images, *shape, generator=generator)).softmax(-1) for name, shape in shapes.items()}


def _beside_the_tower(
    images: int, patches: int, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Generate patches in CLIP's space, and the share of each patch that shows the image: none, a part, or all."""
    in_clip = (torch.randn(images, patches, CLIP_WIDTH, generator=generator) for _ in range(2))
    area = (3 * torch.rand(images, patches, generator=generator) - 1).clamp(0, 1)
    patched, projected = (array.to(dtype) for array in in_clip)
    return {"clip_patches": patched, "clip_projected": projected, "image_area": area}


def _clip_text(images: int, generator: torch.Generator) -> ClipText:
    """Generate questions of two segments."""
    pooled = torch.randn(images, 2, CLIP_WIDTH, generator=generator)
    return ClipText(pooled, torch.randn(images, 7, CLIP_WIDTH, generator=generator), 100.0)


def _projector(embed: int, generator: torch.Generator) -> Project:
    """Make a projector that is not linear, works in the dtype of its rows, and is cheap at real widths.

    It reads the first few columns only.
    """
    weights = torch.randn(4, embed, generator=generator)
    return lambda rows: (rows[..., :4] @ weights.to(rows.dtype)).square()
