"""The settings of the training that made the demo's checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """All settings that the trained checkpoint depends on, apart from the code."""

    seed: int = 1
    """Seed of the scenes, the weights and the order of the lessons; the demo's own scenes have seed 0."""
    scenes: int = 40_000
    """Number of scenes to learn from."""
    held_out: int = 400
    """Number of scenes to measure on, drawn from another seed; each has five questions."""
    tower_width: int = 96
    """Hidden width of the vision tower."""
    language_width: int = 160
    """Hidden width of the language model."""
    layers: int = 4
    """Number of layers of the tower, and of the language model."""
    heads: int = 4
    """Number of attention heads of the tower, and of the language model."""
    tower_steps: int = 5_000
    """Number of optimiser steps of the tower."""
    tower_batch: int = 128
    """Scenes per step of the tower."""
    language_steps: int = 8_500
    """Number of optimiser steps of projector and language model."""
    language_batch: int = 48
    """Scenes per step of projector and language model."""
    questions_per_scene: int = 10
    """Number of questions that are asked about a scene in one step."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of both trainings, after a linear warm-up over 8 % of the steps; a cosine decay follows."""
    pruned_share: float = 0.6
    """Share of the steps with only some of the visual tokens; a model trained on all tokens collapses under any pruner."""
    pruned_share_at_end: float = 0.2
    """The same share in the last 15 % of the steps."""
    budgets: tuple[int, ...] = (16, 32, 64, 128, 192)
    """Budgets that a step with only some of the tokens draws from, in tokens per image."""
    object_bias: float = 8.0
    """Largest preference for patches that show an object, in half of the scenes; see `kept_patches`."""
    report_every: int = 1_000
    """Number of steps between two lines of the log."""
    device: str = "cuda"
    """Torch device to train on."""
    workers: int = 16
    """Number of processes that draw scenes."""

    @property
    def held_out_seed(self) -> int:
        """Seed of the scenes to measure on."""
        return self.seed + 1_000_000
