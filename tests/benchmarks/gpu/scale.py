"""How large everything is: the shapes of LLaVA-1.5-7B, or small ones that show in seconds on a CPU whether all of it runs."""

from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from tests.helpers.checkpoints import WORDS


@dataclass(frozen=True)
class Scale:
    """Shapes, counts and the device of a run."""

    device: torch.device
    dtype: str
    vision: CLIPVisionConfig
    text: LlamaConfig
    file_numbers: int
    """Weights of a file of the checkpoint."""
    photos: int
    """Images of the store."""
    shard_images: int | None
    """Images per shard; None leaves it to the store."""
    tower_batches: tuple[int, ...]
    """Images per call of the tower."""
    tower_batch: int
    """Images per call of the extraction."""
    parity_questions: int
    kept: tuple[int, ...]
    """Visual tokens of a prompt, the unpruned number first."""
    few: int
    """The budget at which pruned is compared with unpruned."""
    middle: int
    """The budget that selectors are measured at."""
    questions: tuple[int, ...]
    """Questions at once, of a prefill and of an evaluation."""
    asked: int
    """Questions of the evaluation."""
    new_tokens: int
    """Tokens of each answer; random weights never end one."""
    rounds: int
    """Timed rounds, of which the medians are taken."""

    @property
    def patches(self) -> int:
        """Visual tokens of an unpruned image."""
        return (self.vision.image_size // self.vision.patch_size) ** 2

    @property
    def torch_dtype(self) -> torch.dtype:
        """The compute dtype."""
        return getattr(torch, self.dtype)


TEXT_TOKENS = 60
"""Text tokens of a measured prompt."""
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def real(dtype: str = "float16") -> Scale:
    """LLaVA-1.5-7B on a GPU: CLIP ViT-L/14-336, projector 1024 -> 4096 -> 4096, 32 layers of width 4096."""
    return Scale(
        device=torch.device("cuda"),
        dtype=dtype,
        vision=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
            patch_size=14,
        ),
        text=LlamaConfig(
            vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=32, max_position_embeddings=4096, **_IDS,
        ),
        file_numbers=1_000_000_000, photos=1024, shard_images=None, tower_batches=(1, 8, 32, 64), tower_batch=32,
        parity_questions=12, kept=(576, 192, 128, 64, 32), few=64, middle=192, questions=(1, 8, 32), asked=128,
        new_tokens=16, rounds=5,
    )  # fmt: skip


def quick(dtype: str = "float32") -> Scale:
    """Small shapes on the CPU: whether all of it runs, not how fast."""
    return Scale(
        device=torch.device("cpu"),
        dtype=dtype,
        vision=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=56, patch_size=14
        ),
        text=LlamaConfig(
            vocab_size=2 * len(WORDS), hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=1024, **_IDS,
        ),
        file_numbers=20_000, photos=24, shard_images=8, tower_batches=(1, 4, 8), tower_batch=8, parity_questions=4,
        kept=(16, 8, 4, 2), few=4, middle=8, questions=(1, 2, 4), asked=8, new_tokens=2, rounds=1,
    )  # fmt: skip
