from dataclasses import replace

import numpy as np
import pytest
import torch

from stage2_prune.pruners.cd_pruner import CdPruner
from stage2_prune.pruning.tokens import ClipText, VisualTokens
from tests.stage2_prune.pruners.images import at_angles, best, clustered, cosines, given


def asked(tokens: VisualTokens, text: torch.Tensor) -> VisualTokens:
    return replace(tokens, clip_text=ClipText(text, torch.zeros(len(text), 1, text.shape[-1]), 100.0))


def image(seed: int, grid: tuple[int, int], segments: int, width: int) -> VisualTokens:
    tokens = clustered(seed, grid, width=width)
    generator = torch.Generator().manual_seed(seed)
    in_clip = torch.randn(2, tokens.patches, 8, generator=generator)
    found = replace(tokens, arrays=dict(tokens.arrays) | {"clip_patches": in_clip})
    return asked(found, 3 * torch.randn(2, segments, 8, generator=generator))


def relevances(tokens: VisualTokens) -> np.ndarray:
    """Of both images, one number at a time: the negated cosine of patch and text, averaged over the text's segments."""
    patches = tokens.arrays["clip_patches"].double().numpy()
    texts = tokens.clip_text.pooled.double().numpy()
    return np.array(
        [
            [-np.mean([p @ t / np.sqrt((p @ p) * (t @ t)) for t in segments]) for p in rows]
            for rows, segments in zip(patches, texts, strict=True)
        ]
    )


def found_in_order(similarity, relevance, keep):
    """Section A.8 of the reference, by what its greedy stands for: the largest determinant of the kept rows' kernel."""
    kernel = relevance[:, None] * similarity * relevance[None, :]
    found = []
    while len(found) < keep:
        before = np.linalg.det(kernel[np.ix_(found, found)]) if found else 1.0
        left = [j for j in range(len(kernel)) if j not in found]
        gain = {j: np.linalg.det(kernel[np.ix_([*found, j], [*found, j])]) / before for j in left}
        found.append(best(gain, margin=1e-4))
    return found


def test_the_least_like_the_text_is_first_and_what_differs_from_it_is_next():
    # Patches at 0, 60, 90 and 120 degrees from the text: cosines 1, 0.5, 0, -0.5, negated and scaled 0, 1/3, 2/3, 1: patch
    # 3 is first. A patch then adds relevance^2 x sin^2 of its angle to patch 3. In projected space patch 1 is at 90 from
    # patch 3: 1/9. Patch 2 at 45 adds 4/9 x 1/2 = 0.22 and is next; at 20 it adds 4/9 x 0.117 = 0.052, and patch 1 is next.
    # Two patches fill the plane: nothing adds to it, and the lowest indices follow.
    for angle, kept in ((45, [2, 3]), (20, [1, 3])):
        tokens = given((2, 2), clip_patches=at_angles(0, 60, 90, 120), projected=at_angles(10, 90, angle, 0))
        tokens = asked(tokens, torch.tensor([[[5.0, 0.0]]]))
        assert CdPruner().select(tokens, 1).tolist() == [[3]]
        assert CdPruner().select(tokens, 2).tolist() == [kept]
        assert CdPruner().select(tokens, 3).tolist() == [sorted({0, *kept})]
        assert CdPruner().select(tokens, 4).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_naive_greedy_over_determinants_finds_the_same_patches(seed, segments):
    tokens = image(seed, (5, 7), segments, width=48)
    for number, relevance in enumerate(relevances(tokens)):
        scaled = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
        order = found_in_order(cosines(tokens.arrays["projected"][number]), scaled, 24)
        for keep in (1, 2, 3, 8, 16, 24):
            assert CdPruner().select(tokens, keep)[number].tolist() == sorted(order[:keep])


def test_officially_relevance_is_scaled_over_the_batch():
    tokens = image(0, (5, 7), 1, width=48)
    tokens.arrays["clip_patches"][1] -= tokens.clip_text.pooled[1]  # nothing of the second image is about its text
    together = relevances(tokens)
    scaled = (together - together.min() + 1e-6) / (together.max() - together.min())
    official = CdPruner(quirks="official")
    for number in range(2):
        order = found_in_order(cosines(tokens.arrays["projected"][number]), scaled[number], 16)
        assert official.select(tokens, 16)[number].tolist() == sorted(order)
        alone = tokens.one(number)
        assert torch.equal(official.select(alone, 16), CdPruner().select(alone, 16))
    assert not torch.equal(official.select(tokens, 16), CdPruner().select(tokens, 16))


def test_every_budget_keeps_distinct_patches_where_few_are_independent_and_where_all_are_equal():
    narrow = image(1, (6, 6), 1, width=3)  # the kernel has rank 3
    flat = {name: torch.ones_like(array) for name, array in narrow.arrays.items()}
    for tokens in (narrow, replace(narrow, arrays=flat)):
        for keep in range(1, 37):
            kept = CdPruner().select(tokens, keep)
            assert kept.shape == (2, keep) and (kept.diff(dim=-1) > 0).all()


def test_on_24x24_patches_the_residuals_of_a_cholesky_decomposition_find_the_same():
    tokens = image(2, (24, 24), 1, width=640)
    relevance = relevances(tokens)[0]
    scaled = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = scaled[:, None] * cosines(tokens.arrays["projected"][0]) * scaled[None, :]
    found: list[int] = []
    while len(found) < 64:
        left = [j for j in range(576) if j not in found]
        inside = kernel[np.ix_(found, found)]
        explained = np.einsum("jk,kj->j", kernel[:, found], np.linalg.solve(inside, kernel[found])) if found else 0.0
        residual = kernel.diagonal() - explained
        found.append(best({j: residual[j] for j in left}))
    assert CdPruner().select(tokens, 64)[0].tolist() == sorted(found)
