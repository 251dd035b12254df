"""The small Llama of the contract, with what only tests need of it: an eager twin, and questions about random images."""

import copy

import torch
from transformers import LlamaForCausalLM

from stage2_prune.contract.small_llama import (
    LAYERS,
    PATCHES,
    PROMPTS,
    VOCABULARY,
    WIDTH,
    answers,
    kept_by,
    small_language,
)
from stage2_prune.language.assemble import ModelInputs, assemble
from stage2_prune.language.language import Language
from store.checkpoint.text import Prompt

__all__ = [
    "LAYERS",
    "PATCHES",
    "PROMPTS",
    "VOCABULARY",
    "WIDTH",
    "answers",
    "eager_twin",
    "kept_by",
    "questions",
    "small_language",
]


def eager_twin(language: Language) -> LlamaForCausalLM:
    """The same weights in a stock model whose layers compute whole attention matrices."""
    config = copy.deepcopy(language.model.config)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(language.model.state_dict())
    return model


def questions(
    language: Language, positions: str = "original", prompts: tuple[Prompt, ...] = PROMPTS, seed: int = 1
) -> ModelInputs:
    """A batch of questions, each about an image of its own; a prompt's image is the same in any batch."""
    images = {}
    for number, prompt in enumerate(PROMPTS):
        images[prompt] = torch.randn(PATCHES, WIDTH, generator=torch.Generator().manual_seed(seed + number))
    visual = torch.stack([images[prompt] for prompt in prompts]).to(language.dtype)
    index = torch.arange(PATCHES).expand(len(prompts), -1)
    return assemble(language, list(prompts), visual, index, PATCHES, positions)
