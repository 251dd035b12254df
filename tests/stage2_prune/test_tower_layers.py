"""Layer numbers that are published for a tower of 24 layers, in towers of other depths."""

from stage2_prune.pruning.tower_layers import PUBLISHED_LAYERS, tower_layer


def test_in_a_tower_of_the_published_depth_a_layer_is_itself():
    assert [tower_layer(layer, PUBLISHED_LAYERS) for layer in range(24)] == list(range(24))


def test_in_another_tower_it_makes_the_hidden_state_that_is_as_deep():
    assert [tower_layer(layer, 12) for layer in (5, 8, 23)] == [
        2,
        3,
        11,
    ]  # hidden states 6, 9, 24 become 3, 4 (of 4.5), 12
    assert [tower_layer(layer, 48) for layer in (5, 8, 23)] == [11, 17, 47]
    assert [tower_layer(layer, 2) for layer in (0, 5, 8, 23)] == [0, 0, 0, 1]


def test_from_the_end_it_is_the_same_everywhere():
    assert [tower_layer(-2, layers) for layers in (24, 12, 2, 1)] == [22, 10, 0, 0]
    assert tower_layer(-1, 12) == 11


def test_what_lies_outside_is_the_layer_at_that_end():
    assert tower_layer(99, 12) == 11
    assert tower_layer(-99, 12) == 0
