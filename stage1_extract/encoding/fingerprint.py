"""Make each array's fingerprint: the record of what made the features."""

from collections.abc import Mapping
from typing import Any

import PIL
import torch
import transformers

from configs.experiment import Experiment
from stage1_extract.encoding.arrays import IMAGE_AREA
from stage1_extract.encoding.attention import ATTENTION
from stage1_extract.encoding.family import Encoder
from store.layout.environment import torch_environment
from store.layout.fingerprint import Fingerprint, source_name
from store.layout.schema import PATCH_ORDER
from store.layout.tower_call import TowerCall


def fingerprints(
    experiment: Experiment, config: Any, encoder: Encoder, numeric: dict[str, Any], own_code: Mapping[str, str]
) -> dict[str, Fingerprint]:
    """Return the fingerprint of each array.

    Only `projected` names the projector's weights; an array that no weights make (`image_area`) names none.

    Args:
        experiment: The config.
        config: The checkpoint's transformers config.
        encoder: The opened vision half.
        numeric: The result of `environment`.
        own_code: The result of `own_code` of stage1_extract/find_family.py.

    """
    semantic = _semantic(experiment, config, encoder) | dict(own_code)
    prints: dict[str, Fingerprint] = {}
    for spec in encoder.description.arrays:
        without = {"projected": set[str](), IMAGE_AREA: set(encoder.weights)}.get(spec.name, {"projector"})
        weights = {f"{part}_sha256": digest for part, digest in encoder.weights.items() if part not in without}
        origin = dict(encoder.origins.get(spec.name, {}))
        prints[spec.name] = Fingerprint(semantic=semantic | weights | origin, numeric=numeric)
    return prints


def _semantic(experiment: Experiment, config: Any, encoder: Encoder) -> dict[str, Any]:
    """Return the fields that must be equal for features to be the same features."""
    model = experiment.model
    features = {
        name: getattr(config, name)
        for name in ("vision_feature_layer", "vision_feature_select_strategy")
        if hasattr(config, name)
    }
    return {
        "checkpoint": source_name(model.checkpoint),
        "revision": model.revision,
        "model_type": config.model_type,
        **features,
        "dtype": model.dtype,
        "image_processor": dict(encoder.processor),
        "patch_order": PATCH_ORDER,
        "geometry": encoder.description.geometry.as_recorded(),
        **({"trust_remote_code": True} if model.trust_remote_code else {}),
    }


def environment(device: torch.device, call: TowerCall) -> dict[str, Any]:
    """Return the fields that decide whether another process can make the same bits."""
    return torch_environment(device) | {
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "attention": ATTENTION,
        **call.as_recorded(),
    }
