"""Every generation setting is followed, without effect or refused by name, before anything else is done."""

import importlib
import json

import pytest
import yaml
from transformers import GenerationConfig

from configs.cli import run_to_exit_code
from configs.experiment import Experiment, ModelSection
from store.checkpoint.generation import FOLLOWED, REFUSED, WITHOUT_EFFECT, generation_settings
from store.errors import DamagedCheckpoint, GenerationRefused
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_questions
from tests.stage2_prune.conftest import settings

OTHER = {
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.5,
    "guidance_scale": 1.5,
    "num_return_sequences": 2,
    "token_healing": True,
    "max_time": 1.0,
    "cache_implementation": "static",
    "cache_config": {"nbits": 4},
    "compile_config": {"dynamic": True},
    "continuous_batching_config": {"block_size": 4},
    "prefill_chunk_size": 4,
    "use_mtp": True,
    "is_assistant": True,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash",
    "low_memory": True,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "diversity_penalty": 0.5,
    "num_beam_groups": 2,
    "constraints": [1],
    "force_words_ids": [[1]],
}
"""A value of each refused setting that would change an answer."""
PRUNE = {"methods": [{"name": "keep_all"}, {"name": "learned_scorer"}], "budgets": [8]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation")
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder / "data")
    return folder


@pytest.fixture(scope="module")
def extracted(home):
    assert run("stage1_extract", ["extract"], home, home) == 0
    return home


@pytest.fixture
def generation(home):
    """Write the checkpoint's generation config, `None` for no file; it is put back afterwards."""
    path = home / "checkpoint" / "generation_config.json"
    before, config = path.read_bytes(), (home / "checkpoint" / "config.json").read_bytes()

    def write(content):
        path.unlink() if content is None else path.write_text(json.dumps(content))
        return ModelSection(checkpoint=str(home / "checkpoint"), device="cpu")

    yield write
    path.write_bytes(before)
    (home / "checkpoint" / "config.json").write_bytes(config)


def test_every_setting_of_the_installed_transformers_is_decided_once():
    tables = [FOLLOWED, WITHOUT_EFFECT.keys(), REFUSED.keys()]
    assert vars(GenerationConfig()).keys() - {"_original_object_hash"} <= set().union(*tables)
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_that_cannot_be_followed_is_refused_by_name_value_and_file(generation, name):
    with pytest.raises(GenerationRefused, match=rf"generation_config\.json.*\n  {name}: ") as caught:
        generation_settings(generation({"eos_token_id": 2, name: OTHER[name]}))
    assert repr(OTHER[name]) in str(caught.value) and caught.value.exit_code == 2


def test_all_settings_that_cannot_be_followed_are_said_at_once(generation):
    assert OTHER.keys() == REFUSED.keys()
    with pytest.raises(GenerationRefused) as caught:
        generation_settings(generation(OTHER))
    assert all(f"  {name}: " in str(caught.value) for name in OTHER)


def test_refused_settings_at_their_defaults_and_unknown_ones_without_a_value_are_no_obstacle(generation):
    harmless = {name: value for name, (values, _) in REFUSED.items() for value in values[:1]}
    assert generation_settings(generation(harmless | {"of_a_later_version": None})) == {}


def test_keys_that_the_installed_transformers_does_not_know_change_nothing_as_in_stock(generation):
    others = {
        "chat_format": "chatml",
        "attn_implementation": "flash_attention_2",
        "max_window_size": 6144,
        "user_token_id": 3,
    }
    assert not others.keys() & vars(GenerationConfig()).keys()
    assert generation_settings(generation(others | {"eos_token_id": 2})) == {}


def test_a_setting_of_a_later_transformers_that_nobody_decided_on_is_refused(generation, monkeypatch):
    class Later(GenerationConfig):
        def __init__(self, **settings):
            self.of_a_later_version = settings.pop("of_a_later_version", None)
            super().__init__(**settings)

    monkeypatch.setattr("transformers.GenerationConfig", Later)
    with pytest.raises(GenerationRefused, match="of_a_later_version: 3 .unknown here"):
        generation_settings(generation({"of_a_later_version": 3}))


