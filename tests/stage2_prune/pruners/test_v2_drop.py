"""V2Drop against loops over a stock model's hidden states."""

import math

import pytest

from stage2_prune.pruners.v2_drop import V2Drop
from tests.stage2_prune.pruners.golden import check, layers_of


def how_far_it_moved(view):
    return {
        j: math.sqrt(sum((a - b) ** 2 for a, b in zip(view.hidden[j].tolist(), view.before[j].tolist(), strict=True)))
        for j in view.image
    }


@pytest.mark.parametrize("keep", [5, 8, 14])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_tokens_that_moved_farthest_are_kept(keep, positions):
    check(V2Drop(), keep, positions, how_far_it_moved)


def test_one_token_survives_the_last_stage():
    assert [len(stage) for stage in layers_of(V2Drop(), 8).values()][-1] == 1
