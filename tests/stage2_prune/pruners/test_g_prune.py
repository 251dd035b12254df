import numpy as np
import pytest

from stage2_prune.pruners.g_prune import GPrune
from tests.stage2_prune.pruners.images import at_angles, clustered, cosines, descending, given


def scores(features, similarity, threshold=0.5, temperature=0.03, steps=5):
    """Section A.14 of the reference, with the power of the matrix written out."""
    logits = np.where(similarity < threshold, 0, similarity) / temperature
    logits[logits == 0] = -5000
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    step = weights / weights.sum(axis=1, keepdims=True)
    degree = (step > 0).sum(axis=1)
    norm = np.sqrt((features.double().numpy() ** 2).sum(axis=1))
    return norm @ np.linalg.matrix_power(step, steps) / degree


def test_what_flows_to_a_patch_is_divided_by_its_edges():
    # Angles 0, 45, 90 with norms 1, 2.5, 2: edges 0-1 and 1-2 (0.707), none 0-2 (0), and each to itself. A step to a
    # neighbour has the weight exp((0.707 - 1) / 0.03) = 6e-5 against staying, so what flows is about the norm. Degrees
    # 2, 3, 2: scores 0.5, 0.833, 1.0. By the norm alone patch 1 would be kept.
    image = given((1, 3), projected=at_angles(0, 45, 90, lengths=(1.0, 2.5, 2.0)))
    assert [GPrune().select(image, keep).tolist() for keep in (1, 2, 3)] == [[[2]], [[1, 2]], [[0, 1, 2]]]


def test_importance_walks_from_patch_to_patch():
    # Two equal patches share what they have, 3 and 1, as 2 and 2, and have two edges each: 1 and 1. The third one,
    # alone with norm 1.5 and one edge, is worth 1.5: more than the longest feature of all.
    image = given((1, 3), projected=at_angles(0, 0, 90, lengths=(3.0, 1.0, 1.5)))
    assert [GPrune().select(image, keep).tolist() for keep in (1, 2)] == [[[2]], [[0, 2]]]


@pytest.mark.parametrize("parameters", [{}, {"threshold": 0.3, "temperature": 0.2, "steps": 3}])
@pytest.mark.parametrize("seed", range(4))
def test_the_powers_of_the_matrix_rank_alike(seed, parameters):
    tokens = clustered(seed, (6, 7))
    for image, features in enumerate(tokens.arrays["projected"]):
        similarity = cosines(features)
        assert np.abs(similarity - parameters.get("threshold", 0.5)).min() > 1e-6, "an edge on the threshold"
        order = descending(dict(enumerate(scores(features, similarity, **parameters))))
        for keep in (1, 2, 7, 21, 41, 42):
            assert GPrune(**parameters).select(tokens, keep)[image].tolist() == sorted(order[:keep])


def test_a_feature_of_zeros_has_no_edges_and_no_importance_of_its_own():
    image = given((1, 3), projected=[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert GPrune().select(image, 2).tolist() == [[1, 2]]
