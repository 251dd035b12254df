"""`raw` in the space that CLIP shares with texts: by the norm and the projection of the CLIP whose tower made it."""

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
WHAT = "clip_patches and clip_projected"
_ROUNDINGS = (None, torch.float16, torch.bfloat16)
_log = logging.getLogger(__name__)


class ClipSpace(nn.Module):
    """Both of it in the compute dtype; nothing is normalised."""

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
        """Those of `names` that lie in this space, image by image: the batch changes no bit.

        clip_patches    what CLIP does with its CLS row at the end: layer norm, then projection
        clip_projected  the projection alone
        """
        made: dict[str, Tensor] = {}
        images = [raw[i : i + 1] for i in range(len(raw))]
        if "clip_patches" in names:
            made["clip_patches"] = torch.cat([self.visual_projection(self.post_layernorm(one)) for one in images])
        if "clip_projected" in names:
            made["clip_projected"] = torch.cat([self.visual_projection(one) for one in images])
        return made


def clip_width(model: ModelSection, hidden: int) -> int:
    """Width of the space, from the config of the CLIP that is named; WrongWeights (exit 4) if its tower is of another width."""
    config = clip_config(model, WHAT)
    if config.vision_config.hidden_size != hidden:
        raise WrongWeights(
            f"expected a CLIP whose vision tower is {hidden} wide, as the model's, that of {model.clip} is "
            f"{config.vision_config.hidden_size}: name the one whose tower the model has (--clip PATH)"
        )
    return config.projection_dim


def open_clip_space(
    model: ModelSection, tower: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[ClipSpace, dict[str, Any]]:
    """The space, and what fingerprints say of it. `tower` are the weights of the tower that makes `raw`, in `dtype`.

    Raises CheckpointMissing (exit 5), DamagedCheckpoint and WrongWeights (exit 4).
    """
    source, config, weights = clip_source(model, WHAT), clip_config(model, WHAT), clip_head(model, WHAT, dtype)
    compared = require_same_tower(model, tower, dtype)
    if not compared:
        _log.warning(
            "warning: %s holds no vision tower, so nothing says that it is the one that makes the features", source
        )
    origin = {
        "clip": source_name(source),
        "clip_revision": model.clip_revision,
        "clip_tower": "equal" if compared else "not compared",
        DIGEST: weights_digest(weights),
    }
    return ClipSpace(weights, config.vision_config.layer_norm_eps).eval(), origin


def require_same_tower(model: ModelSection, tower: Mapping[str, Tensor], dtype: torch.dtype) -> bool:
    """Refuse (WrongWeights, exit 4) a CLIP of another vision tower: the features mean nothing in its space.

    Read once, a tensor at a time. A tower that one checkpoint keeps in half precision and the other in full is the same
    if it is so once both are rounded. False where the CLIP has no more of a tower than its last layer norm.
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
            roundings = [one for one in roundings if _equal(ours, theirs, one, dtype)]
        if ours is None or ours.shape != theirs.shape or not roundings:
            raise _other_tower(model, f"{name} differs")
    whole = any(not f"{TOWER}{name}".startswith(NORM) for name in seen)
    if whole and (lacking := sorted(tower.keys() - seen)):
        raise _other_tower(model, f"it has no {lacking[0]}")
    return whole


def _equal(ours: Tensor, theirs: Tensor, through: torch.dtype | None, dtype: torch.dtype) -> bool:
    ours, theirs = (one if through is None else one.to(through) for one in (ours, theirs))
    return torch.equal(ours.to(dtype), theirs.to(dtype))


def _other_tower(model: ModelSection, how: str) -> WrongWeights:
    return WrongWeights(
        f"expected in {model.clip} the vision tower of {model.checkpoint}, it is another ({how}), in whose space these "
        "features mean nothing: name the CLIP whose tower the model has (--clip PATH)"
    )
