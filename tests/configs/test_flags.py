"""Flags: derived from the config's models, read by their types, and blamed by their names."""

import re
from typing import Annotated, Any, Literal

import click
import pytest
from annotated_types import Gt, Le
from click.testing import CliRunner
from pydantic import PositiveInt

from configs.cli import run_to_exit_code
from configs.errors import ConfigError
from configs.experiment import Experiment, Method
from configs.flags import SectionedCommand, experiment_from, experiment_options
from configs.load import load
from configs.parsing.field_types import bounds, in_words, value_in_words
from stage2_prune.cli import group as stage2
from tests.configs.test_load import MINIMAL, Warm, write

SECTIONS = ("extract", "model", "data", "store", "prune", "teach", "train", "eval", "sweep")


@click.command(cls=SectionedCommand)
@experiment_options(*SECTIONS)
@click.pass_context
def command(context, config_path, **flags):
    """Load a config."""
    context.obj["experiment"] = experiment_from(config_path, flags)


def loaded(folder, *arguments, config=MINIMAL) -> Experiment:
    """The experiment that flags over a config give."""
    found: dict[str, Any] = {}
    typed = ["--config", str(write(folder, config)), *arguments]
    done = CliRunner().invoke(command, typed, obj=found, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return found["experiment"]


def refused(folder, *arguments, config=MINIMAL) -> str:
    """What is said of flags that are refused."""
    with pytest.raises(ConfigError) as caught:
        loaded(folder, *arguments, config=config)
    return str(caught.value)


@pytest.mark.parametrize("text", ["64,32", "[64, 32]", "64, 32"])
def test_a_list_is_typed_with_commas_or_as_yaml(tmp_path, text):
    assert loaded(tmp_path, "--prune.budgets", text).prune.budgets == (64, 32)


@pytest.mark.parametrize("given", ["'64,32'", "[64, 32]"])
def test_a_list_means_the_same_in_a_file(tmp_path, given):
    config = f"model: {{checkpoint: x}}\ndata: {{images: i}}\nprune: {{budgets: {given}}}\n"
    assert load(write(tmp_path, config), {}).prune.budgets == (64, 32)


def test_a_single_value_is_a_list_of_one(tmp_path):
    assert loaded(tmp_path, "--prune.budgets", "64").prune.budgets == (64,)
    experiment = load(write(tmp_path, MINIMAL | {"prune": {"budgets": 64, "methods": "random"}}), {})
    assert experiment.prune.budgets == (64,) and experiment.prune.methods == (Method(name="random"),)


METHODS = (Method(name="cls_attention"), Method.model_validate({"name": "random", "seed": 3}))


@pytest.mark.parametrize(
    "text",
    [
        "cls_attention,{name: random, seed: 3}",
        "[cls_attention, {name: random, seed: 3}]",
        "{name: cls_attention},{name: random, seed: 3}",
    ],
)
def test_methods_are_typed_by_name_or_with_parameters(tmp_path, text):
    assert loaded(tmp_path, "--prune.methods", text).prune.methods == METHODS


def test_plain_names_of_methods_work_in_a_file_and_in_a_flag(tmp_path):
    methods = ["cls_attention", {"name": "random", "seed": 3}]
    assert load(write(tmp_path, MINIMAL | {"prune": {"methods": methods}}), {}).prune.methods == METHODS
    named = loaded(tmp_path, "--prune.methods", "cls_attention,random").prune.methods
    assert named == (Method(name="cls_attention"), Method(name="random"))


def test_a_word_with_a_meaning_of_its_own_is_no_list(tmp_path):
    assert loaded(tmp_path, "--sweep.methods", "configured").sweep.methods == "configured"
    assert loaded(tmp_path, "--sweep.methods", "random").sweep.methods == ("random",)
    assert loaded(tmp_path, "--extract.capture", "core").extract.capture == ("core",)


def test_null_takes_a_value_away_and_text_stays_what_was_typed(tmp_path):
    config = MINIMAL | {"model": {"checkpoint": "x", "revision": "a"}, "data": {"images": "i", "questions": "q"}}
    assert loaded(tmp_path, "--model.revision", "null", config=config).model.revision is None
    assert loaded(tmp_path, "--model.revision", "0070", config=config).model.revision == "0070"
    assert loaded(tmp_path, "--data.post-prompt", "[a] # b: c").data.post_prompt == "[a] # b: c"
    assert str(loaded(tmp_path, "--data.images", "[x], y #1").data.images) == "[x], y #1"


def test_a_mapping_is_typed_as_yaml(tmp_path):
    assert loaded(tmp_path, "--extract.slurm", "{timeout_min: 240}").extract.slurm == {"timeout_min": 240}
    assert loaded(tmp_path, "--sweep.vary", "quirks: every").sweep.vary == {"quirks": "every"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--train.epochs", "-1"), r"--train\.epochs: expected a number greater than or equal to 0 \(got '-1'\)"),
        (("--eval.batch-size", "many"), r"--eval\.batch-size: expected an integer or 'auto' \(got 'many'\)"),
        (
            ("--eval.split", "tset"),
            r"--eval\.split: expected 'train', 'val' or 'test' .got 'tset'.: did you mean test\?",
        ),
        (("--prune.budgets", "64,no"), r"--prune\.budgets\.1: expected .*\(got 'no'\)"),
        (("--extract.slurm", "[a"), r"--extract\.slurm: not valid YAML: line 1, column 3"),
        (("--prune.budgets", "[" * 5000), r"--prune\.budgets: not valid YAML: line 1, .*more than 50 lists"),
        (("--sweep.vary", '{a: !!int ""}'), r"--sweep\.vary: not valid YAML: .*'' is not a !!int"),
        (("--sweep.vary", "{a: 3}"), r"--sweep\.vary\.a: expected 'every' or a list \(got 3\)"),
        (("--extract.stall-seconds", "inf"), r"--extract\.stall-seconds: expected a finite number"),
        (("--model.trust-remote-code", "perhaps"), r"--model\.trust-remote-code: expected true or false .got .perhaps"),
        (
            ("--prune.budgets", "0"),
            r"budgets\.0: expected tokens such as 64 or 206\.5, or published:192, greater than 0; keep_none keeps nothing",
        ),
        (("--prune.budgets", "64,-3"), r"budgets\.1: expected tokens .* greater than 0; keep_none"),
        (("--prune.budgets", "null"), r"--prune\.budgets: expected a list \(got null\): leave it out for the default"),
        (("--prune.seeds", "null"), r"--prune\.seeds: expected an integer \(got null\): leave it out for the default"),
        (("--data.train", "0"), r"--data\.train: expected a number greater than 0; null takes all .got .0"),
        (("--max-failures", "abc"), r"--extract\.max-failures: expected a count such as 5, or a share such as 1%"),
    ],
)
def test_a_wrong_flag_is_blamed_by_its_name_and_no_line_of_the_file(tmp_path, arguments, said):
    config = MINIMAL | {"train": {"epochs": 2}, "eval": {"batch_size": 3}, "prune": {"budgets": [1, 2]}}
    message = refused(tmp_path, *arguments, config=config)
    assert re.search(said, message), message
    assert "trial.yaml" not in message


