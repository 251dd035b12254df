"""LLaVA-1.5 and models of the same layout: a vision tower, a two-layer projector, one feature per patch.

Only the weights of tower and projector are read, whichever of the three key layouts the checkpoint has.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel

from configs.experiment import Experiment
from stage1_extract.encoding.arrays import CLIP_SPACE, IMAGE_AREA, NAMES, SIDE, lacking, specs
from stage1_extract.encoding.attention import ATTENTION
from stage1_extract.encoding.clip_space import clip_width, open_clip_space
from stage1_extract.encoding.encode import FeatureSelection, VisionHalf, encode
from stage1_extract.encoding.family import Description, Encoder, Family, Pixels
from stage1_extract.encoding.processor import ImageArea, ImageProcessor
from stage1_extract.encoding.tower import TowerFacts
from stage1_extract.errors import UnsupportedModel, WrongWeights
from stage1_extract.find_tower import kind_of_tower
from store.checkpoint.digests import origin_of, remembered_digest
from store.checkpoint.opening import quiet_loading
from store.checkpoint.weights import load_tensors, weights_digest
from store.layout.geometry import Geometry
from store.layout.schema import Dtype
from store.layout.tensors import dtype_name, to_storage, torch_dtype
from store.projectors import Projector
from store.projectors.llava_mlp import LlavaMlp
from store.reading.projector_state import ProjectorState

TOWER = "vision_tower."
"""Prefix of the tower's weights."""
RUNS = 5
"""How often `side_cost` measures."""


class Llava(Family):
    """Models of `model_type: llava`, with any tower of `towers/`."""

    model_types = frozenset({"llava"})

    @classmethod
    def describe(cls, experiment: Experiment, config: Any) -> Description:
        """Read geometry and arrays from the config and from the size of the image processor's pictures."""
        kind = kind_of_tower(config.vision_config, experiment.model.tower)
        facts = kind.facts(config.vision_config, _processor(experiment).pixels())
        selection = select_features(config, facts)
        wanted, notes = _available(experiment.store.arrays, experiment.extract.capture, facts, selection)
        clip = clip_width(experiment.model, facts.hidden) if {*CLIP_SPACE} & {*wanted} else None
        dtype, embed = experiment.model.dtype, config.text_config.hidden_size
        known = specs(facts, selection.layers, selection.drops_cls, dtype, embed, clip)
        by_name = {spec.name: spec for spec in known}
        rows = by_name["raw"].shape[0]
        geometry = Geometry(grid=facts.grid, has_cls=facts.has_cls, tokens=rows)
        return Description(geometry, tuple(by_name[name] for name in wanted), notes)

    @classmethod
    def open(cls, experiment: Experiment, config: Any, device: torch.device) -> Encoder:
        """Load tower and projector, and nothing of the language model."""
        return LlavaEncoder(experiment, config, cls.describe(experiment, config), device)


