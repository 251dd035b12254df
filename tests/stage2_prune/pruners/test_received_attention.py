"""Received attention ranks patches by one layer's row of the array."""

from stage2_prune.pruners.received_attention import ReceivedAttention
from tests.stage2_prune.pruners import naive
from tests.stage2_prune.tokens import visual_tokens


def test_it_keeps_the_best_of_the_layer_that_makes_the_features():
    tokens = visual_tokens((4, 6), images=1, layers=24)
    received = naive.arrays(tokens)["received_attention"]
    for keep in range(1, 25):
        for layer, row in ((-2, 22), (8, 8)):
            best = sorted(naive.best(dict(enumerate(received[row])), keep))
            assert ReceivedAttention(layer).select(tokens, keep).tolist() == [best]
    assert ReceivedAttention().tower_layers(24) == {"layer": 22}
