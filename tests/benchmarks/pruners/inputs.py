"""What is measured with: cached arrays, a projector, a tower layer and a language model of published shapes; random weights."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from stage2_prune.language.language import Language
from stage2_prune.pruning.tokens import ClipText, VisualTokens
from store.checkpoint.text import Prompt
from tests.stage2_prune.tokens import visual_tokens


@dataclass(frozen=True)
class Scale:
    """How large everything is, and how often it runs."""

    grid: tuple[int, int]
    widths: tuple[int, int, int]
    """Width of `raw`, heads of `cls_attention`, width of `projected`."""
    tower_layers: int
    clip: int
    """Width of CLIP's common space."""
    budgets: tuple[int, ...]
    """Visual tokens per image that methods are asked for."""
    batches: tuple[int, ...]
    """Images of a batch."""
    language: tuple[int, int, int, int]
    """Layers, width, heads and MLP width of the language model."""
    vocabulary: int
    prefill_budgets: tuple[int, ...]
    """Visual tokens of the pruned prompts."""
    questions: tuple[int, ...]
    """Questions of a prefill's batch."""
    rounds: int
    """Of which the medians are taken."""
    slow: float
    """Layers of the tower from which on a method is run once, on one image: a batch of it would take minutes."""

    @property
    def patches(self) -> int:
        """Visual tokens of an unpruned image."""
        return self.grid[0] * self.grid[1]


REAL = Scale(
    grid=(24, 24), widths=(1024, 16, 4096), tower_layers=24, clip=768, budgets=(64, 192), batches=(1, 32),
    language=(12, 1024, 16, 2752), vocabulary=32000, prefill_budgets=(192, 128, 64, 32), questions=(1, 4),
    rounds=5, slow=5.0,
)  # fmt: skip
"""CLIP ViT-L/14-336 and LLaVA-1.5's projector; a language model of 12 layers, otherwise a quarter of LLaMA-7B's widths."""
QUICK = Scale(
    grid=(4, 6), widths=(16, 2, 24), tower_layers=24, clip=12, budgets=(6, 12), batches=(1, 3),
    language=(8, 32, 4, 64), vocabulary=40, prefill_budgets=(12, 8, 4), questions=(1, 2), rounds=1, slow=1e9,
)  # fmt: skip
"""Whether it runs, not how fast."""
BEFORE, AFTER = 35, 27
"""Text tokens of LLaVA-1.5's prompt: the system prompt, and a question of the usual length with what follows it."""
QUESTION = 20


def device_tokens(scale: Scale, images: int, device: torch.device) -> VisualTokens:
    """All that a pruner may look at, in float32: the contract tests' random arrays and what stands beside them."""
    found = visual_tokens(scale.grid, images, widths=scale.widths, layers=scale.tower_layers)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, *shape, generator=generator).to(device)

    named = {name: array.to(device) for name, array in found.arrays.items()}
    named |= {name: normal(scale.patches, scale.clip) for name in ("clip_patches", "clip_projected")}
    return replace(
        found,
        arrays=named,
        question=normal(QUESTION, scale.widths[2]),
        clip_text=ClipText(normal(1, scale.clip), normal(QUESTION, scale.clip), 100.0),
        projector=projector(scale, device),
        device=device,
    )


def projector(scale: Scale, device: torch.device) -> nn.Module:
    """LLaVA-1.5's: two matrices with a GELU between them."""
    torch.manual_seed(0)
    hidden, _, embed = scale.widths
    return nn.Sequential(nn.Linear(hidden, embed), nn.GELU(), nn.Linear(embed, embed)).to(device)


def tower_layer(scale: Scale, images: int, device: torch.device) -> tuple[nn.Module, Float[Tensor, "image row hidden"]]:
    """One layer of the vision tower and what enters it: every patch and the CLS row."""
    hidden, heads, _ = scale.widths
    config = CLIPVisionConfig(hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=heads)
    config._attn_implementation = "sdpa"
    return CLIPEncoderLayer(config).eval().to(device), torch.randn(images, scale.patches + 1, hidden, device=device)


def tower_layer_flops(scale: Scale) -> int:
    """Of one image's patches and CLS row: 2 x (12 n d^2 + 2 n^2 d)."""
    rows, hidden = scale.patches + 1, scale.widths[0]
    return 2 * (12 * rows * hidden**2 + 2 * rows**2 * hidden)


def language(scale: Scale, device: torch.device) -> Language:
    """A Llama with random weights."""
    torch.manual_seed(0)
    layers, width, heads, mlp = scale.language
    config = LlamaConfig(
        vocab_size=scale.vocabulary, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, attn_implementation="sdpa",
    )  # fmt: skip
    return Language(
        model=LlamaForCausalLM._from_config(config, dtype=torch.float32).eval().to(device),
        tokenizer=None,
        template="",
        image_token_id=4,
        eos_token_ids=(2,),
        pad_token_id=0,
        device=device,
    )


def prompts(scale: Scale, questions: int) -> list[Prompt]:
    """As long as LLaVA-1.5's usual prompt."""
    ids = [token % (scale.vocabulary - 5) + 5 for token in range(BEFORE + AFTER)]
    return [Prompt(tuple(ids[:BEFORE]), tuple(ids[BEFORE:]))] * questions
