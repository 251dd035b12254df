"""Every command says once how many of how many questions it takes, and why; what cannot be scored is never wrong."""

import json
import logging

import click
import pytest
import yaml

from configs.cli import run_to_exit_code
from configs.experiment import DataSection
from stage1_extract.cli import group as stage1
from stage2_prune.cli import group as stage2
from stage2_prune.evaluation import evaluate
from stage2_prune.session.choose import NO_ANSWER
from stage2_prune.session.features import left_out
from tests.helpers.data import COLORS

KEEP = {
    "prune__methods": [{"name": "keep_all"}, {"name": "uniform_grid"}, {"name": "learned_scorer"}],
    "prune__budgets": [4],
}


def questions(folder, count=18, without_answer=(), **fields):
    """Questions without a split about the tiny experiment's nine images, some of which have no answer."""
    rows = [
        {
            "question_id": f"q{number}",
            "image": f"image_{number % 9:03d}.png",
            "question": "what color is it ?",
            "answers": [] if number in without_answer else [COLORS[number % 3]],
            "choices": list(COLORS),
        }
        | fields
        for number in range(count)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def invoke(experiment, folder, group, *arguments, expect=0):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(experiment.model_dump(mode="json", exclude={"name"})))
    command, *rest = map(str, arguments)
    assert (
        run_to_exit_code(lambda: group.main([command, "--config", str(path), *rest], standalone_mode=False)) == expect
    )


def taken(caplog):
    """The accounts of questions that were given."""
    return [record.getMessage() for record in caplog.records if "questions are taken" in record.getMessage()]


