"""VisionTrim's selection against the whole attention matrix, which it never sees."""

import numpy as np
import pytest
import torch

from stage2_prune.pruners.vision_trim import VisionTrim
from stage2_prune.tokens import VisualTokens
from tests.stage2_prune.pruners import naive

HEADS, LAYERS = 3, 4


def attention(patches: int, seed: int) -> torch.Tensor:
    """(layer, head, row, row), row 0 being CLS."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(LAYERS, HEADS, patches + 1, patches + 1, generator=generator, dtype=torch.float64)
    return (2 * scores).softmax(-1)


def cached(every: torch.Tensor, grid: tuple[int, int]) -> VisualTokens:
    """What stage 1 stores of it, with the last but one layer making the features."""
    made = every[-2]
    arrays = {
        "cls_attention": made[:, 0, 1:],
        "received_attention": every.mean((1, 2))[:, 1:],
        "self_attention_diagonal": made.diagonal(dim1=-2, dim2=-1).mean(0)[1:],
    }
    return VisualTokens(("0",), grid, {name: array[None].float() for name, array in arrays.items()})


def expected(matrix: np.ndarray, keep: int, weight: float) -> list[int]:
    """From one layer's attention, averaged over heads."""
    patches = range(1, len(matrix))
    cls = [matrix[0, patch] for patch in patches]
    received = [sum(matrix[row, patch] for row in patches if row != patch) / (len(cls) - 1) for patch in patches]
    lengths = [sum(value**2 for value in values) ** 0.5 for values in (cls, received)]
    score = [
        weight * one / lengths[0] + (1 - weight) * other / lengths[1] for one, other in zip(cls, received, strict=True)
    ]
    return sorted(naive.best(dict(enumerate(score)), keep))


@pytest.mark.parametrize("weight", [0.5, 0.2, 1.0])
@pytest.mark.parametrize("grid", [(6, 6), (3, 5), (12, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_its_maths_at_every_budget(grid, weight, seed):
    every = attention(grid[0] * grid[1], seed)
    tokens = cached(every, grid)
    for keep in range(1, tokens.patches + 1):
        wanted = expected(every[-2].mean(0).numpy(), keep, weight)
        assert VisionTrim(cls_weight=weight).select(tokens, keep).tolist() == [wanted]


def test_three_patches_by_hand():
    # CLS looks at patches 0, 1, 2 with 0.6, 0.2, 0.1; patch 2 gets 0.5 and 0.4 from the others, patch 1 gets 0.1 and 0.2,
    # patch 0 gets 0.1 and 0.1. Scaled to length 1: 0.937, 0.312, 0.156 and 0.206, 0.309, 0.928; halved and added:
    # 0.571, 0.311, 0.542.
    matrix = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.1, 0.3, 0.1, 0.5], [0.2, 0.1, 0.3, 0.4], [0.1, 0.1, 0.2, 0.6]])
    tokens = cached(matrix.double().expand(LAYERS, 1, 4, 4), (1, 3))
    assert VisionTrim().select(tokens, 1).tolist() == [[0]]
    assert VisionTrim().select(tokens, 2).tolist() == [[0, 2]]
    assert VisionTrim(cls_weight=0.0).select(tokens, 2).tolist() == [[1, 2]]
