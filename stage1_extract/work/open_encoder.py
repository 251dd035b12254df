"""An encoder on its device, called in the way that keeps its features exact and fits into the device's memory."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.counted import counted
from configs.experiment import Experiment
from stage1_extract.encoding.family import Encoder, Pixels, checkpoint_config
from stage1_extract.encoding.fingerprint import environment, fingerprints
from stage1_extract.find_family import find_family, own_code
from stage1_extract.work.self_test import choose_way, follow_call, halved, noise, too_small
from store.layout.environment import use_threads
from store.layout.fingerprint import Fingerprint
from store.layout.plan import Plan
from store.layout.schema import default_shard_images
from store.layout.tensors import pick_device, to_storage
from store.layout.tower_call import TowerCall, call_of, tower_numeric

Arrays = dict[str, NDArray[Any]]
"""Values by array name, in storage dtype, with a leading image axis."""


AUTO_ON_GPU = 32
"""Images per call on a GPU; more images per call were no faster there (docs/gpu-benchmarks.md)."""
AUTO_ON_CPU = 2
"""Images per call on a CPU: on two cores 1, 2, 4 and 8 images a call gave 0.276, 0.277, 0.269 and 0.256 images a second
(`python -m tests.benchmarks tower_batch`).
"""


class OpenEncoder:
    """A vision half on its device, and the way in which it is called."""

    @classmethod
    def load(
        cls, experiment: Experiment, device_name: str, stored: Plan | None = None, images: int | None = None
    ) -> "OpenEncoder":  # fmt: skip
        """Load the vision half of the experiment's checkpoint onto a device, and use as many CPU threads as the store did.

        Args:
            experiment: Names the checkpoint and the images per call.
            device_name: The device, as `model.device` names it.
            stored: The plan of the store that is gone on with or compared; None for a new store.
            images: Number of images of a new store; `tower_batch: auto` is no larger than a shard of them.

        Raises:
            InexactDevice: (exit 4) This device cannot call the tower as the store records.
            DeviceTooSmall: (exit 7) The device has too little memory for that.

        """
        if stored is not None:
            use_threads(tower_numeric(stored))  # whatever this machine or engine offers
        config, device = checkpoint_config(experiment.model), pick_device(device_name)
        family = find_family(config, experiment.model.vision_family)
        encoder = family.open(experiment, config, device)
        batch = _images_per_call(experiment, encoder, device, stored, images)
        return cls(experiment, config, encoder, device, batch, None if stored is None else call_of(stored))

    def __init__(
        self, experiment: Experiment, config: Any, encoder: Encoder, device: torch.device, batch: int,
        recorded: TowerCall | None = None,
    ) -> None:  # fmt: skip
        """Find out by the self-test how the tower is called; a store that is gone on with has `recorded` it."""
        self.experiment, self.config, self.encoder, self.device = experiment, config, encoder, device
        self._way = (
            choose_way(encoder, batch, device) if recorded is None else follow_call(encoder, batch, device, recorded)
        )

    @property
    def batch(self) -> int:
        """Images per call of the tower."""
        return self._way.batch

    @property
    def call(self) -> TowerCall:
        """What a store records of the calls."""
        return self._way.call

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return the fingerprint of each array."""
        numeric, own = environment(self.device, self.call), own_code(self.experiment, self.config)
        return fingerprints(self.experiment, self.config, self.encoder, numeric, own)

    def side_costs(self) -> list[str]:
        """Measure, on noise, how much time the arrays beside the features cost; an empty list where no such array is made."""
        ratios = self.encoder.side_cost(noise(self.encoder, self.batch))
        if not ratios:
            return []
        return [
            f"with the side arrays a forward of the tower takes {median(ratios):.2f} times as long (measured on noise), "
            f"between {min(ratios):.2f} and {max(ratios):.2f} in {counted(len(ratios), 'run')}"
        ]

    def encode(self, batch: Sequence[Pixels], company: Sequence[Pixels] = ()) -> Arrays:
        """Encode some images as `launch` does, and wait for the arrays."""
        return {name: to_storage(values) for name, values in self.launch(batch, company).items()}

    def launch(self, batch: Sequence[Pixels], company: Sequence[Pixels] = ()) -> dict[str, Tensor]:
        """Encode some images, and return the arrays on the device, where the work may still be queued.

        A call that must have a fixed number of images is filled up, by images of `company` and then by its own last image, of
        which nothing is returned. After the device has run out of memory, this and all later calls use smaller batches where
        any batch may be used.

        Raises DeviceTooSmall (exit 7) where another number of images would make other bits.
        """
        parts: list[dict[str, Tensor]] = []
        waiting = list(batch)
        while waiting:
            now = self._next_call(waiting)
            try:
                encoded = self.encoder.encode(self.call.filled(now, company))
            except torch.OutOfMemoryError:
                self._use_less_memory()
                continue
            parts.append({name: values[: len(now)] for name, values in encoded.items()})
            waiting = waiting[len(now) :]
        return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _next_call(self, waiting: list[Pixels]) -> list[Pixels]:
        """Take the images of the next call: a whole batch or, where any batch may be used, one image, as in the self-test."""
        whole = len(waiting) >= self.batch or self._way.filled or not self.call.exact
        return waiting[: self.batch if whole else 1]

    def _use_less_memory(self) -> None:
        if self.batch == 1 or self.call.images > 1:
            raise too_small(self.batch, self.device)
        batch = halved(self.batch, self.device)
        self._way = follow_call(self.encoder, batch, self.device, self.call)


def _images_per_call(
    experiment: Experiment, encoder: Encoder, device: torch.device, stored: Plan | None, images: int | None
) -> int:
    """Return `extract.tower_batch`, or what `auto` stands for."""
    asked, auto = experiment.extract.tower_batch, AUTO_ON_GPU if device.type == "cuda" else AUTO_ON_CPU
    if asked != "auto":
        return asked
    if stored is not None:
        return min(auto, stored.shard_images)
    of_shard = experiment.store.shard_images or default_shard_images(encoder.description.arrays, images or auto)
    return min(auto, of_shard)