def test_flags_and_file_are_each_blamed_for_their_own(tmp_path):
    message = refused(tmp_path, "--train.epochs", "-1", config=MINIMAL | {"eval": {"split": "x"}})
    assert "trial.yaml and the command line: 2 problems" in message
    assert "\n  --train.epochs: " in message and re.search(r"\n  line \d: eval\.split: ", message)


def test_a_misspelt_key_pruner_or_parameter_gets_the_nearest_one(tmp_path):
    config = MINIMAL | {"trian": {}, "train": {"learning_rat": 1}, "eval": {"epochs": 1}, "qqq": 1}
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, config), {}, {"warm": Warm})
    said = str(caught.value)
    assert "trian: unknown key: did you mean train?" in said
    assert "train.learning_rat: unknown key: did you mean learning_rate?" in said
    assert "eval.epochs: unknown key: did you mean train.epochs?" in said
    assert "qqq: unknown key; there are name, run_dir, model" in said
    methods = ["wram", {"name": "warm", "temprature": 2}]
    config = MINIMAL | {"prune": {"methods": methods}, "train": {"pruner": "wamr"}, "sweep": {"without": "warn"}}
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, config), {}, {"warm": Warm})
    said = str(caught.value)
    assert "prune.methods.0.name: no such pruner (got 'wram'): did you mean warm?" in said
    assert "prune.methods.1.temprature: unknown key: did you mean temperature?" in said
    assert "train.pruner: no such pruner (got 'wamr'): did you mean warm?" in said
    assert "sweep.without: no such pruner (got 'warn'): did you mean warm?" in said


