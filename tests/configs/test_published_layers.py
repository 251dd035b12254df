"""Layer numbers that are published for a tower of 24 layers or a language model of 32, on models of other depths."""

from configs.published_layers import LANGUAGE_LAYERS, TOWER_LAYERS, language_layer, tower_hidden_state, tower_layer


def test_in_a_tower_of_the_published_depth_a_layer_is_itself():
    assert [tower_layer(layer, TOWER_LAYERS) for layer in range(24)] == list(range(24))


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


def test_a_hidden_state_halfway_between_two_becomes_the_even_one_and_a_language_layer_the_later():
    assert [tower_hidden_state(state, 12) for state in (1, 3, 5, 7, 16, 24)] == [0, 2, 2, 4, 8, 12]
    assert [language_layer(layer, 16) for layer in (1, 3, 5, 7, 16, 31)] == [1, 2, 3, 4, 8, 15]


def test_in_a_language_model_of_the_published_depth_a_layer_is_itself_but_never_the_first():
    assert [language_layer(layer, LANGUAGE_LAYERS) for layer in range(32)] == [1, *range(1, 32)]
