"""CLIP's vision transformer (Radford et al. 2021), the tower of LLaVA-1.5."""

from typing import ClassVar

from stage1_extract.encoding.tower import Tower


class Clip(Tower):
    """CLS row first; the last hidden state is the last layer's output."""

    model_types: ClassVar[frozenset[str]] = frozenset({"clip_vision_model"})
    has_cls = True
    has_clip_space = True
    layers_at = "encoder.layers"
    query_at = "self_attn.q_proj"
    key_at = "self_attn.k_proj"