def test_a_misspelt_flag_and_command_get_the_nearest_one():
    for arguments in (["eval", "--prune.budgest", "3"], ["evla"]):
        done = CliRunner().invoke(stage2, arguments)
        assert done.exit_code == 2 and "Did you mean" in done.output


def test_help_groups_flags_by_section_with_types_choices_bounds_and_defaults():
    text = " ".join(CliRunner().invoke(command, ["--help"], max_content_width=400, terminal_width=400).output.split())
    for section in SECTIONS:
        assert f" {section}: " in text
    for flag in (
        "--eval.split train|val|test Split to score. [default: test]",
        "--train.epochs INTEGER Passes over the training questions; 0 saves the freshly seeded pruner. [default: 2; >= 0]",
        "--prune.methods METHOD,... ",
        "--model.trust-remote-code true|false ",
        "--store.arrays TEXT,... Names of the arrays to store. [default: raw,projected,cls_hidden,cls_attention]",
        "--extract.slurm, --slurm {NAME: VALUE, ...} ",
        "--sweep.methods all|configured|TEXT,... ",
    ):
        assert flag in text, flag
    assert text.index(" Options: ") < text.index(" extract: ") < text.index(" model: ")


@pytest.mark.parametrize(
    ("kind", "words", "limits"),
    [
        (int | None, "INTEGER", ""),
        (Annotated[int | float | str, Gt(0)], "INTEGER|NUMBER|TEXT", "> 0"),
        (tuple[Annotated[float, Gt(0), Le(1)], ...], "NUMBER,...", "> 0, <= 1"),
        (Literal["a", "b"] | PositiveInt | None, "a|b|INTEGER", "> 0"),
        (dict[str, int], "{NAME: VALUE, ...}", ""),
        (list[Method], "METHOD,...", ""),
        (tuple[Any, ...], "VALUE,...", ""),
    ],
)
def test_a_new_fields_type_is_shown_without_a_change_here(kind, words, limits):
    assert (in_words(kind), bounds(kind)) == (words, limits)


def test_every_field_of_the_config_has_a_help_text_and_a_type():
    for name in SECTIONS:
        for field, info in Experiment.model_fields[name].annotation.model_fields.items():
            assert info.description, f"{name}.{field}"
            assert in_words(info.rebuild_annotation())
            assert info.is_required() or isinstance(value_in_words(info.get_default(call_default_factory=True)), str)


def test_a_wrong_flag_ends_with_exit_code_2(tmp_path, capsys):
    arguments = ["eval", "--config", str(write(tmp_path, MINIMAL)), "--prune.methods", "radnom"]
    assert run_to_exit_code(lambda: stage2.main(arguments, standalone_mode=False)) == 2
    assert "--prune.methods.0.name: no such pruner (got 'radnom'): did you mean random?" in capsys.readouterr().err
