# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are typed in part)
"""What `stage2_prune parity` asks of `stage1_extract reference`, and gets back: files in one folder.

batch.json                 `Order`: which model, which images, how long an answer may be
batch.safetensors          <batch>.input_ids, <batch>.attention_mask, <batch>.position_ids
reference.json             `Environment`: what the full model ran on
reference-<batch>.safetensors   image_features, raw (where the model lets it be seen), logits, tokens
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


class Asked(BaseModel):
    """One batch of questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[str, ...]
    """Distinct images of the batch, by name under the image root."""
    sha256: tuple[str, ...]
    """Their ids in the store."""
    of_question: tuple[int, ...]
    """Which of the images each question is about."""


class Order(BaseModel):
    """Everything that the full model is told, but the prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    revision: str | None
    dtype: Dtype
    device: str
    trust_remote_code: bool = False
    image_root: Path
    """Absolute."""
    image_format: ImageFormat = "auto"
    image_column: str | None = None
    follow_links: bool = False
    by_content: bool
    """Whether ids are those of the files' bytes, so that a changed file is noticed."""
    max_pixels: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    batches: tuple[Asked, ...]


@dataclass(frozen=True)
class Prompts:
    """The token ids of one batch: one image placeholder per patch, padded on the left."""

    input_ids: Int[Tensor, "question token"]
    attention_mask: Int[Tensor, "question token"]
    position_ids: Int[Tensor, "question token"]


@dataclass(frozen=True)
class Reference:
    """What the full model made of one batch."""

    image_features: Float[Tensor, "image patch embed"]
    """From stock `get_image_features`, one image at a time."""
    raw: Float[Tensor, "image patch hidden"] | None
    """What its projector was given; None where the model has no part of that name."""
    logits: Float[Tensor, "question step vocab"]
    tokens: Int[Tensor, "question step"]


def write_order(folder: Path, order: Order, prompts: Sequence[Prompts]) -> None:
    """Write the question side of the folder."""
    tensors = {f"{n}.{name}": tensor for n, one in enumerate(prompts) for name, tensor in vars(one).items()}
    save_file(tensors, folder / PROMPTS)
    (folder / ORDER).write_text(order.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_order(folder: Path) -> tuple[Order, list[Prompts]]:
    """Read the question side; DataMissing (exit 5) where the folder holds none."""
    if not (folder / ORDER).is_file():
        raise DataMissing(f"expected {ORDER} in {folder}, there is none: `stage2_prune parity` writes such folders")
    order = Order.model_validate_json((folder / ORDER).read_text(encoding="utf-8"))
    tensors = load_file(folder / PROMPTS)
    fields = ("input_ids", "attention_mask", "position_ids")
    prompts = [Prompts(*(tensors[f"{number}.{name}"] for name in fields)) for number in range(len(order.batches))]
    return order, prompts


def write_reference(folder: Path, number: int, reference: Reference) -> None:
    """Write the answer to one batch."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in vars(reference).items() if tensor is not None}
    save_file(tensors, _answer(folder, number))


def read_reference(folder: Path, number: int, device: str | torch.device = "cpu") -> Reference:
    """Read the answer to one batch."""
    tensors: Mapping[str, Any] = load_file(_answer(folder, number), device=str(device))
    return Reference(tensors["image_features"], tensors.get("raw"), tensors["logits"], tensors["tokens"])


def _answer(folder: Path, number: int) -> Path:
    return folder / f"reference-{number}.safetensors"