class LlavaEncoder(Encoder):
    """The opened vision half of a LLaVA."""

    def __init__(self, experiment: Experiment, config: Any, description: Description, device: torch.device) -> None:
        model = experiment.model
        dtype = torch_dtype(model.dtype)
        kind = kind_of_tower(config.vision_config, model.tower)
        self.image_processor = _processor(experiment)
        facts = kind.facts(config.vision_config, self.image_processor.pixels())
        loaded_from = origin_of(model.checkpoint, (TOWER, LlavaMlp.prefix), model.revision)
        tensors = load_tensors(model.checkpoint, (TOWER, LlavaMlp.prefix), dtype, model.revision)
        tower_weights, projector_weights = (_part(tensors, prefix) for prefix in (TOWER, LlavaMlp.prefix))
        settings = LlavaMlp.config_of(config)
        projector = _build_projector(settings, projector_weights)
        selection = select_features(config, facts)
        _require_widths(projector_weights, facts.hidden * len(selection.layers), config.text_config.hidden_size)
        self.description = description
        asked = frozenset(spec.name for spec in description.arrays)
        clip, origin = open_clip_space(model, tower_weights, dtype) if asked & {*CLIP_SPACE} else (None, {})
        self.origins = dict.fromkeys(CLIP_SPACE, origin)
        self.half = VisionHalf(
            tower=_build_tower(model.checkpoint, config, tower_weights, dtype).to(device),
            kind=kind,
            facts=facts,
            selection=selection,
            projector=projector.to(device),
            arrays=asked - {IMAGE_AREA},
            clip=None if clip is None else clip.to(device),
        )
        self.projector = projector_state(settings, projector_weights)
        self.weights = {"tower": remembered_digest(tower_weights, loaded_from), "projector": self.projector.sha256}
        self.processor = self.image_processor.fingerprint
        edge = config.vision_config.patch_size
        self._area = ImageArea(self.image_processor, facts.grid, edge) if IMAGE_AREA in asked else None
        self._device, self._dtype = device, dtype

    def preprocess(self, image: Image.Image) -> Pixels:
        """Return `pixel_values`, (1, 3, height, width) in float32, and `image_area` where it is asked for."""
        pixels = self.image_processor(image)
        return pixels if self._area is None else pixels | {IMAGE_AREA: self._area.of(image.size)}

    def processor_alone(self) -> ImageProcessor | None:
        """Return the image processor, unless `image_area` is asked for or a subclass preprocesses in its own way."""
        stock = type(self).preprocess is LlavaEncoder.preprocess and self._area is None
        return self.image_processor if stock else None

    def side_cost(self, batch: Sequence[Pixels]) -> Sequence[float]:
        """Measure RUNS forwards with the side arrays, each next to a forward without them."""
        lean = replace(self.half, arrays=self.half.arrays - SIDE)
        if lean.arrays == self.half.arrays:
            return ()
        pixels = self._pixels(batch)
        seconds = [[timed(lambda half=half: encode(half, pixels)) for half in (lean, self.half)] for _ in range(RUNS)]
        return [whole / plain for plain, whole in seconds]

    def encode(self, batch: Sequence[Pixels]) -> dict[str, Float[Tensor, "image ..."]]:
        """Return the arrays of some images, from one forward of the tower."""
        areas = {} if self._area is None else {IMAGE_AREA: torch.cat([pixels[IMAGE_AREA] for pixels in batch])}
        return encode(self.half, self._pixels(batch)) | areas

    @torch.no_grad()
    def projects_together(self, batch: Sequence[Pixels]) -> bool:
        """Return whether the projector makes the same bits of a whole batch in one call as image by image."""
        half = replace(self.half, arrays=frozenset({"raw", "projected"}), clip=None)
        arrays = encode(half, self._pixels(batch))
        return torch.equal(half.projector(arrays["raw"]), arrays["projected"])

    def _pixels(self, batch: Sequence[Pixels]) -> Float[Tensor, "image 3 height width"]:
        pictures = torch.cat([pixels["pixel_values"] for pixels in batch])
        if self._device.type == "cuda":  # so that the host does not wait until earlier work of the device is done
            return pictures.pin_memory().to(self._device, non_blocking=True).to(self._dtype)
        return pictures.to(self._device, self._dtype)


def _processor(experiment: Experiment) -> ImageProcessor:
    model = experiment.model
    return ImageProcessor(model.checkpoint, model.revision, model.trust_remote_code)


def timed(run: Callable[[], Mapping[str, Tensor]]) -> float:
    """Return the seconds that a run takes until the device has finished its queued work."""
    begun = time.perf_counter()
    for array in run().values():
        array.sum().item()
    return time.perf_counter() - begun


