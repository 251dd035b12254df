"""The bench on which a store is examined: its rows, its images, and what the tower makes of the images under a hypothesis."""

import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from configs.experiment import Experiment
from stage1_extract.diagnose.suspect_pictures import PIXEL_AXES
from stage1_extract.diagnose.suspects import Hypothesis, compute_axis
from stage1_extract.encoding.arrays import NAMES
from stage1_extract.encoding.encode import EveryLayer, FeatureSelection, encode, encode_every_layer
from stage1_extract.encoding.family import checkpoint_config
from stage1_extract.encoding.fingerprint import environment, fingerprints
from stage1_extract.errors import BadImage, ChangedImage, UnsupportedModel
from stage1_extract.families.llava import LlavaEncoder
from stage1_extract.find_family import find_family, own_code
from stage1_extract.sources.detect import open_images
from stage1_extract.sources.images import content_id, decode_image, gone
from store.layout.environment import use_threads
from store.layout.fingerprint import differences
from store.layout.schema import Dtype
from store.layout.tensors import dtype_name, pick_device, torch_dtype
from store.layout.tower_call import call_of, tower_numeric
from store.projectors import Projector, build
from store.reading.by_name import read_rows
from store.reading.reader import FeatureStore

CACHED_FORWARDS = 12
"""Number of forwards whose layers are all kept in memory, about 60 MB each for CLIP ViT-L/14-336 in float32."""
CACHED_IMAGES = 64
"""Number of decoded images that are kept in memory."""
"""Fields of a numeric fingerprint that can be ignored where the features do not depend on the batch."""
CLOSE_EPS = 4
SMALLEST_CLOSE = 1e-5
"""Relative difference up to which features of two devices count as equal: CLOSE_EPS times the eps of their dtype, and at least
SMALLEST_CLOSE."""


