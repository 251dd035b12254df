"""What made the features: the parts of each array's fingerprint."""

import platform
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers

from configs.experiment import Experiment
from stage1_extract.attention import ATTENTION
from stage1_extract.family import Encoder
from store.fingerprint import Fingerprint
from store.schema import PATCH_ORDER


def fingerprints(
    experiment: Experiment, config: Any, encoder: Encoder, numeric: dict[str, Any]
) -> dict[str, Fingerprint]:
    """One per array; `projected` names the projector's weights too."""
    semantic = _semantic(experiment, config, encoder)
    found: dict[str, Fingerprint] = {}
    for spec in encoder.description.arrays:
        parts = (
            dict(encoder.weights)
            if spec.name == "projected"
            else {k: v for k, v in encoder.weights.items() if k != "projector"}
        )
        weights = {f"{part}_sha256": digest for part, digest in parts.items()}
        found[spec.name] = Fingerprint(semantic=semantic | weights, numeric=numeric)
    return found


def _semantic(experiment: Experiment, config: Any, encoder: Encoder) -> dict[str, Any]:
    model = experiment.model
    features = {
        name: getattr(config, name)
        for name in ("vision_feature_layer", "vision_feature_select_strategy")
        if hasattr(config, name)
    }
    return {
        "checkpoint": model.checkpoint if not Path(model.checkpoint).is_dir() else str(Path(model.checkpoint)),
        "revision": model.revision,
        "model_type": config.model_type,
        **features,
        "dtype": model.dtype,
        "image_processor": dict(encoder.processor),
        "patch_order": PATCH_ORDER,
        "geometry": encoder.description.geometry.model_dump(mode="json"),
        **({"trust_remote_code": True} if model.trust_remote_code else {}),
    }


def environment(device: torch.device, tower_batch: int, batch_invariant: bool) -> dict[str, Any]:
    """What decides whether another process can make the same bits."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "device": _device_name(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "fp16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "attention": ATTENTION,
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "tower_batch": tower_batch,
        "batch_invariant": batch_invariant,
    }


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}, CUDA {torch.version.cuda})"
