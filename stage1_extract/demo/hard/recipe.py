"""The settings of the trainings that made the two checkpoints of the harder benchmark, on a CPU and on a GPU."""

from dataclasses import dataclass, replace

TRAINING_SEED = 1
"""Seed of the scenes that the checkpoints learn from; the benchmark's own scenes have seed 0."""


@dataclass(frozen=True)
class HardRecipe:
    """All settings that the trained checkpoints depend on, apart from the code."""

    seed: int = TRAINING_SEED
    """Seed of the scenes, the weights and the order of the lessons."""
    device: str = "cpu"
    """Torch device to train on."""
    workers: int = 0
    """Number of processes that prepare lessons; 0 prepares them in the process that trains."""
    tower_width: int = 96
    """Hidden width of the vision tower."""
    tower_layers: int = 4
    """Number of layers of the vision tower."""
    language_width: int = 128
    """Hidden width of the language models."""
    layers: int = 4
    """Number of layers of the first language model."""
    deep_layers: int = 10
    """Number of layers of the second language model."""
    heads: int = 4
    """Number of attention heads of the tower and of the language models."""
    window_steps: int = 5_000
    """Number of optimiser steps of the tower on windows of scenes."""
    window: int = 12
    """Edge of a window, in patches."""
    window_scenes: int = 8
    """Scenes per step on windows."""
    windows_per_scene: int = 2
    """Windows of each of these scenes."""
    image_steps: int = 2_000
    """Number of optimiser steps of the tower on whole images, which follow."""
    image_scenes: int = 4
    """Scenes per step on whole images."""
    scenes: int = 12_000
    """Number of scenes whose features the language models learn from."""
    held_out: int = 200
    """Number of scenes to measure on, drawn from another seed; each has five questions."""
    language_steps: int = 26_000
    """Number of optimiser steps of the projector and the first language model."""
    deep_steps: int = 8_000
    """Number of optimiser steps of the second language model, which begins from the first."""
    language_scenes: int = 8
    """Scenes per step of a language model."""
    questions_per_scene: int = 15
    """Number of questions that are asked about a scene in one step."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of tower and first language model; it rises over 8 % of the steps and falls along a cosine."""
    deep_learning_rate: float = 7e-4
    """Peak learning rate of the second language model."""
    budgets: tuple[int, ...] = (16, 32, 64, 96, 128, 160, 192)
    """Numbers of visual tokens that a step keeps."""
    budget_shares: tuple[float, ...] = (0.04, 0.06, 0.18, 0.18, 0.18, 0.18, 0.18)
    """How often each of these numbers is drawn."""
    whole_share: float = 0.04
    """Share of the steps with all visual tokens."""
    whole_share_at_end: float = 0.3
    """The same share in the last 15 % of the steps."""
    report_every: int = 1_000
    """Number of steps between two lines of the log."""
    save_every: float = 180.0
    """Seconds between two saves of the state."""

    @property
    def held_out_seed(self) -> int:
        """Seed of the scenes to measure on."""
        return self.seed + 1_000_000


CPU = HardRecipe()
GPU = replace(
    CPU, device="cuda", workers=15, language_width=160, window_steps=6_000, window=24, window_scenes=64, windows_per_scene=1,
    image_steps=0, scenes=20_000, language_steps=12_000, deep_steps=4_000, language_scenes=48, held_out=400,
)  # fmt: skip
"""On a GPU whole images cost little, so that no step is on windows of them; drawing takes longer than learning."""
RECIPES = {"cpu": CPU, "cuda": GPU}
