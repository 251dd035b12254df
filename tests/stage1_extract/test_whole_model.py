"""Models whose parts cannot be reached go through their own get_image_features; LLaVA never does."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    PixtralVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from configs.experiment import Experiment
from stage1_extract.dry_run import dry_run
from stage1_extract.encoding.family import checkpoint_config
from stage1_extract.errors import UnsupportedModel
from stage1_extract.extract import extract
from stage1_extract.families.llava import Llava, LlavaEncoder
from stage1_extract.families.whole_model import NOTE, WholeModel
from stage1_extract.find_family import find_family
from store.care.compare import differences_between
from store.errors import StoreMissing
from store.layout.tensors import from_storage, torch_dtype
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images

IMAGES = 3
EDGE = 64
TOKENS = 4
"""16 patches, shuffled 2 x 2 into one token each."""
KINDS = {
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": EDGE,
    "patch_size": 16,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_checkpoint(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    make_config, make_model, make_processor = KINDS[kind]
    model = make_model(
        make_config(
            vision_config=dict(VISION), text_config=dict(TEXT), scale_factor=2, image_token_id=4, pad_token_id=0
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and ("vision" in name or "connector" in name):
                parameter.mul_(4)
    model.save_pretrained(folder)
    edge = {"longest_edge": EDGE}
    make_processor(size={"longest_edge": 2 * EDGE}, max_image_size=edge).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp(request.param) / "checkpoint", request.param)


def experiment(folder: Path, checkpoint: Path, **changes) -> Experiment:
    tiny_images(folder / "images", IMAGES, size=100)
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {"checkpoint": str(checkpoint), "device": "cpu", "dtype": changes.pop("dtype", "float32")},
            "data": {"images": str(folder / "images")},
            "store": {"shard_images": 2},
            "extract": {"tower_batch": 1, "without_stage2": True} | changes,
        }
    )


def require_stock_features(wanted: Experiment, store: FeatureStore, exact: bool = True) -> None:
    """`projected` is what the stock model says of each image alone, in one crop."""
    source = wanted.model.checkpoint
    dtype = torch_dtype(wanted.model.dtype)
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, attn_implementation="sdpa").eval()
    processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    found = []
    for row in range(IMAGES):
        with Image.open(wanted.data.images / store.ids.names(row)[0]) as image:
            given = processor(images=[image.convert("RGB")], return_tensors="pt", do_image_splitting=False)
        with torch.no_grad():
            expected = model.get_image_features(
                pixel_values=given["pixel_values"], pixel_attention_mask=given["pixel_attention_mask"]
            ).pooler_output[0]
        stored = from_storage(store.gather("projected", [row])[0], store.arrays["projected"].dtype)
        assert torch.equal(stored, expected) if exact else torch.allclose(stored, expected, rtol=1e-4, atol=1e-4)
        found.append(stored)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_whose_parts_cannot_be_reached_is_stored_by_its_own_code(tmp_path, checkpoint, dtype):
    wanted = experiment(tmp_path, checkpoint, dtype=dtype)
    assert find_family(checkpoint_config(wanted.model)) is WholeModel
    done = extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    assert set(store.arrays) == {"projected"} and store.arrays["projected"].shape == (TOKENS, TEXT["hidden_size"])
    assert done["tower_images"] == IMAGES and done["notes"] == [NOTE] and store.plan.notes == (NOTE,)
    require_stock_features(wanted, store)


def test_such_a_store_says_that_it_has_no_projector_and_no_raw_features(tmp_path, checkpoint):
    wanted = experiment(tmp_path, checkpoint)
    extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    assert store.projector is None
    with pytest.raises(StoreMissing, match="raw, cls_attention"):
        store.require(["projected", "raw", "cls_attention"])
    assert "no re-projection" in store.plan.notes[0]
    assert store.plan.geometry.tokens == TOKENS and store.plan.geometry.has_cls is False


def test_images_are_never_cut_into_crops_and_the_fingerprint_says_so(tmp_path, checkpoint):
    wanted = experiment(tmp_path, checkpoint)
    extract(wanted, overwrite=False)
    processor = FeatureStore.open(wanted.store_path).fingerprint("projected").semantic["image_processor"]
    assert processor["backend"] == "pil" and processor["config"]["do_image_splitting"] is False


def test_a_dry_run_of_such_a_model_knows_the_bytes_and_writes_nothing(tmp_path, checkpoint):
    wanted = experiment(tmp_path, checkpoint)
    found = dry_run(wanted)
    assert not wanted.run_dir.exists() and found["notes"] == [NOTE]
    extract(wanted, overwrite=False)
    commits = FeatureStore.open(wanted.store_path).logs[0].values()
    assert found["bytes_total"] == sum(file.bytes for commit in commits for file in commit.files.values())


def test_such_a_model_sees_full_batches_and_a_second_run_encodes_nothing(tmp_path, checkpoint):
    wanted = experiment(tmp_path, checkpoint, tower_batch=2)
    extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    require_stock_features(wanted, store, exact=store.fingerprint("projected").numeric["tower_batch"] == 1)
    assert extract(wanted, overwrite=False)["tower_images"] == 0


def test_a_number_of_tokens_that_differs_between_images_is_refused(tmp_path, checkpoint):
    wanted = experiment(tmp_path, checkpoint)
    encoder = WholeModel.open(wanted, checkpoint_config(wanted.model), torch.device("cpu"))
    uneven = SimpleNamespace(pooler_output=[torch.zeros(4, 8), torch.zeros(5, 8)])
    encoder._model = SimpleNamespace(get_image_features=lambda **given: uneven)
    with pytest.raises(UnsupportedModel, match=r"2 images with \[4, 5\] tokens"):
        encoder.encode([{"pixel_values": torch.zeros(1, 3, 8, 8)}] * 2)


@pytest.mark.parametrize("vision", ["clip", "dinov2", "siglip"])
def test_a_llava_does_not_fall_back(tmp_path, vision):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision=vision, strategy="full")
    wanted = experiment(tmp_path, checkpoint)
    config = checkpoint_config(wanted.model)
    assert find_family(config) is Llava
    encoder = find_family(config).open(wanted, config, torch.device("cpu"))
    assert type(encoder) is LlavaEncoder and encoder.projector is not None
    assert set(encoder.weights) == {"tower", "projector"}


def test_a_llava_whose_parts_could_not_be_reached_would_give_the_same_projected_features(tmp_path, monkeypatch):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    parts, whole = experiment(tmp_path / "parts", checkpoint), experiment(tmp_path / "whole", checkpoint)
    extract(parts, overwrite=False)
    monkeypatch.setattr("stage1_extract.find_family.parts_can_be_reached", lambda config: False)
    assert find_family(checkpoint_config(whole.model)) is WholeModel
    extract(whole, overwrite=False)
    stores = [FeatureStore.open(wanted.store_path) for wanted in (parts, whole)]
    assert set(stores[1].arrays) == {"projected"}
    assert np.array_equal(*(store.gather("projected", range(IMAGES)) for store in stores))
    assert differences_between(parts.store_path, whole.store_path) != []


def test_a_llava_with_a_tower_that_no_file_serves_is_refused_by_naming_the_file_to_add(tmp_path):
    vision = PixtralVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    text = LlamaConfig(**{name: value for name, value in TEXT.items() if name != "model_type"})
    LlavaConfig(vision_config=vision, text_config=text, image_token_id=4).save_pretrained(tmp_path / "checkpoint")
    wanted = experiment(tmp_path, tmp_path / "checkpoint")
    for command in (lambda: extract(wanted, overwrite=False), lambda: dry_run(wanted)):
        with pytest.raises(UnsupportedModel, match=r"'pixtral'.*stage1_extract/towers/pixtral\.py"):
            command()
    assert not wanted.run_dir.exists()


def test_no_two_towers_serve_the_same_type_of_vision_config():
    from configs import plugin
    from stage1_extract import towers
    from stage1_extract.encoding.tower import Tower
    from stage1_extract.find_tower import kind_of_tower

    served = [name for kind in plugin.find_all(towers, Tower).values() for name in kind.model_types]
    assert len(served) == len(set(served))
    assert kind_of_tower(CLIPVisionConfig()).model_types == {"clip_vision_model"}
