# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are typed in part)
"""The files in which `stage2_prune parity` asks for the full model's answers, and `stage1_extract reference` gives them.

All files lie in one folder:

    batch.json                      a `ReferenceRequest`: which model, which images, how long an answer may be
    batch.safetensors               <batch>.input_ids, <batch>.attention_mask, <batch>.position_ids
    reference.json                  the versions and the device that the full model ran on
    reference-<batch>.safetensors   image_features, raw (where the model has a part of that name), logits, tokens
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.experiment import Dtype, ImageFormat
from store.errors import DataMissing

ORDER = "batch.json"
PROMPTS = "batch.safetensors"
ENVIRONMENT = "reference.json"


class BatchImages(BaseModel):
    """The images of one batch of questions; the prompts of the batch are in batch.safetensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[str, ...]
    """The names of the batch's distinct images, relative to the image root."""
    sha256: tuple[str, ...]
    """The ids of these images in the store."""
    of_question: tuple[int, ...]
    """For each question, the index in `images` of its image."""


class ReferenceRequest(BaseModel):
    """Everything that the full model needs to answer, except the prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    revision: str | None
    dtype: Dtype
    device: str
    trust_remote_code: bool = False
    image_root: Path
    """The absolute path of the image root."""
    image_format: ImageFormat = "auto"
    image_column: str | None = None
    follow_links: bool = False
    by_content: bool
    """Whether an image's id is the sha256 of its file, so that a changed file is noticed."""
    max_pixels: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    tower_batch: int = 1
    """Images per call of the vision tower, as the store's features were made."""
    projector_batch: int = 1
    """Images per call of the projector, likewise: `tower_batch`, or 1."""
    batches: tuple[BatchImages, ...]


@dataclass(frozen=True)
class Prompts:
    """The token ids of one batch: with one image placeholder per patch, padded on the left."""

    input_ids: Int[Tensor, "question token"]
    attention_mask: Int[Tensor, "question token"]
    position_ids: Int[Tensor, "question token"]


@dataclass(frozen=True)
class Reference:
    """The results of the full model on one batch."""

    image_features: Float[Tensor, "image patch embed"]
    """The result of stock `get_image_features`, called with as many images as the store's features were made with."""
    raw: Float[Tensor, "image patch hidden"] | None
    """The input of the model's projector; None where the model has no part of that name."""
    logits: Float[Tensor, "question step vocab"]
    tokens: Int[Tensor, "question step"]


def write_order(folder: Path, order: ReferenceRequest, prompts: Sequence[Prompts]) -> None:
    """Write what the full model is asked: the order, and the prompts of each batch."""
    tensors = {
        f"{number}.{name}": tensor for number, batch in enumerate(prompts) for name, tensor in vars(batch).items()
    }
    save_file(tensors, folder / PROMPTS)
    (folder / ORDER).write_text(order.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_order(folder: Path) -> tuple[ReferenceRequest, list[Prompts]]:
    """Read what the full model is asked; DataMissing (exit 5) where the folder holds no order."""
    if not (folder / ORDER).is_file():
        raise DataMissing(f"expected {ORDER} in {folder}, there is none: `stage2_prune parity` writes such folders")
    order = ReferenceRequest.model_validate_json((folder / ORDER).read_text(encoding="utf-8"))
    tensors = load_file(folder / PROMPTS)
    fields = ("input_ids", "attention_mask", "position_ids")
    prompts = [Prompts(*(tensors[f"{number}.{name}"] for name in fields)) for number in range(len(order.batches))]
    return order, prompts


def write_reference(folder: Path, number: int, reference: Reference) -> None:
    """Write the results of the full model on one batch."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in vars(reference).items() if tensor is not None}
    save_file(tensors, _answer(folder, number))


def read_reference(folder: Path, number: int, device: str | torch.device = "cpu") -> Reference:
    """Read the results of the full model on one batch; the tensors are put on `device`."""
    tensors: Mapping[str, Any] = load_file(_answer(folder, number), device=str(device))
    return Reference(tensors["image_features"], tensors.get("raw"), tensors["logits"], tensors["tokens"])


def _answer(folder: Path, number: int) -> Path:
    return folder / f"reference-{number}.safetensors"
