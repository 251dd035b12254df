"""Questions in CLIP's space: what the stock text encoder makes of them, whatever their length and their company."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel

from configs.errors import ConfigError
from configs.experiment import ModelSection
from stage2_prune.errors import StoreMismatch, WeightsMismatch
from stage2_prune.language.clip_text import check_clip, open_clip_text
from store.errors import CheckpointMissing, DamagedCheckpoint
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.clip import CLIP_WIDTH, clip_checkpoint

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SHORT = "What color is it?\nAnswer the question using a single word."
LONG = "There is a red circle left of the blue square, and under both of them a line of green stars. " * 3


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("llava") / "checkpoint")


@pytest.fixture(scope="module", params=[False, True], ids=["end_token", "highest_id"])
def clip(request, tmp_path_factory, llava) -> Path:
    return clip_checkpoint(tmp_path_factory.mktemp("clip") / "clip", llava, old_end=request.param, sharded=True)


def model_of(clip: Path | None) -> ModelSection:
    return ModelSection(checkpoint="unused", device="cpu", clip=None if clip is None else str(clip))


@torch.no_grad()
def stock(clip: Path, question: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled segments and all tokens, by the whole stock model on one batch of padded segments, as CDPruner feeds it."""
    model = CLIPModel.from_pretrained(clip, attn_implementation="eager").eval()
    ids = AutoTokenizer.from_pretrained(clip)(question, verbose=False)["input_ids"]
    context = model.config.text_config.max_position_embeddings
    segments = -(-len(ids) // context)
    padding = [0] * (segments * context - len(ids))
    batch = torch.tensor(ids + padding).view(segments, context)
    mask = torch.tensor([1] * len(ids) + padding).view(segments, context)
    made = model.get_text_features(input_ids=batch, attention_mask=mask)
    tokens = model.text_projection(made.last_hidden_state).flatten(0, 1)[: len(ids)]
    return made.pooler_output, tokens


@pytest.mark.parametrize("question", [SHORT, LONG, ""], ids=["short", "long", "empty"])
def test_a_question_is_what_the_stock_model_makes_of_its_segments(clip, question):
    found = open_clip_text(model_of(clip), CPU).read(question)
    pooled, tokens = stock(clip, question)
    assert found.pooled.shape[0] == found.tokens.shape[0] == 1 and found.pooled.shape[-1] == CLIP_WIDTH
    assert (len(pooled) > 1) == (question == LONG)
    torch.testing.assert_close(found.pooled[0], pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.tokens[0], tokens, rtol=0, atol=1e-5)
    assert found.scale == pytest.approx(CLIPModel.from_pretrained(clip).logit_scale.exp().item())


def test_a_text_of_exactly_one_context_is_one_segment_and_one_token_more_makes_two(clip):
    reader = open_clip_text(model_of(clip), CPU)
    words = " ".join("a" * 75)  # and begin and end
    assert reader.read(words).pooled.shape[1] == 1 and reader.read(words).tokens.shape[1] == 77
    assert reader.read(words + " a").pooled.shape[1] == 2 and reader.read(words + " a").tokens.shape[1] == 78


def test_other_questions_and_other_orders_change_no_bit_and_a_question_is_read_once(clip):
    reader, other = (open_clip_text(model_of(clip), CPU) for _ in range(2))
    read = []
    reader.encoder.register_forward_hook(lambda *_: read.append(1))
    first = [reader.read(question) for question in (SHORT, "red ?", SHORT)]
    assert len(read) == 2
    reader.forget()
    assert torch.equal(reader.read(SHORT).tokens, first[0].tokens) and len(read) == 3  # for a clock
    again = [other.read(question) for question in ("red ?", SHORT)]
    assert torch.equal(first[0].tokens, first[2].tokens) and torch.equal(first[0].tokens, again[1].tokens)
    assert torch.equal(first[1].pooled, again[0].pooled) and not torch.equal(first[0].pooled, first[1].pooled)
    assert not first[0].pooled.requires_grad and first[0].pooled.dtype == torch.float32


def test_no_vision_tower_is_made_and_none_of_its_weights_is_read(tmp_path, llava):
    clip = clip_checkpoint(tmp_path / "clip", llava)
    weights = load_file(clip / "model.safetensors")
    blind = {name: one for name, one in weights.items() if not name.startswith(("vision_model", "visual_projection"))}
    before = open_clip_text(model_of(clip), CPU).read(SHORT)
    save_file(blind, clip / "model.safetensors", {"format": "pt"})
    reader = open_clip_text(model_of(clip), CPU)
    assert torch.equal(reader.read(SHORT).tokens, before.tokens)
    assert not [name for name, _ in reader.encoder.named_modules() if "vis" in name]
    assert sum(one.numel() for one in reader.encoder.parameters()) == sum(
        one.numel() for name, one in blind.items() if name.startswith("text")
    )


def test_importing_it_loads_no_code_of_clip():
    script = "import sys, stage2_prune.language.clip_text\nassert not [m for m in sys.modules if 'modeling_clip' in m]"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_without_a_clip_it_says_what_to_name():
    with pytest.raises(ConfigError, match="--clip PATH") as caught:
        open_clip_text(model_of(None), CPU)
    assert caught.value.exit_code == 2


def test_what_is_no_clip_or_no_whole_one_is_refused_in_one_sentence(tmp_path, llava):
    with pytest.raises(ConfigError, match="type 'llava'"):
        open_clip_text(model_of(llava), CPU)
    with pytest.raises(CheckpointMissing, match="hf download some/clip"):
        open_clip_text(ModelSection(checkpoint="unused", clip="some/clip"), CPU)
    clip = clip_checkpoint(tmp_path / "clip", llava)
    whole = load_file(clip / "model.safetensors")
    for lost, found in (("logit_scale", "logit_scale"), ("text_model.final_layer_norm.bias", "final_layer_norm.bias")):
        save_file(
            {name: one for name, one in whole.items() if name != lost}, clip / "model.safetensors", {"format": "pt"}
        )
        with pytest.raises(WeightsMismatch, match=found) as caught:
            open_clip_text(model_of(clip), CPU)
        assert caught.value.exit_code == 4
    save_file(whole | {"text_projection.weight": torch.full((CLIP_WIDTH, 20), torch.nan)}, clip / "model.safetensors")
    with pytest.raises(DamagedCheckpoint, match="text_projection"):
        open_clip_text(model_of(clip), CPU)
    save_file(whole, clip / "model.safetensors", {"format": "pt"})
    (clip / "tokenizer.json").unlink()
    with pytest.raises(CheckpointMissing, match=r"tokenizer\.json"):
        open_clip_text(model_of(clip), CPU)


def test_a_tensor_without_a_place_in_the_text_encoder_is_refused_and_positions_of_an_old_clip_are_not(tmp_path, llava):
    clip = clip_checkpoint(tmp_path / "clip", llava)
    whole = load_file(clip / "model.safetensors")
    for name in ("text_model.embeddings.position_ids", "text_projection.bias"):
        save_file(whole | {name: torch.ones(3)}, clip / "model.safetensors", {"format": "pt"})
        if name.endswith("position_ids"):
            open_clip_text(model_of(clip), CPU)
        else:
            with pytest.raises(WeightsMismatch, match=r"text_projection\.bias"):
                open_clip_text(model_of(clip), CPU)


def test_the_projection_is_as_wide_as_clips_space_whatever_its_half_of_the_config_says(tmp_path, llava):
    clip = clip_checkpoint(tmp_path / "clip", llava)
    before = open_clip_text(model_of(clip), CPU).read(SHORT)
    text = CLIPModel.config_class.from_pretrained(clip).text_config.to_dict() | {"projection_dim": 512}
    edit_config(clip, text_config=text)
    assert torch.equal(open_clip_text(model_of(clip), CPU).read(SHORT).pooled, before.pooled)


def test_patches_in_another_clips_space_are_refused_by_both_names(tmp_path, home, tiny):
    from tests.stage2_prune.conftest import extract

    ours, other = (clip_checkpoint(tmp_path / f"clip_{n}", home / "checkpoint", seed=n) for n in range(2))
    wanted = tiny(store__path=str(tmp_path / "store"), store__arrays=["raw", "clip_patches"], model__clip=str(ours))
    extract(wanted, tmp_path)
    store = FeatureStore.open(wanted.store_location)
    check_clip(store, wanted.model)
    with pytest.raises(StoreMismatch, match="clip_1.*clip_0") as caught:
        check_clip(store, wanted.model.model_copy(update={"clip": str(other)}))
    assert caught.value.exit_code == 4
