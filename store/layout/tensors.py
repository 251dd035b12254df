# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are typed in part)
"""Convert between the store's arrays and torch's tensors without changing a bit: float32, float16 and bfloat16."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import ConfigError
from store.layout.schema import Dtype, StoredDtype

_TORCH: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def torch_dtype(name: StoredDtype) -> torch.dtype:
    """Return the torch dtype of a store dtype's name."""
    return torch.int32 if name == "int32" else _TORCH[name]


def dtype_name(dtype: torch.dtype) -> Dtype:
    """Return the store's name of a torch dtype. Raises ValueError for a dtype that a store cannot hold."""
    for name, candidate in _TORCH.items():
        if candidate == dtype:
            return name
    raise ValueError(f"a store holds {', '.join(_TORCH)}, this tensor is {dtype}: compute in one of them")


def from_storage(array: NDArray[Any], dtype: StoredDtype) -> Shaped[Tensor, "..."]:
    """Make a tensor of the same bits as `array`. It shares the array's memory if that is writable, and is a copy otherwise."""
    if not (array.flags.writeable and array.flags.c_contiguous):
        array = np.array(array, order="C")
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_storage(tensor: Shaped[Tensor, "..."]) -> NDArray[Any]:
    """Return the bits of `tensor` as the store keeps them: bfloat16 becomes uint16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def pick_device(name: str) -> torch.device:
    """Choose the torch device of `model.device`, and set torch up to give the same bits on every run.

    `auto` takes a GPU if there is one. Raises ConfigError (exit 2) for a device that torch does not know or the machine lacks.
    """
    # On an H100, cuDNN's attention of one query to a cache gave other bits from call to call (29 of 50 with 603 keys
    # and a mask, torch 2.11, bfloat16; use_deterministic_algorithms does not stop it); the other kernels gave equal bits.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.device: expected a device that is here, such as cpu or auto, got {name!r} ({reason})"
        ) from None
    return device


def worker_devices(name: str) -> list[str]:
    """List the devices that workers are spread over: every GPU if `model.device` is `auto` or `cuda`, else that device."""
    count = torch.cuda.device_count()
    return [f"cuda:{number}" for number in range(count)] if name in ("auto", "cuda") and count else [name]
