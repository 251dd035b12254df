"""Project `raw` into the space that CLIP shares with texts, by the norm and projection of the CLIP whose tower made it."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs.experiment import ModelSection
from stage1_extract.errors import WrongWeights
from store.checkpoint.clip_head import DIGEST, NORM, PROJECTION, clip_config, clip_head, clip_source
from store.checkpoint.weights import each_tensor, weights_digest
from store.layout.fingerprint import source_name

TOWER = "vision_model."
"""Prefix of the tower's weights in a CLIP checkpoint."""
WHAT = "clip_patches and clip_projected"
"""The arrays of this file, for messages."""
_ROUNDINGS = (None, torch.float16, torch.bfloat16)
"""Dtypes to which either checkpoint may have rounded its tower; None is no rounding."""
_log = logging.getLogger(__name__)


class ClipSpace(nn.Module):
    """A CLIP's last layer norm and its projection, in the compute dtype; results are not normalised to length 1."""

    def __init__(self, weights: Mapping[str, Tensor], eps: float) -> None:
        super().__init__()
        clip, hidden = weights[f"{PROJECTION}weight"].shape
        with torch.device("meta"):
            self.post_layernorm = nn.LayerNorm(hidden, eps=eps)
            self.visual_projection = nn.Linear(hidden, clip, bias=False)
        norm = {name.removeprefix(NORM): tensor for name, tensor in weights.items() if name.startswith(NORM)}
        self.post_layernorm.load_state_dict(norm, assign=True)
        self.visual_projection.load_state_dict({"weight": weights[f"{PROJECTION}weight"]}, assign=True)
        self.requires_grad_(False)

    def arrays(
        self, raw: Float[Tensor, "image patch hidden"], names: Collection[str]
    ) -> dict[str, Float[Tensor, "image patch clip"]]:
        """Make the arrays of `names` that lie in this space, image by image, so that the batch changes no bit.

        clip_patches    layer norm, then projection, as CLIP does with its CLS row
        clip_projected  the projection alone
        """
        arrays: dict[str, Tensor] = {}
        images = [raw[i : i + 1] for i in range(len(raw))]
        if "clip_patches" in names:
            arrays["clip_patches"] = torch.cat([self.visual_projection(self.post_layernorm(image)) for image in images])
        if "clip_projected" in names:
            arrays["clip_projected"] = torch.cat([self.visual_projection(image) for image in images])
        return arrays


def clip_width(model: ModelSection, hidden: int) -> int:
    """Return the width of the space, from the config of the CLIP that model.clip names.

    Raises WrongWeights (exit 4) if the CLIP's tower is not `hidden` wide.
    """
    config = clip_config(model, WHAT)
    if config.vision_config.hidden_size != hidden:
        raise WrongWeights(
            f"expected a CLIP whose vision tower is {hidden} wide, as the model's, that of {model.clip} is "
            f"{config.vision_config.hidden_size}: name the CLIP whose tower the model has (--clip PATH)"
        )
    return config.projection_dim


def open_clip_space(
    model: ModelSection, tower: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[ClipSpace, dict[str, Any]]:
    """Load the space, and return it with the fields that it adds to fingerprints.

    Args:
        model: Names the model's checkpoint and the CLIP.
        tower: Weights of the tower that makes `raw`, in `dtype`.
        dtype: The compute dtype.

    Raises:
        CheckpointMissing: The CLIP is not there (exit 5).
        DamagedCheckpoint, WrongWeights: The CLIP cannot be read, or has another tower (exit 4).

    """
    source, config, weights = clip_source(model, WHAT), clip_config(model, WHAT), clip_head(model, WHAT, dtype)
    compared = require_same_tower(model, tower, dtype)
    if not compared:
        _log.warning(
            "warning: %s holds no vision tower, so its tower cannot be compared with the tower that makes the features",
            source,
        )
    origin = {
        "clip": source_name(source),
        "clip_revision": model.clip_revision,
        "clip_tower": "equal" if compared else "not compared",
        DIGEST: weights_digest(weights),
    }
    return ClipSpace(weights, config.vision_config.layer_norm_eps).eval(), origin


def require_same_tower(model: ModelSection, tower: Mapping[str, Tensor], dtype: torch.dtype) -> bool:
    """Refuse (WrongWeights, exit 4) a CLIP with another vision tower, as the features mean nothing in its space.

    The CLIP's weights are read once, a tensor at a time. If one checkpoint keeps the tower in half precision and the other in
    full precision, the towers count as equal if they are equal after both are rounded. Returns False if nothing could be
    compared, because the CLIP holds only the last layer norm of its tower.
    """
    source = clip_source(model, WHAT)
    seen: set[str] = set()
    roundings = list(_ROUNDINGS)
    for full_name, theirs in each_tensor(source, (TOWER,), model.clip_revision):
        name = full_name.removeprefix(TOWER)
        if name.endswith("position_ids"):
            continue
        ours = tower.get(name)
        seen.add(name)
        if ours is not None and ours.shape == theirs.shape:
            roundings = [rounding for rounding in roundings if _equal(ours, theirs, rounding, dtype)]
        if ours is None or ours.shape != theirs.shape or not roundings:
            raise _other_tower(model, f"{name} differs")
    whole = any(not f"{TOWER}{name}".startswith(NORM) for name in seen)
    if whole and (lacking := sorted(tower.keys() - seen)):
        raise _other_tower(model, f"it has no {lacking[0]}")
    return whole


def _equal(ours: Tensor, theirs: Tensor, through: torch.dtype | None, dtype: torch.dtype) -> bool:
    ours, theirs = (tensor if through is None else tensor.to(through) for tensor in (ours, theirs))
    return torch.equal(ours.to(dtype), theirs.to(dtype))


def _other_tower(model: ModelSection, how: str) -> WrongWeights:
    return WrongWeights(
        f"expected in {model.clip} the vision tower of {model.checkpoint}, it is another tower ({how}), in whose space these "
        "features mean nothing: name the CLIP whose tower the model has (--clip PATH)"
    )
