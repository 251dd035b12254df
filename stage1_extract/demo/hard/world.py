"""The harder benchmark as a world that a data set can be drawn from."""

from dataclasses import asdict

from stage1_extract.demo.hard.questions import questions
from stage1_extract.demo.hard.recipe import TRAINING_SEED
from stage1_extract.demo.hard.scenes import CLUTTER, scene
from stage1_extract.demo.write import World

FOLDER = "scenes_hard"
"""Name of the folder of the benchmark's data."""

HARD = World(
    scene,
    lambda drawn, seed, index: questions(drawn.layout, seed, index),
    TRAINING_SEED,
    {"world": FOLDER, "clutter": {kind: list(counts) for kind, counts in asdict(CLUTTER).items()}},
)