class Bench:
    """A store, the checkpoint that should have made it, and the store's images."""

    def __init__(self, experiment: Experiment, store: FeatureStore, others: Sequence[int] = ()) -> None:
        """Open checkpoint and images.

        Args:
            experiment: Names both.
            store: The opened store.
            others: Rows whose images fill the tower's calls up to the number of images that the store records.

        """
        use_threads(tower_numeric(store.plan))
        self.store = store
        self._call, self._others = call_of(store.plan), tuple(others)
        self.asked: Dtype = experiment.model.dtype
        self.device = pick_device(experiment.model.device)
        self._experiment = experiment.with_arrays(name for name in store.arrays if name in NAMES)
        self._config = checkpoint_config(experiment.model)
        self._encoders: dict[Dtype, LlavaEncoder] = {}
        self.encoder = self.open(self.asked)
        numeric = environment(self.device, self._call)
        own = own_code(self._experiment, self._config)
        self.expected = fingerprints(self._experiment, self._config, self.encoder, numeric, own)
        self.compute = compute_axis(self.stored_dtype(), self.asked)
        data = experiment.data
        self._source = open_images(data.images, data.format, data.image_column, data.follow_links)
        self._images: OrderedDict[int, Image.Image] = OrderedDict()
        self._forwards: OrderedDict[Hashable, EveryLayer] = OrderedDict()
        self._projectors: dict[Dtype, Projector] = {}
        self.forwards = 0
        """Number of forwards of the tower so far."""
        self.seconds = 0.0
        """Seconds that the last forward took, without reading the image."""

    def open(self, dtype: Dtype) -> LlavaEncoder:
        """Return the vision half that computes in a dtype; it is loaded once.

        Raises UnsupportedModel (exit 2) for a model whose parts cannot be reached apart.
        """
        if dtype not in self._encoders:
            model = self._experiment.model.model_copy(update={"dtype": dtype})
            experiment = self._experiment.model_copy(update={"model": model})
            family = find_family(self._config, model.vision_family)
            encoder = family.open(experiment, self._config, self.device)
            if not isinstance(encoder, LlavaEncoder):
                raise UnsupportedModel(
                    f"expected a model whose tower and projector can be reached apart, {self._config.model_type} is not: "
                    "its features can only be compared with its own get_image_features"
                )
            self._encoders[dtype] = encoder
        return self._encoders[dtype]

    def encoder_of(self, hypothesis: Hypothesis) -> LlavaEncoder:
        """Return the vision half that computes in the dtype of a hypothesis."""
        return self.open(hypothesis.get("compute", self.compute[0]).value)

    def stored(self, name: str, row: int) -> Float[Tensor, "..."]:
        """Return one row of an array as it lies in the store."""
        return read_rows(self.store, name, [row])[0]

    def image_name(self, row: int) -> str:
        """Return the name by which the image of a row is read."""
        return self.store.ids.names(row)[0]

    def image(self, row: int) -> Image.Image:
        """Return the image of a row.

        Raises ChangedImage (exit 4) if its file has changed, and GoneImage (exit 5 or 4) if it cannot be read.
        """
        if row not in self._images:
            name = self.image_name(row)
            try:
                data = self._source.read(name)
                if self.store.plan.identity == "content" and content_id(data) != self.store.ids.sha_of_row(row):
                    raise ChangedImage(
                        f"expected {name} as it was encoded, its file has changed: restore it to diagnose this store"
                    )
                self._images[row] = decode_image(data, name, self._experiment.extract.max_pixels)
            except BadImage as bad:
                raise gone(bad, name, self._experiment.data.images) from None
            while len(self._images) > CACHED_IMAGES:
                self._images.popitem(last=False)
        return self._images[row]

    def pixels(self, row: int, hypothesis: Hypothesis) -> dict[str, Tensor]:
        """Return what the image processor makes of a row's image under a hypothesis."""
        image, options = self.image(row), {}
        # Changes are made in the order of the hypothesis, as JPEG before a turn differs from JPEG after it.
        for axis, choice in hypothesis.items():
            if axis in PIXEL_AXES:
                change = choice.value
                image = image if change.edit is None else change.edit(image)
                options |= change.options
        made = self.encoder.preprocess(image)
        if options:
            stock: Any = self.encoder.image_processor.stock
            made["pixel_values"] = stock(images=[image], return_tensors="pt", **options)["pixel_values"]
        return made

    def seen(self, row: int, hypothesis: Hypothesis) -> EveryLayer:
        """Return every layer of a forward with a row's image under a hypothesis; the last few forwards are kept in memory."""
        encoder = self.encoder_of(hypothesis)
        chosen = tuple(id(choice) for axis, choice in hypothesis.items() if axis in PIXEL_AXES)
        key = (row, id(encoder), chosen)
        if key in self._forwards:
            self._forwards.move_to_end(key)
            return self._forwards[key]
        pixels = self._filled(row, self.pixels(row, hypothesis)["pixel_values"])
        began = time.perf_counter()
        dtype = next(encoder.half.tower.parameters()).dtype
        layers = encode_every_layer(encoder.half, pixels.to(self.device, dtype)).first()
        layers.last_hidden_state.sum().item()  # waits for the device
        self.seconds, self.forwards = time.perf_counter() - began, self.forwards + 1
        self._forwards[key] = layers
        while len(self._forwards) > CACHED_FORWARDS:
            self._forwards.popitem(last=False)
        return layers

    def side_array(self, name: str, row: int, hypothesis: Hypothesis) -> Float[Tensor, "..."]:
        """Make a row of a side array under a hypothesis, by a forward of its own."""
        encoder = self.encoder_of(hypothesis)
        pixels = self.pixels(row, hypothesis)
        if name in pixels:
            return pixels[name][0]
        layers = hypothesis["layer"].value if "layer" in hypothesis else encoder.half.selection.layers
        selection = FeatureSelection(layers, encoder.half.selection.drops_cls)
        half = replace(encoder.half, arrays=frozenset({name}), selection=selection)
        dtype = next(half.tower.parameters()).dtype
        self.forwards += 1
        return encode(half, self._filled(row, pixels["pixel_values"]).to(self.device, dtype))[name][0]

    def _filled(self, row: int, picture: Shaped[Tensor, "1 3 height width"]) -> Shaped[Tensor, "image 3 height width"]:
        """Fill a call up to as many images as the store records, with other sampled images and then with the same again."""
        others = [pixels for other, pixels in self._company.items() if other != row]
        return torch.cat(self._call.filled([picture], others))

    @cached_property
    def _company(self) -> dict[int, Float[Tensor, "1 3 height width"]]:
        """The pictures that fill calls, by row; none where a call is of one image."""
        others = self._others if self._call.images > 1 else ()
        return {row: self.pixels(row, {})["pixel_values"] for row in others}

    def projectors(self, hypothesis: Hypothesis) -> dict[str, Projector]:
        """Return the checkpoint's projector as `own`, and the store's as `stored` where it is another projector."""
        own, stored = self.encoder_of(hypothesis).half.projector, self.stored_projector()
        different = stored is not None and self.projector_differs()
        return {"own": own} | ({"stored": stored} if stored is not None and different else {})

    def stored_projector(self) -> Projector | None:
        """Return the projector in the store; None where the store has none."""
        state = self.store.projector
        if state is None:
            return None
        dtype = self.stored_dtype()
        if dtype not in self._projectors:
            self._projectors[dtype] = build(state, self.device)
        return self._projectors[dtype]

    def projector_differs(self) -> bool:
        """Return whether the projector in the store differs from the checkpoint's in the same dtype."""
        state, stored = self.store.projector, self.stored_projector()
        if state is None or stored is None:
            return False
        ours = self.open(next(iter(state.dtypes.values()))).half.projector.state_dict()
        theirs = stored.state_dict()
        return theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours)

    def made_elsewhere(self, name: str) -> list[str]:
        """List the differences between this environment and an array's, because of which bits may be rounded apart."""
        if name not in self.expected:
            return []
        ours, theirs = self.expected[name].numeric, self.store.fingerprint(name).numeric
        elsewhere = [str(difference) for difference in differences(ours, theirs)]
        if not self._call.exact:
            elsewhere.append(f"tower_batch: {self._call.images} images at a time, whose bits depend on the batch")
        return elsewhere

    def rounding(self, name: str) -> float:
        """Return the relative difference that another device may cause in an array; the coarsest dtype on the way decides."""
        dtypes = (self.dtype(name), torch_dtype(self.compute[0].value))
        return max(SMALLEST_CLOSE, *(CLOSE_EPS * torch.finfo(dtype).eps for dtype in dtypes))

    def dtype(self, name: str) -> torch.dtype:
        """Return the torch dtype of an array."""
        return torch_dtype(self.store.arrays[name].dtype)

    def stored_dtype(self) -> Dtype:
        """Return the dtype of the stored features; attention does not count, as it is float32 whatever dtype made it."""
        features = next((name for name in ("raw", "projected", "cls_hidden") if name in self.store.arrays), None)
        return self.asked if features is None else dtype_name(self.dtype(features))
