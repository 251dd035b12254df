"""SparseVLM+ against loops over a stock model's attention and over angles of rotary positions."""

import math

import pytest

from stage2_prune.pruners.sparse_vlm_plus import SparseVlmPlus
from tests.stage2_prune.pruners.golden import check
from tests.stage2_prune.pruners.test_sparse_vlm import raters


def naive(share):
    def scores(view):
        rows = raters(view)
        frequencies = view.model.model.rotary_emb.inv_freq.tolist()
        width = 2 * len(frequencies)

        def gravity(t, j):
            """Dot product of two vectors of ones, each turned by its own position."""
            return sum(2 * math.cos((view.places[t] - view.places[j]) * f) for f in frequencies) / math.sqrt(width)

        heads = range(len(view.attention))
        ratio = {
            (h, t, j): view.attention[h, t, j].item() / gravity(t, j) for h in heads for t in rows for j in view.image
        }
        mass = {h: sum(ratio[h, t, j] for t in rows for j in view.image) for h in heads}
        chosen = sorted(heads, key=lambda h: -mass[h])[: round(share * len(heads))]
        return {j: sum(ratio[h, t, j] for h in chosen for t in rows) / len(chosen) / len(rows) for j in view.image}

    return scores


@pytest.mark.parametrize("keep", [4, 9, 13])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_attention_over_gravity_in_the_heads_that_look_most_decides(keep, positions):
    check(SparseVlmPlus(), keep, positions, naive(14 / 32))


def test_the_share_of_heads_is_a_parameter_and_8_of_them_make_4_by_default():
    check(SparseVlmPlus(), 9, "original", naive(0.5), heads=8)
    check(SparseVlmPlus(heads=1.0), 9, "original", naive(1))
