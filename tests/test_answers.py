"""Answers from the store are the stock model's, whatever its language model and its generation config."""

import importlib
import json

import pytest
import yaml

from configs.cli import run_to_exit_code
from configs.experiment import Experiment
from store.questions.question import read_questions
from store.questions.splits import select
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions
from tests.helpers.stock import stock_answers
from tests.stage2_prune.conftest import settings

STEPS = 5
HEADS = {"llama": (2, 12), "qwen2": (2, 12), "phi3": (2, 12), "mistral": (2, 12), "gemma": (2, 256)}
"""Language model -> heads with keys of their own, and the width of one."""


def run(command, folder, **changes):
    """Run `package command` on the experiment in `folder`; returns its exit code."""
    package, *arguments = command.split()
    changes = {"prune": {"methods": [{"name": "keep_all"}, {"name": "uniform_grid"}], "budgets": [5]}, **changes}
    experiment = Experiment.model_validate(settings(folder, eval__max_new_tokens=STEPS, **changes))
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    group = importlib.import_module(f"{package}.cli").group
    return run_to_exit_code(lambda: group.main([*arguments, "--config", str(path)], standalone_mode=False))


def made(folder, generation=None, **checkpoint):
    tiny_llava(folder / "checkpoint", **checkpoint)
    tiny_questions(folder / "data")
    path = folder / "checkpoint" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (generation or {})))
    return folder


def stock(folder, batch_size=1):
    data = Experiment.model_validate(settings(folder)).data
    questions = select(read_questions(data), data, "test")
    return stock_answers(folder / "checkpoint", data.images, questions, batch_size, STEPS)


def kept_all(folder):
    lines = (folder / "run" / "eval" / "predictions" / "keep_all-16-original.jsonl").read_text().splitlines()
    return [json.loads(line)["prediction"] for line in lines]


@pytest.mark.parametrize("language", HEADS)
def test_any_language_model_answers_and_is_priced_from_the_store_as_stock_answers_to_the_pictures(tmp_path, language):
    folder = made(tmp_path, language=language)
    assert run("stage1_extract extract", folder) == 0
    assert run("stage2_prune eval", folder) == 0
    assert kept_all(folder) == stock(folder, 4) and any(kept_all(folder))
    heads, width = HEADS[language]
    summary = json.loads((folder / "run" / "eval" / "summary.json").read_text())
    assert (
        summary["results"][0]["kv_bytes"] == 16 * 2 * 2 * heads * width * 4
    )  # tokens, layers, keys and values, float32


def test_a_method_inside_a_language_model_that_the_layer_loop_does_not_know_is_unavailable_and_the_others_are_not(
    tmp_path, capsys
):
    folder = made(tmp_path, language="qwen2")
    assert run("stage1_extract extract", folder) == 0
    methods = {"methods": [{"name": "keep_all"}, {"name": "vtw"}], "budgets": [12]}
    assert run("stage2_prune eval", folder, prune=methods) == 0
    summary = json.loads((folder / "run" / "eval" / "summary.json").read_text())
    assert [row["pruner"] for row in summary["results"]] == ["keep_all"]
    assert [one["pruner"] for one in summary["unavailable"]] == ["vtw"]
    assert "Qwen2Model" in summary["unavailable"][0]["reason"]
    capsys.readouterr()
    alone = {"methods": [{"name": "vtw"}], "budgets": [12]}
    assert run("stage2_prune eval", folder, prune=alone, run_dir=str(folder / "alone")) == 2
    assert "Qwen2Model" in capsys.readouterr().err and not list((folder / "alone").rglob("*.jsonl"))
    sweep = {"methods": ["vtw", "uniform_grid"], "workers": 1, "rounds": 1}
    assert run("stage2_prune sweep", folder, prune=methods, sweep=sweep) == 0
    swept = json.loads((folder / "run" / "sweep" / "summary.json").read_text())
    assert ["Qwen2Model" in one["reason"] for one in swept["unavailable"]] == [True]


def test_a_language_model_that_has_no_price_is_refused_by_name_before_any_question(tmp_path, capsys):
    folder = made(tmp_path, language="opt")
    assert run("stage1_extract extract", folder) == 0
    assert run("stage2_prune eval", folder) == 2
    assert (
        "expected intermediate_size in the config of the language model, OPTConfig has none" in capsys.readouterr().err
    )
    assert not list((folder / "run").rglob("*.jsonl"))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_prompt_dependent_setting_gives_the_stock_models_answers_through_every_command(tmp_path, batch_size):
    folder = made(tmp_path, {"repetition_penalty": 4.0, "do_sample": True, "temperature": 0.3, "num_beams": 2})
    assert run("stage1_extract extract", folder) == 0
    assert run("stage2_prune eval", folder, eval__batch_size=batch_size) == 0
    assert kept_all(folder) == stock(folder, batch_size)
    (folder / "checkpoint" / "generation_config.json").write_text('{"eos_token_id": 2, "pad_token_id": 0}')
    assert stock(folder, batch_size) != kept_all(folder)
