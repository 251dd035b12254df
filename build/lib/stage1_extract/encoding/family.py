"""How one family of vision-language models is opened for encoding; one file per family in `families/`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from configs.experiment import Experiment, ModelSection
from store.checkpoint.opening import load_config
from store.layout.geometry import Geometry
from store.layout.schema import ArraySpec
from store.reading.reader import ProjectorState

Pixels = dict[str, Tensor]
"""What an image processor makes of one image: every tensor has a leading image axis of 1."""


@dataclass(frozen=True)
class Description:
    """What a store of this model will hold, known before any weight is read."""

    geometry: Geometry
    arrays: tuple[ArraySpec, ...]
    notes: tuple[str, ...]
    """What was asked for and cannot be had, and why."""


class Encoder(ABC):
    """An opened vision half."""

    description: Description
    projector: ProjectorState | None
    """The projector's weights for the store; None where they cannot be reached."""
    weights: Mapping[str, str]
    """sha256 of each part's weights, for the fingerprint."""
    origins: Mapping[str, Mapping[str, Any]]
    """By array, what else made it, for the fingerprint."""
    processor: Mapping[str, Any]
    """Class, backend and config of the image processor, for the fingerprint."""

    @abstractmethod
    def preprocess(self, image: Image.Image) -> Pixels:
        """Pixel values of one RGB image, on the CPU; called from decoding threads."""

    def side_cost(self, batch: Sequence[Pixels]) -> Sequence[float]:
        """How many times as long a forward takes with the arrays beside the features, run by run; empty without arrays."""
        return ()

    @abstractmethod
    def encode(self, batch: Sequence[Pixels]) -> dict[str, Float[Tensor, "image ..."]]:
        """The arrays of some images, by one forward of the tower."""


class Family(ABC):
    """A family of models."""

    model_types: ClassVar[frozenset[str]]
    """`model_type`s of the configs that this file serves; empty for the fallback."""

    @classmethod
    @abstractmethod
    def describe(cls, experiment: Experiment, config: Any) -> Description:
        """From the checkpoint's config alone, where that is possible."""

    @classmethod
    @abstractmethod
    def open(cls, experiment: Experiment, config: Any, device: torch.device) -> Encoder:
        """Load what encodes."""


def checkpoint_config(model: ModelSection) -> Any:
    """The checkpoint's transformers config; CheckpointMissing (exit 5) names what to download."""
    return load_config(model.checkpoint, model.revision, model.trust_remote_code)
