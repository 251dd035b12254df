# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers are typed in part)
"""The part of a CLIP checkpoint that leads image features into the space which it shares with texts."""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from configs.errors import ConfigError
from configs.experiment import ModelSection
from store.checkpoint.opening import load_config
from store.checkpoint.weights import load_tensors
from store.errors import DamagedCheckpoint

NORM, PROJECTION = "vision_model.post_layernorm.", "visual_projection."
DIGEST = "clip_head_sha256"
"""Field of a fingerprint: by which weights an array was led into that space."""


def clip_source(model: ModelSection, what: str) -> str:
    """`model.clip`; ConfigError (exit 2) says that `what` needs it."""
    if model.clip is None:
        raise ConfigError(
            f"model.clip: expected a CLIP checkpoint for {what}, none is named: name the one whose vision tower the model "
            "has (--clip PATH)"
        )
    return model.clip


def clip_config(model: ModelSection, what: str) -> Any:
    """Its transformers config; CheckpointMissing (exit 5) names what to download, ConfigError (exit 2) what is no CLIP."""
    source = clip_source(model, what)
    config = load_config(source, model.clip_revision, model.trust_remote_code)
    if config.model_type != "clip":
        raise ConfigError(
            f"model.clip: expected a checkpoint of type clip, with both towers, {source} is of type {config.model_type!r}: "
            "name the CLIP whose vision tower the model has"
        )
    return config


def clip_head(model: ModelSection, what: str, dtype: torch.dtype) -> dict[str, Shaped[Tensor, "..."]]:
    """Weights of its last layer norm and projection; DamagedCheckpoint (exit 4) where there are others or none."""
    source, config = clip_source(model, what), clip_config(model, what)
    tensors = load_tensors(source, (NORM, PROJECTION), dtype, model.clip_revision)
    hidden, clip = config.vision_config.hidden_size, config.projection_dim
    expected = {f"{NORM}weight": (hidden,), f"{NORM}bias": (hidden,), f"{PROJECTION}weight": (clip, hidden)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise DamagedCheckpoint(
            f"expected {expected} in {source}, as its config says, found {found or 'none of them'}: name a whole CLIP, or "
            "download it again"
        )
    return tensors
