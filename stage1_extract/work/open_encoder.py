"""An encoder on its device, with the batch size that keeps its features exact and fits into the device's memory."""

import logging
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.counted import counted
from configs.experiment import Experiment
from stage1_extract.encoding.family import Encoder, Pixels, checkpoint_config
from stage1_extract.encoding.fingerprint import environment, fingerprints
from stage1_extract.errors import DeviceTooSmall
from stage1_extract.find_family import find_family
from store.layout.environment import use_threads
from store.layout.fingerprint import Fingerprint
from store.layout.plan import Plan
from store.layout.tensors import pick_device, to_storage

Arrays = dict[str, NDArray[Any]]
"""Values by array name, in storage dtype, with a leading image axis."""
_log = logging.getLogger(__name__)


class OpenEncoder:
    """A vision half on its device, and the number of images that one call of it may take."""

    @classmethod
    def load(cls, experiment: Experiment, device_name: str) -> "OpenEncoder":
        """Load the vision half of the experiment's checkpoint onto a device."""
        config, device = checkpoint_config(experiment.model), pick_device(device_name)
        family = find_family(config, experiment.model.vision_family)
        return cls(experiment, config, family.open(experiment, config, device), device)

    def __init__(self, experiment: Experiment, config: Any, encoder: Encoder, device: torch.device) -> None:
        """Choose the batch size: 1 on a device whose bits depend on the batch, unless extract.exact_batch is false."""
        self.experiment, self.config, self.encoder, self.device = experiment, config, encoder, device
        asked = experiment.extract.tower_batch
        self.invariant = batch_invariant(self.encoder, asked)
        self.batch = asked if self.invariant or not experiment.extract.exact_batch else 1
        if not self.invariant:
            _log.warning(
                "note: on this device the tower's features depend on the batch; %s",
                "images are encoded one at a time; extract.exact_batch: false trades exactness for speed"
                if self.batch == 1
                else f"images are encoded {self.batch} at a time as asked for, so parity may be close instead of exact",
            )

    @property
    def alone_as_in_company(self) -> bool:
        """Whether an image has the same features whichever other images it is encoded with."""
        return self.invariant or self.batch == 1

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return the fingerprint of each array. The recorded batch is 1 where no batch changes a bit."""
        recorded = 1 if self.invariant else self.batch
        numeric = environment(self.device, recorded, self.alone_as_in_company)
        return fingerprints(self.experiment, self.config, self.encoder, numeric)

    def side_costs(self) -> list[str]:
        """Measure, on noise, how much time the arrays beside the features cost; an empty list where no such array is made."""
        ratios = self.encoder.side_cost(noise(self.encoder, self.batch))
        if not ratios:
            return []
        return [
            f"with the side arrays a forward of the tower takes {median(ratios):.2f} times as long (measured on noise), "
            f"between {min(ratios):.2f} and {max(ratios):.2f} in {counted(len(ratios), 'run')}"
        ]

    def encode(self, batch: Sequence[Pixels]) -> Arrays:
        """Encode some images. After the device has run out of memory, this and all later calls use smaller batches."""
        parts: list[Arrays] = []
        waiting = list(batch)
        while waiting:
            group = waiting[: self.batch]
            try:
                encoded = self.encoder.encode(group)
            except torch.OutOfMemoryError:
                self._halve()
                continue
            parts.append({name: to_storage(values) for name, values in encoded.items()})
            waiting = waiting[len(group) :]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _halve(self) -> None:
        if self.batch == 1 or (not self.invariant and not self.experiment.extract.exact_batch):
            raise DeviceTooSmall(
                f"expected memory for {counted(self.batch, 'image')} at a time on {self.device}, there is too little: free the "
                "device, or lower --tower-batch"
            )
        self.batch //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning("note: %s is out of memory, going on with %s at a time", self.device, counted(self.batch, "image"))


@torch.no_grad()
def batch_invariant(encoder: Encoder, tower_batch: int) -> bool:
    """Return whether noise images have the same bits alone and in batches of `tower_batch`, half of it, and so on.

    Where the bits differ, the full model, which sees images in other batches, can only be close to the store, not equal.
    """
    if tower_batch == 1:
        return True
    pixels = noise(encoder, tower_batch)
    alone = {name: to_storage(values) for name, values in encoder.encode(pixels[:1]).items()}
    sizes = {tower_batch >> halvings for halvings in range(tower_batch.bit_length() - 1)}
    batches = [encoder.encode(pixels[:size]) for size in sorted(sizes)]
    return all(np.array_equal(to_storage(batch[name][:1]), alone[name]) for batch in batches for name in alone)


def noise(encoder: Encoder, images: int) -> list[Pixels]:
    """Return the pixel values of images of random noise, always the same ones."""
    drawn = np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)
    return [encoder.preprocess(Image.fromarray(image)) for image in drawn]


def use_threads_of(plan: Plan) -> None:
    """Use as many CPU threads as the store was encoded with, whatever this machine or engine offers.

    The number of threads can change bits. Derived arrays do not count: no tower made them.
    """
    for name, fingerprint in plan.fingerprints.items():
        if name not in plan.derived:
            use_threads(fingerprint.numeric)
            return
