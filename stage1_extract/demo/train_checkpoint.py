"""Train the demo's checkpoint: scenes -> tower -> projector and language model -> a standard LLaVA checkpoint."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from configs.files.atomic import write_atomically
from stage1_extract.demo.card import CARD, checkpoint_card
from stage1_extract.demo.language_lessons import DemoLanguageHalf, accuracy, train_language
from stage1_extract.demo.pace import Report
from stage1_extract.demo.recipe import Recipe
from stage1_extract.demo.scenes import GRID, IMAGE_SIZE, PATCH_SIZE
from stage1_extract.demo.teaching import teaching
from stage1_extract.demo.tower_lessons import FEATURE_LAYER, encode, train_tower
from stage1_extract.demo.words import CHAT_TEMPLATE, IMAGE, SPECIAL, tokenizer, vocabulary

MEASURED_BUDGETS = (192, 128, 64, 32, 16, 4)
"""Budgets of the measurements after the training, in tokens per image."""


def train_checkpoint(recipe: Recipe, out: Path, log: Path) -> None:
    """Train and write a checkpoint folder that stock transformers opens, and a log with one JSON line per measurement."""
    save_processor(out, vocabulary())
    torch.manual_seed(recipe.seed)
    report = Report(log)
    report(phase="recipe", **asdict(recipe), torch=torch.__version__)
    lessons = teaching(recipe, recipe.seed, recipe.scenes)
    held_out = teaching(recipe, recipe.held_out_seed, recipe.held_out)
    report(phase="scenes", questions=sum(map(len, lessons.asked)))
    tower = train_tower(recipe, lessons, held_out, report)
    features, held_out_features = encode(tower, lessons), encode(tower, held_out)
    report(phase="encoded", images=len(features))
    reader = train_language(recipe, features, lessons, held_out_features, held_out, report)
    save_model(tower, reader, out)
    write_atomically(out / CARD, checkpoint_card(recipe))
    patches = features.shape[1]
    budgets = (patches, *MEASURED_BUDGETS)
    scores = {str(k): accuracy(recipe.seed, reader, held_out_features, held_out.asked, k) for k in budgets}
    report(phase="random patches", **scores)
    truth = held_out.color > 0
    scores = {str(k): accuracy(recipe.seed, reader, held_out_features, held_out.asked, k, truth) for k in (64, 32, 16)}
    report(phase="patches that show an object first", **scores)


def save_processor(out: Path, words: dict[str, int]) -> None:
    """Write tokenizer, image processor and chat template in the form that `AutoProcessor` reads."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)
    LlavaProcessor(
        image_processor, tokenizer(words), patch_size=PATCH_SIZE, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE, image_token=IMAGE,
    ).save_pretrained(out)  # fmt: skip


def save_model(tower: CLIPVisionModel, reader: DemoLanguageHalf, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Assemble the stock model from its trained parts and save it in a dtype."""
    config = LlavaConfig(
        vision_config=tower.config, text_config=reader.config,
        image_token_id=SPECIAL[IMAGE],  # pyright: ignore[reportCallIssue] (an alias of its class)
        vision_feature_layer=FEATURE_LAYER, vision_feature_select_strategy="default", projector_hidden_act="gelu",
        image_seq_length=GRID * GRID, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    for name in ("linear_1", "linear_2"):
        getattr(model.model.multi_modal_projector, name).load_state_dict(getattr(reader, name).state_dict())
    model.model.language_model.load_state_dict(reader.language.model.state_dict())
    model.lm_head.load_state_dict(reader.language.lm_head.state_dict())
    text = reader.config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    model.to(dtype).save_pretrained(out)


def summary(log: Path) -> str:
    """Return the last line of each phase of a log."""
    last = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        last[entry["phase"]] = entry
    return "\n".join(json.dumps(entry) for entry in last.values())
