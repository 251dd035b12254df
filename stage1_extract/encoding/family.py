"""The interface of a family of vision-language models, as stage 1 opens it; `families/` has one file per family."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from configs.experiment import Experiment, ModelSection
from stage1_extract.encoding.processor import ImageProcessor
from store.checkpoint.opening import load_config
from store.layout.geometry import Geometry
from store.layout.schema import ArraySpec
from store.reading.projector_state import ProjectorState

Pixels = dict[str, Tensor]
"""What an image processor makes of one image; every tensor has a leading image axis of length 1."""


@dataclass(frozen=True)
class Description:
    """The content of a store of this model, known before any weight is read."""

    geometry: Geometry
    arrays: tuple[ArraySpec, ...]
    notes: tuple[str, ...]
    """Sentences about arrays that were asked for and that this model cannot give, with the reasons."""


class Encoder(ABC):
    """An opened vision half: it turns images into arrays."""

    description: Description
    projector: ProjectorState | None
    """The projector's weights for the store; None where they cannot be reached."""
    weights: Mapping[str, str]
    """sha256 of each part's weights, for the fingerprint."""
    origins: Mapping[str, Mapping[str, Any]]
    """Further fields of an array's fingerprint, by array: other checkpoints that made it."""
    processor: Mapping[str, Any]
    """Class, backend and config of the image processor, for the fingerprint."""

    @abstractmethod
    def preprocess(self, image: Image.Image) -> Pixels:
        """Turn one RGB image into pixel values on the CPU; several decoding threads call this at once."""

    def processor_alone(self) -> ImageProcessor | None:
        """Return the image processor if `preprocess` is no more than a call of it, which other processes can make too."""
        return None

    def side_cost(self, batch: Sequence[Pixels]) -> Sequence[float]:
        """Measure how many times as long a forward takes with the arrays beside the features.

        Returns one ratio per run; none if no such array is made.
        """
        return ()

    def projects_together(self, batch: Sequence[Pixels]) -> bool:
        """Return whether the projector makes the same bits of a whole batch in one call as image by image."""
        return False

    @abstractmethod
    def encode(self, batch: Sequence[Pixels]) -> dict[str, Float[Tensor, "image ..."]]:
        """Return the arrays of some images, from one forward of the tower."""


class Family(ABC):
    """A family of models that are opened in the same way."""

    model_types: ClassVar[frozenset[str]]
    """Values of `model_type` in the configs that the family serves; empty for the fallback."""

    @classmethod
    @abstractmethod
    def describe(cls, experiment: Experiment, config: Any) -> Description:
        """Describe the store of a checkpoint, from its config alone where that is possible."""

    @classmethod
    @abstractmethod
    def open(cls, experiment: Experiment, config: Any, device: torch.device) -> Encoder:
        """Load the vision half onto a device."""


def checkpoint_config(model: ModelSection) -> Any:
    """Read the checkpoint's transformers config; CheckpointMissing (exit 5) names what to download."""
    return load_config(model.checkpoint, model.revision, model.trust_remote_code)
