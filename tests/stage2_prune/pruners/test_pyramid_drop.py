"""PyramidDrop against loops over the attention matrices that a stock model is about to have."""

from itertools import pairwise

import pytest

from stage2_prune.pruners.pyramid_drop import PyramidDrop
from tests.stage2_prune.pruners.golden import check, layers_of


def by_the_last_token_of_the_next_layer(view):
    weights = view.ahead()
    return {j: sum(weights[h, view.last, j].item() for h in range(len(weights))) for j in view.image}


@pytest.mark.parametrize("keep", [8, 11, 16])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_each_stage_keeps_what_the_last_token_will_attend_to(keep, positions):
    check(PyramidDrop(), keep, positions, by_the_last_token_of_the_next_layer)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_layers_are_a_parameter_on_the_published_scale(positions):
    pruner = PyramidDrop(layers=(4, 28))
    assert list(layers_of(pruner, 6)) == [1, 7]
    check(pruner, 6, positions, by_the_last_token_of_the_next_layer)


def test_a_smaller_stage_lies_in_the_one_before():
    stages = list(layers_of(PyramidDrop(), 12).values())
    assert [len(stage) for stage in stages] == sorted((len(stage) for stage in stages), reverse=True)
    assert all(set(later) < set(earlier) for earlier, later in pairwise(stages))
