"""No scene of the demo's test split is one that its pruner, or its checkpoint, learned from; and what their cards say of it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import yaml

import stage1_extract.demo
from configs.experiment import DataSection
from configs.find_config import load_experiment
from stage1_extract.demo.card import checkpoint_card, data_card
from stage1_extract.demo.recipe import Recipe
from stage1_extract.demo.scenes import NOISE_BLOCK, background, scene
from stage1_extract.demo.write import QUESTIONS_PER_SCENE, SPLIT_STRIDE

SEED = 0
"""Of the demo's data."""
CHECKPOINT = Path(stage1_extract.demo.__file__).parent / "checkpoint"


def indices(data: DataSection, split: str) -> range:
    first = ["train", "val", "test"].index(split) * SPLIT_STRIDE
    return range(first, first + -(-getattr(data, split) // QUESTIONS_PER_SCENE))


def digests(data: DataSection, split: str) -> set[str]:
    return {hashlib.sha256(scene(SEED, index).image.tobytes()).hexdigest() for index in indices(data, split)}


def backgrounds(seed: int, numbers: range) -> set[bytes]:
    """Digests of what lies behind the objects: equal images have equal ones where no object is."""
    return {hashlib.sha256(background(np.random.default_rng([seed, n])).tobytes()).digest() for n in numbers}


def test_the_test_images_of_the_demo_are_in_no_other_split_by_the_digest_of_their_pixels():
    data = load_experiment("demo").data
    test, others = digests(data, "test"), digests(data, "train") | digests(data, "val")
    assert len(test) == 40 and len(others) == 160 and not test & others


def test_no_scene_of_the_test_split_is_among_the_40000_that_tower_and_language_model_learned_from():
    recipe, data = Recipe(), load_experiment("demo").data
    of_log = json.loads((CHECKPOINT.parent / "training_log.jsonl").read_text().splitlines()[0])
    assert (of_log["seed"], of_log["scenes"]) == (recipe.seed, recipe.scenes), (
        "the recipe that the checkpoint was made by"
    )
    learned = backgrounds(recipe.seed, range(recipe.scenes)) | backgrounds(recipe.held_out_seed, range(recipe.held_out))
    test = backgrounds(SEED, indices(data, "test"))
    assert len(learned) == recipe.scenes + recipe.held_out and len(test) == 40 and not learned & test


def test_a_scene_lies_on_the_background_that_is_compared():
    behind = background(np.random.default_rng([SEED, 7])).repeat(NOISE_BLOCK, 0).repeat(NOISE_BLOCK, 1)
    same = (np.asarray(scene(SEED, 7).image) == behind).all(-1)
    assert 0.5 < same.mean() < 1


def test_the_card_of_the_checkpoint_is_what_its_training_writes_and_both_cards_have_the_licence_of_the_repository():
    card = (CHECKPOINT / "README.md").read_text()
    assert card == checkpoint_card(Recipe())
    for text in (card, data_card(0, {"train": 600})):
        assert yaml.safe_load(text.split("---\n")[1])["license"] == "apache-2.0"
    assert 'license = "Apache-2.0"' in (CHECKPOINT.parents[2] / "pyproject.toml").read_text()
