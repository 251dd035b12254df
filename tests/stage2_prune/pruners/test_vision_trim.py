"""VisionTrim's selection against the whole attention matrix, which it never sees; its complement against raw rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stage2_prune.pruners.vision_trim import VisionTrim
from stage2_prune.pruning.tokens import ClipText, VisualTokens
from tests.stage2_prune.pruners import naive
from tests.stage2_prune.pruners.images import at_angles
from tests.stage2_prune.tokens import visual_tokens

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
    arrays |= {"raw": torch.zeros(grid[0] * grid[1], 2), "clip_projected": torch.zeros(grid[0] * grid[1], 2)}
    text = ClipText(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), 100.0)
    return VisualTokens(("0",), grid, {name: array[None].float() for name, array in arrays.items()}, clip_text=text)


def selected(pruner: VisionTrim, tokens: VisualTokens, keep: int) -> list[int]:
    """The patches of a complement of 0: each token is one patch as it is."""
    weights = replace(pruner, complement=0.0).prune(tokens, keep).merge.weights[0]
    assert torch.equal(weights, torch.eye(tokens.patches)[weights.argmax(-1)])
    return weights.argmax(-1).tolist()


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
        assert selected(VisionTrim(cls_weight=weight), tokens, keep) == wanted


def test_three_patches_by_hand():
    # CLS looks at patches 0, 1, 2 with 0.6, 0.2, 0.1; patch 2 gets 0.5 and 0.4 from the others, patch 1 gets 0.1 and 0.2,
    # patch 0 gets 0.1 and 0.1. Scaled to length 1: 0.937, 0.312, 0.156 and 0.206, 0.309, 0.928; halved and added:
    # 0.571, 0.311, 0.542.
    matrix = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.1, 0.3, 0.1, 0.5], [0.2, 0.1, 0.3, 0.4], [0.1, 0.1, 0.2, 0.6]])
    tokens = cached(matrix.double().expand(LAYERS, 1, 4, 4), (1, 3))
    assert selected(VisionTrim(), tokens, 1) == [0]
    assert selected(VisionTrim(), tokens, 2) == [0, 2]
    assert selected(VisionTrim(cls_weight=0.0), tokens, 2) == [1, 2]


def asked(angles: list[float], words: list[list[float]], attention: list[float]) -> VisualTokens:
    """Patches at these angles in CLIP's space, the same in raw space, of which the CLS row sees so much."""
    rows = torch.tensor(at_angles(*angles)).float()[None]
    seen = torch.tensor(attention)[None]
    arrays = {
        "raw": rows,
        "clip_projected": rows,
        "cls_attention": seen[:, None],
        "received_attention": seen[:, None].expand(1, LAYERS, -1),
        "self_attention_diagonal": 0 * seen,
    }
    text = ClipText(torch.zeros(1, 1, 2), torch.tensor([words]), 100.0)
    return VisualTokens(("0",), (1, len(angles)), arrays, clip_text=text)


def test_the_complement_by_hand():
    # Patch 2 is the most attended. Of the others 0 (at 10 degrees) and 3 (at 80) are most like the words, which lie at 0 and
    # at 90: mean cosines (0.985 + 0.174) / 2 = 0.579 each, 1 (at 30 + 180) and 4 (at 120) have -0.683 and 0.183; so 0 and 3
    # are targets. Through the words, patch 4 (-0.5, 0.866) is like 0 (0.985, 0.174) by -0.342 and like 3 (0.174, 0.985) by
    # 0.766: to 3. Patch 1 (-0.866, -0.5): -0.940 and -0.643: to 3 as well. Target 3 adds their mean, (-0.683, 0.183), and is
    # (-0.509, 1.168), as a unit (-0.400, 0.917).
    # Round 2: patch 4 has -0.342 and 0.994: to 3; patch 1 -0.940 and -0.112: to 3 again.
    tokens = asked([10, 210, 45, 80, 120], [[2.0, 0.0], [0.0, 3.0]], [0.1, 0.1, 0.4, 0.2, 0.2])
    pruner = VisionTrim(complement=0.67, rounds=1)
    once = [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0.5, 0, 1, 0.5]]
    assert pruner.prune(tokens, 3).merge.weights[0].tolist() == once
    assert replace(pruner, rounds=2).prune(tokens, 3).merge.weights[0].tolist() == [*once[:2], [0, 1, 0, 1, 1]]


def complemented(tokens: VisualTokens, image: int, dominant: list[int], count: int) -> np.ndarray:
    """Section A.24e of the reference, in raw space: rows are projected anew in every round, one number at a time."""
    raw = tokens.arrays["raw"][image].double().numpy()
    words = [word / np.linalg.norm(word) for word in tokens.clip_text.tokens[image].double().numpy()]

    def like(row: np.ndarray) -> list[float]:
        projected = row @ PROJECTION
        return [100.0 * float(projected @ word) / np.linalg.norm(projected) for word in words]

    rest = [patch for patch in range(len(raw)) if patch not in dominant]
    targets = sorted(naive.best({patch: float(np.mean(like(raw[patch]))) for patch in rest}, count))
    sums = {target: raw[target] for target in targets}
    others = [patch for patch in rest if patch not in targets]
    for _ in range(3):
        through = {target: like(sums[target]) for target in targets}
        goes = {
            patch: naive.best({t: float(np.dot(like(raw[patch]), through[t])) for t in targets}, 1)[0]
            for patch in others
        }
        for target in targets:
            members = [raw[patch] for patch in others if goes[patch] == target]
            sums[target] = sums[target] + (np.mean(members, axis=0) if members else 0)
    return np.stack([sums[target] for target in targets])


PROJECTION = np.random.default_rng(5).normal(size=(8, 6))


@pytest.mark.parametrize("keep", [4, 9, 16, 30])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_complement_is_its_maths_on_raw_rows(seed, keep):
    tokens = visual_tokens((5, 7), seed=seed)
    projected = (tokens.arrays["raw"].double() @ torch.from_numpy(PROJECTION)).float()
    tokens = replace(tokens, arrays=dict(tokens.arrays) | {"clip_projected": projected})
    count = round(keep / 4)
    weights = VisionTrim().prune(tokens, keep).merge.weights
    for image in range(3):
        dominant = selected(VisionTrim(), tokens.one(image), keep - count)
        assert weights[image, : keep - count].argmax(-1).tolist() == dominant
        made = weights[image, keep - count :].double() @ tokens.arrays["raw"][image].double()
        np.testing.assert_allclose(made, complemented(tokens, image, dominant, count), rtol=1e-4, atol=1e-5)


def test_a_quarter_of_the_published_budgets_is_complement():
    tokens = visual_tokens((24, 24), images=1)
    for keep, count in ((64, 16), (128, 32), (192, 48)):
        whole = (VisionTrim().prune(tokens, keep).merge.weights[0] > 0).sum(-1) > 1
        assert not whole[: keep - count].any() and whole[keep - count :].sum() > count // 2
