"""Towers of other sizes than their configs say, models that stage 2 does not open, and arrays that a tower cannot give."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import (
    AutoImageProcessor,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from configs import plugin
from configs.cli import run_to_exit_code
from stage1_extract.cli import group as stage1
from stage1_extract.find_family import stage2_families
from stage2_prune import families
from stage2_prune.cli import group as stage2
from stage2_prune.language.family import Family
from store.cli import group as store_group
from store.layout.geometry import Geometry
from store.layout.tensors import from_storage
from store.reading.absent import NEED_CLS_ROW
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions
from tests.stage1_extract.test_whole_model import tiny_checkpoint

PATCH = 14


def run(group, *arguments) -> int:
    return run_to_exit_code(lambda: group.main(list(map(str, arguments)), standalone_mode=False))


def config_of(folder: Path, checkpoint: Path, questions: bool = True, **sections) -> Path:
    """A config on two images, with or without questions about them."""
    file = tiny_questions(folder / "data", images=3)
    content = {
        "name": "tiny",
        "run_dir": str(folder / "run"),
        "model": {"checkpoint": str(checkpoint), "device": "cpu"},
        "data": {"images": str(folder / "data" / "images")} | ({"questions": str(file)} if questions else {}),
        "prune": {"methods": [{"name": "keep_all"}, {"name": "uniform_grid"}], "budgets": [5]},
        "eval": {"max_new_tokens": 2, "bootstrap": 20},
        **sections,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def make_pictures_of(checkpoint: Path, height: int, width: int, **settings) -> None:
    """Let the checkpoint's image processor make pictures of one height and width."""
    size = {"height": height, "width": width}
    CLIPImageProcessorPil(size={"shortest_edge": max(height, width)}, crop_size=size, **settings).save_pretrained(
        checkpoint
    )
    (checkpoint / "processor_config.json").unlink(missing_ok=True)


@pytest.mark.parametrize(("height", "width"), [(56, 56), (56, 84), (59, 70)])
def test_the_grid_of_a_tower_that_interpolates_is_that_of_the_pictures_it_is_given(tmp_path, height, width, capfd):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision="dinov2", image_size=7 * PATCH)  # as Dinov2's 518 pixels
    make_pictures_of(checkpoint, height, width)
    config = config_of(tmp_path, checkpoint)
    rows, columns = height // PATCH, width // PATCH
    assert run(stage1, "extract", "--config", config, "--dry-run", "--json") == 0
    priced = json.loads(capfd.readouterr().out)["bytes_per_image"]["projected"]
    assert run(stage1, "extract", "--config", config) == 0
    store = FeatureStore.open(tmp_path / "run" / "store")
    assert store.plan.geometry == Geometry(grid=(rows, columns), has_cls=True, tokens=rows * columns)
    assert store.arrays["projected"].row_bytes == priced == rows * columns * 48 * 4
    stock = LlavaForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="sdpa").eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    for row in range(3):
        with Image.open(tmp_path / "data" / "images" / store.ids.names(row)[0]) as image, torch.no_grad():
            pixels = processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
            expected = stock.model.get_image_features(pixel_values=pixels).pooler_output[0]
        assert torch.equal(from_storage(store.gather("projected", [row])[0], "float32"), expected)
    if height != width and height % PATCH == 0:
        assert run(stage2, "eval", "--config", config) == 0
        assert run(stage2, "parity", "--config", config) == 0


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_a_tower_of_one_size_refuses_other_pictures_before_anything_is_planned_as_stock_does(tmp_path, vision, capsys):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision=vision, strategy="full")
    make_pictures_of(checkpoint, 70, 70)
    config = config_of(tmp_path, checkpoint)
    stock = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    with pytest.raises((ValueError, RuntimeError)), torch.no_grad():
        stock.model.get_image_features(pixel_values=torch.zeros(1, 3, 70, 70))
    for flags in (["--dry-run"], []):
        assert run(stage1, "extract", "--config", config, *flags) == 2
        assert "makes 56x56 pixels" in (said := capsys.readouterr().err) and "it makes 70x70" in said
    assert not (tmp_path / "run").exists()
    make_pictures_of(checkpoint, 56, 56)
    assert run(stage1, "extract", "--config", config) == 0


def test_a_processor_whose_pictures_differ_in_size_is_refused_with_the_sizes(tmp_path, capsys):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision="dinov2")
    make_pictures_of(checkpoint, 56, 56, do_center_crop=False)
    assert run(stage1, "extract", "--config", config_of(tmp_path, checkpoint)) == 2
    assert "1x3x56x56" in (said := capsys.readouterr().err) and "1x3x56x84" in said
    assert not (tmp_path / "run").exists()


