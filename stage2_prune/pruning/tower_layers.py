"""Published layer numbers of the vision tower, carried over to towers of another depth."""

PUBLISHED_LAYERS = 24
"""Layers of the tower for which papers give their layer numbers (CLIP ViT-L)."""


def tower_layer(published: int, layers: int) -> int:
    """The layer, from 0, that is as deep among `layers` as `published` is among PUBLISHED_LAYERS.

    A negative number counts from the end, like a checkpoint's `vision_feature_layer`, and means the same on every depth:
    layer -2 makes hidden state -2.
    """
    resolved = layers + published if published < 0 else round((published + 1) * layers / PUBLISHED_LAYERS) - 1
    return min(max(resolved, 0), layers - 1)
