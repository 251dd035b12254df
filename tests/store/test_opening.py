"""A checkpoint's config is opened once in a process, and again where its files have changed."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoConfig

from configs.experiment import ModelSection
from stage1_extract.encoding.family import checkpoint_config
from stage2_prune.find_family import open_language, open_text
from store.checkpoint import json_files, opening
from store.checkpoint.opening import load_config
from store.checkpoint.weights import weight_files
from store.errors import UnusableCheckpoint
from tests.helpers.checkpoints import edit_config, tiny_llava

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("opening") / "checkpoint")


@pytest.fixture
def checkpoint(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


@pytest.fixture
def openings(monkeypatch):
    """How often this project parses a checkpoint's config.json itself, and how often it lets stock code open the config."""
    counts: Counter[str] = Counter()
    own, stock = json_files._content.__wrapped__, opening._open

    def parse(path, state):
        counts[path.name] += 1
        return own(path, state)

    def open_stock(*arguments):
        counts["stock"] += 1
        return stock(*arguments)

    monkeypatch.setattr(json_files, "_content", json_files.lru_cache(maxsize=16)(parse))
    monkeypatch.setattr(opening, "_open", open_stock)
    return counts


def test_a_process_opens_a_config_once_whatever_it_opens_of_the_checkpoint(checkpoint, openings):
    model = ModelSection(checkpoint=str(checkpoint), device="cpu")
    checkpoint_config(model)
    for _ in range(2):
        load_config(str(checkpoint))
        weight_files(str(checkpoint))
        open_text(model)
        open_language(model)
    assert (openings["config.json"], openings["stock"]) == (1, 1)


def test_no_other_file_opens_a_config():
    packages = ("configs", "store", "stage1_extract", "stage2_prune")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    opening_one = {path.relative_to(ROOT).as_posix() for path in files if "AutoConfig" in path.read_text()}
    assert opening_one == {"store/checkpoint/opening.py"}


def test_each_caller_has_a_config_of_its_own(checkpoint):
    config = load_config(str(checkpoint))
    config.text_config.vocab_size = 1
    again = load_config(str(checkpoint))
    assert again.text_config.vocab_size > 1
    again.vision_feature_layer = -1
    assert load_config(str(checkpoint)).vision_feature_layer == -2
    assert type(config) is type(AutoConfig.from_pretrained(checkpoint))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_config_that_changes_in_a_process_is_opened_again(checkpoint, openings, in_place):
    path = checkpoint / "config.json"
    for layer in (-2, -1, -2, -3):  # texts of one length
        text = json.dumps(json.loads(path.read_text()) | {"vision_feature_layer": layer})
        written = path if in_place else checkpoint / "aside"
        written.write_text(text)
        written.replace(path)
        assert load_config(str(checkpoint)).vision_feature_layer == layer
    assert openings["stock"] == 4


def test_a_folder_that_takes_the_place_of_another_is_opened(checkpoint, original, tmp_path):
    assert load_config(str(checkpoint)).vision_feature_layer == -2
    checkpoint.rename(tmp_path / "old")
    edit_config(Path(shutil.copytree(original, checkpoint)), vision_feature_layer=-1)
    assert load_config(str(checkpoint)).vision_feature_layer == -1


def test_what_makes_a_checkpoint_unusable_is_noticed_after_it_was_opened(checkpoint):
    load_config(str(checkpoint))
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(UnusableCheckpoint, match="adapter_config.json"):
        load_config(str(checkpoint))
    (checkpoint / "adapter_config.json").unlink()
    assert load_config(str(checkpoint)).model_type == "llava"
