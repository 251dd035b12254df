"""The data set of the harder benchmark: ordinary files, splits that share no scene, and none that was learned from."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from configs.errors import ConfigError
from configs.find_config import load_experiment
from stage1_extract.demo.cli import group
from stage1_extract.demo.hard import world
from stage1_extract.demo.hard.recipe import RECIPES
from stage1_extract.demo.hard.scenes import VARIED_CLUTTER, layout_of, pixels_of, scene
from stage1_extract.demo.hard.tower_lessons import FIRST_SCENE
from stage1_extract.demo.hard.world import HARD
from stage1_extract.demo.write import SPLIT_STRIDE, write_dataset

COUNTS = {"train": 40, "val": 20, "test": 20}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / world.FOLDER
    assert write_dataset(folder, COUNTS, 0, HARD)
    return folder


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]


def test_each_image_is_asked_five_questions_with_choices_and_regions(written):
    assert Counter(row["split"] for row in rows(written)) == COUNTS
    assert set(Counter(row["image"] for row in rows(written)).values()) == {5}
    assert all(row["answers"][0] in row["choices"] for row in rows(written))
    assert {row["kind"] for row in rows(written) if row["patches"]} == {"color", "read", "count", "relation", "exists"}


def test_splits_share_no_image_and_no_scene_and_another_seed_has_other_scenes(written):
    images = list((written / "images").iterdir())
    assert len({hashlib.sha256(image.read_bytes()).digest() for image in images}) == len(images) == 16
    numbers = [n * SPLIT_STRIDE + index for n, count in enumerate(COUNTS.values()) for index in range(count // 5)]
    layouts = [scene(0, index).layout for index in numbers] + [scene(1, index).layout for index in numbers]
    assert len(set(layouts)) == len(layouts)


def test_no_scene_that_the_checkpoints_learn_from_is_in_the_benchmark(written):
    ours = {hashlib.sha256(scene(0, index).image.tobytes()).digest() for index in range(8)}
    for recipe in RECIPES.values():
        for seed, first in ((recipe.seed, 0), (recipe.seed, FIRST_SCENE), (recipe.held_out_seed, 0)):
            drawn = [pixels_of(layout_of(seed, n, VARIED_CLUTTER), seed, n) for n in range(first, first + 8)]
            assert not ours & {hashlib.sha256(pixels.tobytes()).digest() for pixels in drawn}
        assert HARD.training_seed == recipe.seed


def test_a_data_set_is_written_again_only_if_its_clutter_is_another(tmp_path):
    few = {"train": 5}
    assert write_dataset(tmp_path / "data", few, 0, HARD)
    assert not write_dataset(tmp_path / "data", few, 0, HARD)
    assert write_dataset(tmp_path / "data", few, 0, replace(HARD, settings={"clutter": {"confetti": [0, 1]}}))


@pytest.mark.parametrize("name", ["scenes_hard", "scenes_hard_deep"])
def test_the_command_draws_the_harder_scenes_for_both_configs_and_refuses_the_seed_of_the_training(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    few = ["--data.train", "5", "--data.val", "5", "--data.test", "5"]
    done = CliRunner().invoke(group, ["data", "--config", name, *few], catch_exceptions=False)
    assert done.exit_code == 0
    assert {row["kind"] for row in rows(Path("data/scenes_hard"))} >= {"read", "relation"}
    with pytest.raises(ConfigError, match="seed 1 "):
        CliRunner().invoke(
            group, ["data", "--config", name, *few, "--seed", "1"], catch_exceptions=False, standalone_mode=False
        )


def test_both_configs_share_data_and_store_and_differ_in_nothing_but_the_model():
    first, second = (load_experiment(name).model_dump(mode="json") for name in ("scenes_hard", "scenes_hard_deep"))
    assert {key for key in first if first[key] != second[key]} <= {"model", "name", "run_dir"}
    assert (first["data"]["train"], first["data"]["val"], first["data"]["test"]) == (15_000, 2_000, 2_000)
