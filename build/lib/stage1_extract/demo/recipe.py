"""The numbers of the recipe that made the demo's checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything that the result depends on, beside the code."""

    seed: int = 1
    """Seed of the scenes, the weights and the order of the lessons; the demo's own scenes have seed 0."""
    scenes: int = 40_000
    """Scenes to learn from."""
    held_out: int = 400
    """Scenes to measure on, from another seed; five questions each."""
    tower_width: int = 96
    """Hidden width of the vision tower."""
    language_width: int = 160
    """Hidden width of the language model."""
    layers: int = 4
    """Layers of the tower, and of the language model."""
    heads: int = 4
    """Attention heads of both."""
    tower_steps: int = 5_000
    """Optimiser steps of the tower."""
    tower_batch: int = 128
    """Scenes per step."""
    language_steps: int = 8_500
    """Optimiser steps of projector and language model."""
    language_batch: int = 48
    """Scenes per step."""
    questions_per_scene: int = 10
    """Questions asked about a scene in one step."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of both; linear warm-up over 8 % of the steps, then cosine decay."""
    pruned_share: float = 0.6
    """Share of the steps that see only some visual tokens: a model that never did collapses under any pruner."""
    pruned_share_at_end: float = 0.2
    """The same, over the last 15 % of the steps."""
    budgets: tuple[int, ...] = (16, 32, 64, 128, 192)
    """Visual tokens of such a step, in tokens per image."""
    object_bias: float = 8.0
    """Largest preference for patches that show an object, in half of those steps; see language_lessons.py."""
    report_every: int = 1_000
    """Steps between two lines of the log."""
    device: str = "cuda"
    """Where to train."""
    workers: int = 16
    """Processes that draw scenes."""

    @property
    def held_out_seed(self) -> int:
        """Seed of the scenes to measure on."""
        return self.seed + 1_000_000