def select_features(config: Any, facts: TowerFacts) -> FeatureSelection:
    """Return the feature layers and the select strategy of a LLaVA config, checked against the tower.

    Raises UnsupportedModel (exit 2) for a layer that the tower does not have, and for the strategy `default` on a tower
    without a CLS row, where stock code silently loses the first patch.
    """
    listed = config.vision_feature_layer
    asked = [listed] if isinstance(listed, int) else list(listed)
    states = facts.layers + 1
    if not asked or any(not -states <= layer < states for layer in asked):
        raise UnsupportedModel(
            f"expected vision_feature_layer within -{states}..{states - 1} for a tower of {facts.layers} layers, "
            f"got {listed}: correct the checkpoint's config"
        )
    strategy = config.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        raise UnsupportedModel(f"expected vision_feature_select_strategy `default` or `full`, got {strategy!r}")
    if strategy == "default" and not facts.has_cls:
        raise UnsupportedModel(
            "vision_feature_select_strategy `default` drops the first row as the CLS row, but a "
            f"{config.vision_config.model_type} tower has none, so a real patch would be lost: set it to `full` in the "
            "checkpoint's config"
        )
    return FeatureSelection(tuple(layer % states for layer in asked), drops_cls=strategy == "default")


def projector_state(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ProjectorState:
    """Return the projector in the form that a store keeps."""
    arrays = {name: to_storage(tensor) for name, tensor in weights.items()}
    dtypes: dict[str, Dtype] = {name: dtype_name(tensor.dtype) for name, tensor in weights.items()}
    return ProjectorState("llava_mlp", settings, arrays, dtypes, weights_digest(weights))


def _available(
    asked: tuple[str, ...], by_name: tuple[str, ...], facts: TowerFacts, selection: FeatureSelection
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the arrays of `asked` that the model can give, and a note for each other array.

    Raises UnsupportedModel (exit 2) for a name that is unknown, and for an array of `by_name` that the model cannot give.
    """
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        raise UnsupportedModel(
            f"expected store.arrays from {', '.join(NAMES)}, got {', '.join(unknown)}: correct the config"
        )
    absent = lacking(facts, selection.layers)
    if refused := [name for name in by_name if name in absent]:
        raise UnsupportedModel(
            f"expected arrays that this model can give, {', '.join(refused)} cannot be had: {absent[refused[0]]}; leave "
            f"{', '.join(refused)} out of --capture, and methods that read it out of prune.methods"
        )
    notes = tuple(f"{name} is not stored: {absent[name]}" for name in asked if name in absent)
    return tuple(name for name in asked if name not in absent), notes


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix, under names without it."""
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    # Old checkpoints carry the buffer `position_ids`, a plain range that the tower makes itself.
    return {name: tensor for name, tensor in part.items() if not name.endswith("position_ids")}


def _build_tower(source: str, config: Any, weights: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    # The config is copied because transformers writes the attention implementation into the object that it is given.
    vision_config = copy.deepcopy(config.vision_config)
    with torch.device("meta"):
        kind: Any = type(AutoModel.from_config(vision_config))
    # The tensors are read already, but stock code loads them: it knows towers whose names on disk and in memory differ.
    with quiet_loading():
        tower, loading = kind.from_pretrained(
            None, config=vision_config, state_dict=dict(weights), dtype=dtype, attn_implementation=ATTENTION,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    loading["mismatched_keys"] = [f"{k} {tuple(got)} not {tuple(own)}" for k, got, own in loading["mismatched_keys"]]
    wrong = {name: sorted(map(str, keys)) for name, keys in loading.items() if keys}
    if wrong:
        raise WrongWeights(
            f"expected the tensors of a {vision_config.model_type} under vision_tower.* in {source}, found differences "
            f"({', '.join(f'{name}: {keys[:3]}' for name, keys in wrong.items())}): is the checkpoint whole?"
        )
    return tower.eval()


def _require_widths(weights: Mapping[str, Tensor], hidden: int, embed: int) -> None:
    for name, axis, expected in (("linear_1.weight", 1, hidden), ("linear_2.weight", 0, embed)):
        if weights[name].shape[axis] != expected:
            raise WrongWeights(
                f"expected {expected} as axis {axis} of {LlavaMlp.prefix}{name}, as config.json says, it has the shape "
                f"{tuple(weights[name].shape)}: are weights and config of one checkpoint?"
            )


def _build_projector(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Projector:
    return LlavaMlp(settings, weights).eval()
