"""Layer numbers that papers publish, carried over to models of another depth: both stages use these functions and no others.

Papers give layer numbers for a vision tower of 24 layers and for a language model of 32. Each has a rounding rule of its own:
a hidden state halfway between two becomes the even state, a language layer halfway between two becomes the later layer.
"""

from collections.abc import Sequence

TOWER_LAYERS = 24
"""Number of layers of the vision tower whose layers papers number (CLIP ViT-L)."""
LANGUAGE_LAYERS = 32
"""Number of layers of the language model whose layers papers number (Llama 7B)."""


def tower_hidden_state(published: int, layers: int) -> int:
    """Return the hidden state that is as deep in a tower of `layers` as `published` is in one of 24; halves go to even.

    Hidden state 0 enters the tower, hidden state k is what layer k - 1 makes.

    >>> [tower_hidden_state(16, layers) for layers in (24, 12, 48)], tower_hidden_state(9, 12)
    ([16, 8, 32], 4)
    """
    return round(published * layers / TOWER_LAYERS)


def tower_layer(published: int, layers: int) -> int:
    """Return the layer, from 0, that makes the hidden state as deep in a tower of `layers` as `published` makes in one of 24.

    A negative number counts from the end, like a checkpoint's `vision_feature_layer`, and means the same at every depth:
    layer -2 makes hidden state -2. A number outside the tower becomes the layer at that end.

    >>> [tower_layer(layer, 12) for layer in (5, 8, 23, -2, 99)]
    [2, 3, 11, 10, 11]
    """
    layer = layers + published if published < 0 else tower_hidden_state(published + 1, layers) - 1
    return min(max(layer, 0), layers - 1)


def language_layer(published: int, depth: int) -> int:
    """Return the layer of a language model of `depth` layers that is as deep as `published` is among 32; halves go up.

    It is never layer 0, because no token can be dropped before the first layer; a model of a single layer is the exception.

    >>> [language_layer(layer, 32) for layer in (2, 8, 31)], [language_layer(layer, 4) for layer in (2, 8, 16, 31)]
    ([2, 8, 31], [1, 1, 2, 3])
    """
    return min(max(half_up(published * depth / LANGUAGE_LAYERS), 1), depth - 1)


def language_layers(published: Sequence[int], depth: int) -> tuple[int, ...]:
    """Carry published language layers over to `depth` layers, in ascending order; some coincide on a shallow model."""
    return tuple(language_layer(layer, depth) for layer in sorted(published))


def half_up(value: int | float) -> int:
    """Round to the nearest integer; halves go up, where Python's `round` would make 2 of 2.5 and 4 of 3.5.

    >>> half_up(2.5), half_up(3.5), round(2.5), round(3.5)
    (3, 4, 2, 4)
    """
    return int(value + 0.5)
