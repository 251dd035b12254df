from dataclasses import replace

import numpy as np
import pytest
import torch

from stage2_prune.pruners.mm_tok import MmTok
from tests.stage2_prune.pruners.images import at_angles, best, clustered, cosines, given


def softmax(row):
    powers = np.exp(np.array(row) - max(row))
    return powers / powers.sum()


def covered(table, kept):
    """The mean over rows of the highest value among the kept columns."""
    return float(np.mean([max(row[i] for i in kept) for row in table]))


def found_in_order(of_words, of_patches, weight, keep):
    """Section A.23 of the reference: the value of every set is worked out afresh."""
    everywhere = range(len(of_patches))
    found = []
    while len(found) < keep:
        left = [j for j in everywhere if j not in found]
        value = {j: covered(of_words, [*found, j]) + weight * covered(of_patches, [*found, j]) for j in left}
        so_far = covered(of_words, found) + weight * covered(of_patches, found) if found else 0.0
        found.append(best({j: value[j] - so_far for j in left}, margin=1e-5))
    return found


def tables(tokens, number, text_temperature, patch_temperature):
    words, projected = (one[number].double().numpy() for one in (tokens.question, tokens.arrays["projected"]))
    angle = [[w @ p / np.sqrt((w @ w) * (p @ p)) for p in projected] for w in words]
    of_words = [softmax(np.array(row) / text_temperature) for row in angle]
    return of_words, [softmax(row / patch_temperature) for row in cosines(tokens.arrays["raw"][number])]


def test_words_are_covered_first_and_then_the_patches_that_nothing_kept_is_like():
    # Raw features of patches 0 to 3 at 0, 0, 90 and 180 degrees. Softmax of cosine / 0.2, whose exponents are 5, 0 and -5:
    # 0 and 1 are like each other by 0.498 each, 2 is like itself by 0.980 and 3 by 0.993; all else is less than 0.01.
    # The word lies at 91 degrees in projected space, patch 1 at 90, the others a right angle or more from it: cosine 1
    # to 0.02 or less at temperature 0.02, so the word is like patch 1 alone, by 1.
    # Gains: 1 for the word and patch 1, + half the mean of (0.498, 0.498, 0.003, 0) = 0.125. Others: half the mean of
    # (0.498, 0.498, ...) = 0.125 for patch 0, of 0.99 for 2 and 3 each = 0.124. So patch 1; then 0 adds nothing, as it is
    # like what patch 1 is like; 3 adds 0.993 / 8, 2 adds 0.980 / 8: patch 3, then 2, then 0.
    image = given((2, 2), raw=at_angles(0, 0, 90, 180), projected=at_angles(0, 90, 180, 270))
    image = replace(image, question=torch.tensor([at_angles(91)], dtype=torch.float32))
    assert [MmTok().select(image, keep).tolist() for keep in (1, 2, 3, 4)] == [
        [[1]],
        [[1, 3]],
        [[1, 2, 3]],
        [[0, 1, 2, 3]],
    ]
    # Without patches only the word counts, and after it gains are all 0 or as good as that.
    assert MmTok(weight=0.0).select(image, 1).tolist() == [[1]]


@pytest.mark.parametrize("temperatures", [(0.02, 0.2), (0.3, 0.1)])
@pytest.mark.parametrize("weight", [0.5, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_a_naive_greedy_finds_the_same_patches(seed, weight, temperatures):
    tokens = clustered(seed, (5, 7))
    generator = torch.Generator().manual_seed(seed)
    near = tokens.arrays["projected"][:, :6] + torch.randn(2, 6, 16, generator=generator)
    tokens = replace(tokens, question=2 * near)  # words that are each somewhat like a patch
    for number in range(2):
        order = found_in_order(*tables(tokens, number, *temperatures), weight, 16)
        for keep in (1, 2, 3, 8, 16):
            assert MmTok(*temperatures, weight).select(tokens, keep)[number].tolist() == sorted(order[:keep])


def test_on_24x24_patches_a_naive_greedy_finds_the_same():
    tokens = clustered(3, (24, 24), images=1, width=32)
    tokens = replace(tokens, question=torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(3)))
    of_words, of_patches = tables(tokens, 0, 0.02, 0.2)
    table = np.concatenate([np.array(of_words) / 9, 0.5 * np.array(of_patches) / 576])
    cover, found = np.zeros(len(table)), []
    while len(found) < 64:
        gain = np.maximum(table - cover[:, None], 0).sum(axis=0)
        found.append(best({j: gain[j] for j in range(576) if j not in found}))
        cover = np.maximum(cover, table[:, found[-1]])
    assert MmTok().select(tokens, 64)[0].tolist() == sorted(found)


def test_another_question_keeps_other_patches():
    tokens = clustered(0, (5, 7))
    asked = [replace(tokens, question=tokens.arrays["projected"][:, [place]]) for place in (0, 20)]
    one, other = (MmTok().select(question, 3) for question in asked)
    assert (one == 0).any(-1).all() and (other == 20).any(-1).all() and not torch.equal(one, other)
