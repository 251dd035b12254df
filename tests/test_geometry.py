"""The real shapes of LLaVA-1.5-7B, random weights, through the real command lines."""

import json
from pathlib import Path

import pytest
import torch
import yaml
import zarr
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from store.layout.plan import read_plan
from store.layout.tower_call import call_of
from tests.helpers.checkpoints import WORDS, save_processor
from tests.helpers.data import tiny_questions
from tests.test_proofs import run

pytestmark = pytest.mark.geometry


def real_shapes(folder: Path, dtype: torch.dtype) -> Path:
    """CLIP ViT-L/14-336, projector 1024 -> 4096 -> 4096, two of the language model's layers, a small vocabulary."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=4096, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=32,
        max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=WORDS.index("<image>"), vision_feature_layer=-2,
        vision_feature_select_strategy="default", projector_hidden_act="gelu", image_seq_length=576,
    )  # fmt: skip
    torch.set_default_dtype(dtype)
    try:
        model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    save_processor(folder, image_size=336, patch_size=14)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("dtype", "tower_batch", "images"), [("float32", 8, 9), ("bfloat16", 1, 6)])
def test_at_the_real_geometry_stored_shapes_are_those_of_llava_and_four_modes_are_bit_identical(
    dtype, tower_batch, images, tmp_path
):
    real_shapes(tmp_path / "checkpoint", getattr(torch, dtype))
    tiny_questions(tmp_path / "data", images=images, per_image=1)
    config = tmp_path / "geometry.yaml"
    content = {
        "run_dir": str(tmp_path / "run"),
        "model": {"checkpoint": str(tmp_path / "checkpoint"), "dtype": dtype, "device": "cpu"},
        "data": {"images": str(tmp_path / "data/images"), "questions": str(tmp_path / "data/questions.jsonl")},
        "extract": {"tower_batch": tower_batch},
        "prune": {"methods": [{"name": "keep_all"}, {"name": "learned_scorer"}]},
        "eval": {"batch_size": 2, "max_new_tokens": 2},
    }
    config.write_text(yaml.safe_dump(content))
    run("stage1_extract", "extract", "--config", config, cwd=tmp_path)
    features = zarr.open_group(tmp_path / "run/store/features.zarr", mode="r")
    assert features["raw"].shape == (images, 576, 1024) and features["projected"].shape == (images, 576, 4096)
    assert features["cls_attention"].shape == (images, 16, 576) and features["cls_hidden"].shape == (images, 1024)
    assert features["raw"].attrs["logical_dtype"] == dtype
    assert call_of(read_plan(tmp_path / "run/store")).exact
    done = run("stage2_prune", "parity", "--config", config, "--json", cwd=tmp_path)
    parity = json.loads(done.stdout)
    assert parity["identical"] is True and parity["shapes"] == {
        "vision_features_raw": [576, 1024], "vision_in_emb": [576, 4096], "vision_reprojected": [576, 4096]
    }  # fmt: skip
    assert all(pair["logits"]["bit_equal"] and pair["tokens_equal"] for pair in parity["pairs"])
