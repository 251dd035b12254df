"""Do the store's features belong to this checkpoint? Asked without a vision tower, before anything runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.experiment import ModelSection
from stage2_prune.errors import StoreMismatch
from stage2_prune.features import Features
from stage2_prune.language import Family
from store.checkpoint import load_tensors

REPROJECTED_IMAGES = 4
CLOSE_ULPS = 64
"""Of the largest feature: how far projections on two devices may lie apart and still be called close."""


@dataclass(frozen=True)
class Reprojection:
    """`raw` through the store's projector against `projected`."""

    images: int
    equal: bool
    max_abs_diff: float


def check_checkpoint(features: Features, family: type[Family], config: Any, model: ModelSection) -> None:
    """Refuse features of another checkpoint, layer or select strategy, by the store's semantic fingerprint.

    A local folder's path says nothing about its content, so checkpoints are compared by name only between hub
    ids, and by the projector's weights wherever the checkpoint still has them.
    """
    store = features.store
    semantic = store.fingerprint(features.source).semantic
    expected = family.vision_choices(config)
    if not Path(model.checkpoint).is_dir() and not Path(str(semantic["checkpoint"])).is_dir():
        expected |= {"checkpoint": model.checkpoint, "revision": model.revision}
    problems = [
        f"{name}: store {semantic[name]!r}, checkpoint {value!r}"
        for name, value in expected.items()
        if semantic[name] != value
    ]
    if not _projector_agrees(features, model):
        problems.append("projector weights: the store's are not the checkpoint's")
    if problems:
        raise StoreMismatch(
            f"the features in {store.path} are not those of {model.checkpoint}:\n"
            + "".join(f"  {problem}\n" for problem in problems)
            + "extract again with this checkpoint, or let `python -m stage1_extract diagnose` name the cause"
        )


def _projector_agrees(features: Features, model: ModelSection) -> bool:
    """Whether store and checkpoint carry the same projector; a checkpoint without one cannot disagree."""
    if features.projector is None:
        return True
    prefix = features.projector.prefix
    found = load_tensors(model.checkpoint, [prefix], revision=model.revision)
    theirs = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    ours = features.projector.state_dict()
    return not theirs or (
        theirs.keys() == ours.keys()
        and all(torch.equal(ours[name].cpu(), theirs[name].to(ours[name].dtype)) for name in ours)
    )


@torch.no_grad()
def check_reprojection(features: Features, allow_foreign_device: bool) -> Reprojection | None:
    """Project a few images again and demand the stored features, bit for bit; None where only one is stored.

    Raises StoreMismatch (exit 4) if they differ. `allow_foreign_device` accepts what another device's kernels
    explain: then the difference is reported and results cannot claim to be exact.
    """
    store = features.store
    if not {"raw", "projected"} <= store.arrays.keys() or features.projector is None:
        return None
    rows = features.sample(REPROJECTED_IMAGES)
    stored = features.read("projected", rows)
    again = features.project(features.read("raw", rows))
    difference = (stored.float() - again.float()).abs().max().item()
    result = Reprojection(len(rows), torch.equal(stored, again), difference)
    close = CLOSE_ULPS * torch.finfo(stored.dtype).eps * stored.float().abs().max().item()
    if result.equal or (allow_foreign_device and difference <= close):
        return result
    raise StoreMismatch(
        f"expected the stored features from re-projecting {len(rows)} images of {store.path}, they "
        f"differ by up to {difference:.6f}: let `python -m stage1_extract diagnose` name the cause; if the "
        f"store comes from another device, --allow-foreign-device accepts differences up to {close:.6f}"
    )
