"""Full CLIP checkpoints with small random weights, whose vision tower is that of a small LLaVA."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from store.checkpoint.opening import load_config
from store.checkpoint.weights import load_tensors

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WIDTH = 24
CONTEXT = 77
"""Tokens that the text encoder reads at once, begin and end included."""


def clip_checkpoint(
    folder: Path,
    llava: Path,
    *,
    width: int = CLIP_WIDTH,
    context: int = CONTEXT,
    old_end: bool = False,
    sharded: bool = False,
    seed: int = 0,
) -> Path:
    """A checkpoint folder that stock CLIPModel and AutoTokenizer open.

    `old_end`: its config says, as OpenAI's do, that a text ends with token 2, which stands for the highest id in it.
    """
    torch.manual_seed(seed)
    letters = clip_tokenizer(context)
    begin, end = letters.convert_tokens_to_ids([BEGIN, END])
    text = {
        "vocab_size": len(letters), "hidden_size": 20, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": context, "projection_dim": width, "bos_token_id": begin,
        "eos_token_id": 2 if old_end else end, "pad_token_id": end, "initializer_range": 0.2,
    }  # fmt: skip
    vision = load_config(str(llava)).vision_config.to_dict() | {"projection_dim": width}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("text_model") and parameter.dim() > 1:  # so that every token of a text matters
                parameter.mul_(8)
    tower = load_tensors(str(llava), ("vision_tower.",))
    missing, unexpected = model.vision_model.load_state_dict(
        {name.removeprefix("vision_tower."): tensor.float() for name, tensor in tower.items()}, strict=False
    )
    assert not missing and all(name.endswith("position_ids") for name in unexpected)
    model.save_pretrained(folder, max_shard_size="20kB" if sharded else "5GB")
    letters.save_pretrained(folder)
    return folder


def clip_tokenizer(context: int = CONTEXT) -> CLIPTokenizer:
    """One token per letter: the last of a word is another one than inside it."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = {
        token: place for place, token in enumerate([*letters, *(f"{one}</w>" for one in letters), BEGIN, END])
    }
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=context)
