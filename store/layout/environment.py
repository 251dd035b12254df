"""The settings of torch and of the machine that decide the bits of a result: torch's share of a fingerprint's numeric part."""

import logging
import platform
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_log = logging.getLogger(__name__)


def torch_environment(device: torch.device) -> dict[str, Any]:
    """Record the versions, the device and the precision flags of this process."""
    return {
        "torch": torch.__version__,
        "device": _device_name(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        **({"cpu_threads": torch.get_num_threads()} if device.type == "cpu" else {}),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "fp16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
    }


def use_threads(numeric: Mapping[str, Any]) -> None:
    """Set the number of CPU threads to that in the numeric part of a fingerprint, because another number may change bits."""
    now, recorded = torch.get_num_threads(), numeric.get("cpu_threads")
    if recorded not in (None, now):
        _log.warning(
            "note: computing with %d CPU threads instead of %d, as the store was made: their number may change bits",
            recorded,
            now,
        )
        torch.set_num_threads(recorded)


@contextmanager
def threads_of(numeric: Mapping[str, Any]) -> Generator[None, None, None]:
    """Compute with the number of CPU threads in the numeric part of a fingerprint until the block ends."""
    now = torch.get_num_threads()
    torch.set_num_threads(numeric.get("cpu_threads", now))
    try:
        yield
    finally:
        torch.set_num_threads(now)


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}, CUDA {torch.version.cuda})"
