"""Projectors, one file per kind, and the one function that every projected feature of this project comes from."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from configs import plugin

if TYPE_CHECKING:
    from store.reading.projector_state import ProjectorState


class Projector(nn.Module):
    """Base of all kinds: built from a JSON-able config and weights under their canonical names."""

    prefix: ClassVar[str]
    """What precedes its tensors' names in a checkpoint."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        super().__init__()

    @classmethod
    def config_of(cls, checkpoint_config: Any) -> dict[str, Any]:
        """What `__init__` needs beside the weights, read from a checkpoint's transformers config."""
        raise NotImplementedError


def build(state: "ProjectorState", device: str | torch.device = "cpu") -> Projector:
    """The projector whose kind, config and weights a store carries."""
    from store.layout.tensors import from_storage

    kind = plugin.find(sys.modules[__name__], state.kind, Projector)
    weights = {name: from_storage(array, state.dtypes[name]) for name, array in state.weights.items()}
    return kind(state.config, weights).to(device).eval()


@torch.no_grad()
def project_image(projector: nn.Module, raw: Float[Tensor, "1 patch hidden"]) -> Float[Tensor, "1 patch embed"]:
    """Project all patches of ONE image.

    Always called on this one shape and layout, by both stages: a GEMM of the same shape picks the same kernel, so what
    stage 2 re-projects equals what stage 1 stored, bit for bit. Batches are a loop over images (hundreds of patches
    saturate the GEMM, the loop costs nothing); a pruner selects afterwards, never before.
    """
    if not raw.is_contiguous():
        raise ValueError(
            "project_image expects a contiguous image so that both stages run one kernel: call .contiguous()"
        )
    return projector(raw)
