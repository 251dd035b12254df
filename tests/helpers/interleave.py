"""A small checkpoint in the exact layout of llava-hf/llava-interleave-qwen-0.5b-hf: its files, fields and tensor names."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from tests.helpers.checkpoints import WORDS, rename, spread

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
_WORDS = [*SPECIAL, "user", "assistant", *WORDS[7:]]
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{% generation %}\n{{ part['text'] }}{% endgeneration %}"
    "{% else %}\n{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PREPROCESSOR = {
    "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5], "processor_class": "LlavaProcessor",
    "resample": 3, "rescale_factor": 1 / 255, "size": {"height": 384, "width": 384},
}  # fmt: skip
_PROCESSOR = {
    "image_token": "<image>", "num_additional_image_tokens": 0, "patch_size": 14, "processor_class": "LlavaProcessor",
    "vision_feature_select_strategy": "full",
}  # fmt: skip


def small_interleave(folder: Path) -> Path:
    """Write the folder: 27x27 patches, three tower layers, two language layers, random weights in bfloat16."""
    torch.manual_seed(0)
    config = _config()
    model = LlavaForConditionalGeneration(LlavaConfig(**config))
    spread(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    _as_on_the_hub(folder / "model.safetensors")
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 2},
        "preprocessor_config.json": _PREPROCESSOR,
        "processor_config.json": _PROCESSOR,
        "chat_template.json": {"chat_template": _TEMPLATE},
    }
    _tokenizer().save_pretrained(folder)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    return folder


def _config() -> dict[str, Any]:
    """The hub's config.json with smaller sizes."""
    text = {
        "_name_or_path": "Qwen/Qwen1.5-0.5B-Chat", "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 0,
        "eos_token_id": 2, "hidden_size": 48, "intermediate_size": 96, "max_position_embeddings": 32768,
        "max_window_layers": 1, "model_type": "qwen2", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 4, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": len(_WORDS), "initializer_range": 0.2,
    }  # fmt: skip
    vision = {
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 32, "image_size": 384, "intermediate_size": 64,
        "layer_norm_eps": 1e-06, "model_type": "siglip_vision_model", "num_attention_heads": 4, "num_hidden_layers": 3,
        "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    return {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
        "image_token_index": _WORDS.index("<image>"), "model_type": "llava", "projector_hidden_act": "gelu",
        "text_config": text, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", "vision_config": vision,
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    }  # fmt: skip


def _as_on_the_hub(weights: Path) -> None:
    """The hub's names, and no head of its own: the embeddings are tied to it."""
    rename(weights.parent, "hub4")
    tensors = load_file(weights)
    tensors.pop("language_model.lm_head.weight", None)
    save_file(tensors, weights, {"format": "pt"})


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, none at the start, special ones as Qwen's."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<|endoftext|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        padding_side="left",
    )  # fmt: skip
