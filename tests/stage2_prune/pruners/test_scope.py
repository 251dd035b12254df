import pytest
import torch

from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.pruners.scope import Scope
from tests.stage2_prune.pruners.images import at_angles, best, clustered, cosines, given


def found_in_order(similarity, saliency, keep, combine):
    """Section A.18 of the reference: every gain is summed afresh in every step."""
    everywhere = range(len(similarity))
    covered = [0.0] * len(similarity)
    found = []
    while len(found) < keep:
        gain = {j: sum(max(0.0, similarity[i][j] - covered[i]) for i in everywhere) for j in everywhere}
        score = {j: gain[j] * saliency[j] if combine == "multi" else gain[j] + saliency[j] for j in everywhere}
        found.append(best({j: score[j] for j in everywhere if j not in found}))
        covered = [max(covered[i], similarity[i][found[-1]]) for i in everywhere]
    return found


def test_coverage_of_the_rest_times_saliency_decides():
    # Angles 0, 60, 90: cosines 0-1 0.5, 1-2 0.866, 0-2 0. Saliency, two heads summed: 0.9, 0.5, 0.6.
    # Gains 1.5, 2.366, 1.866; times saliency 1.35, 1.183, 1.12: patch 0. It covers (1, 0.5, 0).
    # Gains then: patch 1 (1 - 0.5) + 0.866 = 1.366, patch 2 (0.866 - 0.5) + 1 = 1.366, a tie that saliency 0.5 against
    # 0.6 breaks: patch 2. Added instead of multiplied: 2.4, 2.866, 2.466: patch 1 is first; it covers (0.5, 1, 0.866).
    # Gains then 0.5 and 0.134, with saliency 1.4 and 0.734: patch 0.
    image = given((1, 3), raw=at_angles(0, 60, 90), cls_attention=[[0.5, 0.2, 0.3], [0.4, 0.3, 0.3]])
    assert [Scope().select(image, keep).tolist() for keep in (1, 2, 3)] == [[[0]], [[0, 2]], [[0, 1, 2]]]
    assert [Scope(combine="add").select(image, keep).tolist() for keep in (1, 2)] == [[[1]], [[0, 1]]]


@pytest.mark.parametrize("combine", ["multi", "add"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_a_naive_greedy_finds_the_same_patches(seed, alpha, combine):
    tokens = clustered(seed, (5, 7))
    for image in range(2):
        saliency = tokens.arrays["cls_attention"][image].double().sum(0).numpy() ** alpha
        similarity = cosines(tokens.arrays["raw"][image])
        order = found_in_order(similarity, saliency, 34, combine)
        for keep in (1, 2, 3, 8, 20, 34):
            found = Scope(alpha=alpha, combine=combine).select(tokens, keep)
            assert found[image].tolist() == sorted(order[:keep])


def summed_afresh(similarity, saliency, keep):
    """One image, in float64, every gain from the beginning in every step."""
    exact, covered, found = similarity.double(), torch.zeros(len(similarity), dtype=torch.float64), []
    for _ in range(keep):
        score = (exact - covered[:, None]).clamp(min=0).sum(0) * saliency
        score[found] = -torch.inf
        found.append(int(score.argmax()))
        covered = torch.maximum(covered, exact[:, found[-1]])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", [(24, 24), (9, 14)], ids=str)
def test_gains_that_are_updated_for_all_images_at_once_choose_as_gains_that_are_summed_afresh(grid, dtype):
    tokens = clustered(3, grid, images=4, width=64)
    arrays = tokens.arrays | {"raw": tokens.arrays["raw"].to(dtype)}
    tokens = type(tokens)(tokens.image_ids, grid, arrays)
    saliency = arrays["cls_attention"].double().sum(1)
    orders = [summed_afresh(*one, 120) for one in zip(cosine_similarity(arrays["raw"]), saliency, strict=True)]
    for keep in (1, 2, 5, 63, 120):
        assert Scope().select(tokens, keep).tolist() == [sorted(order[:keep]) for order in orders]
