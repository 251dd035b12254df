"""The one loader: typed, all problems at once, nothing unknown let through."""

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from annotated_types import Gt
from pydantic import ConfigDict

from configs import plugin
from configs.errors import ConfigError
from configs.experiment import Method
from configs.load import build_pruner, load, save_resolved

MINIMAL = {"model": {"checkpoint": "x"}, "data": {"images": "images"}}


@dataclass(frozen=True)
class Warm:
    """A pruner's parameters, as pydantic sees them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    temperature: Annotated[float, Gt(0)] = 1.0


def write(folder: Path, content: object, name: str = "trial.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_defaults_are_those_that_users_of_this_pipeline_know(tmp_path):
    experiment = load(write(tmp_path, MINIMAL), {})
    assert (experiment.train.epochs, experiment.train.batch_size) == (2, 10)
    assert (experiment.data.train, experiment.data.val, experiment.data.test) == (None, None, None)


def test_the_run_directory_is_named_after_the_config_file(tmp_path):
    experiment = load(write(tmp_path, MINIMAL), {})
    assert experiment.run_dir == Path("runs/trial")
    assert experiment.store_path == Path("runs/trial/store")


def test_every_problem_is_reported_at_once_with_its_path_and_value(tmp_path):
    path = write(tmp_path, MINIMAL | {"train": {"epochs": -1, "epoch": 3}, "extract": {"max_failures": "many"}})
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    message = str(caught.value)
    assert "3 problems" in message
    for expected in ("train.epochs", "-1", "train.epoch:", "extract.max_failures", "'many'"):
        assert expected in message


def test_a_number_that_yaml_reads_as_text_is_still_a_number(tmp_path):
    assert yaml.safe_load("1e-4") == "1e-4"
    path = write(tmp_path, yaml.safe_dump(MINIMAL) + "\ntrain:\n  learning_rate: 1e-4\n")
    assert load(path, {}).train.learning_rate == 1e-4


def test_debug_all_ones_is_told_to_use_parity(tmp_path):
    with pytest.raises(ConfigError, match=r"prune\.debug_all_ones: .*make parity"):
        load(write(tmp_path, MINIMAL | {"prune": {"debug_all_ones": True}}), {})


def test_the_parameters_of_a_pruner_are_validated_where_they_stand(tmp_path):
    methods = [{"name": "warm", "temperature": -1}, {"name": "warn"}, {"name": "warm", "temprature": 2}]
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, MINIMAL | {"prune": {"methods": methods}}), {}, {"warm": Warm})
    message = str(caught.value)
    assert "prune.methods.0.temperature" in message and "-1" in message
    assert "prune.methods.1.name: no such pruner (got 'warn')" in message
    assert "prune.methods.2.temprature" in message


def test_a_pruner_is_built_from_its_method():
    assert build_pruner(Method.model_validate({"name": "warm", "temperature": "2e-1"}), {"warm": Warm}) == Warm(0.2)


def test_flags_lie_over_the_file(tmp_path):
    experiment = load(write(tmp_path, MINIMAL), {"train.epochs": 0, "run_dir": str(tmp_path)})
    assert experiment.train.epochs == 0 and experiment.run_dir == tmp_path


def test_a_key_given_twice_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="'epochs' is given twice"):
        load(write(tmp_path, yaml.safe_dump(MINIMAL) + "\ntrain:\n  epochs: 1\n  epochs: 2\n"), {})


def test_yaml_cannot_build_python_objects(tmp_path):
    marker = tmp_path / "marker"
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(write(tmp_path, f"model: !!python/object/apply:os.mkdir ['{marker}']"), {})
    assert not marker.exists()


def test_the_resolved_config_reads_back_as_itself(tmp_path):
    experiment = load(write(tmp_path, MINIMAL), {"train.seed": 5})
    save_resolved(experiment, tmp_path)
    assert load(tmp_path / "config.yaml", {}) == experiment


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    from configs import plugin
    from stage2_prune import pruners
    from stage2_prune.pruning.pruner import Pruner

    assert load(path, {}, plugin.find_all(pruners, Pruner)).name == path.stem


def test_the_clip_checkpoint_answers_to_its_bare_name_wherever_the_model_is_a_section(tmp_path):
    import click
    from click.testing import CliRunner

    from configs.flags import experiment_from, experiment_options

    @click.command()
    @experiment_options("eval", "model")
    def command(config_path, **flags):
        click.echo(experiment_from(config_path, flags).model.clip)

    path = write(tmp_path, MINIMAL)
    for flag in ("--clip", "--model.clip"):
        assert CliRunner().invoke(command, ["--config", str(path), flag, "some/clip"]).output == "some/clip\n"


def test_a_variant_whose_file_cannot_be_imported_is_named_in_a_sentence(tmp_path, monkeypatch):
    package = tmp_path / "methods_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "bad_one.py").write_text("import torchh\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match="methods_of_mine.bad_one that can be imported, it raised ModuleNotFoundError"
    ):
        plugin.Variants(importlib.import_module("methods_of_mine"), object)["bad_one"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "expected sections such as `model:` and `data:`, it is empty"),
        (yaml.safe_dump(MINIMAL) + "prune:\n", "line 5: prune: expected keys below prune, there is nothing"),
        (
            MINIMAL | {"prune": {"methods": [{"nme": "keep_all"}]}},
            "prune.methods.0.nme: unknown key: did you mean name?",
        ),
        (
            MINIMAL | {"data": {"images": "images", "val": 0}},
            "data.val: expected a number greater than 0; null takes all",
        ),
    ],
)
def test_what_is_left_empty_misspelt_or_zero_is_said_in_the_configs_own_words(tmp_path, config, said):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, config), {}, {"keep_all": Warm})
    assert said in str(caught.value) and "NoneType" not in str(caught.value)


def test_a_flag_below_a_section_that_is_left_empty_is_told_so(tmp_path):
    with pytest.raises(ConfigError, match="expected keys below prune in the config, there is nothing"):
        load(write(tmp_path, yaml.safe_dump(MINIMAL) + "prune:\n"), {"prune.seeds": 2})


@pytest.mark.parametrize(
    "text", ["train:\n  epochs: 1\n   seed: 2\n", "train:\n  epochs: 1\n seed: 2\n", "  model:\n    x: 1\ndata: 1\n"]
)
def test_wrong_indentation_is_told_its_line_and_what_to_do(tmp_path, text):
    with pytest.raises(ConfigError, match=r"line 3, column \d: .*; indent all keys of one section by as many spaces"):
        load(write(tmp_path, text), {})


@pytest.mark.parametrize("value", ["null", "~"])
def test_a_value_that_cannot_be_null_is_said_to_be_left_out_instead(tmp_path, value):
    with pytest.raises(
        ConfigError, match=r"prune\.budgets: expected a list \(got null\): leave it out for the default"
    ):
        load(write(tmp_path, yaml.safe_dump(MINIMAL) + f"\nprune:\n  budgets: {value}\n"), {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"images": None}}, r"data\.images: .* \(got null\)$"),
        ({"model": None}, r"model: expected keys below model, there is nothing \(got null\)$"),
        ({"prune": {"budgets": [None]}}, r"prune\.budgets\.0: .* \(got null\)$"),
        ({"run_dir": None}, r"run_dir: .* \(got null\): leave it out for the default$"),
        ({"train": None}, r"train: .* \(got null\): leave it out for the default$"),
    ],
)
def test_only_what_has_a_default_is_said_to_be_left_out_for_it(tmp_path, change, said):
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, yaml.safe_dump(MINIMAL | change)), {})
    assert re.search(said, str(refused.value), re.MULTILINE), refused.value


def test_the_demos_checkpoint_is_found_by_its_name_and_by_its_path_from_any_folder(tmp_path, monkeypatch):
    from configs.find_config import DEMO_CHECKPOINT, PACKAGED, load_experiment

    monkeypatch.chdir(tmp_path)
    config = write(tmp_path, MINIMAL)
    for named in ("demo", str(DEMO_CHECKPOINT)):
        experiment = load_experiment(config, model__checkpoint=named)
        assert Path(experiment.model.checkpoint) == PACKAGED.parent / DEMO_CHECKPOINT
        assert load_experiment(load_experiment(config), model__checkpoint=named) == experiment
    assert load_experiment(config, model__checkpoint="some/demo").model.checkpoint == "some/demo"
    (tmp_path / "demo").mkdir()
    assert load_experiment(config, model__checkpoint="demo").model.checkpoint == "demo"


@pytest.mark.parametrize(
    ("checkout", "said"),
    [
        (True, ["`make train`", "`make extract ARGS=--append`", ", or write the demo's with `make data`"]),
        (
            False,
            ["`encode-once train`", "`encode-once extract --append`", ", or write the demo's with `encode-once demo`"],
        ),
    ],
)
def test_messages_name_commands_that_can_be_typed_where_the_package_lies(monkeypatch, checkout, said):
    from configs import errors

    monkeypatch.setattr(errors, "_IN_A_CHECKOUT", checkout)
    demos = errors.or_the_demos_data(Path("data/demo_large"))
    assert [errors.typed("train"), errors.typed("extract", "--append"), demos] == said
    assert errors.or_the_demos_data(Path("data/llava")) == errors.or_the_demos_data(Path()) == ""
