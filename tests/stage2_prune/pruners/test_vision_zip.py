"""VisionZip against a case by hand and against its maths, written out."""

import numpy as np
import pytest
import torch

from stage2_prune.pruners.vision_zip import VisionZip
from stage2_prune.pruning.tokens import VisualTokens
from tests.stage2_prune.pruners import naive
from tests.stage2_prune.tokens import visual_tokens

PUBLISHED = [(64, 54, 10), (128, 108, 20), (192, 162, 30)]
"""Tokens, dominant ones (with the CLS row), contextual ones."""


def test_six_patches_by_hand():
    # Summed over heads patches 1 and 4 lead; of 0, 2, 3, 5 every second one is a target: 0 and 3. By its key 2 is like 3
    # and 5 is like 3 as well, so 0 stays alone.
    attention = torch.tensor([[0.0, 0.3, 0.1, 0.1, 0.2, 0.0], [0.1, 0.2, 0.0, 0.1, 0.4, 0.1]])
    keys = torch.tensor([[9.0, 9.0], [1, 0], [1, 1], [0, 2], [0, 1], [1, 1], [-1, 5]])
    arrays = {
        "cls_attention": attention[None],
        "keys": keys[None],
        "raw": torch.zeros(1, 6, 3),
        "cls_hidden": torch.zeros(1, 3),
    }
    tokens = VisualTokens(("0",), (2, 3), arrays)
    official, paper = (VisionZip(0.4, quirks).prune(tokens, 5).merge for quirks in ("official", "paper"))
    assert official.space == paper.space == "raw"
    half, third = 1 / 2, 1 / 3
    expected = [
        [0, 0, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
        [0, 0, half, 1, 0, half, 0],
    ]
    assert torch.equal(official.weights[0], torch.tensor(expected))
    expected[4] = [0, 0, third, third, 0, third, 0]
    assert torch.equal(paper.weights[0], torch.tensor(expected))


def expected(tokens, dominant: int, contextual: int, quirks: str) -> np.ndarray:
    """`dominant` counts the CLS row."""
    found = naive.arrays(tokens)
    patches = tokens.patches
    scores = {patch: sum(head[patch] for head in found["cls_attention"]) for patch in range(patches)}
    kept = sorted(naive.best(scores, dominant - 1))
    rest = [patch for patch in range(patches) if patch not in kept]
    step = max(1, len(rest) // contextual) if contextual else 1
    targets = [rest[place] for place in range(0, len(rest), step)][:contextual]
    members = {target: [] for target in targets}
    for patch in rest:
        if targets and patch not in targets:
            members[naive.nearest(found["keys"][1:], patch, targets)].append(patch)
    weights = np.zeros((len(targets), patches + 1))
    for row, (target, others) in enumerate(members.items()):
        own, each = (1, 1 / max(len(others), 1)) if quirks == "official" else (1 / (1 + len(others)),) * 2
        weights[row, target] = own
        weights[row, others] = each
    return np.concatenate([naive.picks([patches, *kept], patches + 1), weights])


@pytest.mark.parametrize("quirks", ["official", "paper"])
@pytest.mark.parametrize(
    ("keep", "dominant", "contextual"), [*PUBLISHED, (1, 1, 0), (4, 3, 1), (100, 84, 16), (576, 486, 90)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_its_maths_at_the_published_splits_and_at_others(keep, dominant, contextual, quirks, seed):
    tokens = visual_tokens((24, 24), images=1, seed=seed)
    weights = VisionZip(quirks=quirks).prune(tokens, keep).merge.weights[0]
    np.testing.assert_allclose(weights.double(), expected(tokens, dominant, contextual, quirks), rtol=1e-6, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_any_share_of_contextual_tokens_is_possible_on_any_grid(share):
    tokens = visual_tokens((3, 5), images=1)
    for keep in range(1, 16):
        contextual = min(round(keep * share), keep - 1)
        weights = VisionZip(share).prune(tokens, keep).merge.weights[0]
        wanted = expected(tokens, keep - contextual, contextual, "official")
        np.testing.assert_allclose(weights.double(), wanted, rtol=1e-6, atol=0)
