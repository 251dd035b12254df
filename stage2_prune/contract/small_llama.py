"""A small random Llama and left-padded questions, on which methods inside the language model are checked."""

from collections.abc import Mapping

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from configs.experiment import Positions
from stage2_prune.language.assemble import ModelInputs
from stage2_prune.language.generate import Answers, generate
from stage2_prune.language.language import Language
from stage2_prune.language.layer_loop import LayerLoop, Stopwatch, pruning_inside
from stage2_prune.pruning.in_llm import InLLMPruner, Scheduled
from stage2_prune.pruning.schedule import Schedule
from store.checkpoint.text import Prompt

LAYERS, WIDTH, PATCHES, VOCABULARY = 8, 32, 24, 40
PROMPTS = (
    Prompt((1, 5, 6), (7, 8, 9, 10, 11, 12, 13)),
    Prompt((1, 5), (14, 15, 16, 17)),
    Prompt((1, 5, 6), (18, 19, 20, 21, 22, 23)),
)
"""Questions of different lengths: the tokens before the image, and those behind it."""


def small_language(dtype: torch.dtype = torch.float32, layers: int = LAYERS, heads: int = 4) -> Language:
    """Make the Llama; its weights are a function of the shapes."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return Language(
        model=model.eval(),
        tokenizer=None,
        template="",
        image_token_id=4,
        eos_token_ids=(2,),
        pad_token_id=0,
        device=torch.device("cpu"),
    )


@torch.no_grad()
def kept_by(
    language: Language, pruner: InLLMPruner, schedule: Schedule, positions: Positions, batch: ModelInputs
) -> list[Mapping[int, list[int]]]:
    """Return, for each question, the patches that enter the layers from each drop on; a merged token is -1."""
    loop = LayerLoop(language.model.model, Scheduled(pruner, schedule), positions, batch.slots, 0, Stopwatch())
    loop(inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    return [{span.first: span.kept[row].tolist() for span in loop.spans[1:]} for row in range(len(batch.slots))]


def answers(
    language: Language, pruner: InLLMPruner, schedule: Schedule, positions: Positions, batch: ModelInputs, steps: int
) -> Answers:
    """Answer a batch with a method inside the language model."""
    return generate(pruning_inside(language, pruner, schedule, positions), batch, steps)
