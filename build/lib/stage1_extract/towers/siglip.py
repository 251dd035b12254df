"""SigLIP's vision transformer (Zhai et al. 2023): no CLS row."""

from typing import ClassVar

from stage1_extract.encoding.tower import Tower


class Siglip(Tower):
    """Patches only, so the select strategy `default` would drop a real patch."""

    model_types: ClassVar[frozenset[str]] = frozenset({"siglip_vision_model"})
    has_cls = False
    layers_at = "encoder.layers"
    query_at = "self_attn.q_proj"
    key_at = "self_attn.k_proj"
