"""DINOv2's vision transformer (Oquab et al. 2023)."""

from typing import ClassVar

from stage1_extract.encoding.tower import Tower


class Dinov2(Tower):
    """A tower with a CLS row first, for images of any size; its last hidden state is the last layer's output after a norm."""

    model_types: ClassVar[frozenset[str]] = frozenset({"dinov2"})
    has_cls = True
    interpolates = True
    layers_at = "encoder.layer"
    query_at = "attention.q_proj"
    key_at = "attention.k_proj"
