"""Both stages read the weights that stock `from_pretrained` reads, whatever else lies in the folder."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from configs.load import load
from stage1_extract.extract import extract
from stage2_prune.find_family import open_language
from store.checkpoint.weights import is_finite, weight_files
from store.reading.reader import FeatureStore
from tests.faults.runs import config_file, invoke, run
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_questions
from tests.helpers.kinds import INDEX, SINGLE, sharded

KEEP_ALL = ("--prune.methods", "[{name: keep_all}]")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Questions, and two models of one shape."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_questions(folder / "data", images=3)
    for seed in (1, 2):
        tiny_llava(folder / f"model{seed}", layout="hub4", seed=seed)
    return folder


@pytest.fixture
def both(home, tmp_path):
    """A folder with the one file of the first model, and with index and shards of the second."""
    folder = Path(shutil.copytree(home / "model2", tmp_path / "checkpoint"))
    sharded(folder)
    shutil.copy(home / "model1" / SINGLE, folder / SINGLE)
    return folder


def is_what_stock_reads(home: Path, checkpoint: object, work: Path) -> None:
    """Features of the store, and weights of the language half, equal those of the stock model."""
    experiment = load(config_file(home, checkpoint), {"run_dir": work / "run"})
    extract(experiment, overwrite=False)
    stock = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    language = open_language(experiment.model).model
    assert torch.equal(language.lm_head.weight, stock.lm_head.weight)
    for name, weight in stock.model.language_model.named_parameters():
        assert torch.equal(language.model.get_parameter(name), weight), name
    state = FeatureStore.open(experiment.store_path).projector
    own = stock.model.multi_modal_projector.state_dict()
    assert all(torch.equal(torch.from_numpy(state.weights[name]), own[name]) for name in own)


def test_of_two_sets_of_weights_both_stages_read_the_one_that_stock_reads(home, both, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        is_what_stock_reads(home, both, tmp_path)
    assert f"{both} holds two sets of weights" in caplog.text


def test_the_four_modes_agree_on_a_folder_with_two_sets(home, both, tmp_path):
    config = ("--config", config_file(home, both), "--run-dir", tmp_path / "run")
    run("extract", *config, cwd=tmp_path)
    run("parity", *config, *KEEP_ALL, cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "parity.json").read_text())["identical"] is True


def test_an_index_without_the_one_file_is_read(home, both, tmp_path):
    (both / SINGLE).unlink()
    is_what_stock_reads(home, both, tmp_path)


def test_the_file_that_the_config_names_comes_before_both(home, both, tmp_path):
    save_file(load_file(home / "model2" / SINGLE), both / "other.safetensors", {"format": "pt"})
    edit_config(both, transformers_weights="other.safetensors")
    is_what_stock_reads(home, both, tmp_path)


def test_the_index_that_the_config_names_comes_before_the_one_file(home, both, tmp_path):
    (both / INDEX).rename(both / "other.safetensors.index.json")
    edit_config(both, transformers_weights="other.safetensors.index.json")
    is_what_stock_reads(home, both, tmp_path)


@pytest.mark.parametrize("named", ["../other.safetensors", "weights.bin", 7])
def test_a_config_that_names_weights_elsewhere_is_refused(home, both, tmp_path, capsys, named):
    edit_config(both, transformers_weights=named)
    config = ("--config", config_file(home, both), "--run-dir", tmp_path / "run")
    assert "transformers_weights in config.json" in invoke(capsys, "extract", *config, expect=4)


def test_files_beside_those_that_the_index_lists_are_not_read(home, both, tmp_path):
    (both / SINGLE).rename(both / "stray.safetensors")
    is_what_stock_reads(home, both, tmp_path)


def test_an_index_that_lists_a_tensor_in_the_wrong_file_is_read_as_stock_reads_it(home, both, tmp_path):
    (both / SINGLE).unlink()
    index = json.loads((both / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    name = next(name for name, file in index["weight_map"].items() if "fc1" in name and file == files[0])
    index["weight_map"][name] = files[1]
    (both / INDEX).write_text(json.dumps(index))
    is_what_stock_reads(home, both, tmp_path)


def test_a_tensor_in_two_files_of_one_index_is_refused(home, both, tmp_path, capsys):
    (both / SINGLE).unlink()
    first, second = sorted(both.glob("model-*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor + 1}, second, {"format": "pt"})
    config = ("--config", config_file(home, both), "--run-dir", tmp_path / "run")
    assert f"{name} is in {first.name} and in {second.name}" in invoke(capsys, "extract", *config, expect=4)


def test_a_hub_cache_with_two_sets_is_read_as_a_folder_is(home, both, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--maker--model"
    shutil.copytree(both, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    assert weight_files("maker/model").name == SINGLE
    assert weight_files("maker/model").fetch(SINGLE).read_bytes() == (home / "model1" / SINGLE).read_bytes()


def test_a_shard_of_the_language_half_that_is_not_there_is_named_before_the_first_image(home, both, tmp_path, capsys):
    (both / SINGLE).unlink()
    index = json.loads((both / INDEX).read_text())
    head = index["weight_map"]["language_model.lm_head.weight"]
    alone = "model-00003-of-00003.safetensors"
    content = load_file(both / head)
    save_file({"language_model.lm_head.weight": content.pop("language_model.lm_head.weight")}, both / alone)
    save_file(content, both / head, {"format": "pt"})
    index["weight_map"]["language_model.lm_head.weight"] = alone
    (both / INDEX).write_text(json.dumps(index))
    (both / alone).unlink()
    config = ("--config", config_file(home, both), "--run-dir", tmp_path / "run")
    assert f"expected {alone} in the checkpoint folder" in invoke(capsys, "extract", *config, expect=5)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(dtype, wrong):
    for size in (1, 7, 64, 1000, 40_003):
        for place in {0, size // 2, size - 1}:
            weights = torch.linspace(-1, 1, size, dtype=dtype)
            assert is_finite(weights)
            weights[place] = wrong
            assert not is_finite(weights)
            assert not is_finite(weights.expand(2, size).T)


def test_what_holds_no_floating_point_numbers_is_finite():
    assert is_finite(torch.tensor([2**62])) and is_finite(torch.empty(0, 3))