COMMANDS = {
    "extract": (stage1, (), "12 of 18 questions are taken, about 6 of 9 images"),
    "extract --dry-run": (stage1, (), "12 of 18 questions are taken, about 6 of 9 images"),
    "eval": (stage2, (), "4 of 18 questions are taken, about 2 of 9 images"),
    "sweep": (stage2, ("--methods", "keep_all", "--workers", 1), "4 of 18 questions are taken, about 2 of 9 images"),
    "train": (stage2, (), "8 of 18 questions are taken, about 4 of 9 images"),
    "calibrate": (stage2, ("--keep", 12, "--limit", 3), "3 of 18 questions are taken, about 2 of 9 images"),
    "analyse": (stage2, ("--limit", 3), "3 of 18 questions are taken, about 2 of 9 images"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_once_how_many_of_how_many_questions_it_takes(tiny, tmp_path, caplog, command):
    group, flags, expected = COMMANDS[command]
    sizes = {"data__train": 4, "data__val": 4, "data__test": 4, "train": {"epochs": 0, "val_keep": 4}}
    store = {"store__path": str(tmp_path / "new")} if command == "extract" else {}
    experiment = tiny(data__questions=questions(tmp_path), **KEEP, **sizes, **store)
    if command in ("eval", "sweep"):
        experiment = tiny(
            data__questions=questions(tmp_path), **KEEP | {"prune__methods": [{"name": "keep_all"}]}, **sizes
        )
    with caplog.at_level(logging.WARNING):
        invoke(experiment, tmp_path, group, *command.split(), *flags)
    (said,) = taken(caplog)
    assert f"{tmp_path}/questions.jsonl: {expected}" in said
    assert "--limit is 3" in said or "are not asked here" in said or "data.train is 4" in said
    assert "they name no split, so their images are dealt out by the hashes of their names" in said


def test_all_questions_are_taken_where_no_number_says_otherwise(tiny, tmp_path, caplog):
    assert (
        DataSection(images=tmp_path).train,
        DataSection(images=tmp_path).val,
        DataSection(images=tmp_path).test,
    ) == (None,) * 3
    invoke(tiny(data__questions=questions(tmp_path)), tmp_path, stage1, "extract", "--dry-run")
    (said,) = taken(caplog)
    assert "18 of 18 questions are taken, about 9 of 9 images" in said


@pytest.mark.parametrize("sweep", [False, True])
def test_a_question_without_an_answer_is_excluded_with_its_reason_and_never_wrong(
    tiny, tmp_path, caplog, capsys, sweep
):
    asked = {"data__questions": questions(tmp_path, without_answer=(0, 5), split="test")}
    experiment = tiny(**asked, prune__methods=[{"name": "keep_all"}])
    invoke(experiment, tmp_path, stage2, *(["sweep", "--methods", "keep_all", "--workers", 1] if sweep else ["eval"]))
    folder = experiment.run_dir / ("sweep" if sweep else "eval")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["excluded"] == [{"question_id": name, "reason": NO_ANSWER} for name in ("q0", "q5")]
    assert summary["n_questions"] == 16 and all(row["n"] == 16 for row in summary["results"])
    lines = next((folder / "eval" if sweep else folder).glob("predictions/*.jsonl")).read_text().splitlines()
    assert len(lines) == 16 and not {"q0", "q5"} & {json.loads(line)["question_id"] for line in lines}
    assert "2 of them have no answer, and cannot be scored (q0, q5)" in caplog.text
    assert f"2 questions were left out: {NO_ANSWER} (2)." in capsys.readouterr().out


def test_training_leaves_questions_without_an_answer_out(tiny, tmp_path, caplog):
    asked = questions(tmp_path, without_answer=(0, 1, 2))
    experiment = tiny(data__questions=asked, **KEEP, train={"epochs": 0, "val_keep": 4})
    invoke(experiment, tmp_path, stage2, "train", "--json")
    assert "have no answer, and cannot be scored" in caplog.text


def test_parity_says_how_many_it_takes_scores_only_what_has_an_answer_and_follows_links(home, tiny, tmp_path, caplog):
    """The images lie behind a link out of the root, which the full model's process has to follow, too."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "part").symlink_to(home / "data" / "images")
    asked = questions(tmp_path, count=4, without_answer=(0, 1, 2), split="test", image="part/image_000.png")
    experiment = tiny(
        data={"images": str(tmp_path / "images"), "questions": asked, "follow_links": True},
        store={"path": str(tmp_path / "store")}, prune__methods=[{"name": "keep_all"}],
    )  # fmt: skip
    invoke(experiment, tmp_path, stage1, "extract")
    caplog.clear()
    invoke(experiment, tmp_path, stage2, "parity", "--limit", 3)
    (said,) = taken(caplog)
    assert "3 of 4 questions are taken, about 1 of 1 images: 3 of 4 in test, as --limit is 3" in said
    parity = json.loads((experiment.run_dir / "parity.json").read_text())
    assert parity["identical"] is True and parity["n_questions"] == 3 and parity["n_scored"] == 0
    assert all(mode["accuracy"] is None and mode["reason"] is None for mode in parity["modes"].values())
    invoke(experiment, tmp_path, stage2, "parity")
    parity = json.loads((experiment.run_dir / "parity.json").read_text())
    assert parity["n_scored"] == 1 and {mode["accuracy"] for mode in parity["modes"].values()} <= {0.0, 1.0}


@pytest.mark.parametrize("command", ["eval", "train"])
def test_a_split_without_any_answer_is_refused(tiny, tmp_path, capsys, command):
    asked = questions(tmp_path, without_answer=range(18))
    invoke(tiny(data__questions=asked, **KEEP), tmp_path, stage2, command, expect=2)
    assert "expected answered questions in the" in capsys.readouterr().err


@pytest.mark.parametrize(("group", "command"), [(stage1, "extract --dry-run"), (stage2, "eval")])
def test_an_answer_that_is_no_choice_is_said_before_and_when_it_is_scored(tiny, tmp_path, caplog, group, command):
    asked = questions(tmp_path, split="test", answers=["purple"])
    invoke(tiny(data__questions=asked, prune__methods=[{"name": "keep_none"}]), tmp_path, group, *command.split())
    assert "18 of them have an answer that is not among their choices" in caplog.text
    assert "q0: 'purple' is none of 'red, green, blue'" in caplog.text


def test_no_control_character_of_an_id_or_an_answer_reaches_the_terminal(tiny, tmp_path, caplog):
    rows = [
        {"question_id": "\x1b[2Ja", "image": "image_000.png", "question": "?"},
        {
            "question_id": "\x1b[2Jb",
            "image": "image_000.png",
            "question": "?",
            "answers": ["\x1b[2Jred"],
            "choices": ["\x1b[2J"],
        },
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    invoke(tiny(data__questions=str(tmp_path / "questions.jsonl")), tmp_path, stage1, "extract", "--dry-run")
    assert "cannot be scored" in caplog.text and "ranking cannot be right" in caplog.text and "\x1b" not in caplog.text


def test_answers_that_are_choices_are_not_mentioned(tiny, tmp_path, caplog):
    evaluate.run(tiny(data__questions=questions(tmp_path, split="test"), prune__methods=[{"name": "keep_none"}]))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith("18 of 18 questions are taken, about 9 of 9 images: all 18 in test")


def test_a_misspelt_field_is_refused_before_anything_is_asked(tiny, tmp_path, capsys):
    asked = questions(tmp_path, anwsers=["red"])
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in r.items() if k != "answers"}) + "\n" for r in rows)
    )
    for group, command in ((stage1, "extract"), (stage2, "eval")):
        invoke(tiny(data__questions=asked), tmp_path, group, command, expect=2)
        assert "line 1: unknown field 'anwsers': did you mean 'answers'?" in capsys.readouterr().err


def test_reasons_are_counted_and_the_commonest_three_listed():
    assert left_out([]) == []
    assert left_out(["b", "a", "a", "c", "d"]) == ["5 questions were left out: a (2), b (1), c (1), …."]


@pytest.mark.parametrize("command", ["train", "eval", "sweep", "parity", "analyse", "calibrate"])
def test_where_no_image_could_be_encoded_every_command_says_so_and_what_to_do(tiny, tmp_path, capsys, command):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(9):
        (images / f"image_{number:03d}.png").write_bytes(b"not an image")
    data = {"images": str(images), "questions": questions(tmp_path)}
    experiment = tiny(
        data=data, store={"path": str(tmp_path / "store")}, extract={"max_failures": 9}, prune__budgets=[4],
        prune__methods=[{"name": "learned_scorer" if command == "train" else "uniform_grid"}],
    )  # fmt: skip
    invoke(experiment, tmp_path, stage1, "extract")
    capsys.readouterr()
    invoke(experiment, tmp_path, stage2, command, *(["--keep", 4] if command == "calibrate" else []), expect=3)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: expected a question whose image was encoded, none of ")
    assert "not_an_image" in said and "make extract ARGS=--retry-failed" in said


@pytest.mark.parametrize("command", ["eval", "train", "analyse"])
def test_a_config_without_questions_is_told_so_and_not_that_a_split_is_empty(tiny, tmp_path, capsys, command):
    invoke(tiny(data__questions=None, **KEEP), tmp_path, stage2, command, expect=2)
    said = capsys.readouterr().err
    assert "data.questions is not set" in said and "split" not in said


@pytest.mark.parametrize("command", ["eval", "sweep", "analyse", "analyse --sweep", "show image_002.png"])
def test_no_budget_is_refused_unless_every_method_takes_none(tiny, tmp_path, capsys, command):
    some = {"prune__budgets": [], "sweep__methods": "configured"}
    invoke(tiny(**KEEP | some), tmp_path, stage2, *command.split(), expect=2)
    assert "expected a budget for uniform_grid, prune.budgets is empty: name one" in capsys.readouterr().err
    if command == "eval":
        invoke(tiny(**KEEP | some | {"prune__methods": [{"name": "keep_all"}]}), tmp_path, stage2, command)


def test_a_store_is_either_replaced_or_added_to():
    with pytest.raises(click.UsageError, match="expected --overwrite or --append, got both"):
        stage1.main(["extract", "--overwrite", "--append"], standalone_mode=False)
