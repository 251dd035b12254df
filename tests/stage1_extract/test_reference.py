"""The full model's answers to a batch are those of stock transformers on pixel values."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from stage1_extract.checking import reference
from stage1_extract.errors import BadImage, ChangedImage, GoneImage, WrongWeights
from stage1_extract.sources.images import content_id
from store.errors import StoreError
from store.questions.exchange import ENVIRONMENT, BatchImages, Prompts, ReferenceRequest, read_reference, write_order
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images

QUESTIONS = ("what color is it ?", "is it red ?", "what is it ?")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    tiny_llava(folder / "checkpoint")
    tiny_images(folder / "images", 2)
    return folder


@pytest.fixture(scope="module")
def stock(home):
    """Model, processor inputs and prompts of three questions about two images."""
    model = LlavaForConditionalGeneration.from_pretrained(home / "checkpoint").eval()
    processor = AutoProcessor.from_pretrained(home / "checkpoint", backend="pil")
    images = [Image.open(home / "images" / name).convert("RGB") for name in ("image_000.png", "image_001.png")]
    text = [f"USER: <image>\n{question} ASSISTANT:" for question in QUESTIONS]
    inputs = processor(images=[images[0], images[1], images[0]], text=text, return_tensors="pt", padding=True)
    return model, inputs


def order(home: Path, inputs, folder: Path, **changes) -> Path:
    names = ("image_000.png", "image_001.png")
    shas = tuple(content_id((home / "images" / name).read_bytes()) for name in names)
    fields = {
        "checkpoint": str(home / "checkpoint"), "revision": None, "dtype": "float32", "device": "cpu",
        "image_root": home / "images", "by_content": True, "max_pixels": 10**6, "max_new_tokens": 4,
        "eos_token_ids": (2,), "pad_token_id": 0,
        "batches": (BatchImages(images=names, sha256=shas, of_question=(0, 1, 0)),),
    }  # fmt: skip
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    folder.mkdir(exist_ok=True)
    write_order(
        folder, ReferenceRequest.model_validate(fields | changes), [Prompts(inputs["input_ids"], mask, positions)]
    )
    return folder


def test_features_logits_and_tokens_are_those_of_stock_generate_on_pixel_values(home, stock, tmp_path):
    model, inputs = stock
    reference.run(order(home, inputs, tmp_path / "batch"))
    found = read_reference(tmp_path / "batch", 0)
    with torch.no_grad():
        pixels = inputs["pixel_values"]
        features = [model.get_image_features(pixels[i : i + 1], return_dict=True).pooler_output[0] for i in (0, 1)]
        states = model.model.vision_tower(pixels[:1], output_hidden_states=True).hidden_states
        said = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, eos_token_id=2, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    assert torch.equal(found.image_features, torch.stack(features))
    assert torch.equal(found.raw[0], states[-2][0, 1:])
    assert torch.equal(found.tokens, said.sequences[:, inputs["input_ids"].shape[1] :])
    torch.testing.assert_close(found.logits, torch.stack(said.logits, 1), rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "batch" / ENVIRONMENT).read_text())["device"] == "cpu"


def test_an_image_that_is_not_the_stored_one_is_refused(home, stock, tmp_path):
    asked = BatchImages(images=("image_000.png", "image_001.png"), sha256=("0" * 64, "0" * 64), of_question=(0, 1, 0))
    with pytest.raises(ChangedImage, match="image_000") as caught:
        reference.run(order(home, stock[1], tmp_path / "batch", batches=(asked,)))
    assert caught.value.exit_code == 4


def test_an_image_outside_its_root_is_never_opened(home, stock, tmp_path):
    asked = BatchImages(images=("../checkpoint/config.json",) * 2, sha256=("0" * 64, "0" * 64), of_question=(0, 1, 0))
    with pytest.raises(BadImage, match="outside_image_root"):
        reference.run(order(home, stock[1], tmp_path / "batch", batches=(asked,)))


def test_a_batch_with_other_slots_than_the_model_makes_features_is_refused_with_both_numbers(home, stock, tmp_path):
    wider = {name: torch.cat([tensor[:, :1], tensor], 1) for name, tensor in stock[1].items() if name != "pixel_values"}
    wider["input_ids"][:, 0] = 4  # one more image placeholder
    with pytest.raises(
        WrongWeights, match=r"expected 17 features of an image, as the store has, the full model makes 16"
    ):
        reference.run(order(home, wider, tmp_path / "batch"))


def test_a_checkpoint_without_its_tower_cannot_be_the_baseline(home, stock, tmp_path):
    from safetensors.torch import load_file, save_file

    bare = tiny_llava(tmp_path / "checkpoint")
    weights = load_file(bare / "model.safetensors")
    language = {name: tensor for name, tensor in weights.items() if "vision_tower" not in name}
    save_file(language, bare / "model.safetensors", {"format": "pt"})
    with pytest.raises(WrongWeights, match="vision tower included"):
        reference.run(order(home, stock[1], tmp_path / "batch", checkpoint=str(bare)))


def test_a_folder_without_a_batch_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"batch\.json"):
        reference.run(tmp_path)


def test_an_image_that_is_gone_is_named_with_its_folder_and_ends_with_exit_code_5(home, stock, tmp_path):
    asked = BatchImages(images=("image_000.png", "gone.png"), sha256=("0" * 64, "0" * 64), of_question=(0, 1, 0))
    folder = order(home, stock[1], tmp_path / "batch", batches=(asked,), by_content=False)
    with pytest.raises(GoneImage) as caught:
        reference.run(folder)
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        f"expected the image gone.png below {home / 'images'} to encode it again, but there is no such file (missing_file): "
        "bring it back, or name the images that the store was made from with --data.images"
    )
