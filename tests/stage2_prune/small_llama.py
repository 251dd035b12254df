"""A small random Llama and left-padded questions about random images: what methods inside the model are tested on."""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stage2_prune.language.assemble import Batch, assemble
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.language.layer_loop import LayerLoop, Stopwatch, pruning_inside
from stage2_prune.pruning.in_llm import Scheduled
from store.checkpoint.text import Prompt

LAYERS, WIDTH, PATCHES, VOCABULARY = 8, 32, 24, 40
PROMPTS = (
    Prompt((1, 5, 6), (7, 8, 9, 10, 11, 12, 13)),
    Prompt((1, 5), (14, 15, 16, 17)),
    Prompt((1, 5, 6), (18, 19, 20, 21, 22, 23)),
)


def small_language(dtype: torch.dtype = torch.float32, layers: int = LAYERS, heads: int = 4) -> Language:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=2, initializer_range=0.2, attn_implementation="sdpa",
    )  # fmt: skip
    return Language(
        model=LlamaForCausalLM._from_config(config, dtype=dtype).eval(),
        tokenizer=None,
        template="",
        image_token_id=4,
        eos_token_ids=(2,),
        pad_token_id=0,
        device=torch.device("cpu"),
    )


def eager_twin(language: Language) -> LlamaForCausalLM:
    """The same weights in a stock model whose layers compute whole attention matrices."""
    config = copy.deepcopy(language.model.config)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(language.model.state_dict())
    return model


def questions(
    language: Language, positions: str = "original", prompts: tuple[Prompt, ...] = PROMPTS, seed: int = 1
) -> Batch:
    """A batch of questions, each about an image of its own; a prompt's image is the same in any batch."""
    images = {}
    for number, prompt in enumerate(PROMPTS):
        images[prompt] = torch.randn(PATCHES, WIDTH, generator=torch.Generator().manual_seed(seed + number))
    visual = torch.stack([images[prompt] for prompt in prompts]).to(language.dtype)
    index = torch.arange(PATCHES).expand(len(prompts), -1)
    return assemble(language, list(prompts), visual, index, PATCHES, positions)


@torch.no_grad()
def kept_by(language: Language, pruner, schedule, positions: str, batch: Batch) -> list[dict[int, list[int]]]:
    """For each question, the patches that enter the layers from each drop on."""
    loop = LayerLoop(language.model.model, Scheduled(pruner, schedule), positions, batch.slots, 0, Stopwatch())
    loop(inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    return [{span.first: span.kept[row].tolist() for span in loop.spans[1:]} for row in range(len(batch.slots))]


def answers(language: Language, pruner, schedule, positions: str, batch: Batch, steps: int):
    return generate(pruning_inside(language, pruner, schedule, positions), batch, steps)
