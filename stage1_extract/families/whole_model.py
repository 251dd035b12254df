"""The fallback for models whose parts cannot be reached apart: their own `get_image_features` is called once per batch.

Only `projected` is stored. So features cannot be projected again, pruners that read `raw` or CLS arrays cannot run, and
parity can compare the cached features but not their re-projection.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from configs.counted import counted
from configs.experiment import Experiment
from stage1_extract.encoding.attention import ATTENTION
from stage1_extract.encoding.family import Description, Encoder, Family, Pixels
from stage1_extract.encoding.processor import TRIED_SIZES, ImageProcessor
from stage1_extract.errors import UnsupportedModel
from store.checkpoint.digests import origin_of, remembered_digest
from store.checkpoint.opening import quiet_loading, stock_reading
from store.layout.geometry import Geometry
from store.layout.schema import ArraySpec
from store.layout.tensors import torch_dtype

NOTE = (
    "only `projected` is stored: this model's vision tower and projector cannot be reached apart, so its features come from "
    "its own get_image_features; there is no re-projection and no array for pruners that read raw or CLS features"
)
ONE_CROP = {"do_image_splitting": False}
"""Options that keep the number of visual tokens of an image fixed, where the processor has them."""


class WholeModel(Family):
    """Any model with `get_image_features`; no model type names this family."""

    model_types = frozenset()

    @classmethod
    def describe(cls, experiment: Experiment, config: Any) -> Description:
        """Load the model to describe it, as only its code knows how many tokens it makes of an image."""
        return cls.open(experiment, config, torch.device("cpu")).description

    @classmethod
    def open(cls, experiment: Experiment, config: Any, device: torch.device) -> Encoder:
        """Load the full model."""
        return WholeModelEncoder(experiment, device)


class WholeModelEncoder(Encoder):
    """A full model, of which only `get_image_features` is used."""

    projector = None
    origins: Mapping[str, Mapping[str, Any]] = {}

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        model = experiment.model
        if beside := [name for name in experiment.extract.capture if name != "projected"]:
            raise UnsupportedModel(
                f"expected no arrays beside `projected` of a model whose parts cannot be reached apart, got "
                f"{', '.join(beside)}: leave them out of --capture"
            )
        origin = origin_of(model.checkpoint, ("",), model.revision)  # names what is missing, before transformers fails
        with quiet_loading(), stock_reading(model.checkpoint, "a model"):
            self._model: Any = AutoModelForImageTextToText.from_pretrained(
                model.checkpoint, revision=model.revision, dtype=torch_dtype(model.dtype), attn_implementation=ATTENTION,
                use_safetensors=True, trust_remote_code=model.trust_remote_code,
            ).eval()  # fmt: skip
        self.weights = {"model": remembered_digest(self._model.state_dict(), origin)}
        self._model.to(device)
        source = (model.checkpoint, model.revision, model.trust_remote_code)
        stock = ImageProcessor(*source)
        options = {name: value for name, value in ONE_CROP.items() if hasattr(stock.stock, name)}
        self._image_processor = ImageProcessor(*source, **options)
        self.processor = self._image_processor.fingerprint
        self._device = device
        self.description = self._probe(experiment)

    def preprocess(self, image: Image.Image) -> Pixels:
        """Return the tensors of the image processor that `get_image_features` takes."""
        taken = inspect.signature(self._model.get_image_features).parameters
        return {name: value for name, value in self._image_processor(image).items() if name in taken}

    @torch.no_grad()
    def encode(self, batch: Sequence[Pixels]) -> dict[str, Float[Tensor, "image ..."]]:
        """Return `projected` of some images, from one call of the model's own code."""
        features = self._features(batch)
        counts = {len(tokens) for tokens in features}
        if len(features) != len(batch):
            raise UnsupportedModel(
                f"expected one feature tensor for each of {counted(len(batch), 'image')} from this model's "
                f"get_image_features, got {len(features)}: it needs a file of its own in stage1_extract/families"
            )
        if counts != {self._tokens}:
            raise UnsupportedModel(
                f"expected {self._tokens} tokens for every image, as the store is planned for, got "
                f"{counted(len(batch), 'image')} with {sorted(counts)} tokens: a store of format 1 holds "
                "a fixed number of tokens per image; set the checkpoint's image processor so that all images get one size"
            )
        return {"projected": torch.stack(features)}

    @torch.no_grad()
    def _features(self, batch: Sequence[Pixels]) -> list[Float[Tensor, "token embed"]]:
        inputs = {name: torch.cat([pixels[name] for pixels in batch]).to(self._device) for name in batch[0]}
        output = self._model.get_image_features(**inputs)
        return list(getattr(output, "pooler_output", output))

    def _probe(self, experiment: Experiment) -> Description:
        """Measure the shapes on blank images of several sizes, which refuses a model whose token count varies early."""
        blanks = [self.preprocess(Image.new("RGB", size, "white")) for size in TRIED_SIZES]
        self._tokens = len(self._features(blanks[:1])[0])
        embed = {self.encode([blank])["projected"].shape[2] for blank in blanks}.pop()
        axes, shape = ("patch", "embed"), (self._tokens, embed)
        spec = ArraySpec(name="projected", axes=axes, shape=shape, dtype=experiment.model.dtype)
        return Description(Geometry(grid=None, has_cls=False, tokens=self._tokens), (spec,), (NOTE,))
