"""DINOv2 (Oquab et al. 2023)."""

from typing import ClassVar

from stage1_extract.encoding.tower import Tower


class Dinov2(Tower):
    """CLS row first; the last hidden state is normalised once more than the last layer's output; images of any size."""

    model_types: ClassVar[frozenset[str]] = frozenset({"dinov2"})
    has_cls = True
    interpolates = True
    layers_at = "encoder.layer"
    query_at = "attention.q_proj"
    key_at = "attention.k_proj"
