"""Answer batches with the full model; besides features, these answers are the only output of this stage.

Everything is stock: the model's own `get_image_features` and its own `generate`. `stage2_prune parity` compares the results
with those that stage 2 makes of the store.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from configs.progress import ProgressBar
from stage1_extract.encoding.attention import ATTENTION
from stage1_extract.encoding.family import Pixels
from stage1_extract.encoding.fingerprint import environment
from stage1_extract.encoding.processor import ImageProcessor
from stage1_extract.errors import BadImage, ChangedImage, WrongWeights
from stage1_extract.sources.detect import open_images
from stage1_extract.sources.images import content_id, decode_image, gone
from store.checkpoint.generation import GREEDY
from store.checkpoint.opening import load_config, quiet_loading, stock_reading
from store.checkpoint.weights import weight_files
from store.layout.tensors import pick_device, torch_dtype
from store.layout.tower_call import TowerCall
from store.questions.exchange import (
    ENVIRONMENT,
    BatchImages,
    Prompts,
    Reference,
    ReferenceRequest,
    read_order,
    write_reference,
)


class FullModel:
    """A stock model with its vision tower, and the image processor of its checkpoint."""

    def __init__(self, order: ReferenceRequest) -> None:
        """Load what an order of `stage2_prune parity` names; WrongWeights (exit 4) if weights are missing."""
        load_config(order.checkpoint, order.revision, order.trust_remote_code)
        weight_files(order.checkpoint, order.revision)  # both name what is missing, before transformers fails
        self.order = order
        self.device = pick_device(order.device)
        self._images = open_images(order.image_root, order.image_format, order.image_column, order.follow_links)
        with quiet_loading(), stock_reading(order.checkpoint, "a model"):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                order.checkpoint, revision=order.revision, dtype=torch_dtype(order.dtype),
                attn_implementation=ATTENTION, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True,
                trust_remote_code=order.trust_remote_code,
            )  # fmt: skip
        self.model, loading = loaded
        missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
        if missing:
            raise WrongWeights(
                f"expected every weight of the full model in {order.checkpoint}, {len(missing)} are missing or of another "
                f"shape ({', '.join(missing[:3])}): the baseline needs the whole checkpoint, its vision tower included"
            )
        self.model.eval().to(self.device)
        self._processor = ImageProcessor(order.checkpoint, order.revision, order.trust_remote_code)

    def image(self, name: str, sha256: str) -> Image.Image:
        """Return one image of the order.

        Raises ChangedImage (exit 4) if its file is not the file that the store encoded, and GoneImage (exit 5 or 4) if the
        file cannot be read.
        """
        try:
            data = self._images.read(name)
            if self.order.by_content and content_id(data) != sha256:
                raise ChangedImage(
                    f"expected {name} as it was encoded (sha256 {sha256[:12]}…), its file has changed: bring it back, or "
                    "let `extract --append` encode it as it is now"
                )
            return decode_image(data, name, self.order.max_pixels)
        except BadImage as bad:
            raise gone(bad, name, self.order.image_root) from None

    def features(
        self, images: Mapping[str, Pixels]
    ) -> list[tuple[Float[Tensor, "patch embed"], Float[Tensor, "patch hidden"] | None]]:
        """Return the stock projected features of images, by name, and the projector's input; None where there is no projector.

        The tower is called as the store's was: with `tower_batch` images, of which other images of the order fill a short call,
        because the number of images in a call may decide bits. Likewise the projector.
        """
        size, names = self.order.tower_batch, list(images)
        made: list[tuple[Tensor, Tensor | None]] = []
        for start in range(0, len(names), size):
            called = names[start : start + size]
            others = [pixels for name, pixels in self._others.items() if name not in called]
            pictures = TowerCall(size).filled([images[name] for name in called], others)
            made += self._call(pictures)[: len(called)]
        return made

    def _call(self, pictures: Sequence[Pixels]) -> list[tuple[Tensor, Tensor | None]]:
        """Call the tower once, and the projector once or for each image."""
        pixels = {name: torch.cat([picture[name] for picture in pictures]).to(self.device) for name in pictures[0]}
        projector = getattr(self.model.model, "multi_modal_projector", None)
        with _inputs_of(projector) as inputs:
            projected = list(self.model.get_image_features(**pixels, return_dict=True).pooler_output)
        if projector is None or not inputs:
            return [(torch.cat(projected), None)] if len(pictures) == 1 else [(rows, None) for rows in projected]
        raw = inputs[0]
        if len(pictures) > self.order.projector_batch:
            projected = [projector(raw[image : image + 1])[0] for image in range(len(raw))]
        return list(zip(projected, raw, strict=True))

    @cached_property
    def _others(self) -> dict[str, Pixels]:
        """The pictures that fill short calls, by name: of the first images of the order, as many as a call takes."""
        named = {
            name: sha for batch in self.order.batches for name, sha in zip(batch.images, batch.sha256, strict=True)
        }
        fillers = islice(named.items(), self.order.tower_batch if self.order.tower_batch > 1 else 0)
        return {name: self._processor(self.image(name, sha)) for name, sha in fillers}

    @torch.no_grad()
    def answer(self, asked: BatchImages, prompts: Prompts) -> Reference:
        """Answer one batch by stock generation, from features that are made as the store's were."""
        images = zip(asked.images, asked.sha256, strict=True)
        pictures = {name: self._processor(self.image(name, sha)) for name, sha in images}
        features, raw = zip(*self.features(pictures), strict=True)
        self._require_slots(prompts, features[0])
        in_slots: Any = [features[image] for image in asked.of_question]
        generated = self.model.generate(
            **{name: tensor.to(self.device) for name, tensor in vars(prompts).items()},
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=in_slots)},
            max_new_tokens=self.order.max_new_tokens,
            eos_token_id=list(self.order.eos_token_ids),
            pad_token_id=self.order.pad_token_id,
            **GREEDY,
            **self._stopping,
        )
        tokens = generated.sequences[:, prompts.input_ids.shape[1] :]
        return Reference(torch.stack(features), _stacked(raw), torch.stack(generated.logits, dim=1), tokens)

    @cached_property
    def _stopping(self) -> dict[str, Any]:
        """The tokenizer as an argument of `generate`, which needs it where the generation config ends answers at a text."""
        if not self.model.generation_config.stop_strings:
            return {}
        order = self.order
        with stock_reading(order.checkpoint, "a tokenizer"):
            return {
                "tokenizer": AutoTokenizer.from_pretrained(
                    order.checkpoint, revision=order.revision, trust_remote_code=order.trust_remote_code
                )
            }

    def _require_slots(self, prompts: Prompts, features: Float[Tensor, "patch embed"]) -> None:
        slots = int((prompts.input_ids[0] == self.model.config.image_token_id).sum())
        if slots != len(features):
            raise WrongWeights(
                f"expected {slots} features of an image, as the store has, the full model makes {len(features)}: let "
                "`python -m stage1_extract diagnose` name the cause"
            )


def run(folder: Path) -> None:
    """Answer every batch in `folder` and write the answers there; see store/questions/exchange.py for the files."""
    order, prompts = read_order(folder)
    full = FullModel(order)
    batches = ProgressBar(zip(order.batches, prompts, strict=True), "baseline", len(prompts), unit="batches")
    for number, (asked, batch_prompts) in enumerate(batches):
        write_reference(folder, number, full.answer(asked, batch_prompts))
    ran_on = environment(full.device, TowerCall(order.tower_batch, projector_images=order.projector_batch))
    (folder / ENVIRONMENT).write_text(json.dumps(ran_on, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _inputs_of(module: nn.Module | None) -> Generator[list[Tensor], None, None]:
    """Yield a list that receives the input of every call of a module inside the block."""
    inputs: list[Tensor] = []
    handle = None if module is None else module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        if handle is not None:
            handle.remove()


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Stack tensors; None if any tensor is None."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None
