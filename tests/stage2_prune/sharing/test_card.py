"""The card of a trained pruner: what it says is what is recorded, and its command trains the same weights."""

import hashlib
import json
import shlex
import shutil

import pytest
import yaml

from configs.cli import run_to_exit_code
from stage2_prune.cli import group
from tests.stage2_prune.sharing.conftest import LABEL, METHOD, written
from tests.stage2_prune.test_trained_weights import run


def card(*arguments):
    return run_to_exit_code(lambda: group.main(["card", *map(str, arguments)], standalone_mode=False))


def head_of(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_train_writes_the_card_and_card_adds_the_results_with_their_intervals(shared):
    folder = shared / "run" / "pruner" / LABEL
    before = (folder / "README.md").read_text()
    assert "| val " in before and "| test " not in before
    assert card(folder) == 0
    text = (folder / "README.md").read_text()
    rows = json.loads((shared / "run/eval/summary.json").read_text())["results"]
    unpruned, ours = ({row["pruner"]: row for row in rows}[name] for name in ("keep_all", LABEL))
    (line,) = [line for line in text.splitlines() if line.startswith("| test ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    low, high = ours["ci95"]
    assert cells == [
        "test", "4", "original", f"{ours['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{unpruned['accuracy']:.3f}",
        "6", "3", "eval",
    ]  # fmt: skip
    record = json.loads((folder / "pruner.json").read_text())
    low, high = record["training"]["val_ci95"]
    assert low <= record["training"]["val_accuracy"] <= high and f"{low:.3f} to {high:.3f}" in text
    assert "Budgets of 2 to 12 tokens" in text and record["belongs_to"]["language_model"] in text


def test_the_head_is_what_a_hub_reads(shared):
    assert head_of(shared / "run" / "pruner" / LABEL) == {
        "license": "apache-2.0",
        "library_name": "encode-once",
        "tags": ["visual-token-pruning", "learned_scorer"],
        "datasets": ["lmms-lab/GQA"],
    }


def test_the_card_names_data_licences_and_every_image_of_the_training_by_its_digest(shared, home):
    folder = shared / "run" / "pruner" / LABEL
    text = (folder / "README.md").read_text()
    assert "come from lmms-lab/GQA, TextVQA, training split." in text
    assert "The weights: apache-2.0. Images and questions: cc-by-4.0." in text
    rows = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "val"} and len(rows) == 6
    for row in rows:
        assert row["sha256"] == hashlib.sha256((home / "data" / "images" / row["image"]).read_bytes()).hexdigest()
    data = json.loads((folder / "pruner.json").read_text())["training"]["data"]
    images = sorted(row["sha256"] for row in rows if row["split"] == "train")
    assert data["splits"]["train"]["images_sha256"] == hashlib.sha256("\n".join(images).encode()).hexdigest()
    assert data["splits"]["train"]["images_sha256"] in text


def test_the_command_of_the_card_trains_the_same_weights(shared, home, tmp_path):
    folder = shared / "run" / "pruner" / LABEL
    (line,) = [one for one in (folder / "README.md").read_text().splitlines() if one.startswith("encode-once train")]
    places = {
        "config.yaml": folder / "config.yaml",
        "RUN": tmp_path / "again",
        "IMAGES": home / "data" / "images",
        "QUESTIONS": home / "data" / "questions.jsonl",
        "STORE": home / "store",
        "CHECKPOINT": home / "checkpoint",
    }
    words = [str(places.get(word, word)) for word in shlex.split(line)[1:]]
    assert run_to_exit_code(lambda: group.main(words, standalone_mode=False)) == 0
    again = tmp_path / "again" / "pruner" / LABEL
    for name in ("weights.safetensors", "log.jsonl"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_licence_is_unknown_until_it_is_stated_and_can_be_stated_later(home, tmp_path, trained):
    from tests.stage2_prune.test_trained_weights import config

    assert run("train", config(home, tmp_path, tmp_path / "run", METHOD)) == 0
    folder = tmp_path / "run" / "pruner" / LABEL
    assert head_of(folder)["license"] == "unknown" and "datasets" not in head_of(folder)
    assert "The config does not say where the data come from." in (folder / "README.md").read_text()
    assert card(folder, "--licence", "mit", "--data-licence", "cc0-1.0") == 0
    assert head_of(folder)["license"] == "mit"
    assert "The weights: mit. Images and questions: cc0-1.0." in (folder / "README.md").read_text()


def test_another_licence_or_name_of_the_data_is_no_other_training(home, tmp_path, shared, capsys):
    path = written(home, tmp_path, tmp_path / "run", METHOD, data__datasets=[], data__licence="other")
    shutil.copytree(shared / "run" / "pruner", tmp_path / "run" / "pruner")
    assert run("train", path, "--train.licence", "mit") == 0
    assert "is trained already" in capsys.readouterr().err


def test_results_of_another_run_are_shown_when_it_is_named(shared, trained):
    assert card(trained) == 0 and "| test " not in (trained / "README.md").read_text()
    assert card(trained, "--results", shared / "run") == 0 and "| test " in (trained / "README.md").read_text()


def test_the_card_of_an_earlier_version_says_what_was_not_recorded(trained):
    record = json.loads((trained / "pruner.json").read_text())
    for key in ("data", "versions", "val_ci95"):
        del record["training"][key]
    (trained / "pruner.json").write_text(json.dumps({key: record[key] for key in record.keys() - {"crc32c"}}))
    assert card(trained) == 0
    text = (trained / "README.md").read_text()
    assert "recorded by an earlier version, without its images" in text and "Versions: unknown." in text


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"results": 3}', b"[" * 100_000])
def test_a_damaged_summary_is_named(shared, trained, tmp_path, capsys, content):
    (tmp_path / "other" / "eval").mkdir(parents=True)
    (tmp_path / "other" / "eval" / "summary.json").write_bytes(content)
    assert card(trained, "--results", tmp_path / "other") == 4
    assert "summary.json is damaged" in capsys.readouterr().err


def test_a_folder_without_a_pruner_has_no_card(tmp_path, capsys):
    assert card(tmp_path) == 5 and card(tmp_path / "nowhere") == 5
    assert "expected a folder with pruner.json" in capsys.readouterr().err
    assert not (tmp_path / "README.md").exists()
