"""Find out, on noise, how a device's vision tower may be called so that an image's bits do not depend on its company.

Measured on GPUs: at one batch size an image has the same bits at every place and beside any other images, and other bits at
another batch size. On CPUs most often even the batch size does not matter.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.counted import counted
from stage1_extract.encoding.family import Encoder, Pixels
from stage1_extract.encoding.processor import TRIED_SIZES
from stage1_extract.errors import DeviceTooSmall, InexactDevice
from store.layout.tensors import to_storage
from store.layout.tower_call import TowerCall

_log = logging.getLogger(__name__)
Rows = Mapping[str, NDArray[np.generic]]
"""The rows of some images by array, as a store keeps them."""


@dataclass(frozen=True)
class WayOfCalling:
    """How many images a call of the tower takes, and what the store records of it."""

    batch: int
    """Images per call."""
    call: TowerCall

    @property
    def filled(self) -> bool:
        """Whether every call has exactly `batch` images, so that a short one is filled up."""
        return self.call.exact and self.call.images > 1


ALONE = WayOfCalling(1, TowerCall())


def choose_way(encoder: Encoder, batch: int, device: torch.device) -> WayOfCalling:
    """Choose how the features of a new store are made, with calls of `batch` images at most.

    A batch that does not fit into the device's memory is halved until it does. Two calls are compared: a batch, and the same
    images turned by one place with one of them replaced. If an image differs between them, images are encoded one at a time.
    If no image differs, and one image alone has the same bits too, any batch makes the bits of one image; otherwise every call
    has exactly the images of this batch.

    Raises DeviceTooSmall (exit 7) where not even one image fits.
    """
    if batch > 1 and _makes_pictures_of_several_sizes(encoder):
        _log.warning("note: this model's pictures are of several sizes, so that images are encoded one at a time")
        return ALONE
    while batch > 1:
        try:
            return _tested(encoder, batch, device)
        except torch.OutOfMemoryError:
            batch = halved(batch, device)
    return ALONE


def follow_call(encoder: Encoder, batch: int, device: torch.device, recorded: TowerCall) -> WayOfCalling:
    """Choose how a store is gone on with, so that its call stays what it recorded; `batch` is used where any batch may be.

    Raises:
        InexactDevice: (exit 4) The bits of an image depend on its company here at the recorded number of images per call.
        DeviceTooSmall: (exit 7) That many images do not fit into the device's memory.

    """
    if not recorded.exact:
        return WayOfCalling(recorded.images, recorded)
    if recorded.images == 1:
        way = choose_way(encoder, batch, device)
        return ALONE if way.filled else way
    try:
        way = _tested(encoder, recorded.images, device)
    except torch.OutOfMemoryError:
        raise too_small(recorded.images, device) from None
    if way is ALONE:
        raise InexactDevice(
            f"expected a device on which an image has the same bits in every call of {recorded.images} images, as where this "
            f"store was made, on {device} they depend on the other images: go on where the store was made, or make another store"
        )
    return WayOfCalling(recorded.images, recorded)


def too_small(images: int, device: torch.device) -> DeviceTooSmall:
    """Make the error that says that the images of one call do not fit into the device's memory."""
    return DeviceTooSmall(
        f"expected memory for {counted(images, 'image')} at a time on {device}, as the store records, there is too little: free "
        "the device, use a larger one, or make the store again with a smaller --tower-batch and --overwrite"
    )


@torch.no_grad()
def _tested(encoder: Encoder, batch: int, device: torch.device) -> WayOfCalling:
    images = noise(encoder, batch + 1)
    together, other = images[:batch], images[batch]
    made, turned = _rows(encoder, together), _rows(encoder, [other, *together[:-1]])
    if not all(np.array_equal(made[name][:-1], turned[name][1:], equal_nan=True) for name in made):
        _log.warning(
            "note: on %s an image's bits depend on the other images of its call, so that images are encoded one at a time",
            device,
        )
        return ALONE
    alone = _rows(encoder, together[:1])
    if all(np.array_equal(made[name][:1], alone[name], equal_nan=True) for name in made):
        return WayOfCalling(batch, TowerCall())
    projected = batch if encoder.projects_together(together) else 1
    return WayOfCalling(batch, TowerCall(batch, projector_images=projected))


def _rows(encoder: Encoder, batch: Sequence[Pixels]) -> Rows:
    return {name: to_storage(values) for name, values in encoder.encode(batch).items()}


def halved(batch: int, device: torch.device) -> int:
    """Return half of a batch that did not fit into the device's memory, which is freed, and say so."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    _log.warning("note: %s is out of memory, going on with %s at a time", device, counted(batch // 2, "image"))
    return batch // 2


def _makes_pictures_of_several_sizes(encoder: Encoder) -> bool:
    pictures = [encoder.preprocess(Image.new("RGB", size)) for size in TRIED_SIZES]
    return len({tuple((name, values.shape) for name, values in picture.items()) for picture in pictures}) > 1


def noise(encoder: Encoder, images: int) -> list[Pixels]:
    """Return the pixel values of images of random noise, always the same ones."""
    drawn = np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)
    return [encoder.preprocess(Image.fromarray(image)) for image in drawn]