def test_a_model_that_stage_2_does_not_open_is_refused_before_an_image_is_read_unless_that_is_wanted(tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "smolvlm")
    config = config_of(tmp_path, checkpoint, questions=False)
    for flags in (["--dry-run"], [], ["--data.images", str(tmp_path / "nowhere")]):
        assert run(stage1, "extract", "--config", config, *flags) == 2
        said = capsys.readouterr().err
        assert "stage 2 can open (llava)" in said and "'smolvlm'" in said and "--without-stage2 true" in said
    assert not (tmp_path / "run").exists()
    assert run(stage1, "extract", "--config", config, "--without-stage2", "true") == 0


def test_every_family_of_stage_2_is_a_file_named_after_its_model_type():
    found = plugin.find_all(families, Family)
    assert set(found) == stage2_families()
    assert all(family.model_types == {name} for name, family in found.items())


def test_a_model_whose_tokens_vary_with_the_image_is_refused_before_anything_is_planned(tmp_path, capsys):
    torch.manual_seed(0)
    vision = {
        "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 48, "patch_size": 14,
    }  # fmt: skip
    text = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
        "num_key_value_heads": 1, "rope_scaling": {"type": "mrope", "mrope_section": [4, 4, 4]},
    }  # fmt: skip
    checkpoint = tmp_path / "checkpoint"
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, text_config=text)).save_pretrained(
        checkpoint
    )
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 64).save_pretrained(checkpoint)
    config = config_of(tmp_path, checkpoint, questions=False, extract={"without_stage2": True, "tower_batch": 1})
    assert run(stage1, "extract", "--config", config) == 2
    assert "a fixed number of tokens per image" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_features_of_a_models_own_code_have_no_grid_and_a_store_of_an_earlier_version_is_gone_on_with(tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "smolvlm")
    config = config_of(tmp_path, checkpoint, questions=False, extract={"without_stage2": True})
    assert run(stage1, "extract", "--config", config) == 0
    store = FeatureStore.open(tmp_path / "run" / "store")
    assert store.plan.geometry.grid is None and store.plan.geometry.patch_grid is None
    assert store.fingerprint("projected").semantic["geometry"] == {"grid": [1, 4], "has_cls": False, "tokens": 4}
    earlier = Geometry(grid=(1, 4), has_cls=False, tokens=4)
    assert earlier == store.plan.geometry and earlier.patch_grid is None and hash(earlier) == hash(store.plan.geometry)
    assert run(store_group, "inspect", tmp_path / "run" / "store") == 0
    assert "4 tokens without a grid" in capsys.readouterr().out


def test_geometries_tell_a_grid_from_tokens_that_are_none():
    assert Geometry(grid=(4, 6), has_cls=True, tokens=24).patch_grid == (4, 6)
    assert Geometry(grid=(4, 6), has_cls=True, tokens=25).patch_grid is None  # the CLS row is a token
    assert Geometry(grid=(1, 1), has_cls=False, tokens=1).patch_grid == (1, 1)
    assert Geometry(grid=(4, 6), has_cls=True, tokens=24) != Geometry(grid=(6, 4), has_cls=True, tokens=24)


def test_an_array_that_a_tower_cannot_give_is_refused_where_it_is_named_and_nobody_is_sent_to_append_it(
    tmp_path, capsys
):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision="siglip", strategy="full")
    config = config_of(tmp_path, checkpoint, prune={"methods": [{"name": "cls_attention"}], "budgets": [5]})
    assert run(stage1, "extract", "--config", config, "--capture", "core") == 0  # a group has what there is
    capsys.readouterr()
    for command in ("eval", "show", "analyse"):
        images = ["image_002.png"] if command == "show" else []
        assert run(stage2, command, *images, "--config", config) in (2, 5)
        said = capsys.readouterr().err
        assert "the tower has no CLS row, of which cls_attention would be made" in said and "--append" not in said
    assert run(stage2, "sweep", "--config", config, "--sweep.methods", "keep_all,cls_attention", "--workers", "1") == 0
    assert "cls_attention is unavailable: needs cls_attention: the tower has no CLS row" in capsys.readouterr().out
    for name in sorted(NEED_CLS_ROW):
        for flags in (["--append"], ["--append", "--dry-run"]):
            assert run(stage1, "extract", "--config", config, "--capture", name, *flags) == 2
            said = capsys.readouterr().err
            assert f"{name} cannot be had: the tower has no CLS row" in said and "out of --capture" in said


def test_the_store_knows_which_arrays_are_made_of_a_cls_row():
    from stage1_extract.encoding.arrays import CAPTURED

    assert {"cls_hidden", *(name for name, one in CAPTURED.items() if one.needs_cls)} == NEED_CLS_ROW
