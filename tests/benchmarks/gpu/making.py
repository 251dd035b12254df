"""What is measured on, made in seconds: a checkpoint of random weights, photographs, and questions about them."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

from store.checkpoint.weights import INDEX
from tests.benchmarks.gpu.scale import Scale
from tests.helpers.checkpoints import WORDS, save_processor

QUESTION_WORDS = 54
"""Words of a question: with the template around them, a prompt has about 60 text tokens."""
SHARED_QUESTIONS = 30
"""Questions about one image in the split `val`, as in GQA."""
SHARED_IMAGES = 4
TRAINED_IMAGES, TRAINED_QUESTIONS = 20, 2
"""Images of the split `train`, and questions about each."""
_ON_DISK = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def make_checkpoint(folder: Path, scale: Scale) -> None:
    """Write a LLaVA with random weights, in the layout in which transformers saves it; it is whole once the folder is there."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    config = LlavaConfig(
        vision_config=scale.vision, text_config=scale.text, image_token_id=WORDS.index("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default", projector_hidden_act="gelu",
        image_seq_length=scale.patches, tie_word_embeddings=False,
    )  # fmt: skip
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = scale.torch_dtype
    config.save_pretrained(partial)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(partial)
    save_processor(partial, scale.vision.image_size, scale.vision.patch_size)
    with torch.device("meta"):
        shapes = LlavaForConditionalGeneration(config).state_dict()
    _write_weights(partial, shapes, scale)
    partial.rename(folder)


def _write_weights(folder: Path, shapes: dict[str, Tensor], scale: Scale) -> None:
    """Write the weights of a model that has only shapes so far, a few files at a time."""
    torch.manual_seed(0)
    groups = list(_grouped(shapes, scale.file_numbers))
    files: dict[str, str] = {}
    with ThreadPoolExecutor(3) as pool:
        writing = []
        for number, names in enumerate(groups, start=1):
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            made = {_on_disk(name): _random(name, shapes[name], scale).cpu() for name in names}
            files |= dict.fromkeys(made, file)
            writing.append(pool.submit(save_file, made, folder / file, {"format": "pt"}))
        for done in writing:
            done.result()
    total = sum(shape.numel() for shape in shapes.values()) * torch.finfo(scale.torch_dtype).bits // 8
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}))


def _grouped(shapes: dict[str, Tensor], most: int) -> Iterator[list[str]]:
    """Group the names of tensors by file, with at most so many numbers in a file of several tensors."""
    names: list[str] = []
    numbers = 0
    for name, shape in shapes.items():
        if names and numbers + shape.numel() > most:
            yield names
            names, numbers = [], 0
        names.append(name)
        numbers += shape.numel()
    yield names


def _random(name: str, shape: Tensor, scale: Scale) -> Tensor:
    """Draw a tensor on the device: norms start at one and biases at zero, as in a model that was never trained."""
    drawn = torch.empty(shape.shape, dtype=scale.torch_dtype, device=scale.device)
    if name.endswith(".bias"):
        return drawn.zero_()
    if shape.dim() == 1 and "class_embedding" not in name:
        return drawn.fill_(1)
    fan_in = math.prod(shape.shape[1:]) or 1
    return drawn.normal_(0, min(0.02, fan_in**-0.5) if scale.device.type == "cuda" else fan_in**-0.5)


def _on_disk(name: str) -> str:
    for inside, outside in _ON_DISK:
        if name.startswith(inside):
            return outside + name.removeprefix(inside)
    raise ValueError(f"expected a tensor of a LLaVA, got {name}: add its prefix to _ON_DISK")


def make_photos(folder: Path, count: int) -> None:
    """Write JPEGs of 640 x 480 with smooth shapes, texture and noise: about as hard to decode as a photograph."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: _photo(partial / photo(number), number), range(count)))
    partial.rename(folder)


def photo(number: int) -> str:
    """Name of a photograph."""
    return f"{number:05d}.jpg"


def _photo(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = np.zeros((480, 640, 3), np.float32)
    for width, share in ((4, 0.5), (16, 0.25), (64, 0.15), (256, 0.1)):
        coarse = rng.integers(0, 256, (3 * width // 4, width, 3), dtype=np.uint8)
        picture += share * np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC))
    stretched = np.clip((picture - 128) * 1.8 + 128, 0, 255).astype(np.uint8)
    Image.fromarray(stretched).save(path, quality=90)


def make_questions(path: Path, scale: Scale) -> None:
    """Write the questions: `test` about half as many images, `val` with many about each image, `train` with two each."""
    rng = np.random.default_rng(0)
    words = WORDS[WORDS.index("what") :]
    images = {
        "test": [number // 2 for number in range(scale.asked)],
        "val": [number // SHARED_QUESTIONS for number in range(SHARED_IMAGES * SHARED_QUESTIONS)],
        "train": [number // TRAINED_QUESTIONS for number in range(TRAINED_IMAGES * TRAINED_QUESTIONS)],
    }
    lines = [
        {
            "question_id": f"{split}{number}", "image": photo(image), "split": split, "answers": ["red"],
            "question": " ".join(rng.choice(words, QUESTION_WORDS - 1)) + " ?",
        }
        for split, numbers in images.items()
        for number, image in enumerate(numbers)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
