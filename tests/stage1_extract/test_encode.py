"""What is stored is what stock transformers computes, bit for bit, whatever the checkpoint looks like."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

from configs.experiment import Experiment
from stage1_extract.dry_run import dry_run
from stage1_extract.errors import UnsupportedModel
from stage1_extract.extract import extract
from store.layout.tensors import from_storage, torch_dtype
from store.projectors import build, project_image
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_images

IMAGES = 3
STATES = 5
"""Hidden states of the tiny towers: 4 layers and the embeddings."""
LAYERS = {"last": -1, "second_to_last": -2, "positive": 2, "first": -STATES, "two": [-2, -3], "list_of_one": [-2]}


@dataclass
class Stock:
    """What the stock model computes of one image."""

    raw: torch.Tensor
    projected: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]


def experiment(folder: Path, checkpoint: Path, dtype: str = "float32", **store) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {"checkpoint": str(checkpoint), "device": "cpu", "dtype": dtype},
            "data": {"images": str(folder / "images")},
            "store": {"shard_images": 2, **store},
            "extract": {"tower_batch": 1},
        }
    )


def extracted(folder: Path, checkpoint: Path, dtype: str = "float32", **store) -> FeatureStore:
    tiny_images(folder / "images", IMAGES)
    wanted = experiment(folder, checkpoint, dtype, **store)
    assert extract(wanted, overwrite=False)["tower_images"] == IMAGES
    return FeatureStore.open(wanted.store_path)


def stock_model(checkpoint: Path, dtype: str = "float32", attention: str = "sdpa") -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch_dtype(dtype), attn_implementation=attention
    ).eval()


def pixels_of(folder: Path, checkpoint: Path, store: FeatureStore, row: int, dtype: str) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    with Image.open(folder / "images" / store.ids.names(row)[0]) as image:
        return processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"].to(torch_dtype(dtype))


@torch.no_grad()
def stock_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> Stock:
    seen: list[torch.Tensor] = []
    handle = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        projected = model.get_image_features(pixel_values=pixels).pooler_output
    finally:
        handle.remove()
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return Stock(seen[0][0], projected[0], states)


def array(store: FeatureStore, name: str, row: int) -> torch.Tensor:
    return from_storage(store.gather(name, [row])[0], store.arrays[name].dtype)


def require_equal_to_stock(folder: Path, checkpoint: Path, store: FeatureStore, dtype: str = "float32") -> list[Stock]:
    model = stock_model(checkpoint, dtype)
    found = []
    for row in range(IMAGES):
        stock = stock_features(model, pixels_of(folder, checkpoint, store, row, dtype))
        assert torch.equal(array(store, "raw", row), stock.raw)
        assert torch.equal(array(store, "projected", row), stock.projected)
        found.append(stock)
    assert not torch.equal(found[0].projected, found[1].projected)
    return found


@pytest.mark.parametrize("sharded", [False, True], ids=["one_file", "sharded"])
@pytest.mark.parametrize("layout", ["v5", "hub4", "v4_52"])
def test_features_equal_the_stock_models_in_every_key_layout(tmp_path, layout, sharded):
    checkpoint = tiny_llava(tmp_path / "checkpoint", layout=layout, sharded=sharded)
    assert (len(list(checkpoint.glob("*.safetensors"))) > 1) == sharded
    require_equal_to_stock(tmp_path, checkpoint, extracted(tmp_path, checkpoint))


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("vision", ["clip", "dinov2"])
def test_features_equal_the_stock_models_for_every_layer_and_strategy(tmp_path, vision, layers, strategy):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision=vision, feature_layer=layers, strategy=strategy)
    store = extracted(tmp_path, checkpoint)
    listed = [layers] if isinstance(layers, int) else layers
    eager = stock_model(checkpoint, attention="eager").model.vision_tower
    for row, stock in enumerate(require_equal_to_stock(tmp_path, checkpoint, store)):
        cls_rows = torch.cat([stock.hidden_states[layer][0, 0] for layer in listed], dim=-1)
        assert torch.equal(array(store, "cls_hidden", row), cls_rows)
        assert len(array(store, "raw", row)) == store.plan.geometry.tokens == 16 + (strategy == "full")
        if strategy == "full":
            assert torch.equal(array(store, "raw", row)[0], cls_rows)
        if layers == -STATES:
            continue
        with torch.no_grad():
            weights = eager(pixels_of(tmp_path, checkpoint, store, row, "float32"), output_attentions=True).attentions
        # hidden_states[j] is what layer j - 1 makes; negative indices count one state more than there are layers
        expected = weights[listed[-1] % STATES - 1][0, :, 0, 1:]
        torch.testing.assert_close(array(store, "cls_attention", row), expected, rtol=0, atol=1e-5)
        assert not torch.allclose(array(store, "cls_attention", row).sum(-1), torch.ones(()), atol=1e-4)


@pytest.mark.parametrize("layers", [0, -STATES])
def test_the_embeddings_as_features_have_no_cls_attention_and_the_store_says_why(tmp_path, layers):
    checkpoint = tiny_llava(tmp_path / "checkpoint", feature_layer=layers)
    store = extracted(tmp_path, checkpoint)
    # Only the stock tower is asked: the whole stock model reads a layer of 0 as none and fails.
    tower = stock_model(checkpoint).model.vision_tower
    for row in range(IMAGES):
        with torch.no_grad():
            embeddings = tower(pixels_of(tmp_path, checkpoint, store, row, "float32"), output_hidden_states=True)
        assert torch.equal(array(store, "raw", row), embeddings.hidden_states[0][0, 1:])
    assert set(store.arrays) == {"raw", "projected", "cls_hidden"}
    assert any("cls_attention is not stored" in note for note in store.plan.notes)


@pytest.mark.parametrize("layers", [-1, -2, [-2, -3]], ids=str)
def test_features_of_a_siglip_tower_equal_the_stock_models_and_lack_what_needs_a_cls_row(tmp_path, layers):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision="siglip", feature_layer=layers, strategy="full")
    store = extracted(tmp_path, checkpoint)
    require_equal_to_stock(tmp_path, checkpoint, store)
    assert set(store.arrays) == {"raw", "projected"}
    assert store.plan.geometry.has_cls is False and store.plan.geometry.tokens == 16
    assert sum("the tower has no CLS row" in note for note in store.plan.notes) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_features_equal_the_stock_models_in_every_dtype(tmp_path, dtype):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    store = extracted(tmp_path, checkpoint, dtype)
    assert {name: spec.dtype for name, spec in store.arrays.items()} == {
        "raw": dtype, "projected": dtype, "cls_hidden": dtype, "cls_attention": "float32",
    }  # fmt: skip
    for row, stock in enumerate(require_equal_to_stock(tmp_path, checkpoint, store, dtype)):
        assert torch.equal(array(store, "cls_hidden", row), stock.hidden_states[-2][0, 0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_checkpoint_kept_in_half_precision_is_widened_as_the_stock_model_widens_it(tmp_path, dtype):
    checkpoint = tiny_llava(tmp_path / "checkpoint", dtype=torch_dtype(dtype))
    require_equal_to_stock(tmp_path, checkpoint, extracted(tmp_path, checkpoint))


def test_a_projector_without_bias_gives_the_stock_models_features(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    kept = {name: t for name, t in weights.items() if not ("multi_modal_projector" in name and name.endswith("bias"))}
    assert len(kept) == len(weights) - 2
    save_file(kept, checkpoint / "model.safetensors", {"format": "pt"})
    edit_config(checkpoint, multimodal_projector_bias=False)
    store = extracted(tmp_path, checkpoint)
    require_equal_to_stock(tmp_path, checkpoint, store)
    assert set(store.projector.weights) == {"linear_1.weight", "linear_2.weight"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_stored_projector_makes_the_stored_projected_features_of_the_stored_raw_ones(tmp_path, dtype):
    store = extracted(tmp_path, tiny_llava(tmp_path / "checkpoint"), dtype)
    projector = build(store.projector)
    for row in range(IMAGES):
        again = project_image(projector, array(store, "raw", row)[None])
        assert torch.equal(again[0], array(store, "projected", row))


def test_a_siglip_tower_with_the_strategy_default_is_refused_by_name_and_nothing_is_written(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision="siglip", strategy="default")
    tiny_images(tmp_path / "images", IMAGES)
    wanted = experiment(tmp_path, checkpoint)
    with pytest.raises(UnsupportedModel, match=r"siglip_vision_model.*set it to `full`") as caught:
        extract(wanted, overwrite=False)
    assert caught.value.exit_code == 2
    assert not wanted.run_dir.exists()


@pytest.mark.parametrize("layers", [STATES, -STATES - 1, [-2, 9]], ids=str)
def test_a_layer_that_the_tower_does_not_have_is_refused_and_nothing_is_written(tmp_path, layers):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    edit_config(checkpoint, vision_feature_layer=layers)
    tiny_images(tmp_path / "images", IMAGES)
    wanted = experiment(tmp_path, checkpoint)
    for command in (lambda: extract(wanted, overwrite=False), lambda: dry_run(wanted)):
        with pytest.raises(UnsupportedModel, match=r"-5\.\.4 for a tower of 4 layers"):
            command()
    assert not wanted.run_dir.exists()


def test_the_name_of_an_array_that_nothing_makes_is_refused_and_nothing_is_written(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    tiny_images(tmp_path / "images", IMAGES)
    wanted = experiment(tmp_path, checkpoint, arrays=["raw", "cls_atention"])
    with pytest.raises(UnsupportedModel, match=r"got cls_atention") as caught:
        extract(wanted, overwrite=False)
    assert "cls_attention" in str(caught.value) and not wanted.run_dir.exists()


@pytest.mark.parametrize("names", [["raw"], ["projected"], ["cls_attention", "cls_hidden"], ["projected", "raw"]])
def test_only_the_arrays_that_were_asked_for_are_stored_and_they_are_the_same(tmp_path, names):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    whole = extracted(tmp_path / "whole", checkpoint)
    part = extracted(tmp_path / "part", checkpoint, arrays=names)
    assert set(part.arrays) == set(names)
    folders = {path.name for path in (part.path / "features.zarr").iterdir() if (path / "c").is_dir()}
    assert folders == set(names)
    for name in names:
        for row in range(IMAGES):
            assert torch.equal(array(part, name, row), array(whole, name, row))


@pytest.mark.parametrize("vision", ["clip", "dinov2"])
def test_a_batch_of_images_gives_the_features_of_each_image_alone_where_the_store_says_so(tmp_path, vision):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision=vision)
    alone = extracted(tmp_path / "alone", checkpoint)
    tiny_images(tmp_path / "batch" / "images", IMAGES)
    wanted = experiment(tmp_path / "batch", checkpoint)
    wanted = wanted.model_copy(update={"extract": wanted.extract.model_copy(update={"tower_batch": 2})})
    extract(wanted, overwrite=False)
    batch = FeatureStore.open(wanted.store_path)
    exact = batch.fingerprint("raw").numeric["tower_batch"] == 1
    for name in alone.arrays:
        for row in range(IMAGES):
            one, other = array(alone, name, row), array(batch, name, row)
            assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_tower_whose_tensors_do_not_fit_its_config_is_refused_by_their_names(tmp_path):
    from stage1_extract.errors import WrongWeights

    checkpoint = tiny_llava(tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layers.2.mlp.fc1.weight") and "vision_tower" in name)
    save_file({k: t for k, t in weights.items() if k != lost}, checkpoint / "model.safetensors", {"format": "pt"})
    tiny_images(tmp_path / "images", IMAGES)
    with pytest.raises(WrongWeights, match=r"layers\.2\.mlp\.fc1\.weight"):
        extract(experiment(tmp_path, checkpoint), overwrite=False)
