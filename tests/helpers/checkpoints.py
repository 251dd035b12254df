"""Full LLaVA checkpoints with small random weights, in every layout that is in circulation."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    GemmaConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

Layout = Literal["v5", "hub4", "v4_52"]
LANGUAGES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "phi3": Phi3Config,
    "mistral": MistralConfig,
    "gemma": GemmaConfig,
    "opt": OPTConfig,
}
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "USER:",
    "ASSISTANT:",
    "?",
    "what",
    "color",
    "is",
    "it",
    "red",
    "green",
    "blue",
    "yes",
    "no",
    "one",
    "two",
    "three",
    "left",
    "right",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_TO_HUB4 = (
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
)
_TO_V4_52 = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^vision_tower\.(?!vision_model\.)", "model.vision_tower.vision_model."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
    (r"^language_model\.model\.", "model.language_model."),
)


def tiny_llava(
    folder: Path,
    *,
    vision: Literal["clip", "dinov2", "siglip"] = "clip",
    language: str = "llama",
    image_size: int = 56,
    patch_size: int = 14,
    layers: int = 4,
    width: int = 32,
    text_width: int = 48,
    feature_layer: int | list[int] = -2,
    strategy: str = "default",
    dtype: torch.dtype = torch.float32,
    layout: Layout = "v5",
    sharded: bool = False,
    tie: bool = False,
    seed: int = 0,
) -> Path:
    """A checkpoint folder that stock `from_pretrained` and `AutoProcessor` open."""
    torch.manual_seed(seed)
    vision_config = _vision_config(vision, image_size, patch_size, layers, width)
    text = _text_config(language, text_width, tie)
    config = LlavaConfig(
        vision_config=vision_config, text_config=text, image_token_id=WORDS.index("<image>"),
        vision_feature_layer=feature_layer, vision_feature_select_strategy=strategy, projector_hidden_act="gelu",
        image_seq_length=(image_size // patch_size) ** 2, tie_word_embeddings=tie,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    spread(model)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.to(dtype).save_pretrained(folder, max_shard_size="40kB" if sharded else "5GB")
    rename(folder, layout)
    save_processor(folder, image_size, patch_size, strategy, has_cls=vision != "siglip")
    return folder


def save_processor(
    folder: Path, image_size: int, patch_size: int, strategy: str = "default", has_cls: bool = True
) -> None:
    """Tokenizer, image processor and chat template."""
    size = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=size)
    LlavaProcessor(
        image_processor, tokenizer(), patch_size=patch_size, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(has_cls), chat_template=CHAT_TEMPLATE, image_token="<image>",
    ).save_pretrained(folder)  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left",
    )  # fmt: skip


def edit_config(folder: Path, **fields: Any) -> None:
    """Change fields of a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=2))


def _text_config(language: str, width: int, tie: bool) -> Any:
    common = {
        "vocab_size": len(WORDS), "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": tie,
    }  # fmt: skip
    if language == "opt":
        return OPTConfig(
            hidden_size=width, word_embed_proj_dim=width, ffn_dim=2 * width, num_hidden_layers=2, num_attention_heads=4,
            init_std=0.2, **{name: value for name, value in common.items() if name != "initializer_range"},
        )  # fmt: skip
    return LANGUAGES[language](
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, **common,
    )  # fmt: skip


def _vision_config(vision: str, image_size: int, patch_size: int, layers: int, width: int) -> Any:
    common = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    if vision == "dinov2":
        return Dinov2Config(mlp_ratio=2, **common)
    kind = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[vision]
    return kind(intermediate_size=2 * width, **common)


@torch.no_grad()
def spread(model: torch.nn.Module) -> None:
    """Larger weights than the initialiser's, so that answers and features depend on the image."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and ("vision_tower" in name or "projector" in name):
            parameter.mul_(4)


def rename(folder: Path, layout: Layout) -> None:
    """Give the tensors of a fresh checkpoint the names of another layout."""
    rules = {"v5": (), "hub4": _TO_HUB4, "v4_52": (*_TO_HUB4, *_TO_V4_52)}[layout]

    def renamed(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    for path in folder.glob("*.safetensors"):
        save_file({renamed(key): tensor for key, tensor in load_file(path).items()}, path, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {renamed(key): file for key, file in content["weight_map"].items()}
        index.write_text(json.dumps(content))
