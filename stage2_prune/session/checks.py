"""Check, before anything runs and without a vision tower, that the store's features belong to this checkpoint."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.counted import counted
from configs.experiment import ModelSection
from configs.files.portable import is_folder
from stage2_prune.errors import StoreMismatch
from stage2_prune.language.family import Family
from stage2_prune.session.features import Features
from store.checkpoint.image_processor import has_image_processor, open_image_processor, processor_fingerprint
from store.checkpoint.weights import load_tensors, weights_digest
from store.layout.fingerprint import differences
from store.layout.schema import PATCH_ORDER
from store.layout.tensors import torch_dtype
from store.reading.reader import FeatureStore

REPROJECTED_IMAGES = 4
"""Number of images that are projected again to verify a store."""
CLOSE_ULPS = 64
"""Largest difference between the projections of two devices that counts as close, in ulps of the largest feature."""


@dataclass(frozen=True)
class Reprojection:
    """How `raw`, projected again by the store's projector, compares with the stored `projected`."""

    images: int
    """Number of images that were projected again."""
    equal: bool
    """Whether every value has the same bits."""
    max_abs_diff: float
    """The largest absolute difference of two values."""


def check_shapes(store: FeatureStore) -> None:
    """Refuse a store whose arrays hold another number of rows per image than there are visual tokens."""
    tokens = store.plan.geometry.tokens
    for name in ("raw", "projected"):
        if name in store.arrays and store.arrays[name].shape[0] != tokens:
            rows = store.arrays[name].shape[0]
            raise StoreMismatch(
                f"expected {tokens} rows of {name} per image in {store.path}, as many as its geometry has visual tokens, "
                f"it has {rows}: let `python -m stage1_extract diagnose {store.path}` name the cause"
            )


def check_checkpoint(features: Features, family: type[Family], config: Any, model: ModelSection, exact: bool) -> None:
    """Refuse features that another checkpoint, layer, select strategy or image processor made.

    The store's semantic fingerprint is compared field by field. A local folder's path says nothing about the folder's
    content, so two checkpoints are compared by name only if both are hub ids; their projectors' weights are compared
    wherever the checkpoint still has a projector.

    Args:
        features: the opened store.
        family: the family of the checkpoint.
        config: the checkpoint's config.
        model: the section `model` of the experiment.
        exact: whether to demand features in the model's dtype. Without it, results say whether the cast into the model
            was exact.

    Raises:
        StoreMismatch: (exit 4) with every field that differs.
    """
    store = features.store
    semantic = store.fingerprint(features.source).semantic
    expected = family.vision_choices(config) | {"patch_order": PATCH_ORDER}
    if not is_folder(model.checkpoint) and not is_folder(str(semantic.get("checkpoint"))):
        expected |= {"checkpoint": model.checkpoint, "revision": model.revision}
    if exact:
        expected["dtype"] = model.dtype
    if has_image_processor(model.checkpoint, model.revision):
        stock = open_image_processor(model.checkpoint, model.revision, model.trust_remote_code)
        expected["image_processor"] = processor_fingerprint(stock, {})
    if "projector_sha256" in semantic and (theirs := _projector_of(features, model)):
        expected["projector_sha256"] = weights_digest(theirs)
    stored = {name: semantic.get(name, "nothing") for name in expected}
    problems = [f"  {difference}\n" for difference in differences(json.loads(json.dumps(expected)), stored)]
    if problems:
        raise StoreMismatch(
            f"the features in {store.path} are not those of {model.checkpoint}:\n{''.join(problems)}"
            "extract again with this checkpoint, or let `python -m stage1_extract diagnose` name the cause"
        )


def check_projector(features: Features, model: ModelSection) -> None:
    """Refuse a store whose projector has other weights than the checkpoint's, whatever the store's fingerprint says."""
    theirs = _projector_of(features, model)
    if features.projector is None or not theirs:
        return
    ours = {name: tensor.cpu() for name, tensor in features.projector.state_dict().items()}
    if theirs.keys() != ours.keys() or not all(
        torch.equal(ours[name], theirs[name].to(ours[name].dtype)) for name in ours
    ):
        raise StoreMismatch(
            f"the projector in {features.store.path} is not that of {model.checkpoint}: extract again with this "
            "checkpoint, or let `python -m stage1_extract diagnose` name the cause"
        )


def _projector_of(features: Features, model: ModelSection) -> dict[str, Tensor]:
    """Read the checkpoint's projector in the features' dtype; empty where the checkpoint has no projector (any more)."""
    if features.projector is None:
        return {}
    prefix = features.projector.prefix
    dtype = torch_dtype(features.store.arrays[features.source].dtype)
    tensors = load_tensors(model.checkpoint, [prefix], dtype, model.revision)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


@torch.no_grad()
def check_reprojection(features: Features, allow_foreign_device: bool) -> Reprojection | None:
    """Project a few images again and demand the stored features, bit for bit.

    Args:
        features: the opened store.
        allow_foreign_device: whether to accept a difference as small as another device's kernels make it. The difference
            is then reported, and results cannot claim to be exact.

    Returns:
        The comparison; None where the store lacks `raw`, `projected` or the projector, or holds no encoded image.

    Raises:
        StoreMismatch: (exit 4) if the features differ.
    """
    store = features.store
    if not {"raw", "projected"} <= store.arrays.keys() or features.projector is None:
        return None
    rows = features.sample(REPROJECTED_IMAGES)
    if not rows:  # no image could be encoded
        return None
    stored = features.read("projected", rows)
    reprojected = features.project(features.read("raw", rows))
    difference = (stored.float() - reprojected.float()).abs().max().item()
    result = Reprojection(len(rows), torch.equal(stored, reprojected), difference)
    tolerance = CLOSE_ULPS * torch.finfo(stored.dtype).eps * stored.float().abs().max().item()
    if result.equal or (allow_foreign_device and difference <= tolerance):
        return result
    raise StoreMismatch(
        f"expected the stored features from re-projecting {counted(len(rows), 'image')} of {store.path}, the projections "
        f"differ by up to {difference:.6f}: let `python -m stage1_extract diagnose` name the cause; if the "
        f"store comes from another device, --allow-foreign-device accepts differences up to {tolerance:.6f}"
    )
