# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are typed in part)
"""The projector of LLaVA-1.5: linear, activation, linear.

Source: haotian-liu/LLaVA, `mlp2x_gelu`; the tensors are named as in transformers' `multi_modal_projector.*`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.activations import ACT2FN

from store.errors import DamagedCheckpoint
from store.projectors import Projector

_SHOWN = 6
"""Most names of weights in a message."""


class LlavaMlp(Projector):
    """Two linear layers with an activation between them; the weights determine the widths."""

    prefix = "multi_modal_projector."

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        super().__init__(config, weights)
        _require_known(weights)
        self.linear_1 = _linear(weights, "linear_1")
        self.activation = ACT2FN[config["activation"]]
        self.linear_2 = _linear(weights, "linear_2")
        self.requires_grad_(False)

    @classmethod
    def config_of(cls, checkpoint_config: Any) -> dict[str, Any]:
        """Read the activation's name, as transformers knows it."""
        return {"activation": checkpoint_config.projector_hidden_act}

    def forward(self, raw: Float[Tensor, "image patch hidden"]) -> Float[Tensor, "image patch embed"]:
        """Project every patch."""
        return self.linear_2(self.activation(self.linear_1(raw)))


def _require_known(weights: Mapping[str, Tensor]) -> None:
    """Raise DamagedCheckpoint (exit 4) for anything but two matrices that fit together, with or without their biases."""
    matrices = {"linear_1.weight", "linear_2.weight"}
    if not matrices <= set(weights) <= matrices | {"linear_1.bias", "linear_2.bias"}:
        listed = ", ".join(sorted(weights)[:_SHOWN]) or "none"
        raise DamagedCheckpoint(
            f"expected the projector weights {sorted(matrices)} and their biases, found {listed}: this is another kind of "
            "projector, add a file for it to store/projectors"
        )
    width = None
    for name in ("linear_1", "linear_2"):
        shape = tuple(weights[f"{name}.weight"].shape)
        if len(shape) != 2 or shape[1] != (width or shape[1]):
            raise _misfit(f"{name}.weight", shape, f"two axes, the second {width or 'as wide as the features'}")
        width = shape[0]
        bias = tuple(weights[f"{name}.bias"].shape) if f"{name}.bias" in weights else (width,)
        if bias != (width,):
            raise _misfit(f"{name}.bias", bias, f"{width} values")


def _misfit(name: str, shape: tuple[int, ...], expected: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"expected {expected} in the projector's {name}, it has the shape {shape}: download the checkpoint again"
    )


def _linear(weights: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), strict=True, assign=True)
    return layer
