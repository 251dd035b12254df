"""No image of the test split is in any training: compared by digest, under whatever name."""

import json
import shutil

import pytest

from configs.experiment import Experiment
from stage2_prune.errors import LeakedImages
from stage2_prune.training import train
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions
from tests.stage2_prune.conftest import extract, settings
from tests.stage2_prune.sharing.conftest import METHOD
from tests.stage2_prune.test_trained_weights import TRAIN, config, run

TEST_IMAGE, TRAIN_IMAGE, VAL_IMAGE = "image_002.png", "image_000.png", "image_001.png"


@pytest.fixture
def leaking(tmp_path):
    """Make a data set in which names are copies of one image, and some questions are in other splits; extract it."""

    def make(copies, splits, **data):
        folder = tmp_path / "leaking"
        tiny_llava(folder / "checkpoint")
        path = tiny_questions(folder / "data")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for name, source in copies.items():
            shutil.copy(folder / "data/images" / source, folder / "data/images" / name)
        for row in rows:
            row["split"] = splits.get(row["question_id"], row["split"])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        prune = {"methods": [METHOD], "budgets": [4]}
        content = settings(folder, train=TRAIN, prune=prune, **{f"data__{key}": value for key, value in data.items()})
        experiment = Experiment.model_validate(content)
        extract(experiment, folder)
        return experiment

    return make


@pytest.mark.parametrize(("of", "split"), [(TRAIN_IMAGE, "train"), (VAL_IMAGE, "val")])
def test_a_test_image_that_the_training_sees_under_another_name_is_refused_and_named_with_the_number(
    leaking, of, split
):
    experiment = leaking({TEST_IMAGE: of}, {})
    with pytest.raises(
        LeakedImages, match=rf"1 image of 3 is in it \({TEST_IMAGE}, which is {of} in {split}\)"
    ) as caught:
        train.run(experiment)
    assert caught.value.exit_code == 2 and not (experiment.run_dir / "pruner").exists()


def test_questions_about_one_image_in_two_splits_are_refused_too(leaking):
    with pytest.raises(LeakedImages, match=rf"\({TEST_IMAGE} in train\)"):
        train.run(leaking({}, {f"{TEST_IMAGE}/1": "train"}))


def test_test_questions_beyond_the_limit_count_also_where_their_images_are_not_in_the_store(leaking):
    last = "image_008.png"
    with pytest.raises(LeakedImages, match=rf"1 image of 3 is in it \({last} in train\)"):
        train.run(leaking({}, {f"{last}/0": "train"}, test=2))


def test_images_that_are_known_by_name_are_compared_by_name(leaking):
    experiment = leaking({TEST_IMAGE: TRAIN_IMAGE}, {}, identity="name")
    assert train.run(experiment)["data"]["identity"] == "name"
    assert "by the sha256 of its name." in (experiment.run_dir / "pruner/learned_scorer/README.md").read_text()


def test_copies_inside_the_training_split_or_of_no_split_at_all_are_no_leak(leaking):
    assert train.run(leaking({"image_003.png": TRAIN_IMAGE}, {}))["data"]["splits"]["train"]["images"] == 2


def test_a_leak_is_one_sentence_at_the_command_line(home, leaking, tmp_path, capsys):
    leaking({TEST_IMAGE: TRAIN_IMAGE}, {})
    assert run("train", config(tmp_path / "leaking", tmp_path / "c", tmp_path / "run", METHOD)) == 2
    said = capsys.readouterr().err
    assert "take the questions about it out of one of the splits in" in said and "Traceback" not in said