def test_only_what_changes_an_answer_is_among_the_settings_that_are_followed(generation):
    idle = {"repetition_penalty": 1.0, "min_length": 0, "no_repeat_ngram_size": 0, "renormalize_logits": False}
    assert generation_settings(generation(idle | {"temperature": 0.2, "suppress_tokens": None})) == {}
    assert generation_settings(generation({"repetition_penalty": 1.5, "top_k": 3})) == {"repetition_penalty": 1.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", -1.0), ("repetition_penalty", "much"), ("bad_words_ids", []), ("bad_words_ids", [[99]]),
     ("forced_eos_token_id", 99), ("sequence_bias", {"1": 2.0}), ("stop_strings", 5),
     ("watermarking_config", {"bias": "x"}), ("exponential_decay_length_penalty", 3)],
)  # fmt: skip
def test_a_value_that_stock_generation_refuses_is_refused_before_any_question(generation, name, value):
    with pytest.raises(DamagedCheckpoint, match=name):
        generation_settings(generation({name: value}))


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\\xff", "[" * 100_000])
def test_a_generation_config_that_is_none_is_refused_by_its_path(home, generation, content):
    model = generation({})
    (home / "checkpoint" / "generation_config.json").write_text(content)
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint/generation_config\.json"):
        generation_settings(model)


@pytest.mark.parametrize("place", ["top", "text_config"])
def test_without_a_file_of_its_own_settings_are_read_from_the_model_config_as_stock_reads_them(home, generation, place):
    model = generation(None)
    config = json.loads((home / "checkpoint" / "config.json").read_text())
    for name, value in {"repetition_penalty": 1.5, "guidance_scale": 2.0}.items():
        (config if place == "top" else config["text_config"])[name] = value
        edit_config(home / "checkpoint", **config)
        if name == "repetition_penalty":
            assert generation_settings(model) == {name: value}
            raw = GenerationConfig.from_pretrained(model.checkpoint, "config.json", _from_model_config=True)
            assert raw.repetition_penalty == value
    with pytest.raises(GenerationRefused, match=r"config\.json.*\n  guidance_scale"):
        generation_settings(model)


def run(package, command, home, folder, **changes):
    """Run a command on the config of the tiny experiment; returns its exit code."""
    group = importlib.import_module(f"{package}.cli").group
    path = folder / "config.yaml"
    content = settings(home, run_dir=str(folder / "run"), prune=PRUNE, **changes)
    path.write_text(yaml.safe_dump(Experiment.model_validate(content).model_dump(mode="json")))
    return run_to_exit_code(lambda: group.main([*command, "--config", str(path)], standalone_mode=False))


@pytest.mark.parametrize("command", [["extract"], ["extract", "--dry-run"]])
def test_an_extraction_for_questions_refuses_before_it_works(home, generation, tmp_path, capsys, command):
    generation({"guidance_scale": 2.0})
    store = tmp_path / "store"
    assert run("stage1_extract", command, home, tmp_path, store__path=str(store)) == 2
    assert "guidance_scale: 2.0" in capsys.readouterr().err and not store.exists()
    images = {"images": str(home / "data" / "images")}
    assert run("stage1_extract", command, home, tmp_path, store__path=str(store), data=images) == 0


@pytest.mark.parametrize(
    "command",
    [["eval"], ["train"], ["parity"], ["sweep"], ["analyse"], ["calibrate", "--keep", "8"], ["show", "image"]],
)
def test_every_command_of_stage_2_refuses_before_it_works(extracted, generation, tmp_path, capsys, command):
    generation({"guidance_scale": 2.0})
    assert run("stage2_prune", command, extracted, tmp_path) == 2
    assert "guidance_scale: 2.0" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and not path.name.startswith(".")]
