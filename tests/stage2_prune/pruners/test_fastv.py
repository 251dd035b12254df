"""FastV against loops over a stock model's attention matrices."""

import pytest

from stage2_prune.pruners.fastv import FastV
from tests.stage2_prune.pruners.golden import check, layers_of


def by_the_last_token(view):
    heads = len(view.attention)
    return {j: sum(view.attention[h, view.last, j].item() for h in range(heads)) / heads for j in view.image}


def by_the_average_of_all_that_follow(view):
    scores = {}
    for j in view.image:
        following = [i for i in (*view.image, *view.text) if i > j]
        total = sum(view.attention[h, i, j].item() for h in range(len(view.attention)) for i in following)
        scores[j] = total / len(following) / len(view.attention)
    return scores


@pytest.mark.parametrize(("layer", "keep"), [(2, 4), (2, 9), (2, 17), (2, 23), (13, 10), (13, 18)])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_tokens_that_the_last_one_attends_to_are_kept(layer, keep, positions):
    check(FastV(layer=layer), keep, positions, by_the_last_token)


@pytest.mark.parametrize("keep", [4, 13, 20])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_paper_ranks_by_the_average_of_all_that_follow(keep, positions):
    check(FastV(quirks="paper"), keep, positions, by_the_average_of_all_that_follow)


def test_the_two_rules_differ_and_the_resolved_layer_is_the_published_one_rescaled():
    official, paper = (layers_of(FastV(quirks=quirks), 9) for quirks in ("official", "paper"))
    assert official.keys() == paper.keys() == {1} and official != paper
