"""Patches in CLIP's space: what the stock CLIP makes of `raw`, and only of its own tower's."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from configs.errors import ConfigError
from configs.experiment import Experiment
from stage1_extract.checking.verify import encode_again
from stage1_extract.cli import group
from stage1_extract.diagnose.run import run as diagnose
from stage1_extract.dry_run import dry_run
from stage1_extract.encoding.arrays import CLIP_SPACE, NAMES
from stage1_extract.errors import WrongWeights
from stage1_extract.extract import extract
from store.errors import CheckpointMissing, DamagedCheckpoint, FingerprintMismatch
from store.layout.tensors import from_storage, torch_dtype
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.clip import CLIP_WIDTH, clip_checkpoint
from tests.helpers.data import tiny_images

IMAGES, PATCHES = 3, 16


def experiment(folder: Path, checkpoint: Path, clip: Path | str | None, arrays=(), **changes) -> Experiment:
    if not (folder / "images").exists():
        tiny_images(folder / "images", IMAGES)
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {
                "checkpoint": str(checkpoint),
                "device": "cpu",
                "dtype": changes.get("dtype", "float32"),
                "clip": None if clip is None else str(clip),
            },
            "data": {"images": str(folder / "images")},
            "store": {"shard_images": 2, "arrays": ["raw", *arrays]},
            "extract": {"tower_batch": 2, "capture": changes.get("capture", ())},
        }
    )


def array(store: FeatureStore, name: str, row: int) -> torch.Tensor:
    return from_storage(store.gather(name, [row]), store.arrays[name].dtype)[0]


def change(checkpoint: Path, **tensors: torch.Tensor) -> None:
    """Other values for tensors of a checkpoint, by a part of their names."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    for part, tensor in tensors.items():
        name = next(one for one in weights if one.endswith(part.replace("__", ".")))
        weights[name] = tensor.to(weights[name].dtype)
    save_file(weights, path, {"format": "pt"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tower whose last layer norm is more than the identity's."""
    made = tiny_llava(tmp_path_factory.mktemp("llava") / "checkpoint")
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.rand(32, generator=generator) + 0.5 for _ in range(2))
    change(made, post_layernorm__weight=weight, post_layernorm__bias=bias)
    return made


@pytest.fixture(scope="module")
def clip(tmp_path_factory, checkpoint) -> Path:
    return clip_checkpoint(tmp_path_factory.mktemp("clip") / "clip", checkpoint)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one_file", "sharded"])
def test_patches_in_clips_space_are_what_the_stock_clip_makes_of_raw_bit_for_bit(tmp_path, checkpoint, dtype, sharded):
    clip = clip_checkpoint(tmp_path / "clip", checkpoint, sharded=sharded)
    wanted = experiment(tmp_path, checkpoint, clip, CLIP_SPACE, dtype=dtype)
    extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    stock = CLIPModel.from_pretrained(clip, dtype=torch_dtype(dtype)).eval()
    for row in range(IMAGES):
        raw = array(store, "raw", row)[None]
        with torch.no_grad():
            normed = stock.visual_projection(stock.vision_model.post_layernorm(raw))[0]
            projected = stock.visual_projection(raw)[0]
        assert normed.shape == projected.shape == (PATCHES, CLIP_WIDTH)
        assert torch.equal(array(store, "clip_patches", row), normed)
        assert torch.equal(array(store, "clip_projected", row), projected)
        assert not torch.allclose(normed, projected, atol=0.1)
    assert {store.arrays[name].axes for name in CLIP_SPACE} == {("patch", "clip")}


def test_of_the_last_layer_they_lie_where_clip_itself_would_put_an_image(tmp_path):
    """stock get_image_features of the CLS row, which the strategy `full` keeps in front."""
    from transformers import AutoImageProcessor

    checkpoint = tiny_llava(tmp_path / "checkpoint", feature_layer=-1, strategy="full")
    clip = clip_checkpoint(tmp_path / "clip", checkpoint)
    wanted = experiment(tmp_path, checkpoint, clip, CLIP_SPACE)
    extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    assert store.arrays["clip_patches"].shape == (PATCHES + 1, CLIP_WIDTH)
    stock, processor = (
        CLIPModel.from_pretrained(clip).eval(),
        AutoImageProcessor.from_pretrained(checkpoint, backend="pil"),
    )
    for row in range(IMAGES):
        with Image.open(tmp_path / "images" / store.ids.names(row)[0]) as image, torch.no_grad():
            expected = stock.get_image_features(processor(images=[image], return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(array(store, "clip_patches", row)[0], expected.pooler_output[0], rtol=0, atol=1e-5)


def test_they_are_added_to_a_store_that_lacks_them_with_the_bits_of_a_whole_extraction(tmp_path, checkpoint, clip):
    bare = experiment(tmp_path, checkpoint, None)
    extract(bare, overwrite=False)
    before = {row: array(FeatureStore.open(bare.store_path), "raw", row) for row in range(IMAGES)}
    grown = experiment(tmp_path, checkpoint, clip, [*CLIP_SPACE, "image_area"])
    extract(grown, overwrite=False, append=True)
    whole = experiment(tmp_path / "whole", checkpoint, clip, [*CLIP_SPACE, "image_area"])
    extract(whole, overwrite=False)
    one, other = FeatureStore.open(grown.store_path), FeatureStore.open(whole.store_path)
    assert set(one.arrays) == {"raw", *CLIP_SPACE, "image_area"}
    assert all(torch.equal(array(one, n, row), array(other, n, row)) for n in one.arrays for row in range(IMAGES))
    assert all(torch.equal(array(one, "raw", row), values) for row, values in before.items())
    assert encode_again(grown, 2)["unequal"] == [] and diagnose(grown, 2, as_json=False) == 0
    with pytest.raises(ConfigError, match=r"clip_patches.*--clip PATH"):
        extract(bare, overwrite=False)


def test_their_fingerprint_names_the_clip_and_that_of_raw_does_not(tmp_path, checkpoint, clip):
    other = clip_checkpoint(tmp_path / "other", checkpoint, seed=1)
    wanted = experiment(tmp_path, checkpoint, clip, [*CLIP_SPACE, "image_area"])
    extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    raw, area, patches = (store.fingerprint(name).semantic for name in ("raw", "image_area", "clip_patches"))
    more = {key: value for key, value in patches.items() if key not in raw}
    assert more.keys() == {"clip", "clip_revision", "clip_tower", "clip_head_sha256"}
    assert (more["clip"], more["clip_tower"]) == ("clip/", "equal")
    assert raw.keys() - area.keys() == {"tower_sha256"} and area["image_processor"] == raw["image_processor"]
    with pytest.raises(FingerprintMismatch, match="clip_head_sha256"):
        extract(experiment(tmp_path, checkpoint, other, [*CLIP_SPACE, "image_area"]), overwrite=False, append=True)


@pytest.mark.parametrize("kept", ["checkpoint", "clip"])
def test_one_tower_kept_in_half_and_in_full_precision_is_one_tower(tmp_path, checkpoint, kept):
    """LLaVA's checkpoints are kept in float16, CLIP's in float32."""
    folders = {"checkpoint": tiny_llava(tmp_path / "checkpoint")}
    folders["clip"] = clip_checkpoint(tmp_path / "clip", folders["checkpoint"])
    path = folders[kept] / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    extract(experiment(tmp_path, folders["checkpoint"], folders["clip"], CLIP_SPACE), overwrite=False)


def test_a_clip_with_another_tower_is_refused_before_anything_is_written(tmp_path, checkpoint, clip):
    tuned = clip_checkpoint(tmp_path / "tuned", checkpoint)
    weights = load_file(tuned / "model.safetensors")
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    save_file(weights | {name: weights[name] + 1e-3}, tuned / "model.safetensors", {"format": "pt"})
    deeper = clip_checkpoint(tmp_path / "deeper", tiny_llava(tmp_path / "deeper_llava", layers=5))
    lost = clip_checkpoint(tmp_path / "lost", checkpoint)
    save_file({n: one for n, one in weights.items() if n != name}, lost / "model.safetensors", {"format": "pt"})
    for other, said in (
        (tuned, "fc1.bias differs"),
        (deeper, "differs"),
        (lost, "it has no encoder.layers.1.mlp.fc1.bias"),
    ):
        wanted = experiment(tmp_path, checkpoint, other, CLIP_SPACE)
        with pytest.raises(WrongWeights, match=said) as caught:
            extract(wanted, overwrite=False)
        assert caught.value.exit_code == 4 and "--clip PATH" in str(caught.value)
        assert not wanted.run_dir.exists()


def test_a_clip_without_a_tower_is_taken_with_a_warning_that_stays_in_the_fingerprint(tmp_path, checkpoint, caplog):
    clip = clip_checkpoint(tmp_path / "clip", checkpoint)
    weights = load_file(clip / "model.safetensors")
    head = {n: one for n, one in weights.items() if not n.startswith("vision_model.") or "post_layernorm" in n}
    save_file(head, clip / "model.safetensors", {"format": "pt"})
    wanted = experiment(tmp_path, checkpoint, clip, CLIP_SPACE)
    extract(wanted, overwrite=False)
    assert "holds no vision tower" in caplog.text
    semantic = FeatureStore.open(wanted.store_path).fingerprint("clip_patches").semantic
    assert semantic["clip_tower"] == "not compared"


def test_what_is_no_clip_that_fits_is_refused_in_one_sentence(tmp_path, checkpoint):
    asked = {"some/clip": (CheckpointMissing, "hf download some/clip"), checkpoint: (ConfigError, "type 'llava'")}
    asked[tmp_path / "nowhere"] = (CheckpointMissing, "nowhere")
    narrow = tiny_llava(tmp_path / "narrow", width=16)
    asked[clip_checkpoint(tmp_path / "wide", narrow)] = (WrongWeights, "32 wide.* is 16")
    for clip, (kind, said) in asked.items():
        with pytest.raises(kind, match=said):
            dry_run(experiment(tmp_path, checkpoint, clip, CLIP_SPACE))
    headless = clip_checkpoint(tmp_path / "headless", checkpoint)
    weights = load_file(headless / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(DamagedCheckpoint, match="visual_projection"):
        extract(experiment(tmp_path, checkpoint, headless, CLIP_SPACE), overwrite=False)
    other = clip_checkpoint(tmp_path / "other", checkpoint)
    edit_config(other, projection_dim=CLIP_WIDTH + 1)
    with pytest.raises(DamagedCheckpoint, match=f"{CLIP_WIDTH + 1}, 32"):
        extract(experiment(tmp_path, checkpoint, other, CLIP_SPACE), overwrite=False)


def test_capture_all_has_them_where_a_clip_is_named_and_the_price_says_so(tmp_path, checkpoint, clip):
    without, named = (dry_run(experiment(tmp_path, checkpoint, c, capture="all")) for c in (None, clip))
    assert set(without["bytes_per_image"]) == set(NAMES) - {*CLIP_SPACE}
    assert set(named["bytes_per_image"]) == set(NAMES)
    assert {named["bytes_per_image"][name] for name in CLIP_SPACE} == {PATCHES * CLIP_WIDTH * 4}
    with pytest.raises(ConfigError, match=r"model\.clip: expected a CLIP checkpoint for clip_patches") as caught:
        dry_run(experiment(tmp_path, checkpoint, None, capture="clip_projected"))
    assert caught.value.exit_code == 2


def test_the_command_takes_the_clip_as_clip(tmp_path, checkpoint, clip):
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(experiment(tmp_path, checkpoint, None, capture="all").model_dump(mode="json")))
    command = ["extract", "--config", str(path), "--dry-run", "--json"]
    said = [
        CliRunner().invoke(group, [*command, *more], catch_exceptions=False) for more in ((), ("--clip", str(clip)))
    ]
    counted = [len(json.loads(one.output)["bytes_per_image"]) for one in said]
    assert counted[1] == counted[0] + len(CLIP_SPACE)


@pytest.mark.parametrize(
    ("llava", "reason"),
    [
        ({"vision": "siglip", "strategy": "full"}, "not a CLIP's"),
        ({"vision": "dinov2"}, "not a CLIP's"),
        ({"feature_layer": [-2, -3]}, "several hidden states"),
    ],
    ids=["siglip", "dinov2", "two_layers"],
)
def test_a_tower_that_has_no_such_space_says_so_and_gives_the_rest(tmp_path, clip, llava, reason):
    checkpoint = tiny_llava(tmp_path / "checkpoint", **llava)
    wanted = experiment(tmp_path, checkpoint, clip, CLIP_SPACE)
    extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    assert set(store.arrays) == {"raw"}
    assert sum(reason in note for note in store.plan.notes) == len(CLIP_SPACE)
