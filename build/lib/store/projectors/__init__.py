"""Projectors, one file per kind, and `project_image`, the one function that computes every projected feature."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from configs import plugin

if TYPE_CHECKING:
    from store.reading.reader import ProjectorState


class Projector(nn.Module):
    """Base class of all kinds of projectors: maps the tower's features to the language model's embeddings.

    A projector is built from a config that JSON can hold, and from weights under their canonical names.
    """

    prefix: ClassVar[str]
    """What precedes the names of the projector's tensors in a checkpoint."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        super().__init__()

    @classmethod
    def config_of(cls, checkpoint_config: Any) -> dict[str, Any]:
        """Read the config that `__init__` takes from a checkpoint's transformers config."""
        raise NotImplementedError


def build(state: "ProjectorState", device: str | torch.device = "cpu") -> Projector:
    """Build the projector whose kind, config and weights a store holds."""
    from store.layout.tensors import from_storage

    kind = plugin.find(sys.modules[__name__], state.kind, Projector)
    weights = {name: from_storage(array, state.dtypes[name]) for name, array in state.weights.items()}
    return kind(state.config, weights).to(device).eval()


@torch.no_grad()
def project_image(projector: nn.Module, raw: Float[Tensor, "1 patch hidden"]) -> Float[Tensor, "1 patch embed"]:
    """Project all patches of ONE image.

    Both stages call this function, always with this shape and memory layout: a matrix product of the same shape runs the same
    kernel, so what stage 2 projects again equals what stage 1 stored, bit for bit. A batch is a loop over its images, which
    costs nothing, because hundreds of patches saturate the product. Pruners select patches after this, never before.
    """
    if not raw.is_contiguous():
        raise ValueError(
            "project_image expects a contiguous image so that both stages run one kernel: call .contiguous()"
        )
    return projector(raw)
